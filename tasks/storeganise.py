"""Storeganise: valet orders from their booking to the last box on its shelf. Contract: contracts/storeganise.md.

Every step reads the order again before it writes: staff do the same work in the admin UI. After a refusal it reads once
more, because it may only mean that the work is done already (7).
"""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ledger import intake, intents, queries
from ledger.connection import Ledger
from orders.errors import READ_FAILED, Refused, TryLater
from orders.outcomes import Again, Done, Ended, Outcome, Planned, skipped
from schemas import storeganise as schema
from schemas.storeganise import RemoteOrder, RemoteStep
from tasks.base import Account, Command, Job, Preview, System, already, call, irreversible, preview, step
from tasks.storeganise_items import HANDLINGS, Handling, Scene, by_place, check, look, undone
from tasks.storeganise_order import LEFT_THERE, Options, listed, take_in_order_of
from tasks.storeganise_poll import poll, review

LOOK_AGAIN = 3600.0
"""Seconds after which what a person should put right in the admin UI is looked at again by itself; news of the order
has it looked at sooner."""
TOO_LATE = "is completed in Storeganise, it cannot be cancelled any more"


# -- an event that names a job only (trap 2) --------------------------------------------------------------------------


@step("storeganise.resolve")
def resolve(job: Job, account: Account) -> Outcome:
    """Find the order of a job, and take it in: this entry only stands for it."""
    order_id = take_in_order_of(job.ledger, account, job.external_id)
    if order_id is None:
        return Ended("no valet order with this job is to be found; the poll will bring it, if there is one")
    return Ended(f"only stands for order {order_id}, whose job it is")


# -- the steps: reading, and starting ---------------------------------------------------------------------------------


@contextmanager
def _looked_at_again() -> Iterator[None]:
    """What parks an order here is mended in the admin UI: so it is looked at again by itself."""
    try:
        yield
    except Refused as refusal:
        again = LOOK_AGAIN if refusal.recheck is None else refusal.recheck
        raise Refused(refusal.reason, status=refusal.status, recheck=again) from refusal


def _read(job: Job, account: Account, *, items: bool = False) -> RemoteOrder:
    return schema.parse_order(account.client.order(job.external_id, items=items))


_CANCELLED = Ended("cancelled in Storeganise", cancelled=True)


@step("storeganise.fetch")
@_looked_at_again()
def fetch(job: Job, account: Account) -> Outcome:
    """Read the order, and plan one step for each step of its job (trap 6)."""
    document = account.client.order(job.external_id, items=True)
    remote = schema.parse_order(document)
    raw = json.dumps(document, default=str)
    if remote.cancelled:
        return Ended("cancelled in Storeganise", cancelled=True, raw=raw, reference=remote.sid)
    if remote.completed and not job.has_tried("erp.order") and "replayed" not in job.facts:
        _show_missed(job, remote)
        return Ended("is completed already, and not by us", raw=raw, reference=remote.sid)
    if not remote.steps:
        return _without_steps(remote)
    return Done(
        detail=f"steps: {', '.join(one.type for one in remote.steps)}",
        rest=(Planned("erp.order"), *_plan(remote.steps, account.options)),
        raw=raw,
        document=schema.to_order(remote, listed(account, remote)).to_json(),
        reference=remote.sid,
    )


def _show_missed(job: Job, remote: RemoteOrder) -> None:
    """That it is completed is no matter of ours, unless it was open when it came in: then the ERP should have had it. A
    person says whether it still should: the warehouse might do the work anew."""
    stands_for = [f"{schema.OF_JOB}{remote.job}"]
    entries = queries.known_orders(job.ledger, "storeganise", job.claim.account, stands_for)
    number = job.claim.id
    if any(_was_open(job.ledger, one) for one in (number, *(known.id for known in entries))):
        problem = (
            f"order {number} was open when it came in, and completed in Storeganise before it was read: it is not in "
            f"the ERP. `orderfleet replay {number} --from storeganise.fetch` puts it there"
        )
        _show(job, "missed", problem)


