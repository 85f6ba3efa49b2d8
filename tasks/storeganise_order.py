"""What Storeganise's poll and steps share: settings, an order's items, and the order that a job belongs to. Contract:
contracts/storeganise.md, whose sections are named here."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ledger import intake, queries
from ledger.connection import Ledger
from orders.arrival import Arrival
from orders.errors import Misconfigured, Refused
from schemas import storeganise as schema
from schemas.storeganise import Item, RemoteOrder
from tasks.base import Account

SCANNED = timedelta(days=1)
"""How far back the list is searched for a job."""
LEFT_THERE = "is left as it is in Storeganise, as a person says"
"""Flags of an order that is cancelled here only."""


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one account. `auto_approve`: orders are started, and invoiced, without a word of the ERP."""

    auto_approve: bool = False


def stamp(at: datetime) -> str:
    """A moment as their API writes it: UTC, milliseconds, Z."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def take_in_order_of(ledger: Ledger, account: Account, name: str) -> str | None:
    """Find the order of a job, named as its entry in the ledger is, and take it in. The order's id; None: there is none
    (trap 2)."""
    job_id = name.removeprefix(schema.OF_JOB)
    now = queries.database_now(ledger)
    order_id = _order_of(account, job_id) or _order_in_list(account, job_id, now)
    if order_id is not None:
        body = json.dumps({"jobId": job_id, "valetOrderId": order_id})
        key = f"{schema.OF_JOB}{schema.digest(job_id)}:{stamp(now)}"
        arrival = Arrival(account.name, order_id, key, "job", body, schema.PLAN, news=True)
        intake.take_in(ledger, "storeganise", [arrival])
    return order_id


def _order_of(account: Account, job_id: str) -> str | None:
    try:
        order_id = account.client.job(job_id).get("valetOrderId")
    except (Refused, Misconfigured) as error:
        if error.status not in (400, 403, 404):  # unknown, or a key that may read orders and no jobs
            raise
        return None
    return None if order_id is None else str(order_id)


def _order_in_list(account: Account, job_id: str, now: datetime) -> str | None:
    for rows in account.client.orders(updated_after=stamp(now - SCANNED), include="job", limit=50):
        for row in rows:
            job = row.get("job")
            inner = job.get("id") if isinstance(job, dict) else None
            if job_id in (str(row.get("jobId")), str(inner)):
                return str(row["id"])
    return None


def listed(account: Account, remote: RemoteOrder) -> list[Item]:
    """The items on the order, with their types, in the order in which it lists them."""
    sids = [item.sid for item in remote.items or ()]
    found = schema.parse_items(account.client.items(sids))
    return [found[sid] for sid in sids if sid in found]
