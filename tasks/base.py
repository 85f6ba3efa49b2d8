"""What every system's steps are written with: the register, the job a step is handed, and the system's description."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from ledger import queries
from ledger.connection import Ledger
from ledger.queries import Known
from ledger.records import Claim
from orders.model import Order, external_reference
from orders.outcomes import Outcome, Planned


@dataclass(slots=True)
class Job:
    """One try of one step of one order.

    `look`: an earlier try may have had its effect, so read the remote before writing. `read_anew`: only a preview's; an
    earlier step will have read the order by then, so that `order` is not what counts. The rest is what the ledger
    knows. A step reads it, makes its one effect, and returns an `Outcome` or raises an error of `orders.errors`."""

    ledger: Ledger
    claim: Claim
    order_in_hand: Order | None = None
    read_anew: bool = False

    @property
    def look(self) -> bool:
        # After a replay a step may have been done long ago, with its tries counted from nought again.
        return self.claim.tries > 1 or "replayed" in self.claim.facts

    @property
    def acknowledged(self) -> bool:
        """A person let this very try make an effect that was in doubt: it did not happen, or may happen again."""
        return self.claim.facts.get("acknowledged") == [self.claim.position, self.claim.step, self.claim.tries]

    @property
    def external_id(self) -> str:
        return self.claim.external_id

    @property
    def facts(self) -> dict[str, Any]:
        return self.claim.facts

    @property
    def data(self) -> dict[str, Any]:
        """What the plan says about this step alone."""
        return self.claim.data

    @property
    def erp_reference(self) -> str:
        """The name the ERP knows this order by."""
        return external_reference(self.claim.system, self.claim.account, self.claim.external_id)

    def flagged(self, *sentences: str) -> dict[str, list[str]]:
        """`facts` that add these to what a person should see on this order."""
        known: list[str] = self.facts.get("flags", [])
        return {"flags": list(dict.fromkeys([*known, *sentences]))}

    @property
    def order(self) -> Order:
        """The canonical order. Raises `LookupError` when no step has read it yet."""
        if self.order_in_hand is None:
            document = queries.document(self.ledger, self.claim.id)
            if document is None:
                raise LookupError(f"order {self.claim.id} has not been fetched")
            self.order_in_hand = Order.from_json(document)
        return self.order_in_hand

    def has_tried(self, step: str) -> bool:
        """Whether this order ever got to `step`."""
        return queries.has_tried(self.ledger, self.claim.id, step)

    def signals(self, name: str) -> list[queries.Told]:
        """Every signal of this name, oldest first."""
        return queries.signals_of(self.ledger, self.claim.id, name)


StepFunction = Callable[[Job, Any], Outcome]
STEPS: dict[str, StepFunction] = {}
_F = TypeVar("_F", bound=Callable[..., Outcome])


def step(name: str) -> Callable[[_F], _F]:
    """Register a step under the name that plans, Celery and Flower know it by.

    The function takes the job and whom it talks to: the ERP for `erp.*`, else the account (`Account`)."""

    def register(function: _F) -> _F:
        if name in STEPS:
            raise ValueError(f"two steps are called {name}")
        STEPS[name] = function
        return function

    return register


class Effect(StrEnum):
    """What a step would do to the other side."""

    CALL = "call"  # it would call, or cannot know before
    SKIP = "skip"  # the other side has the effect already
    IRREVERSIBLE = "irreversible"  # it cannot be taken back, or may be the second: a person must acknowledge it


@dataclass(frozen=True, slots=True)
class Preview:
    """What a step would do if it ran now, with a sentence for the operator."""

    effect: Effect
    text: str


def call(text: str) -> Preview:
    """The step would make this call."""
    return Preview(Effect.CALL, text)


def already(text: str) -> Preview:
    """The step would find its effect there and skip."""
    return Preview(Effect.SKIP, text)


def irreversible(text: str) -> Preview:
    """The step would do what nobody can take back."""
    return Preview(Effect.IRREVERSIBLE, text)


PreviewFunction = Callable[[Job, Any], Preview]
PREVIEWS: dict[str, PreviewFunction] = {}
_P = TypeVar("_P", bound=PreviewFunction)


def preview(name: str) -> Callable[[_P], _P]:
    """Register what foresees the step called `name`: it takes what the step takes, reads, and never writes.

    A step without one is judged by its attempts in the ledger."""

    def register(function: _P) -> _P:
        if name in PREVIEWS:
            raise ValueError(f"two previews are called {name}")
        PREVIEWS[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Account:
    """One credential set of a system, ready to use: its client and its settings."""

    system: str
    name: str
    client: Any
    options: Any = None
    poll_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Visit:
    """One run of a poll: the account to read and the ledger to write to."""

    ledger: Ledger
    account: Account


@dataclass(frozen=True, slots=True)
class Command:
    """What an operator may do to an order at its remote, beside its plan: `orderfleet do ORDER COMMAND`.

    `ask` reads, and says what would be done with this data; `run` does it, and says what was done. A repeated `run`
    must not do it twice. Both raise errors of `orders.errors`."""

    help: str
    ask: Callable[[Job, Account, dict[str, Any]], str]
    run: Callable[[Job, Account, dict[str, Any]], str]


@dataclass(frozen=True, slots=True)
class System:
    """What the fleet needs to know of a system besides its steps.

    `poll` reads one account and takes in what it finds (None: it only pushes). `review` reads one known order again
    because there is news of it, and acts on what changed, only by `interrupts.interrupt`, `signals.signal`,
    `intake.wake` and `interrupts.stop_for_a_person`: its steps may be running meanwhile. It writes nothing to the
    remote, and returns a sentence if a person should see something. `tell_cancelled`: the steps that tell the remote
    system when the ERP or an operator cancels. `probe` proves an account's credentials with one read. `gate`: the step
    that holds orders until they are paid, or an operator releases them. `commands`: by name."""

    name: str
    poll: Callable[[Visit], None] | None = None
    review: Callable[[Visit, Known], str | None] | None = None
    tell_cancelled: tuple[Planned, ...] = ()
    probe: Callable[[Account], str] | None = None
    gate: str | None = None
    commands: Mapping[str, Command] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything a process works with, built once by `workers.bootstrap`."""

    ledger: Ledger
    erp: Any
    accounts: Mapping[tuple[str, str], Account]
    systems: Mapping[str, System]
    erp_poll_seconds: float = 15.0
    lanes: tuple[tuple[str, str], ...] = field(default=())

    def partner_of(self, claim: Claim) -> Any:
        """Whom the claimed step talks to. Raises `LookupError` when the account is no longer configured."""
        if claim.step.startswith("erp."):
            return self.erp
        return self.accounts[claim.system, claim.account]
