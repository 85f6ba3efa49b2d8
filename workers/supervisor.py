"""Child processes: started, started again when they die, and stopped together. Knows nothing of what they do.

Each child leads a process group (and session) of its own, so that a Ctrl-C in the terminal reaches only us and the
stop is ours to order; what a child started itself goes with its group."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from workers import guard

KEPT_LOGS = 3
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY = 30.0
"""Seconds that a child must live for its earlier deaths to be forgotten."""

_LAST_WORDS = 200
_LOG_TAIL = 4096


def pause_before(deaths: int) -> float:
    """Seconds until a child that died so often in a row is started again."""
    return float(min(FIRST_PAUSE * 2 ** min(deaths - 1, 10), LONGEST_PAUSE))


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: a name for people, arguments with the program first, and the file that gets its output."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Status:
    """A child as people see it. `again_in`: seconds until it is started again, if it is not running."""

    name: str
    pid: int | None
    restarts: int
    again_in: float | None


@dataclass(slots=True)
class _Child:
    command: Command
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float | None = None
    deaths: int = 0
    restarts: int = 0
    stopping: bool = field(default=False)


class Supervisor:
    """Starts and tends children. `say` gets a sentence for every death; `keep_open` are descriptors that the guard
    holds on to (a lock that must outlive us until the last child has gone)."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        keep_open: Collection[int] = (),
    ) -> None:
        self._say = say
        self._clock = clock
        self._children: dict[str, _Child] = {}
        self._guard = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )

    def start(self, command: Command) -> None:
        """Start a child and keep it running. Raises `OSError` if there is no such program."""
        child = self._children[command.name] = _Child(command)
        self._launch(child)

    def tend(self) -> None:
        """See who died, and start who is due: call it several times a second."""
        for child in self._children.values():
            if child.process is not None and child.process.poll() is not None:
                self._bury(child, child.process)
            if child.start_at is not None and self._clock() >= child.start_at and not child.stopping:
                child.restarts += 1
                self._launch(child)

    def statuses(self) -> list[Status]:
        """All children, in the order of their start."""
        return [self._status(child) for child in self._children.values()]

    def pid(self, name: str) -> int | None:
        """The process id of a running child."""
        process = self._children[name].process
        return None if process is None else process.pid

    def ask_to_stop(self, names: Iterable[str] | None = None) -> None:
        """Send SIGTERM to some children, or all; they will not be started again."""
        for child in self._chosen(names):
            child.stopping = True
            child.start_at = None
            if child.process is not None:
                child.process.terminate()

    def stop(self, names: Iterable[str] | None = None, *, seconds: float) -> list[str]:
        """Stop some children, or all: SIGKILL for those that need longer than `seconds`. Their names."""
        chosen = self._chosen(names)
        self.ask_to_stop(child.command.name for child in chosen)
        until = self._clock() + seconds
        while self._alive(chosen) and self._clock() < until:
            time.sleep(0.02)
        late = self._alive(chosen)
        self._kill(chosen)
        return [child.command.name for child in late]

    def kill(self) -> None:
        """SIGKILL for all, at once."""
        for child in self._chosen(None):
            child.stopping = True
        self._kill(self._chosen(None))

    def close(self) -> None:
        """Let the guard go; call it when all children have been stopped."""
        if self._guard.stdin is not None:
            with suppress(BrokenPipeError):
                self._guard.stdin.close()
        self._guard.wait()

    def _chosen(self, names: Iterable[str] | None) -> list[_Child]:
        return list(self._children.values()) if names is None else [self._children[name] for name in names]

    def _status(self, child: _Child) -> Status:
        again_in = None if child.start_at is None else max(0.0, child.start_at - self._clock())
        return Status(
            child.command.name, None if child.process is None else child.process.pid, child.restarts, again_in
        )

    def _launch(self, child: _Child) -> None:
        command = child.command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            child.process = subprocess.Popen(  # noqa: S603 - commands come from workers/up.py
                command.arguments,
                env=command.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.started_at = self._clock()
        child.start_at = None
        self._tell_guard(f"+{child.process.pid}")

    def _bury(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        self._forget(child, process)
        if child.stopping:
            return
        steady = self._clock() - child.started_at >= STEADY
        child.deaths = 1 if steady else child.deaths + 1
        pause = pause_before(child.deaths)
        child.start_at = self._clock() + pause
        self._say(_obituary(child, process, pause))

    def _forget(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        guard.send(process.pid, signal.SIGKILL)  # what it started itself and left behind
        self._tell_guard(f"-{process.pid}")
        child.process = None

    def _alive(self, children: list[_Child]) -> list[_Child]:
        for child in children:
            if child.process is not None and child.process.poll() is not None:
                self._forget(child, child.process)
        return [child for child in children if child.process is not None]

    def _kill(self, children: list[_Child]) -> None:
        for child in self._alive(children):
            if child.process is not None:
                guard.send(child.process.pid, signal.SIGKILL)
                child.process.wait()
        self._alive(children)

    def _tell_guard(self, line: str) -> None:
        if self._guard.stdin is not None:
            with suppress(BrokenPipeError):  # somebody killed the guard: we still end our children ourselves
                self._guard.stdin.write(f"{line}\n".encode())
                self._guard.stdin.flush()


def _obituary(child: _Child, process: subprocess.Popen[bytes], pause: float) -> str:
    words = last_words(child.command.log)
    again = "" if child.deaths == 1 else f" ({child.deaths} times in a row)"
    because = f": {words}" if words and process.returncode > 0 else ""
    return (
        f"{child.command.name} (pid {process.pid}) {_how(process.returncode)}{again}{because}. "
        f"Starting it again in {pause:g} s; its log is {child.command.log}"
    )


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def last_words(log: Path) -> str:
    """The last line that a child wrote, shortened."""
    with suppress(OSError), log.open("rb") as lines:
        lines.seek(0, os.SEEK_END)
        lines.seek(max(0, lines.tell() - _LOG_TAIL))
        return _last_line(lines)
    return ""


def _last_line(lines: IO[bytes]) -> str:
    texts = [text for line in lines if (text := line.decode(errors="replace").strip())]
    return texts[-1][-_LAST_WORDS:] if texts else ""


def rotate(log: Path) -> None:
    """Put last time's log aside as `NAME.1`, and forget the oldest."""
    numbered = [log.with_name(f"{log.name}.{number}") for number in range(1, KEPT_LOGS + 1)]
    for older, newer in zip(reversed(numbered), [*reversed(numbered[:-1]), log], strict=True):
        with suppress(FileNotFoundError):
            newer.replace(older)
