"""What it costs to have 100,000 orders waiting: `python -m bench.waiting`.

One worker process serves two systems. "bench" has the orders that wait; its remote is slow. "prompt" has a quick one
and is handed a new order every second, as by a webhook. Two ways to wait:

  due         every order may go, and stands behind the window that dispatch keeps in flight
  signal      every order waits for something that does not come

Shown is what the broker and the worker hold before, and while the orders wait, and how long a new "prompt" order takes
from its intake to the record of its first step.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from redis import Redis
from rich.console import Console
from rich.table import Table

from bench.fleet import Producer, make_tables, plan_of, register_steps, settings_of, work_until_told
from bench.place import Place, this_place
from bench.processes import Child, RunFailed
from bench.servers import SERVER, start_remote, surroundings
from ledger import queries
from ledger.connection import Ledger
from workers.settings import Settings

WAITING, PROMPT = "bench", "prompt"
FIRST_STEP = f"{PROMPT}.fetch"
SINGLES = 20
"""New orders before anything waits, to compare with."""
PATIENCE = 60.0
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Look:
    """What is held at one moment: bytes in the broker, messages there (delivered ones too), bytes of the worker."""

    broker: int
    messages: int
    worker: int


@dataclass(frozen=True, slots=True)
class Result:
    """One case. Latencies in seconds, of new "prompt" orders; `looks` a second apart, while the orders wait."""

    database: str
    way: str
    alone: list[float]
    before: Look
    beside: list[float]
    looks: list[Look]


class Scene:
    """A fleet at work, and hands to give it orders."""

    def __init__(self, place: Place, settings: Settings, worker: Child, ledger: Ledger) -> None:
        self._producer = Producer(settings)
        self._plan = plan_of(place.steps, system=PROMPT)
        self._waiting_plan = plan_of(place.steps, system=WAITING)
        self._worker = worker
        self._ledger = ledger
        self._numbers = itertools.count(1)
        self._broker = Redis.from_url(place.broker)

    def have_waiting(self, orders: int, way: str) -> None:
        """Take in so many orders that wait in this way."""
        plan = self._waiting_plan
        if way == "signal":
            plan = (replace(plan[0], awaits="nothing"), *plan[1:])
        self._producer.take_in(range(1, orders + 1), plan, WAITING)

    def new_order(self) -> float:
        """Seconds until the first step of a new order is recorded. Raises `RunFailed` if that takes too long."""
        number = next(self._numbers)
        began = time.monotonic()
        order = self._producer.take_in(range(number, number + 1), self._plan, PROMPT)[0]
        while not queries.has_tried(self._ledger, order, FIRST_STEP):
            self._worker.check()
            if time.monotonic() - began > PATIENCE:
                raise RunFailed(f"a new order waited for {PATIENCE:g} s")
            time.sleep(0.002)
        return time.monotonic() - began

    def look(self) -> Look:
        """What is held now."""
        lengths = [self._broker.llen(queue) for queue in (WAITING, PROMPT)]
        messages = sum(int(length) for length in lengths) + int(self._broker.hlen("unacked"))
        return Look(self._broker.info("memory")["used_memory"], messages, self._worker.memory().pss)


@contextmanager
def scene(database: str, slow_ms: float, postgresql: str) -> Iterator[Scene]:
    """Everything for one case, gone afterwards."""
    with (
        surroundings(database, 0.0, postgresql=postgresql, work="four", threads=16) as (place, _),
        start_remote(Path(place.folder), slow_ms) as slow,
    ):
        ledger = make_tables(place.database)
        worker = Child(
            "bench.waiting",
            "worker",
            "--slow",
            slow.url,
            environment=place.environment(),
            log=Path(place.folder) / "worker.log",
        )
        try:
            worker.wait_until_ready()
            yield Scene(place, _settings(place, slow.url), worker, ledger)
        finally:
            worker.stop()
            ledger.close()


def _settings(place: Place, slow: str) -> Settings:
    return settings_of(place, {WAITING: slow, PROMPT: place.remote})


def measure(database: str, way: str, *, orders: int, seconds: float, slow_ms: float, postgresql: str) -> Result:
    """One case. Raises `RunFailed` when the fleet does not do its work."""
    with scene(database, slow_ms, postgresql) as at:
        alone = [at.new_order() for _ in range(SINGLES)]
        before = at.look()
        at.have_waiting(orders, way)
        beside, looks = [], []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            beside.append(at.new_order())
            looks.append(at.look())
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
        return Result(database, way, alone, before, beside, looks)


def table(results: Sequence[Result], orders: int) -> Table:
    """All cases. "at first" and "at last" are a tenth of the time each, so that what grows is seen to."""
    shown = Table(title=f"{orders:,} orders waiting")
    for heading in (
        "database",
        "way",
        "new order ms: alone",
        "beside, median",
        "worst",
        "worker MiB: before",
        "at first",
        "at last",
        "broker MiB: before",
        "at first",
        "at last",
        "most messages",
    ):
        shown.add_column(heading, justify="left" if heading in ("database", "way") else "right")
    for one in results:
        shown.add_row(one.database, one.way, *_figures(one))
    return shown


def _figures(one: Result) -> list[str]:
    tenth = max(1, len(one.looks) // 10)
    first, last = one.looks[:tenth], one.looks[-tenth:]
    memory = [
        f"{size / _MIB:.1f}"
        for sizes in (
            [one.before.worker],
            [look.worker for look in first],
            [look.worker for look in last],
            [one.before.broker],
            [look.broker for look in first],
            [look.broker for look in last],
        )
        for size in (statistics.median(sizes),)
    ]
    latencies = (statistics.median(one.alone), statistics.median(one.beside), max(one.beside))
    return [*(f"{1000 * value:.0f}" for value in latencies), *memory, str(max(look.messages for look in one.looks))]


def main(words: Sequence[str] | None = None) -> int:
    """The command line; with `worker`, the process that is measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description=__doc__.partition("\n")[0])
    parser.add_argument("role", nargs="?", choices=("measure", "worker"), default="measure", help=argparse.SUPPRESS)
    parser.add_argument("--slow", help=argparse.SUPPRESS)
    parser.add_argument("--orders", type=int, default=100_000, help="orders that wait (100000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to look (60)")
    parser.add_argument("--slow-ms", type=float, default=500.0, help="ms that a call of the slow remote takes (500)")
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--ways", nargs="+", choices=("due", "signal"), default=["due", "signal"])
    parser.add_argument("--postgresql", default=SERVER, help="a server in which databases may be made")
    asked = parser.parse_args(words)
    if asked.role == "worker":
        place = this_place()
        for system in (WAITING, PROMPT):
            register_steps(place.steps, system=system)
        work_until_told(_settings(place, asked.slow))
        return 0
    results = [
        measure(
            database,
            way,
            orders=asked.orders,
            seconds=asked.seconds,
            slow_ms=asked.slow_ms,
            postgresql=asked.postgresql,
        )
        for database, way in itertools.product(asked.databases, asked.ways)
    ]
    Console(width=None if sys.stdout.isatty() else 150).print(table(results, asked.orders))
    return 0


if __name__ == "__main__":
    sys.exit(main())
