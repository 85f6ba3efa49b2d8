"""One order as Doshii has it, wherever it is by now, and what the poll and the steps share: settings, plan, our words.
Contract: contracts/doshii.md."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from clients.doshii import Doshii
from ledger import queries
from ledger.connection import Ledger
from orders.errors import Refused
from orders.model import Order
from orders.outcomes import Planned
from schemas import doshii as schema
from schemas.doshii import CANCELLED, Payment, RemoteOrder
from tasks.base import Account

Json = dict[str, Any]
SEARCH_BACK = timedelta(days=7)
FOLLOW_AGAIN = 900.0
"""Seconds after which an open order is read again though nobody told us anything: events do get lost."""
LOOK_AGAIN = 3600.0
"""Seconds after which an order that a person should look at is read again by itself."""


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `open_item`: the product for items without a POS id. `rejection_code`: None: the
    one of Doshii's list that says least. `location`: the venue's id, for the probe to compare."""

    currency: str = "AUD"
    open_item: str | None = None
    rejection_code: str | None = None
    location: str | None = None


FOLLOW = (
    Planned("doshii.follow"),
    Planned("doshii.complete", awaits="completed|shipped", recheck=FOLLOW_AGAIN),
)
DRAFT = Planned("erp.draft", data={"when_refused": "doshii.reject"})
ACCEPT = Planned("doshii.accept", awaits="numbered")
PLAN = (Planned("doshii.fetch"), DRAFT, ACCEPT, Planned("erp.order"), *FOLLOW)


# -- finding an order -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """An order as Doshii has it now. `pos_id`: under which it is linked, None if it is not."""

    document: Json
    remote: RemoteOrder
    pos_id: str | None
    payments: tuple[Payment, ...] = ()

    @property
    def cancelled(self) -> bool:
        return self.remote.status in CANCELLED


class Gone(Refused):
    """Doshii has the order no more, or never had it."""


@dataclass(frozen=True, slots=True)
class Finder:
    """Reads one order, wherever it is by now (trap 7, section 7.5)."""

    ledger: Ledger
    client: Doshii
    order_id: int
    external_id: str
    facts: Json

    @property
    def our_id(self) -> str | None:
        """Our id of the order: the one it was linked under, else the one it will be."""
        if "pos_id" in self.facts:
            return str(self.facts["pos_id"])
        return schema.pos_id(self.facts["erp_number"]) if "erp_number" in self.facts else None

    def find(self) -> Found:
        """The order: unlinked, under our id, or under whatever id it was linked. Raises `Gone` if it is nowhere."""
        found = None if "pos_id" in self.facts else self._unlinked()
        found = found or self._under(self.our_id) or self._searched()
        if found is None:
            raise Gone(f"Doshii has no order {self.external_id}, neither unlinked nor linked")
        return found

    def find_with_payments(self) -> Found:
        """The same, with its transactions."""
        found = self.find()
        documents = (
            self.client.unlinked_transactions(self.external_id)
            if found.pos_id is None
            else self.client.transactions(found.pos_id)
        )
        return replace(found, payments=schema.parse_payments(documents))

    def _unlinked(self) -> Found | None:
        document = _if_there(self.client.unlinked_order, self.external_id)
        if document is None:
            return None
        remote = schema.parse_order(document)
        return Found(document, remote, remote.pos_id)

    def _under(self, pos_id: str | None) -> Found | None:
        document = None if pos_id is None else _if_there(self.client.order, pos_id)
        if document is None:
            return None
        remote = schema.parse_order(document)
        return Found(document, remote, pos_id) if self._is_ours(remote, pos_id) else None

    def _is_ours(self, remote: RemoteOrder, pos_id: str | None) -> bool:
        if remote.doshii_id is None and pos_id == self.facts.get("pos_id"):
            return True
        known = None if remote.doshii_id is not None else queries.document(self.ledger, self.order_id)
        keys = [line["key"] for line in known["lines"]] if known is not None else ()
        return schema.is_ours(remote, self.external_id, keys)

    def _searched(self) -> Found | None:
        """Among the linked ones that changed lately: linked by somebody else, or before our ledger was restored."""
        since = queries.database_now(self.ledger) - SEARCH_BACK
        for row in self.client.orders(updated_from=int(since.timestamp())):
            if schema.id_of_row(row) == self.external_id:
                return self._under(schema.parse_row(row).pos_id)
        return None


def _if_there(read: Callable[[str], Json], order_id: str) -> Json | None:
    try:
        return read(order_id)
    except Refused as refusal:
        if refusal.status == 404:
            return None
        raise


def to_order(account: Account, remote: RemoteOrder, *, pending: bool = False) -> Order:
    """In our words. What cannot be booked may be mended: by a setting, or by the partner."""
    options: Options = account.options
    try:
        return schema.to_order(remote, currency=options.currency, open_item=options.open_item, pending=pending)
    except Refused as refusal:
        raise Refused(refusal.reason, recheck=LOOK_AGAIN) from None


def goods(account: Account, remote: RemoteOrder) -> Order:
    """To compare with what the ERP has: a person may have booked open items there without a setting."""
    options: Options = account.options
    return schema.to_order(remote, currency=options.currency, open_item=options.open_item or "an open item")


def as_text(document: Json) -> str:
    """As it is kept in the ledger."""
    return json.dumps(document, default=str)


def pending_items(found: Found) -> str:
    """The appended items that wait for an answer, in words."""
    return ", ".join(item.words for item in found.remote.pending)
