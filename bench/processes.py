"""Processes of a contender: started in a session of their own, spoken to by lines, weighed through /proc (Linux).

A session holds a process and all its descendants, so its figures include prefork children and helpers.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 10.0

_PROC = Path("/proc")
_SESSION, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 3, 11, 12, 13, 14  # after the name; see proc(5)
_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)


class RunFailed(Exception):
    """A run cannot be measured: a process ended, did not start, or did not do what it should."""


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. `pss` counts a page that several processes share once in all; `rss`, once for each."""

    rss: int
    pss: int

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.rss + other.rss, self.pss + other.pss)


class Child:
    """`python -m <module> <words>` with the interpreter that runs the harness.

    `producer` says what its CPU time counts as; what it writes to its error stream is kept in `log`."""

    def __init__(self, *words: str, environment: dict[str, str], log: Path, producer: bool = False) -> None:
        self.producer = producer
        self._log = log
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_line = ""
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    @property
    def last_line(self) -> str:
        """The last that it said, or nothing."""
        return self._last_line

    def wait_until_ready(self) -> str:
        """What it says after `ready`. Raises `RunFailed` if it does not say so in time."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check()
            with suppress(queue.Empty):
                word, _, rest = self._lines.get(timeout=0.1).partition(" ")
                if word == "ready":
                    return rest
        raise RunFailed(f"not ready within {START_SECONDS:g} s: {self._words()}")

    def tell(self, line: str) -> None:
        """Write one line to its input."""
        stream = self._process.stdin
        assert stream is not None
        stream.write(f"{line}\n")
        stream.flush()

    def check(self) -> None:
        """Raises `RunFailed`, with the end of its log, if it has ended."""
        if self._process.poll() is not None:
            raise RunFailed(f"ended with {self._process.returncode}: {self._words()}")

    def cpu_seconds(self) -> float:
        """CPU time of its session so far, user and system, ended children included."""
        columns = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
        return sum(int(stat[column]) for _, stat in self._session() for column in columns) / _TICKS

    def memory(self) -> Memory:
        """Of its session, now."""
        return sum((_memory(pid) for pid, _ in self._session()), Memory(0, 0))

    def stop(self) -> None:
        """End the session: its input ends and it gets SIGTERM, and what is left after a while is killed."""
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, _ in self._session():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._last_line = line.rstrip("\n")
            if not self._last_line.startswith("done"):
                self._lines.put(self._last_line)

    def _session(self) -> Iterator[tuple[int, list[str]]]:
        """Process ids, and what /proc/<pid>/stat has after the name, which may itself hold blanks."""
        for entry in _PROC.iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(*_GONE):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[_SESSION]) == self._process.pid:
                    yield int(entry.name), stat

    def _words(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return f"{' '.join(map(str, self._process.args[1:]))}\n{text[-4000:]}"  # type: ignore[index]  # always a list here


def _memory(pid: int) -> Memory:
    with suppress(*_GONE, PermissionError):
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
        sizes = {name: int(size.split()[0]) * 1024 for name, _, size in (line.partition(":") for line in lines)}
        return Memory(sizes["Rss"], sizes["Pss"])
    return Memory(0, 0)
