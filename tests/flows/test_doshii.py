"""Doshii with real processes: workers killed at every moment of every step, and a storm. What counts is what took
effect at the imitation: every order accepted, completed or rejected once, every payment answered once."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from flask import request

from sandbox.doshii import UNKNOWN_PRODUCT
from tests.flows.harness import Fleet, Remote, a_fleet, a_remote, wait_for
from tests.flows.killing import AT_EACH_MOMENT, ON_POSTGRESQL, ON_SQLITE, Reaper, dies_at, killed, storm_orders
from tests.services import PrivateValkey

ORDERS = storm_orders(24)
STEPS = (
    "doshii.fetch",
    "erp.draft",
    "doshii.accept",
    "doshii.approve",
    "doshii.payments",
    "erp.order",
    "doshii.follow",
    "doshii.complete",
    "doshii.reject",
)
BEGINNINGS = ("doshii.fetch", "doshii.accept", "doshii.complete", "doshii.reject")
"""The steps with which messages begin: those of new orders, those that waited, and what takes a plan's place."""

PIZZA = {"posId": "pep_pizza", "name": "Pepperoni Pizza", "quantity": 2, "unitPrice": "1100"}
COLA = {"posId": "cola", "name": "Cola", "quantity": 1, "unitPrice": "450"}
PREPAID = {"reference": "pay"}
ACCEPTED = "status:pending->accepted"
COMPLETE = "status:accepted->complete"
REJECTED = "status:pending->cancelled"
CANCELLED = "status:accepted->cancelled"
AGREED = "transaction:pending->waiting"
PAYMENT_REJECTED = "transaction:pending->rejected"


@pytest.fixture
def remote() -> Iterator[Remote]:
    """The imitation, whose webhooks are tried again soon, and which leaves it to us to complete orders."""
    with a_remote("doshii", time_factor=0.01, auto_complete_seconds=None, partner_answers_seconds=0.1) as opened:
        yield opened


