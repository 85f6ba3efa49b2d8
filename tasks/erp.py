"""The steps that talk to the ERP, for every system, and the feed that brings its answers."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import structlog

from erp.port import Erp, ErpEvent, ErpOrder, Rejected, Stage
from ledger import intake, interrupts, queries, signals
from ledger.connection import Ledger
from ledger.signals import Signal
from orders.errors import Refused
from orders.model import parse_external_reference
from orders.outcomes import Done, Ended, Outcome, Planned, skipped
from orders.states import State
from tasks.base import Job, Preview, System, already, call, preview, step

CURSOR = "erp.events"
PAGE = 500

log = structlog.get_logger(__name__)


@step("erp.order")
def put_confirmed(job: Job, erp: Erp) -> Outcome:
    """One remote order is one order in the ERP, under our reference."""
    return _put(job, erp, Stage.CONFIRMED)


@step("erp.draft")
def put_draft(job: Job, erp: Erp) -> Outcome:
    """The order as a draft: it has a number and can still be cancelled without a trace."""
    return _put(job, erp, Stage.DRAFT)


def _put(job: Job, erp: Erp, stage: Stage) -> Outcome:
    known = erp.find(job.erp_reference) if job.look else None
    if known is not None and known.duplicates:
        raise Refused(f"the ERP holds this order {len(known.duplicates) + 1} times: {', '.join(known.duplicates)}")
    try:
        put = erp.put(job.erp_reference, job.order, stage=stage)
    except Rejected as refusal:
        return _rejected(job, erp, refusal)
    if put.stage is Stage.REFUSED:
        return _refused(job, Rejected(f"the ERP refuses the order: {put.refusal}"))
    return _learnt(put)


def _rejected(job: Job, erp: Erp, refusal: Rejected) -> Outcome:
    """That the order has changed since the ERP took it is no refusal of the ERP's: a person changes it there, and says
    so once."""
    if refusal.code != "different":
        return _refused(job, refusal)
    seen_to = hashlib.sha256(json.dumps(job.order.to_json(), sort_keys=True).encode()).hexdigest()[:16]
    known = erp.find(job.erp_reference)
    if known is None or not (job.acknowledged or job.facts.get("left_in_erp") == seen_to):
        raise refusal
    learnt = _learnt(known)
    detail = f"the ERP keeps what it has as {known.number or known.stage}: a person has seen to it"
    return replace(learnt, detail=detail, skipped=True, facts={**(learnt.facts or {}), "left_in_erp": seen_to})


def _refused(job: Job, refusal: Rejected) -> Outcome:
    """The ERP will not have it: the remote is told where the plan provides for that, else a person must act."""
    *tell, _ = interrupts.refusal_plan(job.data, refusal.reason) or (None,)
    if not tell:
        raise refusal
    return Ended(refusal.reason, cancelled=True, rest=tuple(tell))


def _learnt(put: ErpOrder) -> Done:
    if put.number is None:
        return Done(detail=f"in the ERP as {put.stage}")
    facts = {"erp_number": put.number, "erp_lines": put.lines}
    return Done(detail=f"in the ERP as {put.number}", facts=facts, signals=("numbered",))


@step("erp.cancel")
def cancel(job: Job, erp: Erp) -> Outcome:
    """Take back what the ERP may have of the order."""
    cancelled = erp.cancel(job.erp_reference)
    if cancelled is None:
        return skipped("the ERP never had the order")
    if cancelled.stage is not Stage.CANCELLED:
        raise Refused(f"the ERP did not cancel the order: it stands at {cancelled.stage}")
    return Done(detail="cancelled in the ERP")


@preview("erp.order")
def foresee_order(job: Job, erp: Erp) -> Preview:
    return _foresee_put(job, erp, Stage.CONFIRMED)


@preview("erp.draft")
def foresee_draft(job: Job, erp: Erp) -> Preview:
    return _foresee_put(job, erp, Stage.DRAFT)


def _foresee_put(job: Job, erp: Erp, stage: Stage) -> Preview:
    known = erp.find(job.erp_reference)
    if known is None:
        return call(f"puts the order into the ERP as {stage}")
    if known.duplicates:
        return call(f"would stop again: the ERP holds this order {len(known.duplicates) + 1} times")
    if known.stage is Stage.REFUSED:
        return call(f"hands the order to the ERP once more; last time: {known.refusal}")
    if known.stage is Stage.DRAFT and stage is not Stage.DRAFT:
        return call(f"confirms the ERP's draft {known.number or ''}".rstrip())
    return already(f"the ERP has it as {known.number or known.stage}; stops if the order has changed since")


@preview("erp.cancel")
def foresee_cancel(job: Job, erp: Erp) -> Preview:
    known = erp.find(job.erp_reference)
    if known is None:
        return already("the ERP never had the order")
    if known.stage is Stage.CANCELLED:
        return already("is cancelled in the ERP already")
    return call(f"cancels the order in the ERP, where it stands at {known.stage}")


@dataclass(frozen=True, slots=True)
class Fed:
    """What one read of the ERP's feed did: events read, and orders that are ready now, by system."""

    read: int
    ready: dict[str, list[int]]


