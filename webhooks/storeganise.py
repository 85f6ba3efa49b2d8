"""Storeganise's webhooks. Contract: contracts/storeganise.md, section 8, and the traps named here by number."""

import base64
import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Any

from orders.arrival import Arrival
from schemas import storeganise as schema
from webhooks.base import Reading, Receiver, Unreadable

SIGNATURE = "sg-signature"
_OF_ORDERS = "job.valetOrder."
"""Events of this kind make an order that is not known; `items.updated` is but news of one that is."""


def signature(secret: str, raw: bytes) -> str:
    """What proves the sender: over the bytes as they came, because written anew they are others (trap 9)."""
    return base64.b64encode(hmac.digest(secret.encode(), raw, hashlib.sha256)).decode()


class Storeganise(Receiver):
    """`secrets`: by account; None where none is set, and then nobody is believed.

    An event is a hint: nothing is taken from it but which order to read (trap 14). Only 200 is an answer (8.3)."""

    name = "storeganise"

    def __init__(self, secrets: Mapping[str, str | None]) -> None:
        self._secrets = dict(secrets)

    def accounts(self) -> Collection[str]:
        """See `Receiver`."""
        return self._secrets.keys()

    def proves(self, account: str, headers: Mapping[str, str], raw: bytes) -> bool:
        """See `Receiver`."""
        secret = self._secrets[account]
        if not secret:
            return False
        given = headers.get(SIGNATURE, "").strip()
        return hmac.compare_digest(signature(secret, raw).encode(), given.encode(errors="replace"))

    def read(self, account: str, document: Any, raw: bytes) -> Reading:
        """See `Receiver`. Events of no order are kept all the same."""
        if not isinstance(document, dict) or not isinstance(document.get("type"), str):
            raise Unreadable("it has no type")
        kind, data = document["type"], document.get("data")
        if not isinstance(data, dict):
            raise Unreadable("it has no data")
        external_id, plan = _subject(kind, data)
        arrival = Arrival(
            account=account,
            external_id=external_id,
            dedupe_key=_key(document, raw),
            kind=kind,
            body=raw.decode(errors="replace"),
            plan=plan,
            news=external_id is not None,
        )
        return Reading((arrival,))


def _subject(kind: str, data: dict[str, Any]) -> tuple[str | None, Any]:
    """Which order it is about, and the plan should that be new. A job's id is not its order's (trap 2): with only that,
    an entry of its own stands for the order, and a worker looks for it."""
    order_id = _id(data, "valetOrderId")
    if order_id is not None:
        return order_id, schema.PLAN if kind.startswith(_OF_ORDERS) else ()
    job_id = _id(data, "jobId")
    if job_id is not None and kind.startswith(_OF_ORDERS):
        return schema.OF_JOB + job_id, schema.RESOLVE
    return None, ()


def _id(data: dict[str, Any], name: str) -> str | None:
    """A whole number counts as a text, as everywhere else of theirs."""
    value = data.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unreadable(f"its {name} is no text")
    return str(value)


def _key(document: dict[str, Any], raw: bytes) -> str:
    """No time is signed, so an old delivery may come again for ever: its id tells (8.2)."""
    event_id = document.get("id")
    if isinstance(event_id, str) and event_id:
        return f"hook:{event_id}"
    return f"hook:sha256:{hashlib.sha256(raw).hexdigest()}"