_OPENED = tuple(f"job.valetOrder.{kind}" for kind in ("submitted", "created", "started"))


def _was_open(ledger: Ledger, order_id: int) -> bool:
    """Whether any event told of an order that is still to be done."""
    kinds = [str(entry["what"]) for entry in queries.timeline(ledger, order_id) if entry["kind"] == "event"]
    rows = [kind.removeprefix("row.") for kind in kinds if kind.startswith("row.")]
    return any(kind in _OPENED for kind in kinds) or any(state not in schema.CLOSED for state in rows)


def _show(job: Job, kind: str, problem: str) -> None:
    """A person sees it in `orderfleet events`, once for each order."""
    of = job.claim
    intake.keep_odd_event(job.ledger, "storeganise", of.account, f"{kind}:{of.id}", kind, "{}", problem, of.external_id)


def _without_steps(remote: RemoteOrder) -> Outcome:
    """Nothing follows from that but to ask again (trap 7)."""
    if remote.state == "submitted":
        return Again("created", "is submitted, and has no steps yet", after=LOOK_AGAIN)
    raise Refused(f"the order is {remote.state}, and its job shows no steps")


def _plan(steps: tuple[RemoteStep, ...], options: Options) -> tuple[Planned, ...]:
    return tuple(_planned(one, options) for one in steps)


def _planned(there: RemoteStep, options: Options) -> Planned:
    """What is completed already waits for nothing: it is passed over, and the timeline says so."""
    name = f"storeganise.{there.type}" if there.type in schema.SIGNALS else "storeganise.other"
    waits = not there.completed and not (there.type == schema.START and options.auto_approve)
    data = {"step": there.id, "type": there.type}
    return Planned(name, awaits=schema.SIGNALS.get(there.type) if waits else None, data=data)


def _turn(job: Job, account: Account, remote: RemoteOrder) -> RemoteStep | Outcome:
    """The step of the job that this step of ours completes, if it is the one to act on now; else what that means."""
    if remote.cancelled:
        return _CANCELLED
    there = remote.step(job.data["step"], job.data["type"])
    if there is None:
        raise Refused(f"the order's job has no step {job.data['type']} any more: replay it from storeganise.fetch")
    if there.completed:
        return skipped("is completed in Storeganise already", rest=_new_rest(job, account, remote, there))
    if remote.open[0] != there:
        raise Refused(f"the order stands at {remote.open[0].type}, which comes before {there.type}: complete it there")
    return there


@step("storeganise.order_start")
@_looked_at_again()
def order_start(job: Job, account: Account) -> Outcome:
    """Confirm the order, which makes its invoice: only when it is approved (trap 3)."""
    remote = _read(job, account)
    there = _turn(job, account, remote)
    return _complete(job, account, remote, there, "started") if isinstance(there, RemoteStep) else there


def _complete(job: Job, account: Account, remote: RemoteOrder, there: RemoteStep, detail: str) -> Outcome:
    """Complete the step of that id, which cannot touch another one. A refusal may mean that it is completed by now, or
    the order cancelled: the order says."""
    try:
        account.client.complete_step(job.external_id, there.id)
    except Refused:
        remote = _read(job, account)
        after = _turn(job, account, remote)
        if isinstance(after, RemoteStep):
            raise
        return after
    return Done(detail=detail, rest=_new_rest(job, account, remote, there))


def _new_rest(job: Job, account: Account, remote: RemoteOrder, done: RemoteStep) -> tuple[Planned, ...] | None:
    """Another rest of the plan, should steps be open that it does not have: the job has got them, or they are open
    again."""
    left = tuple(there for there in remote.open if there != done)
    planned = {one.data.get("step") for one in job.claim.plan[job.claim.position + 1 :]}
    return None if all(there.id in planned for there in left) else _plan(left, account.options)


@step("storeganise.other")
@_looked_at_again()
def other(job: Job, account: Account) -> Outcome:
    """A step of a type that we do not know is for staff; once they have completed it the order goes on."""
    there = _turn(job, account, _read(job, account))
    if not isinstance(there, RemoteStep):
        return there
    page = account.client.page_of(job.external_id)
    raise Refused(f"the step {there.type} is done by staff: complete it at {page}, and the order goes on by itself")


