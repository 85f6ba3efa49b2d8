"""TastyIgniter with real processes: workers are killed at every moment of every step, and all the time in a storm of
faults and of lost, doubled and late webhooks. Each status is set once, and each mail sent once.

`STORM_ORDERS=200` makes the storm larger."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ledger import queries
from sandbox.tastyigniter import site_of
from tests.flows.harness import Fleet, Remote, a_fleet, a_remote, wait_for
from tests.flows.killing import ALL_MOMENTS, DYING, ON_POSTGRESQL, ON_SQLITE, Reaper, dies_at, killed, storm_orders
from tests.services import PrivateValkey
from workers import operators

ORDERS = storm_orders(24)
STEPS = ("tastyigniter.fetch", "erp.order", "tastyigniter.preparing", "tastyigniter.completed")
MOMENTS = ("claimed", "effect-done", "recorded") if ALL_MOMENTS else ("effect-done",)
# A message begins with the first step, and with those that waited for a signal.
BY_STEP = {step: ("claiming", *MOMENTS) if ALL_MOMENTS and step != "erp.order" else MOMENTS for step in STEPS}
UNKNOWN = "the ERP refuses the order: Unknown product 999"
WRITES = ("status_id:3", "status_id:5", "status_id:9", "mail:3")


@pytest.fixture
def profile() -> str:
    return "P3"


@pytest.fixture
def site(profile: str) -> Iterator[Remote]:
    with a_remote("tastyigniter", profile=profile) as opened:
        yield opened


@pytest.fixture
def fleet(site: Remote, valkey: PrivateValkey, ledger_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet to whose web server the site delivers; no process runs yet."""
    with a_fleet(site, home=tmp_path, broker=valkey.url, database=ledger_url) as opened:
        yield opened
        post = site_of(site.app).hooks.post
        post.stop()
        wait_for(post.quiet, "the last webhook is answered, before the web server's ledger is closed", 30)


def check_exactly_once(fleet: Fleet, site: Remote, count: int) -> None:
    """Every order ended, and each of its effects took place once, at the site and in the ERP."""
    assert fleet.states() == {"done": count}, fleet.why()
    assert Counter(order["status_id"] for order in site.all_orders()) == {5: count}
    effects, most = site.effects(), site.most_per_order()
    for kind in ("status:1->3", "status:3->5"):
        assert (effects[kind], most[kind]) == (count, 1)
    # In P1 a PATCH sends no mail.
    mails = 0 if site_of(site.app).options.profile == "P1" else count
    assert (effects["mail:3"], most.get("mail:3", 0)) == (mails, min(mails, 1))
    assert len(fleet.erp_rows("erp_order")) == count
    numbered = Counter(row["external_reference"] for row in fleet.erp_rows("erp_event") if row["kind"] == "numbered")
    assert sorted(numbered.values()) == [1] * count


def killed_at(fleet: Fleet, site: Remote, moments: list[tuple[str, str]]) -> None:
    fleet.start("beat")
    for moment, step in moments:
        dies_at(fleet, f"{moment}:{step}", partial(site.add, 3), lambda: fleet.settled(len(site.all_orders())))
    count = len(site.all_orders())
    fleet.started("worker")
    wait_for(lambda: fleet.settled(count), fleet.why, 90)
    check_exactly_once(fleet, site, count)


@ON_SQLITE
@pytest.mark.timeout(240)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_every_moment_of_a_step(fleet, site, step):
    killed_at(fleet, site, [(moment, step) for moment in BY_STEP[step]])


@ON_SQLITE
@pytest.mark.timeout(240)
@pytest.mark.parametrize("profile", ["P1"])
def test_killed_between_effect_and_record_where_the_site_has_no_history(fleet, site):
    killed_at(fleet, site, [("effect-done", step) for step in STEPS])


@ON_SQLITE
@pytest.mark.timeout(120)
def test_killed_while_status_9_is_written(fleet, site):
    """The restaurant learns once that an order is cancelled."""
    numbers = site.add(8)
    fleet.poll_here("tastyigniter")
    for row in fleet.rows_of_all():
        operators.cancel(fleet.ledger, row, fleet.fleet.systems["tastyigniter"], "ann")
    for moment in MOMENTS:
        dying = fleet.start(DYING, DIE_AT=f"{moment}:tastyigniter.cancel")
        killed(dying, fleet)
    fleet.start("beat")
    fleet.started("worker")
    wait_for(lambda: fleet.settled(len(numbers)), fleet.why)
    assert fleet.states() == {"cancelled": len(numbers)}
    assert {kind: (site.effects()[kind], site.most_per_order()[kind]) for kind in ("status_id:9", "history:9")} == {
        "status_id:9": (len(numbers), 1),
        "history:9": (len(numbers), 1),
    }
    assert fleet.erp_rows("erp_order") == []


