"""Move what stands still: lost messages, dead workers, due rechecks, interrupts; every second, by one worker."""

from collections.abc import Callable

import structlog

from ledger import intake, interrupts, queries, records, sending, upkeep
from ledger.connection import Ledger
from orders import backoff
from tasks.dispatch import Dispatcher
from tasks.runner import Runner

EVERY = 1.0
TICK = "sweep"

log = structlog.get_logger(__name__)


class Sweep:
    """One worker's share of looking after all orders.

    `depth(system)` is the number of messages waiting in the system's queue, `tell_news(system, account)` has a worker
    read what is new there; both may raise `BrokerAway`."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        runner: Runner,
        depth: Callable[[str], int],
        tell_news: Callable[[str, str], None],
        worker: str,
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._runner = runner
        self._gates = runner.gates
        self._depth = depth
        self._tell_news = tell_news
        self._worker = worker

    def run(self) -> None:
        """Give back what this worker lost; then, if it is this worker's turn, mend what stands still everywhere."""
        self._gates.refresh()
        self._dispatcher.scale(queries.count_live_workers(self._ledger))
        self._give_back()
        if not upkeep.take_tick(self._ledger, TICK, EVERY, self._worker):
            return
        try:
            self._mend()
        finally:
            upkeep.end_tick(self._ledger, TICK, self._worker)

    def _mend(self) -> None:
        self._take_over()
        for order_id in queries.interrupted(self._ledger):
            interrupts.apply_interrupt(self._ledger, order_id)
        for system, lane in self._dispatcher.lanes:
            self._wake(system, lane)
        self._dispatcher.send_suspect()
        for system, account in intake.overdue_news(self._ledger):
            self._tell_news(system, account)

    def _give_back(self) -> None:
        """The ledger was away when a claim or a record was made: it says we hold what we do not."""
        for held in queries.held_by(self._ledger, self._worker):
            if not self._runner.holds(held.id):
                log.warning("a claim was left over", action="let_go", order=held.id)
                records.let_go(self._ledger, held.id, held.fence)

    def _take_over(self) -> None:
        for held in queries.orphans(self._ledger):
            reason = f"worker {held.worker} gave no sign of life" if held.worker else "its worker is gone"
            state = upkeep.take_over(self._ledger, held.id, held.fence, park_at=backoff.MOST_LOST, reason=reason)
            if state is not None:
                log.warning("taken over", action="taken_over", order=held.id, worker=held.worker, state=state)

    def _wake(self, system: str, lane: str) -> None:
        due = queries.overdue(self._ledger, system, lane)
        if "queued" in due:
            # A full queue explains the delay; otherwise the message is taken to be lost. A double is harmless.
            lost = self._depth(system) < self._dispatcher.window
            sending.resend(self._ledger, due["queued"], lost=lost)
        for order_id in due.get("waiting", []) + due.get("parked", []):
            upkeep.recheck(self._ledger, order_id)
