"""What every flow test that kills workers needs: where to kill, one worker that dies there, and a reaper for storms."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from ledger import queries
from tests.flows.harness import Fleet, wait_for
from tests.flows.processes import ForkedProcess

ON_SQLITE = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
ALL_MOMENTS = os.environ.get("KILL_MOMENTS") == "all"
"""Claim and record are the same for every system, and CloudSuite's matrix kills at each of their moments. Of the other
systems the one that is their own is met every time, after the effect and before its record; all of them with
`KILL_MOMENTS=all`."""
AT_EACH_MOMENT = pytest.mark.parametrize(
    ("ledger_url", "moment"),
    [
        ("postgresql", "effect-done"),
        *([("postgresql", "claiming"), ("sqlite", "claimed"), ("sqlite", "recorded")] if ALL_MOMENTS else []),
    ],
    indirect=["ledger_url"],
)
DYING = str(Path(__file__).with_name("dying_worker.py"))
KILL_EVERY = 3.0
"""Seconds that a worker lives in a storm, from its first sign of life."""


def storm_orders(usual: int) -> int:
    """How many orders a storm has: `usual`, or `STORM_ORDERS`."""
    return int(os.environ.get("STORM_ORDERS", usual))


def dies_at(fleet: Fleet, moment: str, more: Callable[[], Any], settled: Callable[[], bool]) -> None:
    """Let a worker run until it kills itself at `moment` (`effect-done:doshii.accept`). `more` brings orders, at first
    and whenever all are `settled`: a signal that is there before its step makes the step a fused link, which is not
    claimed by itself."""
    more()
    dying = fleet.start(DYING, DIE_AT=moment)

    def dead() -> bool:
        if settled():
            more()
        return dying.poll() is not None

    wait_for(dead, lambda: f"{moment} {fleet.why()}")
    assert dying.returncode == -signal.SIGKILL, f"{moment} {fleet.why()}"


class Reaper:
    """Kills one of `count` workers every three seconds, and starts another. Each lives for three seconds from its first
    sign of life: where starting one takes longer than that, nothing would ever be done."""

    def __init__(self, fleet: Fleet, count: int) -> None:
        self.kills = 0
        self._fleet = fleet
        self._workers = [fleet.start("worker") for _ in range(count)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._reap, daemon=True)

    def _reap(self) -> None:
        dice = random.Random(7)
        self._await_life(set())
        while not self._stop.wait(KILL_EVERY):
            victim = dice.randrange(len(self._workers))
            self._fleet.kill(self._workers[victim])
            self.kills += 1
            before = self._alive()
            self._workers[victim] = self._fleet.start("worker")
            self._await_life(before)

    def _await_life(self, before: set[str]) -> None:
        while not self._alive() - before and not self._stop.wait(0.1):
            pass

    def _alive(self) -> set[str]:
        with suppress(DBAPIError):  # the ledger is busy, or away; asked again soon
            return {row["name"] for row in queries.live_workers(self._fleet.ledger)}
        return set()

    @contextmanager
    def at_work(self) -> Iterator["Reaper"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(15)


def killed(process: ForkedProcess, fleet: Fleet, seconds: float = 60) -> None:
    """Wait until a process that something kills is dead."""
    assert process.wait(seconds) == -signal.SIGKILL, fleet.why()
