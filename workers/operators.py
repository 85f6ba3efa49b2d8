"""What operators may do to orders, as the command line and the console both do it. Nothing is printed here."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erp.port import KINDS
from erp.sql_events import read_data
from ledger import by_hand, interrupts, queries, signals
from ledger.connection import Ledger
from ledger.queries import Ended, Rows
from ledger.records import Claim
from orders.errors import StepError
from orders.outcomes import Planned, alternatives
from orders.states import FINISHED, IN_FLIGHT, State
from tasks import erp
from tasks.base import PREVIEWS, Account, Command, Effect, Fleet, Job, Preview, System, already, call, irreversible

Row = dict[str, Any]

MOST_NAMED = 10


class NotPossible(Exception):
    """It cannot be done to this order as it stands. The message says why, and what can be done instead."""


class Ambiguous(Exception):
    """A name that several orders have; the message lists them."""


def find_order(ledger: Ledger, name: str) -> Row:
    """The order called `name`: a ledger id, or `system[:account]:` with an external id or a reference. Raises
    `NotPossible`, `Ambiguous`."""
    found = queries.find_order(ledger, name)
    if not found:
        raise NotPossible(
            f"no order is called {name}: give its id, or system[:account]:external-id (or its reference there); "
            f"`orderfleet orders --search {name.rpartition(':')[2]}` may find it"
        )
    if len(found) > 1:
        others = ", ".join(f"{order['id']} ({full_name(order)})" for order in found[:MOST_NAMED])
        raise Ambiguous(f"{name} may be any of {len(found)} orders, name one by its id: {others}")
    return found[0]


def full_name(order: Row) -> str:
    """`system:account:external-id`, which is unique."""
    return f"{order['system']}:{order['account']}:{order['external_id']}"


# -- replay -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a replay of one order would do, as long as its row has the version seen here.

    `position`: the place in the plan it starts from. `steps`: from there on, each step's name and preview. `refusal`:
    why it cannot be replayed now."""

    order: Row
    position: int
    steps: tuple[tuple[str, Preview], ...] = ()
    refusal: str | None = None

    @property
    def must_acknowledge(self) -> bool:
        """Whether it may do what cannot be taken back."""
        return any(preview.effect is Effect.IRREVERSIBLE for _, preview in self.steps)


def foresee(fleet: Fleet, order: Row, start: str | None = None, *, happened: bool = False) -> Foreseen:
    """What a replay from the step `start` (None: where the order stands) would do. Reads the remote, never writes.

    `happened`: the operator says that the effect in doubt did happen, so its step is left out."""
    plan = queries.plan_of(fleet.ledger, order["id"])
    try:
        position = _start(order, plan, start, happened=happened)
    except NotPossible as refusal:
        return Foreseen(order, order["position"], refusal=str(refusal))
    tries = queries.last_tries(fleet.ledger, order["id"])
    come = queries.signalled(fleet.ledger, order["id"])
    steps = []
    for step in plan[position:]:
        claim = _as_if_claimed(order, plan, step["position"])
        read = any(earlier["name"] == f"{order['system']}.fetch" for earlier in plan[position : step["position"]])
        job = Job(fleet.ledger, claim, read_anew=read)
        steps.append((claim.step, _preview(fleet, order, job, tries.get((claim.position, claim.step)), come)))
    return Foreseen(order, position, tuple(steps))


def _start(order: Row, plan: Rows, start: str | None, *, happened: bool) -> int:
    state = order["state"]
    if state in IN_FLIGHT:
        raise NotPossible(f"is {state}: it goes on by itself, look again in a moment")
    if state == State.CANCELLED:
        raise NotPossible("is cancelled, and stays so")
    if happened:
        if state != State.IN_DOUBT:
            raise NotPossible(f"is {state}, not in doubt")
        return int(order["position"]) + 1
    if start is not None:
        return _start_at(order, plan, start)
    if state in FINISHED:
        raise NotPossible(f"is {state}: say from which step it shall go again, with --from: {_names(plan)}")
    return int(order["position"])


def _start_at(order: Row, plan: Rows, start: str) -> int:
    places = [step["position"] for step in plan if step["name"] == start]
    if not places:
        raise NotPossible(f"has no step {start}; its steps: {_names(plan)}")
    behind = [place for place in places if place <= order["position"]]
    if not behind:
        raise NotPossible(f"stands at {order['step']}, before {start}: a replay leaves no step out")
    if order["ending"] == State.CANCELLED and behind[-1] < order["position"]:
        raise NotPossible(f"is being cancelled: it goes on from {order['step']} only")
    return int(behind[-1])


