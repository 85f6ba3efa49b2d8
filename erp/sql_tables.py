"""The staging tables and our rows in them. For the ERP's developer they are described in docs/erp-sql.md."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, Index, Integer, MetaData, String, Table, Text, text
from sqlalchemy.dialects import mysql

from databases.clock import now
from databases.types import UTC, Exact, Id
from erp.port import Rejected, Stage
from orders.model import Line, Order, parse_external_reference

_MYSQL = ("mysql", "mariadb")
_PLACES = 6
_DIGITS = 14  # before the point, in NUMERIC(20, 6)

Long = Text().with_variant(mysql.LONGTEXT(), *_MYSQL)
Reference = String(320)

# On MySQL the usual collations take "a" for "A" and would make one order of two.
_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in _MYSQL
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}
_UNTAKEN = text("taken_at IS NULL")

metadata = MetaData()

erp_order = Table(
    "erp_order",
    metadata,
    Column("external_reference", Reference, primary_key=True),
    Column("system", String(32), nullable=False),
    Column("account", String(64), nullable=False),
    Column("external_id", String(190), nullable=False),
    Column("reference", String(190)),
    Column("stage", String(16), nullable=False),
    Column("customer_name", Text),
    Column("customer_email", Text),
    Column("customer_phone", Text),
    Column("ship_to", Long, nullable=False),
    Column("currency", String(16)),
    Column("total", Exact),
    Column("requested_at", UTC),
    Column("notes", Long),
    Column("document", Long, nullable=False),
    Column("created_at", UTC, nullable=False),
    Column("updated_at", UTC, nullable=False),
    # With numbering=ours: the number we gave.
    Column("order_number", String(320)),
    # Refusals up to this event are answered: the order was handed to the ERP once more after them.
    Column("asked_after", Id),
    # The ERP's own mark, the one column it may write: NULL whenever there is something new for it in this
    # row.
    Column("taken_at", UTC),
    Index("ix_erp_order_stage_created_at", "stage", "created_at"),
    Index(
        "ix_erp_order_taken_at_created_at",
        "taken_at",
        "created_at",
        postgresql_where=_UNTAKEN,
        sqlite_where=_UNTAKEN,
    ),
    **_OPTIONS,
)

erp_order_line = Table(
    "erp_order_line",
    metadata,
    Column("external_reference", Reference, primary_key=True),
    Column("line_key", String(190), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("product", String(190)),
    Column("product_origin", String(190)),
    Column("description", Text, nullable=False),
    Column("quantity", Exact, nullable=False),
    Column("unit_price", Exact),
    Column("line_total", Exact),
    # With numbering=ours: the number we gave.
    Column("line_number", Integer),
    **_OPTIONS,
)

erp_event = Table(
    "erp_event",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("external_reference", Reference, nullable=False),
    Column("kind", String(32), nullable=False),
    # Text everywhere, and no foreign key to erp_order: an ERP ships orders we never put, and what it writes
    # wrongly is shown to a person instead of stopping its own transaction.
    Column("data", Long, nullable=False),
    Column("created_at", UTC, nullable=False, server_default=now()),
    Index("ix_erp_event_external_reference", "external_reference"),
    # An id once given is never given again: the feed's cursor passes it but once.
    sqlite_autoincrement=True,
    **_OPTIONS,
)


def order_row(reference: str, order: Order, stage: Stage, *, numbered: bool) -> dict[str, Any]:
    """Our columns of `erp_order`, but the times. `numbered`: with an order number of ours."""
    system, account, external_id = _parts(reference)
    document = order.to_json()
    return {
        "external_reference": reference,
        "system": system,
        "account": account,
        "external_id": external_id,
        "reference": order.reference,
        "stage": stage.value,
        "customer_name": order.customer.name,
        "customer_email": order.customer.email,
        "customer_phone": order.customer.phone,
        "ship_to": _json(document["ship_to"]),
        "currency": order.currency,
        "total": _exact(order.total, "total"),
        "requested_at": order.requested_at,
        "notes": order.notes,
        "document": _json(document),
        "order_number": order_number(reference) if numbered else None,
    }


def line_rows(reference: str, lines: Iterable[Line], numbers: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of `erp_order_line`; `numbers` are those of `line_numbers`, or empty."""
    return [
        {
            "external_reference": reference,
            "line_key": line.key,
            "position": line.position,
            "product": line.product,
            "product_origin": line.product_origin,
            "description": line.description,
            "quantity": _exact(line.quantity, f"quantity of line {line.key}"),
            "unit_price": _exact(line.unit_price, f"unit price of line {line.key}"),
            "line_total": _exact(line.total, f"total of line {line.key}"),
            "line_number": numbers.get(line.key),
        }
        for line in lines
    ]


def order_number(reference: str) -> str:
    """The number of an order that we number ourselves: `CLOUDSUITE-1001`, or `DOSHII.north-1001` for another
    account than `default`. Follows from the reference alone, and no two references have the same.
    """
    system, account, external_id = _parts(reference)
    if account == "default":
        return f"{system.upper()}-{external_id}"
    # The first "-" ends the account, so it must not have one itself.
    name = account.replace("~", "~0").replace("-", "~1")
    return f"{system.upper()}.{name}-{external_id}"


def line_numbers(lines: Iterable[Line]) -> dict[str, int]:
    """Line key to line number, for orders that we number ourselves: 10, 20, 30 by position."""
    ordered = sorted(lines, key=lambda line: line.position)
    return {line.key: 10 * place for place, line in enumerate(ordered, start=1)}


def _parts(reference: str) -> tuple[str, str, str]:
    parts = parse_external_reference(reference)
    if parts is None:
        raise ValueError(f"{reference!r} is not system:account:external-id")
    return parts


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _exact(value: Decimal | None, name: str) -> Decimal | None:
    """`value`, if the column can hold it as it is: databases would round the rest without a word."""
    if value is None:
        return None
    if value.is_finite() and value.adjusted() < _DIGITS and value == round(value, _PLACES):
        return value
    raise Rejected(
        f"{name} is {value}: it must be a number below 10^{_DIGITS} with at most {_PLACES} decimal places",
        code="amount",
        field=name,
    )
