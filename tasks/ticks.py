"""What ticks do: visit an account's poll, read orders again of which there is news, read the ERP's feed. Doubled and
late ticks do no harm."""

import threading
from collections.abc import Callable

import structlog

from ledger import upkeep
from orders.errors import StepError
from orders.lanes import ERP, lane_of
from tasks.base import Fleet, Visit
from tasks.dispatch import Dispatcher
from tasks.erp import PAGE, read_events
from tasks.gates import Gates
from tasks.news import read_news

log = structlog.get_logger(__name__)


class Ticks:
    """The ticks as one worker does them. A tick runs in one worker at a time, and not before its time has come."""

    def __init__(self, fleet: Fleet, dispatcher: Dispatcher, gates: Gates, worker: str) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._gates = gates
        self._worker = worker
        self._under_way: set[str] = set()
        self._lock = threading.Lock()

    def poll(self, system: str, account_name: str) -> str:
        """Visit one account, then send what is ready."""
        account = self._fleet.accounts.get((system, account_name))
        visit = self._fleet.systems[system].poll if system in self._fleet.systems else None
        if account is None or visit is None:
            return f"{system} has no account {account_name} to poll here"
        lane = lane_of(system, account_name, None)
        here = Visit(self._fleet.ledger, account)
        told = self._tick(f"{system}.poll:{account_name}", account.poll_seconds, lane, lambda: visit(here))
        if told == "done":
            self.news(system, account_name)
        return told

    def news(self, system: str, account_name: str) -> str:
        """Read known orders of one account again of which there is news."""
        account = self._fleet.accounts.get((system, account_name))
        review = self._fleet.systems[system].review if system in self._fleet.systems else None
        if account is None or review is None:
            return f"{system} has no account {account_name} to look at here"
        here = Visit(self._fleet.ledger, account)
        lane = lane_of(system, account_name, None)
        return self._tick(f"{system}.news:{account_name}", 0.0, lane, lambda: read_news(here, review))

    def feed(self) -> str:
        """Read the ERP's events to the end, then send what they made ready."""
        return self._tick("erp.events", self._fleet.erp_poll_seconds, ERP, self._feed)

    def _feed(self) -> None:
        while True:
            fed = read_events(self._fleet.ledger, self._fleet.erp, dict(self._fleet.systems))
            for system, ready in fed.ready.items():
                self._dispatcher.send_now(system, ready)
            if fed.read < PAGE:
                return

    def _tick(self, name: str, every: float, lane: str, work: Callable[[], object]) -> str:
        with self._lock:
            if name in self._under_way:
                return "another thread is at it"
            self._under_way.add(name)
        try:
            return self._tick_alone(name, every, lane, work)
        finally:
            self._under_way.discard(name)

    def _tick_alone(self, name: str, every: float, lane: str, work: Callable[[], object]) -> str:
        # Beat's messages come at the same pace: a little slack, or every second one would be a moment too early.
        if not upkeep.take_tick(self._fleet.ledger, name, every * 0.8, self._worker):
            return "not yet, or another worker is at it"
        try:
            if self._gates.closed(lane) is not None:
                return f"not done: {self._gates.closed(lane)}"
            return self._visit(name, lane, work)
        finally:
            upkeep.end_tick(self._fleet.ledger, name, self._worker)

    def _visit(self, name: str, lane: str, work: Callable[[], object]) -> str:
        try:
            work()
        except StepError as error:
            self._gates.failed(lane, error)
            log.warning("a tick could not be done", action="tick_failed", tick=name, reason=error.reason)
            return f"not done: {error.reason}"
        self._gates.answered(lane)
        self._dispatcher.fill()
        return "done"
