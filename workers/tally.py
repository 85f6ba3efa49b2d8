"""How many orders there are in which state, without counting all of them each time.

The unfinished ones are counted: they are the backlog. All orders are counted once, and from then on only those that
came since; the finished ones are the difference."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ledger import queries
from ledger.connection import Ledger

FINISHED = "finished"
"""Instead of a state: done, cancelled or ignored."""

_SETTLED_SECONDS = 60.0
"""Ids may become visible out of order, but no transaction of ours takes that long."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Orders by (system, state or FINISHED), and for how many seconds the oldest that could go now has waited."""

    orders: dict[tuple[str, str], int] = field(default_factory=dict)
    oldest_seconds: float = 0.0

    def number(self, system: str | None, *states: str) -> int:
        """How many orders of a system (None: of all) are in one of these states."""
        return sum(
            number
            for (of, state), number in self.orders.items()
            if (system is None or of == system) and state in states
        )

    @property
    def systems(self) -> list[str]:
        """The systems that have orders."""
        return sorted({system for system, _ in self.orders})


class Tally:
    """Counts the orders of one ledger again and again."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settled: Counter[str] = Counter()
        self._settled_id = 0
        self._next: tuple[int, float] | None = None

    def read(self) -> Backlog:
        """Count now."""
        unfinished = queries.unfinished_counts(self._ledger)
        known = self._known()
        orders = dict(unfinished)
        for system, number in known.items():
            moving = sum(count for (of, _), count in unfinished.items() if of == system)
            orders[system, FINISHED] = max(0, number - moving)
        return Backlog(orders, self._oldest())

    def _known(self) -> Counter[str]:
        newest = queries.newest_id(self._ledger)
        self._settle(newest)
        return self._settled + Counter(queries.known_between(self._ledger, self._settled_id, newest))

    def _settle(self, newest: int) -> None:
        """Count those that were there a minute ago for the last time."""
        now = self._clock()
        if self._next is not None and now - self._next[1] >= _SETTLED_SECONDS:
            upto = self._next[0]
            self._settled += Counter(queries.known_between(self._ledger, self._settled_id, upto))
            self._settled_id = upto
            self._next = None
        if self._next is None:
            self._next = (newest, now)

    def _oldest(self) -> float:
        due = queries.oldest_waiting(self._ledger)
        return 0.0 if due is None else max(0.0, (queries.database_now(self._ledger) - due).total_seconds())
