"""Processes of the fleet for a test, forked from one that has imported everything: most of what starting a worker costs
is imports, and a flow starts dozens. How a process starts from nothing is tests/flows/test_up.py's."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import connection
from pathlib import Path
from typing import cast

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["workers.cli", "workers.worker", "workers.beat", "celery.bin.worker", "celery.beat"])


class ForkedProcess:
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
    with open(os.devnull) as nothing, open(log, "w", buffering=1) as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        with redirect_stdout(output), redirect_stderr(output):
            if command[0].endswith(".py"):
                sys.argv = command
                runpy.run_path(command[0], run_name="__main__")
            else:
                sys.argv = ["orderfleet", *command]
                runpy.run_module("workers", run_name="__main__")
