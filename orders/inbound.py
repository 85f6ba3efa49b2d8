"""An order that somebody puts in at our own door: what is kept of it, so that the same one is known when it comes
again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class KeyReused(Exception):
    """The sender used this key for another request."""


class ImageReused(Exception):
    """An image of this request belongs to another order already."""


class UnderWay(Exception):
    """A request with this key is being accepted at this very moment."""


@dataclass(frozen=True, slots=True)
class Made:
    """An order as it is once it has its number: `document` is the canonical order as JSON, `answer` what the sender
    is told, now and whenever the same request comes again."""

    reference: str
    document: dict[str, Any]
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Offer:
    """One request to take an order, checked.

    `sender` is whoever is logged in; `place` is where the order was taken, and `search` what it can be found by, in
    lower case. `body` is the request as it came. Three digests know it again: `same` is that of the whole body,
    `content` that of what a blind retry must have in common, `likeness` that of all but the images. `make` is handed
    the order's number and the time."""

    account: str
    sender: str
    key: str | None
    body: str
    images: tuple[str, ...]
    same: str
    content: str
    likeness: str
    place: str
    search: str
    make: Callable[[int, datetime], Made]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepted:
    """An offer that became an order, now (`new`) or earlier. `order_id` is the ledger's."""

    number: int
    order_id: int
    answer: dict[str, Any]
    new: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """An order as its sender may see it: what was answered at first, and where it stands now."""

    number: int
    answer: dict[str, Any]
    state: str
    signals: frozenset[str]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """An image that a sender uploaded."""

    id: str
    mimetype: str
    content: bytes
