"""A worker is killed at every moment of every step: each effect takes place exactly once."""

import time
from collections import Counter

import pytest

from tests.flows.harness import Fleet, Shop, wait_for
from tests.flows.killing import ON_POSTGRESQL, ON_SQLITE, dies_at, killed

STEPS = (
    "cloudsuite.fetch",
    "erp.order",
    "cloudsuite.state",
    "cloudsuite.erp_order_number",
    "cloudsuite.lines",
    "cloudsuite.shipment",
)
# A message begins with the first step, and with those that waited for a signal.
MOMENTS = [("claiming", step) for step in (STEPS[0], STEPS[3], STEPS[5])] + [
    (moment, step) for step in STEPS for moment in ("claimed", "effect-done", "recorded")
]
EFFECTS = ("state:confirmed->processing", "erp_order_number", "erp_line_number", "shipment_state:sent")


def check_exactly_once(fleet: Fleet, shop: Shop, count: int) -> None:
    """Every order ended, and each of its effects took place once, at the shop and in the ERP."""
    assert fleet.states() == {"done": count}
    assert {kind: shop.effects()[kind] for kind in EFFECTS} == dict.fromkeys(EFFECTS, count)
    per_order = shop.control.backend.effects.per_order()
    assert {kind: max(per_order[kind].values()) for kind in EFFECTS} == dict.fromkeys(EFFECTS, 1)
    assert len(fleet.erp_rows("erp_order")) == count
    numbered = Counter(row["external_reference"] for row in fleet.erp_rows("erp_event") if row["kind"] == "numbered")
    assert sorted(numbered.values()) == [1] * count


@pytest.mark.timeout(240)
def test_killed_at_every_moment_of_every_step(fleet, shop):
    fleet.start("beat")
    for moment, step in MOMENTS:
        dies_at(fleet, f"{moment}:{step}", lambda: shop.add(3), lambda: fleet.settled(len(shop.all_orders())))
    count = len(shop.all_orders())
    fleet.started("worker")
    wait_for(lambda: fleet.settled(count), fleet.why, 90)
    check_exactly_once(fleet, shop, count)


@ON_SQLITE
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_killed_between_the_remotes_work_and_its_answer(fleet, shop, method):
    """The shop has done it, and the worker is dead before it hears of that."""
    numbers = shop.add(6)
    worker = fleet.started("worker")
    shop.when(method, lambda: fleet.kill(worker))
    fleet.start("beat")
    killed(worker, fleet)
    fleet.started("worker")
    wait_for(lambda: fleet.settled(len(numbers)), fleet.why)
    check_exactly_once(fleet, shop, len(numbers))


def test_all_orders_move_again_soon_after_a_kill(fleet, shop):
    """Within 10 s; a busy machine may take longer, so that is printed, and the lease and the sweep see to it."""
    numbers = shop.add(40)
    shop.control.backend.options.change({"latency_seconds": 0.3})
    fleet.start("beat")
    first = fleet.started("worker")
    other = fleet.started("worker")
    wait_for(lambda: fleet.states()["running"] >= 8, fleet.why)
    fleet.kill(first)
    held = fleet.held_by_the_dead()
    began = time.monotonic()
    wait_for(lambda: not fleet.held_by_the_dead(), fleet.why)
    print(f"{len(held)} orders held by the dead worker moved on after {time.monotonic() - began:.1f} s")
    assert held
    assert other.poll() is None
    shop.control.backend.options.change({"latency_seconds": 0.0})
    wait_for(lambda: fleet.settled(len(numbers)), fleet.why)
    check_exactly_once(fleet, shop, len(numbers))


@ON_POSTGRESQL
@pytest.mark.timeout(180)
def test_an_order_that_kills_three_processes_is_parked_and_others_are_unharmed(fleet, shop):
    numbers = shop.add(20)
    poison = numbers[7]
    victims = []

    def kill_whoever_asks(port: int, server_port: int) -> None:
        victims.append(fleet.kill_the_caller(port, server_port))

    shop.poisons(poison, kill_whoever_asks)
    fleet.start("beat")
    fleet.started("worker")
    wait_for(lambda: len(victims) == 1, fleet.why)
    fleet.started("worker")
    wait_for(lambda: len(victims) == 2, fleet.why)
    last = fleet.started("worker")
    wait_for(lambda: fleet.settled(len(numbers)), fleet.why)
    row = fleet.rows()[str(poison)]
    assert row["state"] == "parked"
    assert "3 " in row["error"]
    assert "SIGKILL" in row["error"] or "signal 9" in row["error"]
    assert len(victims) == 3
    assert last.poll() is None
    assert last.pid not in victims
    assert fleet.states() == {"done": len(numbers) - 1, "parked": 1}
