"""Where the CPU time of an order goes: `python -m bench.profile [--orders 600] [--database sqlite]`.

Runs the fleet's worker with bench/sampling.py in it and adds up its samples by the parts of the fleet that were at
work, whatever library they had do it.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.fleet import FleetContender
from bench.measure import SETTLE_SECONDS, Run
from bench.sampling import Stack
from bench.servers import SERVER, surroundings
from bench.work import WORKS

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the calls: client, requests, urllib3", ("clients.base:Client.request",)),
    ("the ERP: adapter and its statement", ("erp.sql:SqlErp",)),
    ("claim: take an order", ("ledger.records:claim",)),
    ("record: a step is done", ("ledger.records:done",)),
    ("events for Flower", ("workers.celery:Runtime.send_event", "celery.events.dispatcher:")),
    ("dispatch: what is due, and its messages", ("tasks.dispatch:Dispatcher",)),
    ("sweep and pulse", ("tasks.sweep:", "tasks.pulse:")),
    ("the rest of a step: gates, chain, claims held", ("workers.celery:", "tasks.")),
    ("Celery: messages in, threads, acknowledgements", ("",)),
)
"""A sample belongs to the first part of which a name is on its stack; names are beginnings of "module:function"."""


def by_part(samples: Counter[Stack]) -> Counter[str]:
    """CPU seconds by `PARTS`."""
    found: Counter[str] = Counter()
    for stack, seconds in samples.items():
        found[next(part for part, names in PARTS if any(name.startswith(names) for name in stack))] += seconds
    return found


def profile(
    orders: int, database: str, latency_ms: float, *, documents: bool, work: str, server: str
) -> Counter[Stack]:
    """CPU seconds of the fleet's worker by stack, while it takes so many orders through `work`."""
    with surroundings(database, latency_ms, postgresql=server, work=work, threads=16) as (place, _):
        samples = Path(place.folder) / "samples.json"
        contender = FleetContender("fleet", documents=documents, samples=samples)
        try:
            run = Run(contender, contender.start(place), limit=300.0)
            run.take(orders)
            time.sleep(SETTLE_SECONDS)
            contender.check()
        finally:
            contender.stop()
        return Counter({tuple(stack): seconds for stack, seconds in json.loads(samples.read_text())})


def table(found: Counter[str], orders: int) -> Table:
    """The parts, the dearest first."""
    shown = Table(title="CPU of the worker, what looking at it costs included")
    shown.add_column("where")
    shown.add_column("ms an order", justify="right")
    shown.add_column("%", justify="right")
    for name, seconds in found.most_common():
        shown.add_row(name, f"{1000 * seconds / orders:.2f}", f"{100 * seconds / found.total():.0f}")
    return shown


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("--orders", type=int, default=600, help="orders to profile (600)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="added to every answer of the remote (0)")
    parser.add_argument("--documents", action="store_true", help="keep documents, see bench/fleet.py")
    parser.add_argument("--work", choices=list(WORKS), default="four", help="the calls of an order (four)")
    parser.add_argument("--postgresql", default=SERVER, help="a server in which databases may be made")
    asked = parser.parse_args(words)
    samples = profile(
        asked.orders,
        asked.database,
        asked.latency_ms,
        documents=asked.documents,
        work=asked.work,
        server=asked.postgresql,
    )
    Console(width=None if sys.stdout.isatty() else 120).print(table(by_part(samples), asked.orders))
    return 0


if __name__ == "__main__":
    sys.exit(main())
