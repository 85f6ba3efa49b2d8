"""The harness: one contender at a time in fresh surroundings, interleaved and repeated; medians, ratios, checks."""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.contender import COMPARATORS, Contender
from bench.fleet import FleetContender
from bench.processes import Child, Memory, RunFailed
from bench.servers import SERVER, Remote, surroundings
from bench.work import WORKS, calls_of

CONTENDERS: dict[str, Callable[[], Contender]] = {
    "fleet": lambda: FleetContender("fleet"),
    "fleet-documents": lambda: FleetContender("fleet-documents", documents=True),
    **COMPARATORS,
}
"""By name."""

POLL_SECONDS = 0.002
"""How often the harness looks whether orders are done: what latencies are exact to."""
SETTLE_SECONDS = 0.3
"""After the last order: acknowledgements still on their way belong to the orders, too."""
PAUSE_SECONDS = 0.05
"""Between single orders, so that each meets an idle fleet."""
_PACKAGES = ("celery", "kombu", "procrastinate", "psycopg", "redis", "requests", "sqlalchemy", "urllib3")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. CPU in milliseconds per order, rate in orders per second, latency in milliseconds, memory in MiB."""

    cpu: float
    cpu_producer: float
    cpu_worker: float
    rate: float
    latency: float
    pss: float
    rss: float


@dataclass(frozen=True, slots=True)
class Case:
    """What was measured: a contender, the kind of its database, and the milliseconds that a call takes."""

    contender: str
    database: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    orders: int
    singles: int
    warm_up: int
    repetitions: int
    latencies: tuple[float, ...]
    databases: tuple[str, ...]
    contenders: tuple[str, ...]
    work: str
    threads: int
    limit: float
    postgresql: str
    json: Path | None


# -- one run ----------------------------------------------------------------------------------------------------------


class Run:
    """A started contender, its orders counted."""

    def __init__(self, contender: Contender, children: Sequence[Child], limit: float) -> None:
        self._contender = contender
        self._children = children
        self._limit = limit
        self.made = 0

    def take(self, count: int) -> float:
        """Have so many orders done; returns the seconds it took. Raises `RunFailed` when the limit is passed."""
        orders = range(self.made + 1, self.made + count + 1)
        self.made += count
        begun = time.monotonic()
        self._contender.produce(orders)
        while (done := self._contender.done_count()) < self.made:
            if time.monotonic() - begun > self._limit:
                raise RunFailed(f"{self._contender.name}: {done} of {self.made} orders done in {self._limit:g} s")
            for child in self._children:
                child.check()
            time.sleep(POLL_SECONDS)
        return time.monotonic() - begun

    def single(self) -> float:
        """The seconds that one order takes when nothing else is to be done."""
        time.sleep(PAUSE_SECONDS)
        return self.take(1)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far: of producers, of workers."""
        seconds = [(child.producer, child.cpu_seconds()) for child in self._children]
        return sum(s for producer, s in seconds if producer), sum(s for producer, s in seconds if not producer)

    def memory(self) -> Memory:
        """Of all its processes together."""
        return sum((child.memory() for child in self._children), Memory(0, 0))


def measure(case: Case, options: Options) -> Sample:
    """One run of `case` in surroundings of its own. Raises `RunFailed` if anything was lost, or done twice."""
    with surroundings(
        case.database,
        case.latency_ms,
        postgresql=options.postgresql,
        work=options.work,
        threads=options.threads,
    ) as (place, remote):
        contender = CONTENDERS[case.contender]()
        try:
            run = Run(contender, contender.start(place), options.limit)
            sample = _sample(run, options)
            contender.check()
            _check_calls(contender, remote, calls_of(place.steps, run.made))
            return sample
        finally:
            contender.stop()


def _sample(run: Run, options: Options) -> Sample:
    run.take(options.warm_up)
    latency = statistics.median(run.single() for _ in range(options.singles))
    time.sleep(SETTLE_SECONDS)
    before = run.cpu()
    seconds = run.take(options.orders)
    time.sleep(SETTLE_SECONDS)
    producer, worker = (1000 * (b - a) / options.orders for a, b in zip(before, run.cpu(), strict=True))
    memory = run.memory()
    return Sample(
        cpu=producer + worker,
        cpu_producer=producer,
        cpu_worker=worker,
        rate=options.orders / seconds,
        latency=1000 * latency,
        pss=memory.pss / _MIB,
        rss=memory.rss / _MIB,
    )


def _check_calls(contender: Contender, remote: Remote, wanted: dict[str, int]) -> None:
    counts = remote.counts()
    if counts["calls"] != wanted or counts["twice"] or counts["failed"]:
        raise RunFailed(f"{contender.name} made {counts}, and not {wanted}")


# -- all runs ---------------------------------------------------------------------------------------------------------


def cases(options: Options) -> Iterator[Case]:
    """One repetition: the contenders side by side under each condition."""
    for database, latency_ms, name in itertools.product(options.databases, options.latencies, options.contenders):
        if database in CONTENDERS[name]().databases:
            yield Case(name, database, latency_ms)


