"""Remotes in trouble: one breaker per lane, agreed on by all workers through the ledger."""

import random
import threading
import time
from collections import Counter

import structlog

from ledger import queries, remotes
from ledger.connection import Ledger
from orders.backoff import closed_for
from orders.errors import StepError, TryLater, Unavailable
from tasks.bulkhead import Bulkhead

MOST_FAULTS = 5
"""Faults in a row, whichever orders met them, after which the remote itself is taken to be down."""

log = structlog.get_logger(__name__)


class Gates:
    """What this process knows of closed lanes, refreshed from the ledger every second or so, and of crowded ones."""

    def __init__(self, ledger: Ledger, bulkhead: Bulkhead) -> None:
        self._ledger = ledger
        self.bulkhead = bulkhead
        self._known: dict[str, queries.Gate] = {}
        self._faults: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._read_at = 0.0

    def refresh(self) -> dict[str, queries.Gate]:
        """Read all gates anew."""
        self._known = queries.closed_gates(self._ledger)
        self._read_at = time.monotonic()
        return self._known

    def closed(self, lane: str) -> str | None:
        """Why nothing may go to this lane now; None when it may."""
        gate = self._known.get(lane)
        return gate.reason or "closed" if gate is not None and self._shut(gate) else None

    def _shut(self, gate: queries.Gate) -> bool:
        """Whether its time is not over yet, by the monotonic clock since it was read: no earlier than in the ledger."""
        return time.monotonic() < self._read_at + gate.seconds

    @property
    def troubled(self) -> bool:
        """Whether any lane is closed or half open."""
        return bool(self._known)

    def in_trouble(self, lane: str) -> bool:
        """Whether this lane is closed or half open."""
        return lane in self._known

    def half_open(self, lane: str) -> bool:
        """Whether one order at a time is to find out if the remote answers again."""
        gate = self._known.get(lane)
        return gate is not None and not self._shut(gate)

    def room(self, lane: str, window: int) -> int:
        """How many orders may be sent to this lane at once: none while it is closed, then one to try it."""
        gate = self._known.get(lane)
        if gate is None:
            return self.bulkhead.room(lane, window)
        return 0 if self._shut(gate) else 1

    def answered(self, lane: str) -> None:
        """The remote did its work: its faults are forgotten, and its gate opens."""
        if self._faults[lane]:
            self._faults[lane] = 0
        gate = self._known.get(lane)
        if gate is not None and not self._shut(gate) and remotes.open_gate(self._ledger, lane):
            self._known = {name: gate for name, gate in self._known.items() if name != lane}
            log.info("the remote answers again", action="gate_opened", lane=lane)

    def failed(self, lane: str, error: StepError) -> bool:
        """Take a failure into account. True when it is the remote's as a whole, not the order's: its gate is closed
        now, and nothing counts against the order."""
        if isinstance(error, Unavailable):
            self._close(lane, error.reason, error.after)
            return True
        if not isinstance(error, TryLater) or (error.status is not None and error.status < 500):
            self.answered(lane)
            return False
        with self._lock:
            self._faults[lane] += 1
            many = self._faults[lane] >= MOST_FAULTS
        if many or lane in self._known:
            self._close(lane, error.reason, error.after)
            return True
        return False

    def _close(self, lane: str, reason: str, after: float | None) -> None:
        gate = self._known.get(lane)
        seconds = closed_for(gate.closures + 1 if gate else 1, random.random(), after=after)
        if remotes.close_gate(self._ledger, lane, seconds, reason):
            log.warning(
                "the remote is left alone",
                action="gate_closed",
                lane=lane,
                reason=reason,
                seconds=round(seconds, 1),
            )
        self.refresh()
