"""How much of an order the ERP has shipped, by the signals that told it."""

from collections.abc import Sequence
from decimal import Decimal

from ledger.queries import Told
from orders.model import Order
from tasks.base import Job


def shipped_quantities(order: Order, told: Sequence[Told]) -> dict[str, Decimal]:
    """Shipped so far by line key; a `shipped` without lines means everything."""
    ordered = {line.key: line.quantity for line in order.lines}
    shipped: dict[str, Decimal] = {}
    for one in told:
        if not one.data.get("lines"):
            shipped |= {key: max(quantity, shipped.get(key, Decimal(0))) for key, quantity in ordered.items()}
            continue
        for key, quantity in one.data["lines"].items():
            shipped[key] = shipped.get(key, Decimal(0)) + Decimal(str(quantity))
    return shipped


def covers(order: Order, told: Sequence[Told]) -> bool:
    """Whether these shipments hold all goods of the order."""
    shipped = shipped_quantities(order, told)
    return all(shipped.get(line.key, Decimal(0)) >= line.quantity for line in order.lines if line.kind == "line")


def all_shipped(job: Job) -> bool:
    """Whether the ERP has shipped every line, or says that the order is completed."""
    return bool(job.signals("completed")) or covers(job.order, job.signals("shipped"))