# -- the steps: items -------------------------------------------------------------------------------------------------


@step("storeganise.items_pickEmptyBoxes")
def pick(job: Job, account: Account) -> Outcome:
    """Put the boxes that were picked onto the order."""
    return _handle(job, account, HANDLINGS[schema.PICK])


@step("storeganise.items_deliver")
def deliver(job: Job, account: Account) -> Outcome:
    """Tell which boxes the customer has got (trap 4)."""
    return _handle(job, account, HANDLINGS[schema.DELIVER])


@step("storeganise.items_collect")
def collect(job: Job, account: Account) -> Outcome:
    """Tell which items were taken from the customer, who may keep some."""
    return _handle(job, account, HANDLINGS[schema.COLLECT])


@step("storeganise.items_store")
def store(job: Job, account: Account) -> Outcome:
    """Tell on which shelf each item is."""
    return _handle(job, account, HANDLINGS[schema.STORE])


@_looked_at_again()
def _handle(job: Job, account: Account, kind: Handling) -> Outcome:
    """Command the items that need it, look at every one of them, and complete the step once none is left (trap 1)."""
    remote = _read(job, account, items=True)
    there = _turn(job, account, remote)
    if not isinstance(there, RemoteStep):
        return there
    scene = look(job, account, kind, remote)
    check(scene, kind)
    if sids := undone(scene, kind):
        done = _command(job, account, kind, scene, sids)
        if not isinstance(done, Scene):
            return done
        scene = done
    left = kind.left(scene)
    if left or not scene.report.told:
        return Again(kind.signal, f"still to be {kind.signal}: {', '.join(left)}", after=LOOK_AGAIN)
    return _complete(job, account, remote, there, f"{kind.signal}: {', '.join(kind.wanted(scene))}")


def _command(job: Job, account: Account, kind: Handling, scene: Scene, sids: list[str]) -> Scene | Outcome:
    """Give the command, once for each shelf (trap 13), and look at every item (trap 12): what is there afterwards
    counts, and not the answer. Repeated commands are refused, and so are those that somebody else was faster with
    (trap 5)."""
    refusal = None
    for place, group in by_place(kind, scene, sids).items():
        try:
            account.client.command_items(schema.COMMANDS[kind.type], group, job.external_id, place)
        except Refused as error:
            refusal = error
    after = replace(scene, items=scene.items | schema.parse_items(account.client.items(sids)))
    missing = undone(after, kind)
    if not missing:
        return after
    if refusal is None:
        raise TryLater(f"{kind.signal}, and does not read so: {', '.join(missing)}", status=READ_FAILED)
    moved = _turn(job, account, _read(job, account))
    if isinstance(moved, RemoteStep):
        raise refusal
    return moved


# -- when the ERP or an operator cancels ------------------------------------------------------------------------------


@step("storeganise.cancel")
@_looked_at_again()
def cancel(job: Job, account: Account) -> Outcome:
    """There is no call that cancels an order: a person does it in the admin UI, and this step sees that it is done; or
    a person says that it stays as it is there. What is completed nobody can cancel: that is shown."""
    remote = _read(job, account)
    if remote.cancelled:
        return skipped("is cancelled in Storeganise")
    if remote.completed:
        _show(job, "late", f"{TOO_LATE}, though order {job.claim.id} is cancelled here")
        return skipped(TOO_LATE, facts=job.flagged(TOO_LATE))
    if job.acknowledged:
        return skipped(LEFT_THERE, facts=job.flagged(LEFT_THERE))
    raise Refused(f"cancelled here, but not in Storeganise, {_how_to_cancel(job, account, remote)}")


def _how_to_cancel(job: Job, account: Account, remote: RemoteOrder) -> str:
    stands = remote.open[0].type if remote.open else remote.state
    return (
        f"where it stands at {stands}: cancel it at {account.client.page_of(job.external_id)}, or "
        f"`orderfleet replay {job.claim.id} --acknowledge` leaves it as it is there"
    )


