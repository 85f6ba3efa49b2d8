"""The least that could receive webhooks: a Flask application with one insert and one push, and no proof of the sender.

`DATABASE` is a path of SQLite or a conninfo of PostgreSQL, `BROKER` a Redis URL. For gunicorn, like ours."""

import os
import sqlite3
import threading
from typing import Any

import psycopg
from flask import Flask, Response, request
from redis import Redis

DATABASE, BROKER = os.environ["DATABASE"], os.environ["BROKER"]
POSTGRESQL = DATABASE.startswith("postgresql")
TABLE = "CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, body TEXT NOT NULL)"
MARK = "%s" if POSTGRESQL else "?"
INSERT = f"INSERT INTO events (id, body) VALUES ({MARK}, {MARK}) ON CONFLICT DO NOTHING"

_own = threading.local()


def create_app() -> Flask:
    """The application; its table is made here."""
    _connection().execute(TABLE)
    app = Flask("minimal")
    redis = Redis.from_url(BROKER)

    @app.post("/webhooks/<system>/<account>")
    def receive(system: str, account: str) -> Response:
        document = request.get_json()
        _connection().execute(INSERT, (document["id"], request.get_data(as_text=True)))
        redis.lpush("queue", document["id"])
        return Response('{"status": "ok"}', mimetype="application/json")

    return app


def _connection() -> Any:
    """One a thread, in autocommit."""
    if not hasattr(_own, "connection"):
        if POSTGRESQL:
            _own.connection = psycopg.connect(DATABASE, autocommit=True)
        else:
            _own.connection = sqlite3.connect(DATABASE, isolation_level=None, timeout=30)
            _own.connection.execute("PRAGMA journal_mode = WAL")
    return _own.connection
