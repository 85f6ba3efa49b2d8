"""Storeganise with real processes: workers killed at every moment of every step, and a storm. What counts is what took
effect at the imitation: every step completed once, every item commanded once, one invoice."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import request

from sandbox.storeganise import UNKNOWN_PRODUCT
from tests.flows.harness import Fleet, Remote, a_fleet, a_remote, wait_for
from tests.flows.killing import AT_EACH_MOMENT, ON_POSTGRESQL, ON_SQLITE, Reaper, dies_at, killed, storm_orders
from tests.services import PrivateValkey

ORDERS = storm_orders(24)
JOB_STEPS = ("order_start", "items_pickEmptyBoxes", "items_deliver", "items_collect", "items_store")
STEPS = ("storeganise.fetch", *(f"storeganise.{step}" for step in JOB_STEPS))
COMMANDS = ("valetOrder_add", "valetOrder_deliver", "valetOrder_collect", "valetOrder_store")
BOXES = {"boxes": [{"itemTypeId": "5f0000000000000000000001", "quantity": 2}]}


ODD: list[dict[str, Any]] = [
    {"boxes": [{"itemTypeId": UNKNOWN_PRODUCT, "quantity": 1}]},
    {"later": [{"after": 3, "patch": {"state": "cancelled"}}]},
    {"kind": "products", "later": [{"after": 5, "patch": {"complete_step": "products_pick"}}]},
    {
        "steps": [*JOB_STEPS[:4], "items_inspect", JOB_STEPS[4]],
        "later": [{"after": 5, "patch": {"complete_step": "items_inspect"}}],
    },
    {
        "box_elsewhere": True,
        "later": [{"after": 20, "patch": {"items": {"1": {"valetOrderId": None, "ownerId": None}}}}],
    },
    *({"later": [{"after": 4, "patch": {"complete_step": step}}]} for step in JOB_STEPS),
]
"""One of each kind, to be sure."""


@pytest.fixture
def remote() -> Iterator[Remote]:
    """The imitation, whose webhooks are tried again soon."""
    with a_remote("storeganise", time_factor=0.02) as opened:
        yield opened


@pytest.fixture
def fleet(remote: Remote, valkey: PrivateValkey, ledger_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with its web server, and an ERP whose warehouse works at once; no other process runs yet."""
    with a_fleet(remote, home=tmp_path, broker=valkey.url, database=ledger_url) as opened:
        yield opened


def book(remote: Remote, count: int) -> list[str]:
    """Orders of two boxes each."""
    return list(remote.control.backend.add_orders([dict(BOXES) for _ in range(count)]))


def settled(fleet: Fleet, remote: Remote) -> bool:
    """Whether the fleet knows every order, and none of them goes on by itself."""
    return fleet.settled_if_it_answers(len(remote.all_orders()))


def check_nothing_twice(fleet: Fleet, remote: Remote) -> None:
    """Whatever took effect did so once: per order, and for items per item."""
    most = remote.most_per_order()
    once = ["invoice", *(f"step:{step}:completed" for step in JOB_STEPS)]
    assert {kind: most.get(kind, 1) for kind in once} == dict.fromkeys(once, 1)
    assert remote.control.backend.effects.repeated_keys() == {}
    in_erp = Counter(row["external_reference"] for row in fleet.erp_rows("erp_order"))
    assert set(in_erp.values()) <= {1}


def check_exactly_once(fleet: Fleet, remote: Remote) -> None:
    """Every order came to its end, of its two boxes each, and nothing took effect twice."""
    count = len(remote.all_orders())
    assert fleet.states() == {"done": count}, fleet.why()
    assert {order["state"] for order in remote.all_orders()} == {"completed"}
    effects = remote.effects()
    assert {kind: effects[f"item:{kind}"] for kind in COMMANDS} == dict.fromkeys(COMMANDS, 2 * count)
    assert {step: effects[f"step:{step}:completed"] for step in JOB_STEPS} == dict.fromkeys(JOB_STEPS, count)
    assert (effects["complete_step"], effects["invoice"]) == (5 * count, count)
    check_nothing_twice(fleet, remote)


def finish(fleet: Fleet, remote: Remote) -> None:
    fleet.started("worker")
    wait_for(lambda: settled(fleet, remote), fleet.why, 90)


@pytest.mark.timeout(240)
@AT_EACH_MOMENT
def test_killed_at_this_moment_of_every_step(fleet, remote, moment):
    fleet.start("beat")
    for step in STEPS:
        dies_at(fleet, f"{moment}:{step}", partial(book, remote, 2), partial(settled, fleet, remote))
    finish(fleet, remote)
    check_exactly_once(fleet, remote)


