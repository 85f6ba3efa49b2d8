"""Claim ▸ do ▸ record: the one way any step of any system runs."""

import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError

from ledger import interrupts, queries, records, upkeep
from ledger.connection import Ledger
from ledger.records import Claim, Recorded
from orders import backoff
from orders.errors import Fenced, InDoubt, Refused, StepError, TryLater, Unavailable
from orders.lanes import lane_of
from orders.model import Order
from orders.outcomes import Again, Done, Ended, Outcome, Planned
from orders.states import State
from tasks.base import STEPS, Fleet, Job
from tasks.gates import Gates
from tasks.pulse import Pulse

RECORD_FOR = 60.0
"""Seconds for which a record is tried again while the ledger is away, before the order is left to the sweep."""

log = structlog.get_logger(__name__)

Then = Callable[[int, str], State]
"""Given the next step (position, name): RUNNING to go on here, QUEUED if Celery sends it, READY if dispatch does."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a try ended. `kind` is the attempt's outcome, or 'fenced'. `next` is the claim on the next step, if this
    worker goes on with it; `state` is what became of the order."""

    kind: str
    reason: str = ""
    next: Claim | None = None
    state: str | None = None
    order: Order | None = None

    @property
    def good(self) -> bool:
        """Whether the step is behind us."""
        return self.kind in ("done", "skipped", "partly", "ended")


