"""Partner with real processes, in both directions: a shop puts its orders in at our door, and our fleet books crews for
them at the service. Workers are killed at every moment of every step, and there is a storm. What counts is what took
effect at the imitation: one number for one order of the shop's, one crew for one order of ours."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sandbox.partner import service_of
from sandbox.partner_shop import UNKNOWN_PRODUCT
from tests.flows.harness import Fleet, Remote, a_fleet, a_remote, wait_for
from tests.flows.killing import AT_EACH_MOMENT, ON_POSTGRESQL, ON_SQLITE, Reaper, dies_at, killed, storm_orders
from tests.services import PrivateValkey

ORDERS = storm_orders(16)
STEPS = ("erp.order", "partner.upload", "partner.book", "partner.track")
BEGINNINGS = ("erp.order", "partner.upload", "partner.track")
"""With which a message begins: the others are run by the worker that has just done the one before them."""
SOON = {"PARTNER_TIMEOUT": "1.5", "PARTNER_LOOK_SECONDS": "1", "PARTNER_RATE": "100"}


@pytest.fixture
def remote() -> Iterator[Remote]:
    """Both ends of the imitation; bookings are done within seconds."""
    with a_remote("partner", step_seconds=0.1, trouble_share=0.0, rate_per_second=None) as opened:
        yield opened
        service_of(opened.app).sender.stop()


@pytest.fixture
def fleet(remote: Remote, valkey: PrivateValkey, ledger_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with its door, at which the shop's orders come in; no other process runs yet."""
    with a_fleet(remote, home=tmp_path, broker=valkey.url, database=ledger_url, **SOON) as opened:
        yield opened


def crews(remote: Remote) -> list[dict[str, Any]]:
    return service_of(remote.app).all_bookings()


def settled(fleet: Fleet, remote: Remote) -> bool:
    """Whether the shop heard of each order for good, and none of them goes on here by itself."""
    sent = remote.all_orders()
    accepted = sum(order["state"] == "accepted" for order in sent)
    return all(order["state"] != "waiting" for order in sent) and fleet.settled_if_it_answers(accepted)


def check_one_number_each(fleet: Fleet, remote: Remote) -> list[int]:
    """Whatever the shop sent twice is one order here, and the numbers have no gap; the numbers."""
    accepted = [order for order in remote.all_orders() if order["state"] == "accepted"]
    assert all(len(order["ids"]) == 1 for order in accepted)
    numbers = sorted(order["ids"][0] for order in accepted)
    assert numbers == list(range(len(numbers)))
    assert set(fleet.rows()) == set(map(str, numbers))
    return numbers


def check_one_crew_each(fleet: Fleet, remote: Remote, numbers: list[int]) -> None:
    """One crew for each of these orders, known to its order alone, and none for anything else."""
    booked = {number: fleet.rows()[str(number)]["facts"]["booking_id"] for number in numbers}
    assert sorted(booked.values()) == [crew["_id"] for crew in crews(remote)], fleet.why()
    images = Counter(image for crew in crews(remote) for image in crew["order"]["image_uuids"])
    assert set(images.values()) == {1}
    for number, booking in booked.items():
        address = crews(remote)[booking]["order"].get("address")
        assert address is None or f"[partner:default:{number}]" in address["details"]
    assert all(crew["_status"] == "done" for crew in crews(remote))


def finish(fleet: Fleet, remote: Remote) -> None:
    fleet.started("worker")
    wait_for(lambda: settled(fleet, remote), fleet.why, 90)
    numbers = check_one_number_each(fleet, remote)
    assert fleet.states() == {"done": len(numbers)}, fleet.why()
    check_one_crew_each(fleet, remote, numbers)


@pytest.mark.timeout(240)
@AT_EACH_MOMENT
def test_killed_at_this_moment_of_every_step(fleet, remote, moment):
    fleet.start("beat")
    for step in BEGINNINGS if moment == "claiming" else STEPS:
        dies_at(fleet, f"{moment}:{step}", partial(remote.add, 1), partial(settled, fleet, remote))
    finish(fleet, remote)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("ledger_url", "path"),
    [("sqlite", "/order/create"), ("postgresql", "/order/create"), ("sqlite", "/image/upload")],
    indirect=["ledger_url"],
)
def test_killed_between_the_services_work_and_its_answer(fleet, remote, path):
    """The crew is booked, and the worker is dead before it hears of that."""
    fleet.start("beat")
    for _ in range(2):
        worker = fleet.started("worker")
        remote.when("POST", lambda worker=worker: fleet.kill(worker), path)
        remote.add(2)
        killed(worker, fleet)
    finish(fleet, remote)


# === The storm ==============================================================================================


def unknown_to_the_erp(order: dict[str, Any]) -> bool:
    return any(int(item["id"]) == UNKNOWN_PRODUCT for item in order["specification"]["partner_details"]["items"])


def through(fleet: Fleet, remote: Remote) -> bool:
    """Every order is at its end at both sides, but those that the ERP does not take."""
    if not settled(fleet, remote):
        return False
    rows = fleet.rows()
    return all(
        order["state"] == "refused" or unknown_to_the_erp(order) or rows[str(order["ids"][0])]["state"] == "done"
        for order in remote.all_orders()
    )


def storm(fleet: Fleet, remote: Remote, workers: int) -> None:
    """Odd orders, some sent twice or with their answers lost; at the service one request in ten misbehaves; and a
    worker is killed every three seconds."""
    remote.add(ORDERS, seed=11, plain=False)
    remote.faults({"rate": 0.1, "seed": 3, "slow_seconds": 0.3})
    fleet.start("beat")
    with Reaper(fleet, workers).at_work() as reaper:
        wait_for(lambda: through(fleet, remote), fleet.why, 500)
    effects = remote.effects()
    print(
        f"\n{len(remote.all_orders())} orders; kills: {reaper.kills}; faults: {remote.control.faults.injected()}; "
        f"states: {dict(fleet.states())}; effects: { {kind: effects[kind] for kind in sorted(effects)} }"
    )
    check_one_number_each(fleet, remote)
    rows = fleet.rows()
    check_one_crew_each(
        fleet, remote, [int(key) for key, row in rows.items() if row["facts"].get("booking_id") is not None]
    )
    assert {row["error"] for row in rows.values() if row["state"] == "parked"} <= {
        f"the ERP refuses the order: Unknown product {UNKNOWN_PRODUCT}"
    }


@ON_SQLITE
@pytest.mark.timeout(600)
def test_a_storm(fleet, remote):
    storm(fleet, remote, 1)


@pytest.mark.large
@ON_POSTGRESQL
@pytest.mark.timeout(600)
def test_a_storm_with_two_workers_and_a_flush_of_the_broker(fleet, remote, valkey):
    """And some payments fail at first."""
    remote.control.backend.options.change({"trouble_share": 0.05})
    valkey.flush()
    storm(fleet, remote, 2)