def killed_by(fleet: Fleet, remote: Remote, path: str, body: str) -> None:
    """A worker whose next such PUT is done, and which is dead before it hears of that."""
    worker = fleet.started("worker")

    def kill() -> None:
        if body.encode() in request.get_data():
            fleet.kill(worker)
        else:
            remote.when("PUT", kill, path)

    remote.when("PUT", kill, path)
    book(remote, 2)
    killed(worker, fleet)


@ON_SQLITE
@pytest.mark.timeout(240)
def test_killed_between_the_command_and_the_completion(fleet, remote):
    """The items are moved, the step is not completed, and nobody knows."""
    fleet.start("beat")
    for command in COMMANDS:
        killed_by(fleet, remote, "/admin/items", command)
    finish(fleet, remote)
    check_exactly_once(fleet, remote)


@ON_POSTGRESQL
@pytest.mark.timeout(240)
def test_killed_between_a_completion_and_its_answer(fleet, remote):
    """The first is that of `order_start`, which makes an invoice."""
    fleet.start("beat")
    for _ in range(3):
        killed_by(fleet, remote, "/steps/", "completed")
    finish(fleet, remote)
    check_exactly_once(fleet, remote)


# === The storm ==============================================================================================


def unknown_to_the_erp(order: dict[str, Any]) -> bool:
    return any(box["itemTypeId"] == UNKNOWN_PRODUCT for box in order["boxes"])


def all_through(fleet: Fleet, remote: Remote) -> bool:
    """Every order is at its end at both sides, but those that the ERP does not take."""
    if not settled(fleet, remote):
        return False
    rows = fleet.rows()
    return all(
        order["id"] in rows
        and (
            rows[order["id"]]["state"] in ("done", "cancelled")
            or (unknown_to_the_erp(order) and rows[order["id"]]["state"] == "parked")
        )
        for order in remote.all_orders()
    )


def storm(fleet: Fleet, remote: Remote, workers: int) -> None:
    """Odd orders, staff and customers at work, one request in ten misbehaving, webhooks lost, doubled and overtaking
    one another, and a worker killed every three seconds."""
    remote.control.backend.options.change(
        {"webhook_lost": 0.1, "webhook_doubled": 0.2, "webhook_late_seconds": 1.0, "webhook_wrongly_signed": 0.05}
    )
    remote.add(ORDERS, seed=11, plain=False)
    remote.control.backend.add_orders(dict(order) for order in ODD)
    remote.faults({"rate": 0.1, "seed": 3, "slow_seconds": 0.3})
    fleet.start("beat")
    with Reaper(fleet, workers).at_work() as reaper:
        wait_for(lambda: all_through(fleet, remote), fleet.why, 500)
    orders = {order["id"]: order for order in remote.all_orders()}
    effects = remote.effects()
    print(
        f"\n{len(orders)} orders; kills: {reaper.kills}; faults: {remote.control.faults.injected()}; "
        f"states: {dict(fleet.states())}; effects: { {kind: effects[kind] for kind in sorted(effects)} }"
    )
    rows = fleet.rows()
    ends = Counter((rows[key]["state"], order["state"]) for key, order in orders.items())
    unknown = sum(map(unknown_to_the_erp, orders.values()))
    assert set(ends) <= {("done", "completed"), ("cancelled", "cancelled"), ("parked", "created")}, fleet.why()
    assert ends["parked", "created"] <= unknown
    assert {row["error"] for row in rows.values() if row["state"] == "parked"} <= {
        f"the ERP refuses the order: Unknown product {UNKNOWN_PRODUCT}"
    }
    check_nothing_twice(fleet, remote)


@ON_SQLITE
@pytest.mark.timeout(600)
def test_a_storm(fleet, remote):
    storm(fleet, remote, 2)


@pytest.mark.large
@ON_POSTGRESQL
@pytest.mark.timeout(600)
def test_a_storm_whose_webhooks_name_only_jobs(fleet, remote):
    remote.control.backend.options.change({"webhook_data": "job"})
    storm(fleet, remote, 2)
    jobs = {f"job:{order['jobId']}" for order in remote.all_orders()}
    stand_ins = {key: row for key, row in fleet.rows().items() if key.startswith("job:")}
    assert stand_ins
    assert stand_ins.keys() <= jobs
    assert {row["state"] for row in stand_ins.values()} == {"ignored"}