def read_events(ledger: Ledger, erp: Erp, systems: dict[str, System]) -> Fed:
    """Turn the ERP's next events into signals. The cursor moves with them in one commit: none is lost, and a
    repeated one is a double of the same signal."""
    ready = _adopt(ledger, systems)
    found, cursor = erp.events(queries.cursor(ledger, CURSOR), PAGE)
    known = _orders_of(ledger, [event.reference for event in found])
    told: list[tuple[str, Signal]] = []
    for event in found:
        order = known.get(event.reference)
        if order is None or event.error is not None:
            _keep_odd(ledger, event)
            continue
        order_id, system = order
        told.append((system, signal_of(order_id, event.kind, event.data, f"erp:{event.id}")))
    _tell(ledger, systems, told, ready, (CURSOR, cursor))
    return Fed(len(found), ready)


def _adopt(ledger: Ledger, systems: dict[str, System]) -> dict[str, list[int]]:
    """Events that came before their order was known: an order that the ERP made itself, or one of a ledger that was
    restored. Orders that are ready now, by system."""
    kept = queries.unowned_events(ledger, "erp", PAGE)
    known = _orders_of(ledger, [row["external_id"] for row in kept])
    found = [row for row in reversed(kept) if row["external_id"] in known]
    told = [
        (system, signal_of(order_id, row["kind"], json.loads(row["body"]), row["dedupe_key"]))
        for row in found
        for order_id, system in (known[row["external_id"]],)
    ]
    ready: dict[str, list[int]] = {}
    if told:
        _tell(ledger, systems, told, ready, None)
        intake.settle_events(ledger, [row["id"] for row in found])
    return ready


def _tell(
    ledger: Ledger,
    systems: dict[str, System],
    told: list[tuple[str, Signal]],
    ready: dict[str, list[int]],
    cursor: tuple[str, str] | None,
) -> None:
    """Write the signals, with the cursor; adds the orders that are ready now to `ready`."""
    owners = {one.order_id: system for system, one in told}
    for system, one in told:
        stop(ledger, systems.get(system), one)
    for order_id in signals.signal(ledger, [one for _, one in told], cursor):
        ready.setdefault(owners[order_id], []).append(order_id)
    _watch_finished(ledger, [one for _, one in told])


_TOO_LATE = {"shipped": State.CANCELLED, "refused": State.DONE, "cancelled": State.DONE}
"""What a person must see when it comes for an order in this state: goods that left though the order was cancelled, an
order that the ERP does not want though its system was told that all is well."""


def _watch_finished(ledger: Ledger, told: list[Signal]) -> None:
    for name, state in _TOO_LATE.items():
        ids = [one.order_id for one in told if one.name == name]
        finished = queries.among(ledger, ids, state) if ids else set()
        for one in told:
            if one.name == name and one.order_id in finished:
                _show_too_late(ledger, one, state)


def _show_too_late(ledger: Ledger, told: Signal, state: State) -> None:
    problem = f"the ERP {told.name} order {told.order_id}, which is {state} here: see to it by hand"
    intake.keep_odd_event(ledger, "erp", "default", told.source, told.name, json.dumps(told.data), problem)
    log.warning("told of a finished order", action="odd_event", order=told.order_id, source=told.source)


def _orders_of(ledger: Ledger, references: list[str]) -> dict[str, tuple[int, str]]:
    """Ledger id and system, by external reference, of the orders that are known."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for reference in references:
        parts = parse_external_reference(reference)
        if parts is not None:
            wanted.setdefault(parts[:2], []).append(parts[2])
    return {
        f"{system}:{account}:{external_id}": (order_id, system)
        for (system, account), ids in wanted.items()
        for external_id, order_id in queries.order_ids(ledger, system, account, ids).items()
    }


def signal_of(order_id: int, kind: str, data: dict[str, Any], source: str) -> Signal:
    """A fact of the ERP's, with what is learnt of the order by it."""
    if kind != "numbered":
        return Signal(order_id, kind, source, data)
    facts = {"erp_number": str(data["order_number"]), "erp_lines": data.get("lines", {})}
    return Signal(order_id, kind, source, data, facts)


def _keep_odd(ledger: Ledger, event: ErpEvent) -> None:
    problem = event.error or f"no order is known by {event.reference}"
    # Only what can be used is looked at again, should its order become known.
    owner = event.reference if event.error is None and len(event.reference) <= 190 else None
    kept = intake.keep_odd_event(
        ledger, "erp", "default", f"erp:{event.id}", event.kind[:64], json.dumps(event.data), problem, owner
    )
    if kept:
        log.warning("an ERP event that fits no order", action="odd_event", erp_event=event.id, problem=problem)


def stop(ledger: Ledger, system: System | None, told: Signal) -> None:
    """Stop the order if the ERP refuses or cancels it; to be called before the signal is written."""
    if told.name == "refused":
        reason = str(told.data.get("reason") or "no reason given")
        interrupts.stop_for_a_person(ledger, told.order_id, told.source, f"the ERP refuses the order: {reason}")
    elif told.name == "cancelled":
        rest: tuple[Planned, ...] = system.tell_cancelled if system is not None else ()
        interrupts.interrupt(ledger, told.order_id, "cancelled in the ERP", rest, State.CANCELLED)