def _names(plan: Rows) -> str:
    return ", ".join(step["name"] for step in plan)


def _as_if_claimed(order: Row, plan: Rows, position: int) -> Claim:
    """A claim that holds nothing, so that previews see what their steps would."""
    return Claim(
        id=order["id"],
        system=order["system"],
        account=order["account"],
        external_id=order["external_id"],
        reference=order["reference"],
        position=position,
        step=plan[position]["name"],
        fence=0,
        tries=order["tries"] + 1,
        failures=order["failures"],
        crashes=0,
        signal_seq=0,
        claimed_at=order["updated_at"],
        plan=tuple(Planned(one["name"], one["awaits"], one["recheck"], json.loads(one["data"])) for one in plan),
        facts=order["facts"] | {"replayed": True},
    )


def _preview(fleet: Fleet, order: Row, job: Job, last: Ended | None, come: frozenset[str]) -> Preview:
    claim = job.claim
    awaits = claim.plan[claim.position].awaits
    if order["state"] == State.IN_DOUBT and claim.position == order["position"]:
        return irreversible(f"may have happened: {order['error']}")
    if awaits is not None and come.isdisjoint(alternatives(awaits)):
        return call(f"waits for {' or '.join(alternatives(awaits))} first")
    if claim.step not in PREVIEWS:
        return _by_last_try(last)
    try:
        return PREVIEWS[claim.step](job, fleet.partner_of(claim))
    except StepError as error:
        return call(f"cannot be foreseen: {error.reason}")
    except LookupError:
        return call("cannot be foreseen: an earlier step has not learnt yet what it needs, or its account is not set")


def _by_last_try(last: Ended | None) -> Preview:
    if last is None:
        return call("has not run yet")
    if last.outcome in ("done", "skipped"):
        return already(f"was {last.outcome} before ({last.detail or 'no detail'}); looks again before it writes")
    if last.outcome == State.IN_DOUBT:
        return irreversible(f"may have happened: {last.detail}")
    return call(f"ended with {last.outcome} before: {last.detail}")


def plan_version(foreseen: Sequence[Foreseen]) -> str:
    """Names what was foreseen: another order, or one that has moved on meanwhile, makes it another version."""
    seen = [[one.order["id"], one.order["version"], one.position] for one in foreseen if one.refusal is None]
    return hashlib.sha256(json.dumps(sorted(seen)).encode()).hexdigest()[:12]


def replay(ledger: Ledger, one: Foreseen, who: str, *, acknowledged: bool = False, happened: bool = False) -> None:
    """Let the order go again as foreseen. Raises `NotPossible`, or `ledger.by_hand.MovedOn` when it has changed."""
    if one.refusal is not None:
        raise NotPossible(one.refusal)
    if one.must_acknowledge and not acknowledged:
        raise NotPossible("may do what cannot be taken back: see its preview, then acknowledge it")
    order_id, version = one.order["id"], one.order["version"]
    if happened:
        by_hand.skip(ledger, order_id, version, who)
    else:
        by_hand.replay(ledger, order_id, version, one.position, who, acknowledged=acknowledged)


# -- release, signal, cancel ------------------------------------------------------------------------------------------


def release(ledger: Ledger, order: Row, system: System | None, who: str) -> str:
    """Let an order pass its payment gate; the state it is in now. Raises `NotPossible`."""
    if system is None or system.gate is None:
        raise NotPossible(f"{order['system']} holds no order for its payment: `orderfleet replay` or `signal` may do")
    state = by_hand.release(ledger, order["id"], system.gate, who)
    if state is None:
        raise NotPossible(_over(ledger, order["id"]))
    return state


def signal_names(ledger: Ledger, order: Row) -> tuple[str, ...]:
    """The signals an operator may give this order: what an ERP tells, a payment, and whatever its plan waits for."""
    awaited = (step["awaits"] for step in queries.plan_of(ledger, order["id"]))
    names = (name for awaits in awaited if awaits is not None for name in alternatives(awaits))
    return tuple(dict.fromkeys([*KINDS, "paid", *names]))