class Runner:
    """Runs steps for one worker process; thread-safe."""

    def __init__(self, fleet: Fleet, pulse: Pulse, gates: Gates) -> None:
        self._fleet = fleet
        self._ledger: Ledger = fleet.ledger
        self._pulse = pulse
        self.gates = gates
        self._held: set[int] = set()
        self._held_lock = threading.Lock()

    def claim(self, order_id: int, position: int, step: str) -> Claim | None:
        """Take the order for this step, or None when it is not this message's turn."""
        claimed: Claim | None = self._insist(
            lambda: records.claim(self._ledger, order_id, position, step, self._pulse.worker)
        )
        if claimed is not None:
            self._hold(order_id)
        return claimed

    def holds(self, order_id: int) -> bool:
        """Whether a thread of this process is at work on the order."""
        return order_id in self._held

    def quarantined(self, claim: Claim, *, killed_by: int | None) -> Ending:
        """What became of a claim that was handed to a process of its own, which has ended; killed by a signal, if so.

        A process that could not take the claim on (its settings, the ledger) leaves it to be given back."""
        self._let_go(claim.id)
        if killed_by is not None:
            reason = f"its own process was killed by signal {killed_by}"
            # The process had taken the claim on, or had not come as far.
            state = self._blame(claim.id, claim.fence + 1, reason) or self._blame(claim.id, claim.fence, reason)
            if state is not None:
                return Ending(state if state == State.PARKED else "retry", reason, state=state)
        self._insist(lambda: records.let_go(self._ledger, claim.id, claim.fence, seconds=1.0))
        stands = self._insist(lambda: queries.position_of(self._ledger, claim.id))
        return Ending("done", "ran in a process of its own", state=stands[2] if stands else None)

    def _blame(self, order_id: int, fence: int, reason: str) -> str | None:
        most = backoff.MOST_CRASHES
        state: str | None = self._insist(
            lambda: upkeep.take_over(self._ledger, order_id, fence, park_at=most, reason=reason)
        )
        return state

    def _hold(self, order_id: int) -> None:
        with self._held_lock:
            self._held.add(order_id)

    def _let_go(self, order_id: int) -> None:
        with self._held_lock:
            self._held.discard(order_id)

    def run(self, claim: Claim, then: Then, order: Order | None = None) -> Ending:
        """Do the claimed step and record how it ended. `order` is the canonical order, if already at hand."""
        self._hold(claim.id)
        ending = Ending("fenced")
        try:
            ending = self._run(claim, then, order)
        except Fenced as fenced:
            log.warning("the claim was lost", action="fenced", order=claim.id, step=claim.step, reason=str(fenced))
        finally:
            if ending.next is None:
                self._let_go(claim.id)
        return ending

    def _run(self, claim: Claim, then: Then, order: Order | None) -> Ending:
        lane = lane_of(claim.system, claim.account, claim.step)
        closed = self.gates.closed(lane)
        if closed is not None:
            return self._postpone(claim, closed, None, None)
        if claim.step not in STEPS:
            return self._postpone(claim, f"this worker does not know {claim.step} yet; a newer one will", 5.0, None)
        if not self.gates.bulkhead.enter(lane):
            self._insist(lambda: records.let_go(self._ledger, claim.id, claim.fence, seconds=1.0))
            return Ending("busy", f"{lane} is slow and has its share of this worker's threads", state=State.READY)
        try:
            return self._do(claim, lane, then, Job(self._ledger, claim, order))
        finally:
            self.gates.bulkhead.leave(lane)

    def _do(self, claim: Claim, lane: str, then: Then, job: Job) -> Ending:
        try:
            outcome = STEPS[claim.step](job, self._fleet.partner_of(claim))
        except StepError as error:
            return self._failed(claim, error, counts=not self.gates.failed(lane, error))
        except (Fenced, DBAPIError):
            raise
        except Exception as error:  # our bug, whatever it is: reported, retried a few times, parked
            return self._bug(claim, error)
        self.gates.answered(lane)
        return self._succeeded(claim, outcome, then, job.order_in_hand)

    def _succeeded(self, claim: Claim, outcome: Outcome, then: Then, order: Order | None) -> Ending:
        if isinstance(outcome, Again):
            recorded = self._insist(
                lambda: records.wait_again(
                    self._ledger,
                    claim,
                    outcome.awaits,
                    outcome.detail,
                    outcome.facts,
                    more=outcome.more,
                    after=outcome.after,
                )
            )
            return self._ending(claim, "partly", outcome.detail, recorded)
        if isinstance(outcome, Ended):
            return self._ended(claim, outcome)
        following = _following(claim, outcome)
        target = then(claim.position + 1, following.name) if following is not None else State.READY
        if following is not None and target is State.RUNNING:
            lane = lane_of(claim.system, claim.account, following.name)
            target = State.READY if self.gates.in_trouble(lane) else target
        recorded = self._insist(lambda: records.done(self._ledger, claim, outcome, target))
        if outcome.document is not None:
            order = Order.from_json(outcome.document)
        return self._ending(claim, "skipped" if outcome.skipped else "done", outcome.detail, recorded, order)

    def _ended(self, claim: Claim, outcome: Ended) -> Ending:
        ending = State.CANCELLED if outcome.cancelled else State.IGNORED
        rest = (*outcome.rest, Planned("erp.cancel")) if outcome.cancelled else outcome.rest
        recorded = self._insist(
            lambda: records.end(
                self._ledger,
                claim,
                outcome.reason,
                ending,
                rest,
                raw=outcome.raw,
                reference=outcome.reference,
            )
        )
        return self._ending(claim, "ended", outcome.reason, recorded)

    def _failed(self, claim: Claim, error: StepError, *, counts: bool) -> Ending:
        if isinstance(error, TryLater | Unavailable) and not counts:
            return self._postpone(claim, error.reason, error.after, error.status)
        if isinstance(error, TryLater):
            return self._retry(claim, error.reason, error.after, error.status, backoff.MOST_FAILURES)
        state = State.IN_DOUBT if isinstance(error, InDoubt) else State.PARKED
        recheck = error.recheck if isinstance(error, Refused) else None
        return self._park(claim, error.reason, error.status, state, recheck)

    def _bug(self, claim: Claim, error: Exception) -> Ending:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"a fault in orderfleet: {type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        log.error("a step failed by our own fault", action="bug", order=claim.id, step=claim.step, exc_info=error)
        return self._retry(claim, reason, None, None, backoff.MOST_BUGS)

    def _retry(self, claim: Claim, reason: str, after: float | None, status: int | None, most: int) -> Ending:
        failures = claim.failures + 1
        if failures >= most:
            return self._park(claim, f"gave up after {failures} tries: {reason}", status, State.PARKED, None)
        seconds = backoff.delay(failures, random.random(), after=after)
        recorded = self._insist(lambda: records.retry(self._ledger, claim, reason, seconds, status))
        return self._ending(claim, "retry", reason, recorded)

    def _postpone(self, claim: Claim, reason: str, after: float | None, status: int | None) -> Ending:
        seconds = max(after or 0.0, 1.0) + random.random()
        recorded = self._insist(lambda: records.postpone(self._ledger, claim, reason, seconds, status))
        return self._ending(claim, "unavailable", reason, recorded)

    def _park(self, claim: Claim, reason: str, status: int | None, state: State, recheck: float | None) -> Ending:
        recorded = self._insist(lambda: records.park(self._ledger, claim, reason, status, state=state, recheck=recheck))
        return self._ending(claim, state.value, reason, recorded)

    def _ending(
        self, claim: Claim, kind: str, reason: str, recorded: Recorded | None, order: Order | None = None
    ) -> Ending:
        if recorded is None:
            log.warning("recorded by another", action="fenced", order=claim.id, step=claim.step)
            return Ending("fenced", "another worker holds the order by now")
        if recorded.interrupt is not None and recorded.next is None:
            self._insist(lambda: interrupts.apply_interrupt(self._ledger, claim.id))
        return Ending(kind, reason, recorded.next, recorded.state, order)

    def _insist(self, write: Callable[[], Any]) -> Any:
        """Write to the ledger; while it is away, again and again for a while."""
        until = time.monotonic() + RECORD_FOR
        pause = 0.05
        while True:
            try:
                return write()
            except DBAPIError as error:
                if not _passing(error) or time.monotonic() > until:
                    raise
                log.warning("the ledger does not answer", action="ledger_away", error=str(error.orig))
            time.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 2.0)


def _passing(error: DBAPIError) -> bool:
    return (
        type(error).__name__ in ("OperationalError", "InterfaceError", "InternalError") or error.connection_invalidated
    )


def _following(claim: Claim, outcome: Done) -> Planned | None:
    if outcome.rest is None:
        return claim.following
    return outcome.rest[0] if outcome.rest else None