# -- what operators may do beside the plan ----------------------------------------------------------------------------


WRITE_FOR = 120.0
"""Seconds for which a command has an order for itself: longer than its calls take. One that has died holds up others
no longer than that."""


@contextmanager
def _alone(job: Job) -> Iterator[Callable[[], None]]:
    """One command at a time: what goes back is made of what was read before. To be called right before the write: it
    raises `TryLater` if another command may have written since, and so does entering."""
    with intents.alone(job.ledger, f"storeganise.edit:{job.claim.id}", WRITE_FOR) as still_alone:
        if still_alone is None:
            raise TryLater(
                "another charge or edit of this order is under way, or was cut off less than "
                f"{WRITE_FOR:g} s ago: do it again in a moment",
                status=READ_FAILED,
            )

        def check() -> None:
            if not still_alone():
                raise TryLater("it took too long, and nothing was written: do it again", status=READ_FAILED)

        yield check


def _editable(job: Job, account: Account) -> dict[str, Any]:
    """The order as it is now. Raises `Refused` when nothing of it may be edited any more (3.5)."""
    document: dict[str, Any] = account.client.order(job.external_id)
    remote = schema.parse_order(document)
    if remote.cancelled or remote.completed:
        raise Refused(f"the order is {'cancelled' if remote.cancelled else 'completed'}: it cannot be edited any more")
    return document


def ask_charge(job: Job, account: Account, data: dict[str, Any]) -> str:
    """See `tasks.base.Command`."""
    charge = schema.parse_charge(job.external_id, data)
    charges = schema.charges_of(_editable(job, account))
    if schema.count_charge(charges, charge):
        return 'this charge is there already, nothing would be done; for another one like it add a "key" of its own'
    return f"adds a charge to the {len(charges)} there are: {charge.quantity} x {charge.amount}, {charge.title}"


def run_charge(job: Job, account: Account, data: dict[str, Any]) -> str:
    """See `tasks.base.Command`. The list of charges goes back whole, from a read just before (trap 16)."""
    charge = schema.parse_charge(job.external_id, data)
    with _alone(job) as check:
        before = schema.charges_of(_editable(job, account))
        if schema.count_charge(before, charge):
            return f"the charge is there already: {charge.title} [{charge.marker}]"
        check()
        account.client.edit_order(job.external_id, {"charges": [*before, charge.as_json()]})
        after = schema.charges_of(account.client.order(job.external_id))
    if not schema.count_charge(after, charge):
        raise TryLater("the charge was added, and does not read so", status=READ_FAILED)
    others = schema.other_charges(before, charge)
    if schema.count_charge(after, charge) > 1 or schema.other_charges(after, charge) != others:
        page = account.client.page_of(job.external_id)
        raise Refused(f"the charge was added, and other charges changed with it: put them right at {page}")
    return f"charged {charge.quantity} x {charge.amount}: {charge.title} [{charge.marker}]"


def ask_edit(job: Job, account: Account, data: dict[str, Any]) -> str:
    """See `tasks.base.Command`."""
    schema.check_edit(data)
    changes = schema.edited(_editable(job, account), data)
    if not changes:
        return "the order reads so already, nothing would be done"
    told = "; ".join(f"sets {name} to {value!r}, which is {now!r}" for name, (now, value) in changes.items())
    return told + _kept_by_the_erp(job, changes)


def run_edit(job: Job, account: Account, data: dict[str, Any]) -> str:
    """See `tasks.base.Command`."""
    schema.check_edit(data)
    with _alone(job) as check:
        changes = schema.edited(_editable(job, account), data)
        if not changes:
            return "the order reads so already"
        check()
        account.client.edit_order(job.external_id, data)
        missing = schema.edited(account.client.order(job.external_id), data)
    if missing:
        raise TryLater(f"edited, and does not read so: {', '.join(missing)}", status=READ_FAILED)
    kept = _kept_by_the_erp(job, changes)
    return f"set {', '.join(changes)}{kept}{': change it there' if kept else ''}"


