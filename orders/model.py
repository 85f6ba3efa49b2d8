"""The canonical order: what every system's document becomes, and what the ERP is handed.

Money and quantities are `Decimal` in the order's currency and the line's sales unit; times are aware UTC.
"""

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Address:
    """Where goods go. Every part may be unknown; `remote_id` is the address id in the remote system."""

    name: str | None = None
    company: str | None = None
    street: str | None = None
    postal_code: str | None = None
    city: str | None = None
    region: str | None = None
    country: str | None = None
    remote_id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One order line. `key` names the line for ever, in the remote system's terms (its line id)."""

    key: str
    position: int
    product: str | None
    quantity: Decimal
    description: str = ""
    product_origin: str | None = None
    unit_price: Decimal | None = None
    total: Decimal | None = None
    kind: str = "line"


@dataclass(frozen=True, slots=True)
class Customer:
    """Who ordered; `remote_id` is the customer id in the remote system."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None
    remote_id: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One remote order in our words."""

    reference: str | None
    currency: str | None
    lines: tuple[Line, ...]
    customer: Customer = field(default_factory=Customer)
    ship_to: Address = field(default_factory=Address)
    total: Decimal | None = None
    requested_at: datetime | None = None
    notes: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The order as JSON types: decimals as strings, times as ISO 8601 with zone."""
        return {
            "reference": self.reference,
            "currency": self.currency,
            "lines": [_plain(line) for line in self.lines],
            "customer": _plain(self.customer),
            "ship_to": _plain(self.ship_to),
            "total": None if self.total is None else str(self.total),
            "requested_at": None if self.requested_at is None else self.requested_at.isoformat(),
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The order that `to_json` wrote."""
        return cls(
            reference=data["reference"],
            currency=data["currency"],
            lines=tuple(_line(row) for row in data["lines"]),
            customer=Customer(**data["customer"]),
            ship_to=Address(**data["ship_to"]),
            total=_decimal(data["total"]),
            requested_at=None if data["requested_at"] is None else datetime.fromisoformat(data["requested_at"]),
            notes=data["notes"],
        )

    def with_lines(self, lines: tuple[Line, ...]) -> Self:
        """The same order with other lines."""
        return replace(self, lines=lines)


def _plain(part: Any) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in asdict(part).items()}


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _line(row: dict[str, Any]) -> Line:
    return Line(
        **{
            **row,
            "quantity": Decimal(row["quantity"]),
            "unit_price": _decimal(row["unit_price"]),
            "total": _decimal(row["total"]),
        }
    )


def external_reference(system: str, account: str, external_id: str) -> str:
    """The name the ERP knows an order by: `system:account:external-id`, unique for ever."""
    return f"{system}:{account}:{external_id}"


def parse_external_reference(text: str) -> tuple[str, str, str] | None:
    """`(system, account, external id)` of an `external_reference`, or None when it is not one of ours."""
    parts = text.split(":", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 and all(parts) else None
