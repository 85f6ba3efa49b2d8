"""What receives the webhooks of all systems: who sent it, is it readable, keep it, answer.

A system's own file subclasses `Receiver` and states facts: how its sender is proven, what names an event, which order
it is about. `blueprint` does the rest, in this order, and stores nothing of what it refuses:

404 unknown account · 413 too large · 401 not proven · 415 not JSON by its type · 400 not readable ·
503 not committed, so that the sender repeats · 200 committed, also when it was seen before
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import structlog
from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import RequestEntityTooLarge

from orders.arrival import Arrival

LONGEST_NAME = 190
LONGEST_KIND = 64
_UNKEEPABLE = re.compile("[\0\ud800-\udfff]")
"""What JSON may hold and no database keeps: NUL, and halves of characters."""

log = structlog.get_logger(__name__)


class Unreadable(Exception):
    """The body is JSON, but not an event of this system. The message goes to the log, not to the sender."""


class NotKept(Exception):
    """The event could not be committed: the sender is to repeat it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a delivery says: what is to be kept of it, and the JSON of the answer."""

    arrivals: tuple[Arrival, ...] = ()
    answer: Any = field(default_factory=lambda: {"status": "ok"})


class Receiver(ABC):
    """The webhooks of one system, for all its accounts. Thread-safe; calls nobody."""

    name: ClassVar[str]
    """The system."""
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    most_bytes: ClassVar[int] = 1 << 20

    @abstractmethod
    def accounts(self) -> Collection[str]:
        """The accounts that may be named in the URL."""

    @abstractmethod
    def proves(self, account: str, headers: Mapping[str, str], raw: bytes) -> bool:
        """Whether the sender knows the account's secret: over the raw bytes, in constant time. Header names are
        case-insensitive."""

    @abstractmethod
    def read(self, account: str, document: Any, raw: bytes) -> Reading:
        """What it says. `document` is the body's JSON, `{}` for a GET. Raises `Unreadable`."""


Keep = Callable[[str, Sequence[Arrival]], None]
"""Commits the arrivals of a system, and has them seen to. Raises `NotKept`."""
Count = Callable[[str, int], None]
"""Counts an answer of a system, by its status."""


def blueprint(receiver: Receiver, keep: Keep, count: Count) -> Blueprint:
    """`/webhooks/<system>/<account>`."""
    routes = Blueprint(f"webhooks_{receiver.name}", __name__, url_prefix=f"/webhooks/{receiver.name}")

    def receive(account: str) -> Response:
        answer = _answer(receiver, keep, account)
        count(receiver.name, answer.status_code)
        return answer

    routes.add_url_rule("/<account>", "receive", receive, methods=list(receiver.methods))
    return routes


def _answer(receiver: Receiver, keep: Keep, account: str) -> Response:
    if account not in receiver.accounts():
        return _refusal(404, "no such account", receiver, account)
    raw = _bounded(receiver.most_bytes)
    if raw is None:
        return _refusal(413, f"larger than {receiver.most_bytes} bytes", receiver, account)
    if not receiver.proves(account, cast(Mapping[str, str], request.headers), raw):
        return _refusal(401, "the sender is not proven", receiver, account)
    if request.method != "GET" and not request.is_json:
        return _refusal(415, "application/json is needed", receiver, account)
    try:
        document = {} if request.method == "GET" else json.loads(raw)
        reading = receiver.read(account, document, raw)
        _check(reading.arrivals)
    except (ValueError, RecursionError, Unreadable) as error:
        log.info("a webhook cannot be read", action="webhook_unreadable", system=receiver.name, reason=_words(error))
        return _refusal(400, "not a readable event", receiver, account)
    return _kept(receiver, keep, account, reading)


def _bounded(most: int) -> bytes | None:
    """The body; None if it has more than `most` bytes, of which only one is looked at."""
    request.max_content_length = most + 1  # a body that does not say its length is cut off there, without an error
    try:
        raw = request.get_data(cache=False)
    except RequestEntityTooLarge:
        return None
    return raw if len(raw) <= most else None


def _check(arrivals: Sequence[Arrival]) -> None:
    """What no ledger could keep would be sent again for ever. Raises `Unreadable`."""
    for arrival in arrivals:
        names = (arrival.external_id or "", arrival.dedupe_key, arrival.reference or "")
        too_long = any(len(name) > LONGEST_NAME for name in names) or len(arrival.kind) > LONGEST_KIND
        if too_long or any(_UNKEEPABLE.search(name) for name in (*names, arrival.kind)):
            raise Unreadable("it names something by a text that is too long, or no text at all")


def _kept(receiver: Receiver, keep: Keep, account: str, reading: Reading) -> Response:
    try:
        keep(receiver.name, reading.arrivals)
    except NotKept as error:
        log.error("a webhook was not kept", action="webhook_not_kept", system=receiver.name, reason=str(error))
        return _refusal(503, "not kept, send it again", receiver, account)
    return jsonify(reading.answer)


def _words(error: Exception) -> str:
    """Never a body: these tell of people."""
    return str(error) if isinstance(error, Unreadable) else type(error).__name__


def _refusal(status: int, reason: str, receiver: Receiver, account: str) -> Response:
    log.info("a webhook was refused", action="webhook_refused", system=receiver.name, status=status, reason=reason)
    answer = jsonify({"error": reason})
    answer.status_code = status
    return answer