def _kept_by_the_erp(job: Job, changes: Collection[str]) -> str:
    """Nothing is told anew to an ERP that has the order."""
    names = [name for name in changes if name in schema.TOLD_TO_THE_ERP]
    return f"; the ERP keeps the old {', '.join(names)}" if names and job.has_tried("erp.order") else ""


COMMANDS = {
    "charge": Command(
        'add a charge: {"title": "Late fee", "amount": 12.5, "quantity": 1}; the same data twice is one charge, '
        'a "key" makes it another',
        ask_charge,
        run_charge,
    ),
    "edit": Command(
        'change data of the order: {"date": "2026-12-01", "customFields": {"code": "value"}}', ask_edit, run_edit
    ),
}


# -- what a replay would do -------------------------------------------------------------------------------------------


@preview("storeganise.resolve")
def foresee_resolve(job: Job, account: Account) -> Preview:
    return call("looks for the order of this job")


@preview("storeganise.fetch")
def foresee_fetch(job: Job, account: Account) -> Preview:
    remote = _read(job, account)
    stands = remote.open[0].type if remote.open else "no step"
    return call(f"reads the order again, which is {remote.state} and stands at {stands}, and plans anew")


def _foresee_turn(job: Job, account: Account) -> RemoteStep | Preview:
    try:
        there = _turn(job, account, _read(job, account))
    except Refused as refusal:
        return call(f"would stop: {refusal.reason}")
    if isinstance(there, RemoteStep):
        return there
    return already("is cancelled in Storeganise: its plan ends here" if there is _CANCELLED else "is completed already")


@preview("storeganise.order_start")
def foresee_order_start(job: Job, account: Account) -> Preview:
    there = _foresee_turn(job, account)
    if isinstance(there, Preview):
        return there
    return irreversible("confirms the order, makes its invoice, and it can no longer be cancelled")


@preview("storeganise.other")
def foresee_other(job: Job, account: Account) -> Preview:
    there = _foresee_turn(job, account)
    return there if isinstance(there, Preview) else call(f"would stop: staff have not completed {there.type} yet")


@preview("storeganise.items_pickEmptyBoxes")
def foresee_pick(job: Job, account: Account) -> Preview:
    return _foresee_handling(job, account, HANDLINGS[schema.PICK])


@preview("storeganise.items_deliver")
def foresee_deliver(job: Job, account: Account) -> Preview:
    return _foresee_handling(job, account, HANDLINGS[schema.DELIVER])


@preview("storeganise.items_collect")
def foresee_collect(job: Job, account: Account) -> Preview:
    return _foresee_handling(job, account, HANDLINGS[schema.COLLECT])


@preview("storeganise.items_store")
def foresee_store(job: Job, account: Account) -> Preview:
    return _foresee_handling(job, account, HANDLINGS[schema.STORE])


def _foresee_handling(job: Job, account: Account, kind: Handling) -> Preview:
    there = _foresee_turn(job, account)
    if isinstance(there, Preview):
        return there
    scene = look(job, account, kind, _read(job, account, items=True))
    try:
        check(scene, kind)
    except Refused as refusal:
        return call(f"would stop: {refusal.reason}")
    sids = undone(scene, kind)
    commands = f"{schema.COMMANDS[kind.type]} for {', '.join(sids)}" if sids else "no command, all items are done"
    return call(f"{commands}; completes {kind.type} once every item is {kind.signal}")


@preview("storeganise.cancel")
def foresee_cancel(job: Job, account: Account) -> Preview:
    remote = _read(job, account)
    if remote.cancelled:
        return already("is cancelled in Storeganise already")
    if remote.completed:
        return already(TOO_LATE)
    return call(f"would stop: {_how_to_cancel(job, account, remote)}")


def probe(account: Account) -> str:
    """Prove address and key with one read."""
    next(iter(account.client.orders(limit=1)), None)
    return "valet orders can be read"


SYSTEM = System(
    name="storeganise",
    poll=poll,
    review=review,
    tell_cancelled=(Planned("storeganise.cancel"),),
    probe=probe,
    commands=COMMANDS,
)