@ON_POSTGRESQL
def test_killed_between_the_sites_work_and_its_answer(fleet, site):
    """The site has set the status and sent the mail, and the worker is dead before it hears of that."""
    numbers = site.add(6)
    worker = fleet.started("worker")
    site.when("PATCH", lambda: fleet.kill(worker), "/orders/")
    fleet.start("beat")
    killed(worker, fleet)
    fleet.started("worker")
    wait_for(lambda: fleet.settled(len(numbers)), fleet.why)
    check_exactly_once(fleet, site, len(numbers))


# === The storm ==============================================================================================


def through(fleet: Fleet, site: Remote) -> bool:
    """Whether nothing moves any more, here or there, and everything that was placed is known."""
    if not site.quiet_for(4.0) or not fleet.settled_if_it_answers(0):
        return False
    known = set(fleet.rows())
    placed = {str(order["id"]) for order in site.all_orders() if order["processed"] and not order["deleted"]}
    return placed <= known and not queries.unread_news(fleet.ledger, "tastyigniter", "default", 1)


def expected(order: dict[str, Any]) -> set[str]:
    """How an order may stand in the ledger; '' if it may be unknown."""
    if order["deleted"]:
        return {"cancelled", "done", "ignored", ""}
    if order["status_id"] == 9:
        completed = any(row["status_id"] == 5 for row in order["history"])
        return {"done"} if completed else {"cancelled"}
    if any(dish["menu_id"] == 999 for dish in order["order_menus"]):
        return {"parked", "done"}  # done, if nobody told the dishes
    return {"done"} if order["processed"] and order["status_id"] else {"ignored", ""}


def check_storm(fleet: Fleet, site: Remote, reaper: Reaper) -> None:
    rows, orders = fleet.rows(), {str(order["id"]): order for order in site.all_orders()}
    most, effects = site.most_per_order(), site.effects()
    in_erp = {row["external_id"]: row["stage"] for row in fleet.erp_rows("erp_order")}
    deliveries = site_of(site.app).hooks.post.deliveries()
    print(
        f"\n{len(orders)} orders; kills: {reaper.kills}; faults: {site.control.faults.injected()}; states: "
        f"{dict(fleet.states())}; effects: { {kind: effects[kind] for kind in WRITES} }; webhooks: {len(deliveries)}, "
        f"lost: {sum(one.lost for one in deliveries)}"
    )
    wrong = {
        number: (order["status_id"], order["processed"], order["deleted"], rows.get(number, {}).get("state", ""))
        for number, order in orders.items()
        if rows.get(number, {}).get("state", "") not in expected(order)
    }
    assert wrong == {}, fleet.why()
    done = {number for number, row in rows.items() if row["state"] == "done"}
    assert {orders[number]["status_id"] for number in done if not orders[number]["deleted"]} <= {5, 9}
    assert {kind: most.get(kind, 0) for kind in WRITES if most.get(kind, 0) > 1} == {}
    assert len(fleet.erp_rows("erp_order")) == len(in_erp)
    assert {in_erp[number] for number in done} == {"confirmed"}
    assert {in_erp[number] for number, row in rows.items() if row["state"] == "cancelled" and number in in_erp} <= {
        "cancelled"
    }
    numbered = Counter(row["external_reference"] for row in fleet.erp_rows("erp_event") if row["kind"] == "numbered")
    assert set(numbered.values()) == {1}


@pytest.mark.timeout(600 + 4 * ORDERS)
@pytest.mark.parametrize(
    ("profile", "ledger_url"),
    [pytest.param("P1", "sqlite", marks=pytest.mark.large), ("P3", "postgresql")],
    indirect=["ledger_url"],
    ids=["P1", "P3"],
)
def test_a_storm(fleet, site):
    site.control.backend.options.change(
        {"webhook_lost": 0.1, "webhook_doubled": 0.2, "webhook_late_seconds": 1.0, "time_factor": 0.05}
    )
    site.faults({"rate": 0.1, "seed": 3, "slow_seconds": 0.3})
    site.add(ORDERS, seed=11, plain=False)
    fleet.start("beat")
    with Reaper(fleet, 1).at_work() as reaper:
        wait_for(lambda: fleet.states()["done"] >= ORDERS * 3 // 4, fleet.why, 300 + ORDERS)
    site.faults()
    wait_for(lambda: through(fleet, site), fleet.why, 300)
    check_storm(fleet, site, reaper)
    stopped = {number: row["error"] for number, row in fleet.rows().items() if row["state"] in ("parked", "in_doubt")}
    assert set(stopped.values()) <= {UNKNOWN}, stopped
