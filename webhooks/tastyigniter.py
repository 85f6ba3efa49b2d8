"""TastyIgniter's order webhooks, of the extension igniterlabs/ti-ext-webhook. Contract: contracts/tastyigniter.md, 7.

Every event is a hint: what it says of the order may be late, or out of order, so the order is read."""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orders.arrival import Arrival
from orders.errors import Refused
from orders.outcomes import Planned
from schemas.tastyigniter import Event, parse_event
from webhooks.base import Reading, Receiver, Unreadable

HEADERS = ("TI-Signature", "Signature")
"""The first one once the site's settings page was saved, else the second."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What proves the sender of one account: the subscription's secret, and the header that holds the signature, None
    for either of `HEADERS`."""

    key: str
    header: str | None = None

    def proves(self, headers: Mapping[str, str], raw: bytes) -> bool:
        """Hexadecimal HMAC-SHA256 over the raw bytes: PHP escapes what we would not, so nothing else is the same."""
        expected = hmac.new(self.key.encode(), raw, hashlib.sha256).hexdigest().encode()
        names = HEADERS if self.header is None else (self.header,)
        given = [headers[name].encode() for name in names if name in headers]
        return any([hmac.compare_digest(expected, one) for one in given])


class TastyIgniterReceiver(Receiver):
    """`secrets`: by account. An account without one is not there: the extension then sends nothing that is signed."""

    name = "tastyigniter"

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self._secrets = dict(secrets)

    def accounts(self) -> Collection[str]:
        return self._secrets.keys()

    def proves(self, account: str, headers: Mapping[str, str], raw: bytes) -> bool:
        return self._secrets[account].proves(headers, raw)

    def read(self, account: str, document: Any, raw: bytes) -> Reading:
        """The event, once. Those of automation rules, which are not signed either, are no events."""
        try:
            event = parse_event(raw)
        except Refused as refusal:
            raise Unreadable(refusal.reason) from None
        return Reading((_arrival(account, event, raw),))


def _arrival(account: str, event: Event, raw: bytes) -> Arrival:
    about_order = event.order_id is not None
    return Arrival(
        account=account,
        external_id=str(event.order_id) if about_order else None,
        dedupe_key=_key(event, raw),
        kind=f"webhook.{event.action}" if about_order else f"webhook.{event.subject}.{event.action}",
        body=event.body,
        plan=(Planned("tastyigniter.fetch"),) if about_order and event.action != "deleted" else (),
        reference=str(event.order_id) if about_order else None,
        news=about_order and event.action != "assigned",
    )


def _key(event: Event, raw: bytes) -> str:
    """What names the event: there is no delivery id, but the tries of one delivery are the same byte by byte."""
    if event.action == "status_added" and event.history_id is not None:
        return f"status_added:{event.history_id}"
    if event.action == "placed" and event.order_id is not None:
        return f"placed:{event.order_id}"
    if event.action == "assigned" and event.order_id is not None:
        return f"assigned:{event.order_id}:{_digest(_assignment(event).encode())}"
    return f"{event.subject}.{event.action}:{_digest(raw)}"


def _assignment(event: Event) -> str:
    names = ("assignee_id", "assignee_group_id", "assignee_updated_at")
    return ":".join(str(event.fields.get(name)) for name in names)


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