def measure_all(options: Options, console: Console) -> dict[Case, list[Sample]]:
    """Every case as often as asked for; every second repetition goes backwards, so that nobody is always first."""
    samples: dict[Case, list[Sample]] = {case: [] for case in cases(options)}
    for repetition in range(options.repetitions):
        for case in list(samples)[:: -1 if repetition % 2 else 1]:
            sample = measure(case, options)
            samples[case].append(sample)
            console.print(
                f"{repetition + 1}/{options.repetitions} {case.contender} {case.database} {case.latency_ms:g} ms: "
                f"{sample.cpu:.2f} ms CPU an order, {sample.rate:.1f} orders/s",
                highlight=False,
            )
    return samples


def medians(samples: dict[Case, list[Sample]]) -> dict[Case, Sample]:
    """The median of each figure by itself."""
    return {
        case: Sample(**{f.name: statistics.median(getattr(s, f.name) for s in several) for f in fields(Sample)})
        for case, several in samples.items()
    }


# -- what is shown ----------------------------------------------------------------------------------------------------


def table(results: dict[Case, Sample], database: str, latency_ms: float) -> Table:
    """The contenders under one condition, beside the plain chain and beside procrastinate."""
    shown = Table(title=f"{database}, {latency_ms:g} ms a call")
    shown.add_column("contender")
    for heading in (
        "CPU ms/order",
        "producer",
        "workers",
        "CPU / chain",
        "CPU / procrastinate",
        "orders/s",
        "rate / chain",
        "rate / procrastinate",
        "one order ms",
        "PSS MiB",
        "RSS MiB",
    ):
        shown.add_column(heading, justify="right")
    chain = results.get(Case("chain", database, latency_ms))
    procrastinate = results.get(Case("procrastinate", database, latency_ms))
    for case, sample in results.items():
        if (case.database, case.latency_ms) == (database, latency_ms):
            shown.add_row(case.contender, *_figures(sample, chain, procrastinate))
    return shown


def _figures(sample: Sample, chain: Sample | None, procrastinate: Sample | None) -> list[str]:
    return [
        f"{sample.cpu:.2f}",
        f"{sample.cpu_producer:.2f}",
        f"{sample.cpu_worker:.2f}",
        _ratio(sample.cpu, chain.cpu if chain else None),
        _ratio(sample.cpu, procrastinate.cpu if procrastinate else None),
        f"{sample.rate:.1f}",
        _ratio(sample.rate, chain.rate if chain else None),
        _ratio(sample.rate, procrastinate.rate if procrastinate else None),
        f"{sample.latency:.1f}",
        f"{sample.pss:.0f}",
        f"{sample.rss:.0f}",
    ]


def _ratio(value: float, base: float | None) -> str:
    return f"{value / base:.2f}" if base else "-"


def as_json(options: Options, samples: dict[Case, list[Sample]]) -> str:
    """Everything measured, with what it was measured on."""
    results = medians(samples)
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
    asked = asdict(options) | {
        "json": None,
        "postgresql": None,
    }  # where it was written to, and a password perhaps
    cases = [
        asdict(case) | {"median": asdict(results[case]), "samples": [asdict(sample) for sample in several]}
        for case, several in samples.items()
    ]
    return json.dumps({"machine": machine, "options": asked, "cases": cases}, indent=2)


# -- the command line -------------------------------------------------------------------------------------------------


def options_from(words: Sequence[str] | None = None) -> Options:
    """The options; wrong ones end the process with a usage message."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures contenders side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--orders", type=_positive, default=300, help="orders of a run")
    parser.add_argument("--singles", type=_positive, default=20, help="single orders for the idle latency")
    parser.add_argument("--warm-up", type=_positive, default=20, help="orders before anything is measured")
    parser.add_argument("--repetitions", type=_positive, default=3, help="runs of each case")
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.0, 20.0], help="ms a call")
    parser.add_argument("--databases", nargs="+", choices=_DATABASES, default=list(_DATABASES))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--work", choices=list(WORKS), default="four", help="the calls of an order, see bench/work.py")
    parser.add_argument("--threads", type=_positive, default=16, help="for contenders that work with threads")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a run's orders may take")
    parser.add_argument("--postgresql", default=SERVER, help="a server in which databases may be made")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    asked: dict[str, Any] = vars(parser.parse_args(words))
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    return Options(**values)


_DATABASES = ("sqlite", "postgresql")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} is not positive")
    return number


def main(words: Sequence[str] | None = None) -> int:
    """Measure and show; 0 when everything ran and was complete, 1 with the reason when not."""
    options = options_from(words)
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        samples = measure_all(options, console)
    except RunFailed as failure:
        Console(stderr=True).print(f"bench: {failure}", style="red", markup=False, highlight=False)
        return 1
    results = medians(samples)
    for database, latency_ms in itertools.product(options.databases, options.latencies):
        console.print(table(results, database, latency_ms))
    if options.json is not None:
        options.json.write_text(as_json(options, samples) + "\n")
    return 0
