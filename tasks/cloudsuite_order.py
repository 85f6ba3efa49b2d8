"""What CloudSuite's poll and steps share: settings, plan, what a person is shown. Contract: contracts/cloudsuite.md."""

from dataclasses import dataclass

from ledger import intake, queries
from ledger.connection import Ledger
from orders.outcomes import Ended, Planned


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `webshop`: only orders of this shop. `payment_none`: 'hold' or 'process'.
    `delivery`: 'shipment_state', 'desadv' or 'done'. `offline`: 'ignore' or 'ship'. `shop` and `user` are the
    tenant's numbers for DESADV."""

    webshop: int | None = None
    payment_none: str = "hold"
    delivery: str = "shipment_state"
    offline: str = "ignore"
    shop: int | None = None
    user: int | None = None


SHIPMENT = Planned("cloudsuite.shipment", awaits="shipped")
REST = (
    Planned("erp.order"),
    Planned("cloudsuite.state"),
    Planned("cloudsuite.erp_order_number", awaits="numbered"),
    Planned("cloudsuite.lines", awaits="numbered"),
    SHIPMENT,
)
PLAN = (Planned("cloudsuite.fetch"), *REST)
CANCELLED = Ended("cancelled in the webshop", cancelled=True)
CHANGED = "changed in the webshop since the ERP took it"


def show(ledger: Ledger, account: str, what: str, problem: str, external_id: str) -> None:
    """Once an order, that a person sees it."""
    key = f"{what}:{external_id}"
    intake.keep_odd_event(ledger, "cloudsuite", account, key, what, "{}", problem, external_id)


def show_if_out(ledger: Ledger, account: str, order_id: int, external_id: str) -> None:
    """Goods do not come back because an order is cancelled: a person must see to it."""
    if queries.signals_of(ledger, order_id, "shipped"):
        problem = "cancelled in the webshop after the ERP shipped: call the goods back, or refund what is not owed"
        show(ledger, account, "out", problem, external_id)
