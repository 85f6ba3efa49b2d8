"""Processes of the fleet for a test, forked from one that has imported everything: most of what starting a worker costs
is imports, and a flow starts dozens. How a process starts from nothing is tests/flows/test_up.py's."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import connection
from pathlib import Path
from typing import cast

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["workers.cli", "workers.worker", "workers.beat", "celery.bin.worker", "celery.beat"])


class Started:
    """A running process: what tests need of `subprocess.Popen`."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
        self._process = _FORKS.Process(target=_run, args=(command, environment, str(folder), str(log)))
        self._process.start()
        self.pid = cast(int, self._process.pid)
        self._lock = threading.Lock()  # a test's thread waits for what an imitation's thread kills

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it runs."""
        with self._lock:
            return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """The same, once it has ended. Raises `subprocess.TimeoutExpired`."""
        connection.wait([self._process.sentinel], seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), seconds)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(command: list[str], environment: dict[str, str], folder: str, log: str) -> None:
    """Be `python -m workers COMMAND`, or a script (a path ending in .py), in a process that was just forked."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if command[0].endswith(".py"):
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
    else:
        sys.argv = ["orderfleet", *command]
        runpy.run_module("workers", run_name="__main__")
