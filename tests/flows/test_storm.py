"""Many orders, one request in ten misbehaving, workers killed all the time: every payable order is sent, once.

`STORM_ORDERS=500` makes it as large as the one whose figures are in docs/performance.md."""

from collections import Counter

import pytest

from sandbox.cloudsuite import UNKNOWN_PRODUCT
from tests.flows.harness import Fleet, Shop, wait_for
from tests.flows.killing import ON_POSTGRESQL, ON_SQLITE, Reaper, storm_orders
from tests.flows.test_kills import EFFECTS

ORDERS = storm_orders(60)


def payable(order: dict) -> bool:
    """Whether the order is for us to process to the end."""
    unknown = any(line["product"] and line["product"]["key"] == UNKNOWN_PRODUCT for line in order["order_lines"])
    return order["payment_status"] in ("paid", "closed_success", "account") and not order["offline"] and not unknown


def prepare(shop: Shop) -> None:
    shop.add(ORDERS, seed=11, plain=False, state="confirmed")
    shop.faults({"rate": 0.1, "seed": 3, "slow_seconds": 0.3})


def check(fleet: Fleet, shop: Shop, reaper: Reaper) -> None:
    orders = {str(order["id"]): order for order in shop.control.backend.all_orders()}
    expected = {number for number, order in orders.items() if payable(order)}
    sent = {number for number, order in orders.items() if order["shipment_state"] == "sent"}
    counts = shop.effects()
    per_order = shop.control.backend.effects.per_order()
    in_erp = Counter(row["external_reference"] for row in fleet.erp_rows("erp_order"))
    numbered = Counter(row["external_reference"] for row in fleet.erp_rows("erp_event") if row["kind"] == "numbered")
    print(
        f"\n{len(orders)} orders, {len(expected)} payable, {len(sent)} sent; kills: {reaper.kills}; "
        f"faults: {shop.control.faults.injected()}; states: {dict(fleet.states())}; "
        f"effects: { {kind: counts[kind] for kind in EFFECTS} }; ERP orders: {len(in_erp)}, numbered: {len(numbered)}"
    )
    assert sent == expected, fleet.why()
    assert {kind: max(per_order[kind].values()) for kind in EFFECTS} == dict.fromkeys(EFFECTS, 1)
    assert counts["shipment_state:sent"] == len(expected)
    assert set(numbered.values()) == {1}
    assert {row["error"] for row in fleet.rows().values() if row["state"] == "parked"} <= {
        f"the ERP refuses the order: Unknown product {UNKNOWN_PRODUCT}",
        "the payment was cancelled (closed_canceled): not processed; release it to process it all the same",
    }


def all_through(fleet: Fleet, shop: Shop) -> bool:
    orders = [order for order in shop.control.backend.all_orders() if not order["offline"]]
    paid = all(order["payment_status"] != "started" for order in orders)
    return paid and fleet.settled_if_it_answers(len(orders))


@ON_SQLITE
@pytest.mark.timeout(600)
def test_one_worker_killed_every_three_seconds(fleet, shop):
    prepare(shop)
    fleet.start("beat")
    with Reaper(fleet, 1).at_work() as reaper:
        wait_for(lambda: all_through(fleet, shop), fleet.why, 550)
    check(fleet, shop, reaper)


@ON_POSTGRESQL
@pytest.mark.timeout(600)
def test_two_workers_with_a_flush_and_a_restart_of_the_broker(fleet, shop, valkey):
    prepare(shop)
    fleet.start("beat")
    with Reaper(fleet, 2).at_work() as reaper:
        wait_for(lambda: fleet.states()["done"] >= ORDERS // 5, fleet.why, 300)
        valkey.flush()
        wait_for(lambda: fleet.states()["done"] >= ORDERS // 2, fleet.why, 300)
        valkey.restart()
        wait_for(lambda: all_through(fleet, shop), fleet.why, 300)
    check(fleet, shop, reaper)
