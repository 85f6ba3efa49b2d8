"""What steps may ask of an ERP, in our words. Every adapter keeps these promises; `tests/erp/test_port.py`
checks them.

What five real ERPs do, and why the port looks like this: contracts/erp.md.

Besides the errors defined here an adapter raises, from `orders.errors`: `TryLater` (a conflict with somebody
else's work: nothing happened), `Unavailable` (the ERP answers nobody, and nothing happened) and
`Misconfigured` (credentials, rights, a missing table or field).
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pkgutil import resolve_name
from typing import Any, Literal, Protocol

from orders.errors import Refused, Unclear
from orders.model import Order

KINDS = (
    "numbered",
    "refused",
    "shipped",
    "completed",
    "cancelled",
    "approved",
    "picked",
    "delivered",
    "collected",
    "stored",
)
"""The kinds of event that become signals."""

# Named, not imported: an adapter's libraries are loaded only where it is used.
ADAPTERS = {
    "sqlite": "erp.sql:SqlErp",
    "postgresql": "erp.sql:SqlErp",
    "postgres": "erp.sql:SqlErp",
    "mysql": "erp.sql:SqlErp",
    "mariadb": "erp.sql:SqlErp",
}
"""URL scheme to the class that serves it, called as `Class(url, **values)`."""


class Stage(StrEnum):
    """How far the ERP is with an order."""

    DRAFT = "draft"
    PENDING = "pending"  # the ERP took it; its number comes as an event
    CONFIRMED = "confirmed"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ErpOrder:
    """An order as the ERP has it.

    `number`: the ERP's order number, as soon as there is one. `lines`: our line key to the ERP's line number.
    `refusal`: the ERP's words, when the stage is REFUSED. `duplicates`: numbers of further orders with this
    reference.
    """

    reference: str
    stage: Stage
    number: str | None = None
    lines: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ErpEvent:
    """One fact the ERP told. `id` is unique in its feed: the same fact told twice has the same id.

    `reference` is our external reference, `at` when the ERP wrote it. `data` by kind:

    - numbered: `order_number` (text), `lines` (our line key to the ERP's line number)
    - refused: `reason`, the ERP's words
    - shipped: `lines` (our line key to the quantity, as decimal text; missing: everything), `carrier`,
      `tracking`
    - picked, delivered, collected, stored: `items` (their ids), `locations` (id to place)
    - others: nothing

    What the ERP wrote and nobody can use comes out, too, with the key `_error` saying what is wrong with it:
    such an event is for a person to see, not a signal.
    """

    id: str
    reference: str
    kind: str
    data: dict[str, Any]
    at: datetime

    @property
    def error(self) -> str | None:
        """What is wrong with this event, or None if it can be used."""
        text = self.data.get("_error")
        return None if text is None else str(text)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What differs between ERPs and matters to callers.

    `unique_ref`: who keeps a reference unique; without a database constraint our own lock must. `number_at`:
    the call that brings the order number. `settle`: seconds for which an unanswered call may still take
    effect.
    """

    unique_ref: Literal["database", "application", "none"]
    number_at: Literal["create", "confirm", "later"]
    cancel_after_confirm: bool
    tracking: bool
    settle: float


@dataclass(frozen=True, slots=True)
class Health:
    """What `probe` found, in a sentence; `advice` says what to do when it is not `ok`."""

    ok: bool
    text: str
    advice: str = ""


class OutcomeUnknown(Unclear):
    """A write whose answer is lost. `find` after `Capabilities.settle`, then `put` again."""


class AlreadyThere(Unclear):
    """The ERP's own constraint says that it has this reference, but this call cannot see it yet: `find`, then
    go on.
    """


class Rejected(Refused):
    """The ERP will not have this order. `text` is in its own words; `code` and `field` are its own, if it
    gave any.
    """

    def __init__(self, text: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.field = field


class Erp(Protocol):
    """An ERP. Safe to use from several threads. Made by `open_erp`; connects on first use, not before."""

    @property
    def capabilities(self) -> Capabilities:
        """What this ERP can do; needs no connection."""

    def find(self, reference: str) -> ErpOrder | None:
        """The order the ERP knows by `reference`, or None. Never creates anything; reports doubles."""

    def put(self, reference: str, order: Order, *, stage: Stage) -> ErpOrder:
        """See to it that the ERP has `order` at `stage` (DRAFT or CONFIRMED), and say where it stands.

        Creates it, or goes on from what is there; never goes back. May be repeated at any time: there is one
        order. An order the ERP refused earlier is handed to it once more. Raises `Rejected` when the ERP will
        not have it, when it was cancelled, or when the ERP works on it already and `order` says something
        else.
        """

    def cancel(self, reference: str) -> ErpOrder | None:
        """Cancel, and read back what came of it: the stage says. None when the ERP has no such order."""

    def events(self, cursor: str | None, limit: int) -> tuple[list[ErpEvent], str]:
        """At most `limit` facts after `cursor` (None: from the beginning), and the cursor for the next call.

        The cursor is opaque. A fact may come twice; none is left out.
        """

    def probe(self) -> Health:
        """Whether everything this adapter needs is there and allowed. Changes nothing and raises nothing."""

    def prepare(self) -> None:
        """Create what the adapter needs in the ERP, where it is missing."""

    def close(self) -> None:
        """Give all connections back."""


def open_erp(url: str, **values: Any) -> Erp:
    """The ERP at `url`; its scheme picks the adapter. `values` are the adapter's own, such as `pool_size`.

    Raises `ValueError` for a scheme that no adapter serves, or for a URL that its adapter cannot read.
    """
    scheme = url.partition(":")[0].partition("+")[0]
    if scheme not in ADAPTERS:
        raise ValueError(f"no ERP adapter for {scheme}://: use one of {', '.join(f'{name}://' for name in ADAPTERS)}")
    adapter: Erp = resolve_name(ADAPTERS[scheme])(url, **values)
    return adapter