def read_signal_data(ledger: Ledger, order: Row, name: str, text: str) -> dict[str, Any]:
    """The JSON object that goes with a signal, checked as the ERP's own is. Raises `ValueError` with what is wrong."""
    said, problem = read_data(name if name in KINDS else "completed", text)
    if problem is not None:
        raise ValueError(problem)
    document = queries.document(ledger, order["id"])
    keys = [line["key"] for line in document["lines"]] if document is not None else None
    unknown = [key for key in said.get("lines") or {} if keys is not None and key not in keys]
    if unknown:
        raise ValueError(f"the order has no line {', '.join(unknown)}; its lines are {', '.join(keys or [])}")
    return said


def signal(ledger: Ledger, order: Row, system: System | None, name: str, data: dict[str, Any], who: str) -> bool:
    """Tell an order a fact, as if the ERP had; whether that woke it. Raises `NotPossible`."""
    if order["state"] in FINISHED:
        raise NotPossible(_over(ledger, order["id"]))
    told = erp.signal_of(order["id"], name, data, f"operator:{who[:100]}:{uuid.uuid4()}")
    erp.stop(ledger, system, told)
    return bool(signals.signal(ledger, [told], who=who))


def cancel(ledger: Ledger, order: Row, system: System | None, who: str) -> str:
    """Cancel an order in the ERP and in its own system; the state it is in now. Raises `NotPossible`."""
    rest = (Planned("erp.cancel"), *(system.tell_cancelled if system is not None else ()))
    state = interrupts.interrupt(ledger, order["id"], f"cancelled by {who}", rest, State.CANCELLED, who=who)
    if state is None:
        raise NotPossible(_over(ledger, order["id"]))
    return state


# -- what a system offers beside the plan ------------------------------------------------------------------------------


def commands_of(system: System | None) -> Mapping[str, Command]:
    """What an operator may do to an order of this system at its remote, by name."""
    return system.commands if system is not None else {}


def no_such_command(order: Row, name: str, known: Mapping[str, Command]) -> str:
    """Words for a command that is not there."""
    offered = f"there are {', '.join(known)}" if known else f"{order['system']} offers none"
    return f"there is no command {name!r} for {full_name(order)}: {offered}"


class Doing:
    """One command of an operator for one order. Audited before and after, so that one that was cut off shows."""

    def __init__(self, fleet: Fleet, order: Row, name: str, command: Command, data: dict[str, Any], who: str) -> None:
        self._ledger = fleet.ledger
        self._order = order["id"]
        self._name = name
        self._command = command
        self._data = data
        self._who = who
        plan = queries.plan_of(fleet.ledger, order["id"])
        claim = _as_if_claimed(order, plan, min(order["position"], len(plan) - 1))
        self._job = Job(fleet.ledger, claim)
        self._account = fleet.accounts.get((order["system"], order["account"]))
        self._asked: str | None = None

    def ask(self) -> str:
        """What would be done. Raises `NotPossible`, and errors of `orders.errors`."""
        self._asked = self._command.ask(self._job, self._talking_to(), self._data)
        return self._asked

    def run(self) -> str:
        """Do what `ask` said; what was done. Raises as `ask`, and `NotPossible` when it would be something else now."""
        account = self._talking_to()
        asked = self._asked
        if asked is not None and self.ask() != asked:
            raise NotPossible(f"it has changed meanwhile, and now {self._asked}: look again")
        by_hand.write_audit(self._ledger, self._who, self._name[:32], self._order, f"begun: {_shown(self._data)}")
        try:
            said = self._command.run(self._job, account, self._data)
        except StepError as error:
            by_hand.write_audit(self._ledger, self._who, self._name[:32], self._order, f"failed: {error.reason}")
            raise
        by_hand.write_audit(self._ledger, self._who, self._name[:32], self._order, said)
        return said

    def _talking_to(self) -> Account:
        if self._account is None:
            raise NotPossible("its account is not set up here: see `orderfleet doctor`")
        return self._account


def _shown(data: dict[str, Any]) -> str:
    return json.dumps(data, default=str, ensure_ascii=False)[:1000]


def _over(ledger: Ledger, order_id: int) -> str:
    order = queries.find_order(ledger, str(order_id))[0]
    if order["state"] in FINISHED:
        return f"order {order_id} is {order['state']} already"
    return f"order {order_id} is on its way to be {order['ending']}"
