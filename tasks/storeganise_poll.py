"""What comes in from Storeganise: the poll, and the review of known orders of which there is news. Contract:
contracts/storeganise.md, whose sections are named here."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from ledger import intake, interrupts, queries, signals
from ledger.connection import Ledger
from ledger.queries import Known
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.errors import READ_FAILED, TryLater
from orders.model import Order
from orders.outcomes import Planned
from orders.states import State
from schemas import storeganise as schema
from schemas.base import moment
from schemas.storeganise import RemoteOrder
from tasks.base import Account, Visit
from tasks.storeganise_items import REMOTE
from tasks.storeganise_order import LEFT_THERE, listed, stamp, take_in_order_of

OVERLAP = timedelta(minutes=10)
LONG_OVERLAP = timedelta(days=7)
ROUND = timedelta(hours=20)
"""How often a poll goes back by the long overlap, and has every unfinished order read again: that a step was completed
shows in no event, and may not show in the list either."""
AT_ONCE = 100
"""Orders of a round that are written in one transaction."""


def poll(visit: Visit) -> None:
    """Take in what was updated since the last poll, with an overlap; the first one takes in everything that is open.

    The bound is the server's own newest time, or ours if that is earlier: a wrong clock must not hide orders. Nor must
    an empty list: before the first row there is no bound. All pages are read before any order is taken in."""
    name = f"storeganise.poll:{visit.account.name}"
    kept = json.loads(queries.cursor(visit.ledger, name) or "{}")
    now = queries.database_now(visit.ledger)
    rounds = "round_at" not in kept or now - datetime.fromisoformat(kept["round_at"]) > ROUND
    since = None
    if "newest" in kept:
        since = stamp(datetime.fromisoformat(kept["newest"]) - (LONG_OVERLAP if rounds else OVERLAP))
    pages = list(visit.account.client.orders(updated_after=since))
    for rows in pages:
        intake.take_in(visit.ledger, "storeganise", [_arrival(visit.account, row) for row in rows])
    if rounds:
        _go_round(visit, kept.get("round_at", now.isoformat()))
        kept["round_at"] = now.isoformat()
    if pages:
        kept["newest"] = _newest(kept, pages, now)
    signals.move_cursor(visit.ledger, name, json.dumps(kept))


def _newest(kept: dict[str, Any], pages: list[list[dict[str, Any]]], now: datetime) -> str:
    seen = [at for rows in pages for row in rows if (at := moment(row.get("updated"))) is not None]
    seen += [datetime.fromisoformat(kept["newest"])] if "newest" in kept else []
    return min(max(seen, default=now), now).isoformat()


def _arrival(account: Account, row: dict[str, Any]) -> Arrival:
    """The key is made of the whole row: what else tells a changed row from an unchanged one is not published."""
    body = json.dumps(row, default=str, sort_keys=True)
    state = str(row.get("state"))
    return Arrival(
        account=account.name,
        external_id=str(row["id"]),
        dedupe_key=f"row:{schema.digest(body)}",
        kind=f"row.{state}"[:64],
        body=body,
        plan=() if state in schema.CLOSED else schema.PLAN,
        reference=None if row.get("sid") is None else str(row["sid"]),
        news=True,
    )


def _go_round(visit: Visit, last: str) -> None:
    """Have every unfinished order read again, some at a time: whatever else the ledger is needed for goes in between.

    A round that is cut off goes on at the next poll: its events are named by when the `last` one ended."""
    unfinished = queries.unfinished(visit.ledger, "storeganise", visit.account.name)
    left = iter(sorted(unfinished, key=lambda known: known.id))  # the order in which others lock them, too
    while some := list(islice(left, AT_ONCE)):
        rows = [_again(one, last) for one in some]
        intake.take_in(visit.ledger, "storeganise", rows)


def _again(known: Known, last: str) -> Arrival:
    return Arrival(known.account, known.external_id, f"round:{known.id}:{last}", "round", "{}", (), news=True)


# -- news of a known order --------------------------------------------------------------------------------------------


def review(visit: Visit, known: Known) -> str | None:
    """Read a known order again: stop it if it is cancelled there, let it go on where staff completed a step, and have
    a step look again that ended while the news came."""
    if known.external_id.startswith(schema.OF_JOB):
        if known.finished:  # a further event of the job; else its step sees to it
            take_in_order_of(visit.ledger, visit.account, known.external_id)
        return None
    if known.state == State.RUNNING:  # what its step has read may be older than the news
        raise TryLater("a worker is at it", status=READ_FAILED)
    if known.step == "storeganise.fetch" and not known.finished:
        intake.wake(visit.ledger, known.id)
        return None  # it will be read
    remote = schema.parse_order(visit.account.client.order(known.external_id, items=True))
    if remote.cancelled:
        return _stop(visit, known)
    if known.finished:
        return _contradiction(known, remote)
    if not known.cancelling:
        signals.signal(visit.ledger, list(_completed_there(visit.ledger, known, remote)))
    intake.wake(visit.ledger, known.id)
    document = queries.document(visit.ledger, known.id)
    return None if known.cancelling or document is None else _changed(visit, known, remote, Order.from_json(document))


def _stop(visit: Visit, known: Known) -> str | None:
    if known.state == State.DONE:
        return f"cancelled in Storeganise, though order {known.id} is done here"
    if known.state != State.IGNORED:
        rest = (Planned("erp.cancel"),)
        interrupts.interrupt(visit.ledger, known.id, "cancelled in Storeganise", rest, State.CANCELLED)
    return None


def _contradiction(known: Known, remote: RemoteOrder) -> str | None:
    if not remote.open or LEFT_THERE in known.facts.get("flags", ()):
        return None
    told = f"stands at {remote.open[0].type} in Storeganise, though order {known.id} is {known.state} here"
    if known.state == State.CANCELLED:
        return f"{told}, and stays so: see to it there"
    return f"{told}: `orderfleet replay {known.id} --from storeganise.fetch` takes it up"


def _changed(visit: Visit, known: Known, remote: RemoteOrder, ours: Order) -> str | None:
    """What was edited there (3.5) since we read it for the ERP, which is told nothing anew: said once for each change,
    and once when it is taken back."""
    items = None if remote.items is None else listed(visit.account, remote)
    words = schema.changed(ours, remote, items)
    said = queries.problems_of(visit.ledger, "storeganise", known.account, known.external_id)
    last = next((one for one in said if one.startswith("changed ")), None)
    if not words and last is None:
        return None
    problem = _in_words(known, words)
    return None if problem == last else problem


def _in_words(known: Known, words: list[str]) -> str:
    if not words:
        return f"changed back in Storeganise: it reads as the ERP was told of order {known.id}"
    if known.step == "erp.order":
        again = f"`orderfleet replay {known.id} --from storeganise.fetch` reads it again before the ERP gets it"
        return f"changed in Storeganise since order {known.id} was read: {'; '.join(words)}: {again}"
    kept = f"the ERP keeps what it was told of order {known.id}"
    return f"changed in Storeganise, and {kept}: {'; '.join(words)}: put it right in the ERP"


def _completed_there(ledger: Ledger, known: Known, remote: RemoteOrder) -> Iterator[Signal]:
    """A signal for each step that is still planned, waits for one, and is completed there."""
    stands = queries.position_of(ledger, known.id)
    for row in queries.plan_of(ledger, known.id):
        data = json.loads(row["data"])
        if stands is None or row["position"] < stands[0] or row["awaits"] is None or "step" not in data:
            continue
        there = remote.step(data["step"], data["type"])
        if there is not None and there.completed:
            yield Signal(known.id, row["awaits"], f"{REMOTE}{there.id}")
