"""What a run takes place in, handed from the harness to the processes of a contender, and the lines they exchange.

A process that is up says `ready`. A producer reads `produce <first> <count>` from its input, makes that many orders
with ascending ids, and ends when its input does. A contender that keeps no record says `done <count>` after each
order instead, with all it has done so far.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bench.work import WORKS, Step

_VARIABLE = "BENCH_PLACE"


@dataclass(frozen=True, slots=True)
class Place:
    """One run's surroundings. `database` is a SQLAlchemy URL, empty and with the comparators' tables; `threads` is
    how many orders a contender may work on at once, where it works with threads; `work` is a key of `WORKS`."""

    remote: str
    database: str
    broker: str
    work: str
    threads: int
    folder: str

    @property
    def steps(self) -> tuple[Step, ...]:
        """What to do for an order."""
        return WORKS[self.work]

    def environment(self) -> dict[str, str]:
        """For the processes of a contender: ours, without proxies that would stand between it and the remote."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return kept | {_VARIABLE: json.dumps(asdict(self))}


def this_place() -> Place:
    """The place that this process was started in. Raises `KeyError` if the harness did not start it."""
    return Place(**json.loads(os.environ[_VARIABLE]))


def say(line: str) -> None:
    """Tell the harness; past `sys.stdout`, which Celery's worker takes for its log."""
    os.write(1, f"{line}\n".encode())


def produce_on_demand(produce: Callable[[range], None]) -> None:
    """Be a producer until the input ends."""
    say("ready")
    for line in sys.stdin:
        first, count = (int(word) for word in line.split()[1:])
        produce(range(first, first + count))
