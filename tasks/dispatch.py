"""From the ledger to the broker: a bounded window of orders in flight per system, one message per run of steps."""

import threading
from collections.abc import Callable, Sequence

import structlog

from ledger import queries, sending
from ledger.connection import Ledger
from ledger.sending import ToSend
from tasks.gates import Gates


class BrokerAway(Exception):
    """The broker does not take messages just now. The ledger keeps what was to be sent."""


Send = Callable[[str, ToSend], None]
"""Sends one order's run of steps to the queue of its system; raises `BrokerAway`."""

log = structlog.get_logger(__name__)


class Dispatcher:
    """Keeps up to `window` orders of each system in flight for every worker that is alive.

    `lanes`: every (system, lane) there is; `send` hands a run of steps to the broker."""

    def __init__(self, ledger: Ledger, gates: Gates, lanes: Sequence[tuple[str, str]], send: Send, window: int) -> None:
        self._ledger = ledger
        self._gates = gates
        self._lanes = tuple(lanes)
        self._send = send
        self.window = self._each = window
        self._filling = threading.Lock()
        self._turn = 0

    @property
    def lanes(self) -> tuple[tuple[str, str], ...]:
        """Every (system, lane) there is."""
        return self._lanes

    @property
    def systems(self) -> tuple[str, ...]:
        """Every system that is switched on."""
        return tuple(dict.fromkeys(system for system, _ in self._lanes))

    def scale(self, workers: int) -> None:
        """So many workers share the orders in flight."""
        self.window = self._each * max(1, workers)

    def fill(self) -> int:
        """Send due orders of every system, up to the window. Returns how many were sent.

        Concurrent calls in one process are one; across processes the window may be exceeded by one each."""
        if not self._filling.acquire(blocking=False):
            return 0
        try:
            return sum(self._fill_system(system) for system in self.systems)
        finally:
            self._filling.release()

    def _lanes_of(self, system: str) -> list[str]:
        return [lane for of, lane in self._lanes if of == system]

    def _fill_system(self, system: str) -> int:
        room = self.window - queries.in_flight(self._ledger, system)
        lanes = self._lanes_of(system)
        self._turn += 1
        lanes = lanes[self._turn % len(lanes) :] + lanes[: self._turn % len(lanes)]
        sent, hungry = 0, []
        for index, lane in enumerate(lanes):  # each gets a fair share, and another one is first every time
            share = -(-(room - sent) // (len(lanes) - index))
            taken = self._fill_lane(system, lane, share)
            sent += taken
            if taken == share:
                hungry.append(lane)
        for lane in hungry:
            sent += self._fill_lane(system, lane, room - sent)
        return sent

    def _fill_lane(self, system: str, lane: str, most: int) -> int:
        most = min(most, self._gates.room(lane, self.window))
        if most > 0 and self._gates.half_open(lane):
            most -= queries.in_flight(self._ledger, system, lane)
        return self._send_all(system, sending.take_ready(self._ledger, system, lane, most)) if most > 0 else 0

    def send_suspect(self) -> int:
        """Send one order that workers died on, if no other such order is under way anywhere."""
        for system, lane in self._lanes:
            if self._gates.room(lane, 1) and self._send_all(system, sending.take_suspect(self._ledger, system, lane)):
                return 1
        return 0

    def send_now(self, system: str, order_ids: Sequence[int]) -> int:
        """Send these orders at once as far as there is room; the rest goes when its turn comes, and so do all of them
        while a remote of the system is in trouble."""
        room = self.window - queries.in_flight(self._ledger, system)
        if room <= 0 or not order_ids or any(map(self._gates.in_trouble, self._lanes_of(system))):
            return 0
        return self._send_all(system, sending.take_ready_orders(self._ledger, order_ids[:room]))

    def _send_all(self, system: str, taken: Sequence[ToSend]) -> int:
        for index, one in enumerate(taken):
            try:
                self._send(system, one)
            except BrokerAway as error:
                log.warning("the broker does not answer", action="send_failed", system=system, error=str(error))
                sending.not_sent(self._ledger, [rest.order_id for rest in taken[index:]])
                return index
        return len(taken)
