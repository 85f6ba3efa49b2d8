"""What the poll and the steps share: settings, plan, how one order is read, and whether it was deleted. Contract:
contracts/tastyigniter.md, whose sections are named here."""

import hashlib
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from clients.tastyigniter import Absent
from ledger import intake, queries
from ledger.connection import Ledger
from orders.errors import Refused
from orders.outcomes import Ended, Planned
from schemas import tastyigniter as schema
from schemas.tastyigniter import LOOK_AGAIN, RemoteOrder, Statuses
from tasks.base import Account

MOST_EVENTS = 200


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `currency`: of a site that does not say its own. `product`: stands for an order of
    which nobody told the dishes, after `lines_seconds` of waiting for a webhook that does, if `webhooks` come."""

    zone: ZoneInfo
    currency: str | None = None
    statuses: Statuses = field(default_factory=Statuses)
    product: str = "ORDER"
    webhooks: bool = False
    lines_seconds: int = 120


PLAN = (Planned("tastyigniter.fetch"),)
TAKE_BACK = (Planned("erp.cancel"),)
CANCELED = Ended("canceled in TastyIgniter", cancelled=True)


def digest(text: str) -> str:
    """Short enough for a dedupe key."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def read_order(account: Account, order_id: str, *, history: bool = False) -> tuple[dict[str, Any], RemoteOrder]:
    """The order as it is now, and what it says. Raises `Absent`."""
    document: dict[str, Any] = account.client.order(order_id, history=history)
    return document, schema.parse_order(document)


def show(ledger: Ledger, account: Account, order_id: str, problem: str) -> None:
    """Once, that a person sees it."""
    key = f"seen:{order_id}:{digest(problem)}"
    intake.keep_odd_event(ledger, "tastyigniter", account.name, key, "seen", "{}", problem, order_id)


def total_text(remote: RemoteOrder) -> str:
    """Its total, to be kept and compared."""
    total = schema.total_of(remote)
    return "nothing" if total is None else f"{total:f}"


# -- deleted, or out of sight -----------------------------------------------------------------------------------------


def check_deleted(ledger: Ledger, account: Account, order_id: str, facts: dict[str, Any], absent: Absent) -> None:
    """Raises `Refused` unless the order is gone for good: a token that sees other locations gets the same answer (2).

    It is, if the site said so itself, or if the token sees others of the order's location."""
    told = told_of(ledger, account, order_id)
    if schema.says_deleted(told):
        return
    places = [facts["location"]] if "location" in facts else [row.get("location_id") for row in schema.rows_among(told)]
    if places and _sees(account, places[0]):
        return
    raise Refused(
        f"{absent.reason}: deleted, or its location is out of the token's sight; if it was deleted, cancel it with "
        "`orderfleet cancel`, else let the token's user see the location",
        status=404,
        recheck=LOOK_AGAIN,
    )


def _sees(account: Account, location: int | None) -> bool:
    """Whether the token sees orders of this location; of none: whether it sees any. A filter may be ignored."""
    page: list[dict[str, Any]] = next(account.client.newest_orders(location=location), [])
    found = [remote for document in page for _, remote in (schema.listed(document),) if remote is not None]
    return any(location is None or remote.location_id == location for remote in found)


def told_of(ledger: Ledger, account: Account, order_id: str) -> list[str]:
    """What webhooks and lists said of an order, newest first."""
    return queries.event_bodies(ledger, "tastyigniter", account.name, order_id, MOST_EVENTS)
