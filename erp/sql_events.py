"""Reading `erp_event`: the cursor that skips nothing, and what the ERP wrote in a row.

Ids ascend in the order they are given, not in the order they can be seen: a slow transaction commits a lower
id after a higher one was read, and one that is rolled back leaves its id unused for ever. Nobody can tell the
two apart, so every id that is missing below the highest one seen is looked for again, for an hour.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Self

from erp.port import KINDS, ErpEvent
from orders.model import parse_external_reference

WATCH_SECONDS = 3600.0
MOST_WATCHED = 4096


class Gap(NamedTuple):
    """Ids `first` to `last` were missing; `noticed` is the database's time then, in epoch seconds."""

    first: int
    last: int
    noticed: float


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the feed was read: up to the id `high`, but for the gaps (at most `MOST_WATCHED` ids)."""

    high: int = 0
    gaps: tuple[Gap, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """The cursor that `str` wrote; None is the beginning. Raises `ValueError` for anything else."""
        if text is None:
            return cls()
        try:
            data = json.loads(text)
            gaps = tuple(Gap(int(first), int(last), float(noticed)) for first, last, noticed in data["gaps"])
            return cls(int(data["high"]), gaps)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a cursor of this feed: {text[:100]!r}") from error

    def __str__(self) -> str:
        return json.dumps({"high": self.high, "gaps": self.gaps}, separators=(",", ":"))

    @property
    def watched(self) -> list[int]:
        """Every id that is looked for again."""
        return [number for gap in self.gaps for number in range(gap.first, gap.last + 1)]

    def after(self, ids: Iterable[int], at: float) -> Self:
        """The cursor once these further ids were read, ascending, at the database's time `at`."""
        high, gaps = self.high, list(self.gaps)
        for number in ids:
            if number > high + 1:
                gaps.append(Gap(high + 1, number - 1, at))
            high = number
        return type(self)(high, _newest(gaps))

    def without(self, ids: Iterable[int]) -> Self:
        """The cursor once these ids, ascending, turned up in the gaps."""
        found = set(ids)
        return type(self)(self.high, tuple(part for gap in self.gaps for part in _parts(gap, found)))

    def at(self, now: float) -> Self:
        """The cursor without the gaps that have been watched long enough by `now`."""
        return type(self)(self.high, tuple(gap for gap in self.gaps if gap.noticed > now - WATCH_SECONDS))


def _parts(gap: Gap, found: set[int]) -> Iterable[Gap]:
    first = gap.first
    for number in range(gap.first, gap.last + 1):
        if number in found:
            if number > first:
                yield Gap(first, number - 1, gap.noticed)
            first = number + 1
    if first <= gap.last:
        yield Gap(first, gap.last, gap.noticed)


def _newest(gaps: list[Gap]) -> tuple[Gap, ...]:
    # Too many ids to watch (a sequence was set forward by a million): those nearest to the top may still be
    # in flight.
    kept: list[Gap] = []
    room = MOST_WATCHED
    for gap in reversed(gaps):
        if room == 0:
            break
        first = max(gap.first, gap.last - room + 1)
        kept.append(gap._replace(first=first))
        room -= gap.last - first + 1
    return tuple(reversed(kept))


# --- What a row says ------------------------------------------------------------------------------------


def read_event(row: Sequence[Any], now: datetime) -> ErpEvent:
    """The event in a row of (id, external_reference, kind, data, created_at), however bad it is."""
    number, reference, kind, data, created_at = row
    reference, kind = as_text(reference), as_text(kind)
    problems = []
    at = _time(created_at)
    if at is None:
        problems.append(f"created_at is not a time: {as_text(created_at)[:40]!r}")
    if parse_external_reference(reference) is None:
        problems.append("external_reference is not system:account:external-id")
    said, problem = read_data(kind, data)
    if problem:
        problems.append(problem)
    if problems:
        said = {**said, "_error": "; ".join(problems)}
    return ErpEvent(str(number), reference, kind, said, now if at is None else at)


def read_data(kind: str, data: Any) -> tuple[dict[str, Any], str | None]:
    """What `data`, as it is in the table, says, and what is wrong with it."""
    try:
        said = json.loads(data, parse_constant=_no_number)
    except (TypeError, ValueError, RecursionError) as error:
        return {"_data": as_text(data)}, f"data is not JSON: {error}"
    if not isinstance(said, dict):
        return {"_data": as_text(data)}, "data is not a JSON object"
    if kind not in KINDS:
        return said, f"unknown kind {kind!r}"
    try:
        return _READERS.get(kind, dict)(said), None
    except ValueError as error:
        return said, str(error)


def _numbered(said: dict[str, Any]) -> dict[str, Any]:
    number = said.get("order_number")
    if not isinstance(number, str | int) or isinstance(number, bool) or not str(number).strip():
        raise ValueError("order_number is missing")
    lines = {key: _line_number(key, value) for key, value in _object(said, "lines").items()}
    return {**said, "order_number": str(number), "lines": lines}


def _line_number(key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    raise ValueError(f"the number of line {key} is not a whole number: {value!r}")


def _refused(said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "reason": _optional_text(said, "reason") or "the ERP gave no reason"}


def _shipped(said: dict[str, Any]) -> dict[str, Any]:
    lines = {key: _quantity(key, value) for key, value in _object(said, "lines").items()}
    texts = {name: _optional_text(said, name) for name in ("carrier", "tracking") if said.get(name) is not None}
    return {**said, **texts, **({"lines": lines} if said.get("lines") is not None else {})}


def _quantity(key: str, value: Any) -> str:
    try:
        # `str` first: a float becomes the shortest decimal that means it, 0.1 and not 0.1000000000000000055.
        quantity = Decimal(str(value))
    except InvalidOperation:
        quantity = Decimal("NaN")
    if isinstance(value, bool) or not quantity.is_finite():
        raise ValueError(f"the quantity of line {key} is not a number: {value!r}")
    return format(quantity, "f")


def _handled(said: dict[str, Any]) -> dict[str, Any]:
    items = said.get("items", [])
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("items is not a list of ids")
    if not all(isinstance(place, str) for place in _object(said, "locations").values()):
        raise ValueError("locations is not an object of texts")
    return said


_READERS = {
    "numbered": _numbered,
    "refused": _refused,
    "shipped": _shipped,
    "picked": _handled,
    "delivered": _handled,
    "collected": _handled,
    "stored": _handled,
}


def _object(said: dict[str, Any], name: str) -> dict[str, Any]:
    value = said.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _optional_text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
        raise ValueError(f"{name} is not a text")
    return "" if value is None else str(value)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def as_text(raw: Any) -> str:
    """A column as text. SQLite hands out bytes (`sql._event_columns`); old ERPs write Latin-1."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def _time(raw: Any) -> datetime | None:
    try:
        at = raw if isinstance(raw, datetime) else datetime.fromisoformat(as_text(raw))
    except ValueError:
        return None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
