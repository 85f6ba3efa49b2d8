"""What the dictionaries share: schemas that check what we rely on, and words for a person when it is not there."""

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from orders.errors import Refused

_LIMIT = Decimal(10) ** 14


class Document(Schema):
    """A JSON object of a remote system. Fields that we do not know may come and go."""

    class Meta:
        unknown = EXCLUDE


class Amount(fields.Decimal):
    """A quantity or a price as `Decimal`: from a number or a numeric string, below 10**14 either way."""

    def _validated(self, value: Any) -> Decimal:
        amount = super()._validated(value)
        if abs(amount) >= _LIMIT:  # 1e999999 is valid JSON, and stops a multiplication
            raise self.make_error("too_large")
        return amount


class Whole(fields.Integer):
    """An `int` from a whole number or its string. marshmallow's own would make 1 of 1.5."""

    def _validated(self, value: Any) -> int:
        if isinstance(value, str):
            return super()._validated(value)
        number = super()._validated(value)
        if number != value:
            raise self.make_error("invalid", input=value)
        return number


def load(schema: Schema, document: Any, what: str) -> dict[str, Any]:
    """`document` as the values of `schema`. Raises `Refused`, naming `what` it is and each field that is wrong.

    The words never hold a value, unless a validator of the schema puts one in: these documents tell of people."""
    try:
        values: dict[str, Any] = schema.load(document)
    except ValidationError as error:
        raise Refused(f"{what} cannot be read: {'; '.join(_words(error.messages))}") from None
    return values


def moment(value: Any, zone: tzinfo = UTC) -> datetime | None:
    """An ISO 8601 text as an aware time, a naive one as of `zone`; None for what is no such text."""
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=zone)


def _words(messages: Any, place: str = "") -> Iterator[str]:
    """marshmallow's nested messages, one `order_lines 2 quantity: Not a valid number` each; lists count from 1."""
    if isinstance(messages, dict):
        for name, below in messages.items():
            yield from _words(below, f"{place} {_part(name)}".strip())
    else:
        said = " ".join(messages).rstrip(".")
        yield f"{place}: {said}" if place else said


def _part(name: str | int) -> str:
    if isinstance(name, int):
        return str(name + 1)
    return "" if name == "_schema" else name
