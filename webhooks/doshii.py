"""Doshii's events: Basic or Bearer credentials, and no signature. Contract: contracts/doshii.md, section 7.

An event is a hint: it says which order to read again. It has no id, and the same text twice may be two facts (two
items appended), so only what comes again within seconds is taken for a double.
"""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flask import request

from orders.arrival import Arrival
from orders.outcomes import Planned
from webhooks.base import Reading, Receiver, Unreadable

DOUBLE_WITHIN = 10.0
"""Seconds within which the same body is the same event. What is dropped wrongly the poll finds (7.3)."""
VERSION = "orderfleet"

_ORDER_EVENTS = frozenset(("order_created", "order_updated", "item_created", "item_updated"))
_PAYMENT_EVENTS = frozenset(("transaction_created", "transaction_updated"))
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,189}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was registered with the webhook: `key` None for a token alone."""

    key: str | None
    token: str

    def match(self, authorization: str) -> bool:
        """Whether a header is the one that Doshii makes of these (7.2), in constant time. How a token alone is sent is
        not public: as Bearer, or as it is."""
        if self.key is not None:
            secret = base64.b64encode(f"{self.key}:{self.token}".encode()).decode()
            return _is(authorization, "Basic", secret)
        return _is(authorization, "Bearer", self.token) or _same(authorization.strip(), self.token)


def _is(authorization: str, scheme: str, secret: str) -> bool:
    told, _, rest = authorization.strip().partition(" ")
    right = _same(rest.strip(), secret)
    return right and told.lower() == scheme.lower()


def _same(told: str, secret: str) -> bool:
    return hmac.compare_digest(told.encode(), secret.encode())


class Doshii(Receiver):
    """One webhook a location: events do not say where they come from (trap 16).

    `credentials` by account. `plan` is that of a new order. `clock` gives seconds since 1970."""

    name: ClassVar[str] = "doshii"
    methods: ClassVar[tuple[str, ...]] = ("POST", "GET")

    def __init__(
        self,
        credentials: Mapping[str, Credentials],
        plan: tuple[Planned, ...],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = dict(credentials)
        self._plan = plan
        self._clock = clock

    def accounts(self) -> Collection[str]:
        """See `Receiver`."""
        return self._credentials

    def proves(self, account: str, headers: Mapping[str, str], raw: bytes) -> bool:
        """See `Receiver`: there is no signature, so what the body says is read back from Doshii."""
        return self._credentials[account].match(headers.get("Authorization", ""))

    def read(self, account: str, document: Any, raw: bytes) -> Reading:
        """See `Receiver`. The name is in `type` or in `event` (trap 14); unknown ones are kept, too."""
        if not isinstance(document, dict):
            raise Unreadable("an event is an object")
        data = document.get("data")
        data = data if isinstance(data, dict) else {}
        name = document.get("type") or document.get("event")
        verify = data.get("verify") or document.get("verify") or request.args.get("verify")
        if verify is not None:
            return Reading(answer={"verify": verify})
        if name == "health_check":
            return Reading(answer={"doshii": {"pong": data.get("ping"), "version": VERSION}})
        if request.method == "GET":
            return Reading()
        return Reading((self._arrival(account, name if isinstance(name, str) else "unnamed", data, raw),))

    def _arrival(self, account: str, name: str, data: dict[str, Any], raw: bytes) -> Arrival:
        order = _order_of(name, data)
        plan = self._plan if order is not None and name in _ORDER_EVENTS and not data.get("posRef") else ()
        return Arrival(
            account,
            order,
            self._dedupe_key(name, raw),
            name[:64],
            raw.decode(errors="replace"),
            plan,
            reference=order,
            news=order is not None,
        )

    def _dedupe_key(self, name: str, raw: bytes) -> str:
        digest = hashlib.sha256(raw).hexdigest()
        return f"{name[:64]}:{digest}:{int(self._clock() // DOUBLE_WITHIN)}"


def _order_of(name: str, data: Mapping[str, Any]) -> str | None:
    """Doshii's id of the order that an event is about: there it stays the same when the order is linked (trap 7)."""
    told = data.get("id") if name in _ORDER_EVENTS else data.get("orderId") if name in _PAYMENT_EVENTS else None
    text = str(told) if isinstance(told, str | int) and not isinstance(told, bool) else ""
    return text if _ID.fullmatch(text) else None