@pytest.fixture
def fleet(remote: Remote, valkey: PrivateValkey, ledger_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with its web server, and an ERP that answers at once; no other process runs yet."""
    with a_fleet(
        remote, home=tmp_path, broker=valkey.url, database=ledger_url, DOSHII_OPEN_ITEM_PRODUCT="misc"
    ) as opened:
        yield opened


KINDS = {
    "plain": {"items": [PIZZA], "transactions": [PREPAID]},
    "appended": {"items": [PIZZA], "unapprovedItems": [COLA], "transactions": [{**PREPAID, "amount": "2200"}]},
    "refused": {"items": [{**PIZZA, "posId": UNKNOWN_PRODUCT}], "transactions": [PREPAID]},
}
"""Orders by what becomes of them; each says in its notes which it is."""


def order(remote: Remote, *kinds: str) -> None:
    remote.control.backend.add_orders([{**KINDS[kind], "notes": kind} for kind in kinds])


def kind_for(step: str) -> str:
    """An order that has this step."""
    return {"doshii.approve": "appended", "doshii.reject": "refused"}.get(step, "plain")


def settled(fleet: Fleet, remote: Remote) -> bool:
    """Whether the fleet knows every order, and none of them goes on by itself."""
    return fleet.settled_if_it_answers(len(remote.all_orders()))


def check_nothing_twice(fleet: Fleet, remote: Remote) -> None:
    """Whatever took effect did so once: per order, and for payments per payment."""
    most = remote.most_per_order()
    once = (ACCEPTED, COMPLETE, REJECTED, CANCELLED, "linked")
    assert {kind: most.get(kind, 1) for kind in once} == dict.fromkeys(once, 1)
    assert "created" not in most, "an order was made at Doshii"
    assert remote.control.backend.effects.repeated_keys() == {}
    in_erp = Counter(row["external_reference"] for row in fleet.erp_rows("erp_order"))
    assert set(in_erp.values()) <= {1}
    numbered = Counter(row["external_reference"] for row in fleet.erp_rows("erp_event") if row["kind"] == "numbered")
    assert set(numbered.values()) <= {1}


def check_exactly_once(fleet: Fleet, remote: Remote) -> None:
    """Every order of `order` came to its end, and nothing took effect twice."""
    kinds = Counter(one["notes"] for one in remote.all_orders())
    good = kinds["plain"] + kinds["appended"]
    assert fleet.states() == Counter({"done": good, "cancelled": kinds["refused"]}), fleet.why()
    effects = remote.effects()
    expected = {
        ACCEPTED: good,
        COMPLETE: good,
        REJECTED: kinds["refused"],
        CANCELLED: 0,
        AGREED: good,
        PAYMENT_REJECTED: kinds["refused"],
        "payment_captured": good,
        "items_approved": kinds["appended"],
    }
    assert {kind: effects[kind] for kind in expected} == expected
    check_nothing_twice(fleet, remote)


def finish(fleet: Fleet, remote: Remote) -> None:
    fleet.started("worker")
    wait_for(lambda: settled(fleet, remote), fleet.why, 90)


@pytest.mark.timeout(240)
@AT_EACH_MOMENT
def test_killed_at_this_moment_of_every_step(fleet, remote, moment):
    fleet.start("beat")
    for step in BEGINNINGS if moment == "claiming" else STEPS:
        kind = kind_for(step)
        dies_at(fleet, f"{moment}:{step}", partial(order, remote, kind), partial(settled, fleet, remote))
    finish(fleet, remote)
    check_exactly_once(fleet, remote)


@ON_SQLITE
@pytest.mark.timeout(240)
def test_killed_between_a_write_and_its_answer(fleet, remote):
    """Doshii has done it, and the worker is dead before it hears of that."""
    fleet.start("beat")
    for kind, path, word in (
        ("plain", "/unlinked_orders/", "accepted"),
        ("refused", "/unlinked_orders/", "cancelled"),
        ("plain", "/transactions/", "waiting"),
        ("refused", "/transactions/", "rejected"),
        ("appended", "/orders/", "accepted"),
        ("plain", "/orders/", "complete"),
    ):
        killed_by(fleet, remote, kind, path, word)
    finish(fleet, remote)
    check_exactly_once(fleet, remote)


def killed_by(fleet: Fleet, remote: Remote, kind: str, path: str, word: str) -> None:
    """A worker whose next such PUT is done, and which is dead before it hears of that."""
    worker = fleet.started("worker")

    def kill() -> None:
        if f'"status":"{word}"'.encode() in request.get_data():
            fleet.kill(worker)
        else:
            remote.when("PUT", kill, path)

    remote.when("PUT", kill, path)
    order(remote, kind)
    killed(worker, fleet)


# === The storm ==============================================================================================

FITTING = {
    ("done", "complete"),
    ("cancelled", "cancelled"),
    ("cancelled", "venue_cancelled"),
    ("parked", "accepted"),
    ("parked", "complete"),
}
"""How an order may end here and there. Parked are those alone to which something was appended too late."""
ODD = (
    {"cancels_after_seconds": 1.0, "transactions": [PREPAID]},
    {"cancels_after_seconds": 6.0, "cancels_as": "venue_cancelled"},
    {"items": [{**PIZZA, "posId": UNKNOWN_PRODUCT}], "transactions": [PREPAID, {"prepaid": False}]},
    {"items": [PIZZA, {"name": "Birthday cake", "quantity": "1", "unitPrice": "3500"}]},
    {"unapprovedItems": [COLA]},
    {"appends": [COLA], "appends_after_seconds": 4.0},
    {"pays": [{"prepaid": False}], "pays_after_seconds": 2.0},
    {"transactions": [{"prepaid": False, "answers": "rejected"}]},
)
"""One of each, beside those that are invented."""
TOO_LATE = "the partner appended 1 x Cola after the ERP confirmed the order: "


def ends(fleet: Fleet, remote: Remote) -> Counter[tuple[str, str]]:
    """How orders stand here and there."""
    rows = fleet.rows()
    return Counter(
        (rows[one["doshiiId"]]["state"] if one["doshiiId"] in rows else "unknown", one["status"])
        for one in remote.all_orders()
    )


def open_in_erp(fleet: Fleet) -> set[str]:
    """Orders that the ERP has and that are not cancelled there."""
    return {row["external_id"] for row in fleet.erp_rows("erp_order") if row["stage"] != "cancelled"}


def all_through(fleet: Fleet, remote: Remote) -> bool:
    return settled(fleet, remote) and ends(fleet, remote).keys() <= FITTING and not living(remote)


def living(remote: Remote) -> bool:
    """Whether a customer or a partner will still do something, at the next request after its time."""
    return remote.app.extensions["doshii"].store.something_is_due


def storm(fleet: Fleet, remote: Remote, workers: int) -> None:
    """Odd orders, customers and partners at work, one request in ten misbehaving, webhooks lost, doubled and overtaking
    one another, and a worker killed every three seconds."""
    remote.control.backend.options.change({"webhook_lost": 0.1, "webhook_doubled": 0.2, "webhook_late_seconds": 1.0})
    remote.add(ORDERS, seed=11, plain=False)
    remote.control.backend.add_orders(ODD)
    remote.faults({"rate": 0.1, "seed": 3, "slow_seconds": 0.3})
    fleet.start("beat")
    with Reaper(fleet, workers).at_work() as reaper:
        wait_for(lambda: all_through(fleet, remote), lambda: f"{ends(fleet, remote)} {fleet.why()}", 500)
    effects = remote.effects()
    print(
        f"\n{len(remote.all_orders())} orders; kills: {reaper.kills}; faults: {remote.control.faults.injected()}; "
        f"ends: {dict(ends(fleet, remote))}; effects: { {kind: effects[kind] for kind in sorted(effects)} }"
    )
    rows = fleet.rows()
    assert all(row["error"].startswith(TOO_LATE) for row in rows.values() if row["state"] == "parked"), fleet.why()
    check_nothing_twice(fleet, remote)
    check_the_money(remote)
    kept = {number for number, row in rows.items() if row["state"] in ("done", "parked")}
    assert open_in_erp(fleet) == kept


def check_the_money(remote: Remote) -> None:
    """Every payment is answered, and none is taken of whoever was turned away."""
    for one in remote.all_orders():
        statuses = {payment["status"] for payment in one["transactions"]}
        # Who cancels at the venue leaves them open; and a payment may come just before our last word.
        assert "pending" not in statuses or one["status"] in ("venue_cancelled", "complete"), one
        if "rejectionCode" in one:
            assert statuses <= {"rejected"}, one


@ON_SQLITE
@pytest.mark.timeout(600)
def test_a_storm(fleet, remote):
    storm(fleet, remote, 1)


@pytest.mark.large
@ON_POSTGRESQL
@pytest.mark.timeout(600)
def test_a_storm_where_doshii_completes_what_is_paid(fleet, remote):
    remote.control.backend.options.change({"auto_complete_seconds": 0.0, "echo_events": True, "lean_events": True})
    storm(fleet, remote, 2)
