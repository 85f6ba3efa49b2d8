"""Whatever is flushed, restarted, doubled, lost, late or down: nothing is lost, and nothing happens twice."""

import signal
from pathlib import Path
from threading import Thread

import pytest
from flask import request
from sqlalchemy import URL, make_url

from ledger import queries, sending
from tests import services
from tests.flows.harness import Fleet, an_erp, shop_settings, wait_for
from tests.flows.killing import ON_POSTGRESQL, ON_SQLITE
from tests.flows.proxy import proxy
from tests.flows.test_kills import check_exactly_once
from workers.celery import send_chain

LATE = str(Path(__file__).with_name("late_worker.py"))


def slow(shop, seconds: float) -> None:
    """How long the shop takes for each answer."""
    shop.control.backend.options.change({"latency_seconds": seconds})


def finish(fleet, shop, count: int) -> None:
    """All go on by themselves, to the end, once."""
    slow(shop, 0.0)
    wait_for(lambda: fleet.settled(count), fleet.why, 90)
    check_exactly_once(fleet, shop, count)


class TestBroker:
    def test_flushed_in_the_middle(self, fleet, shop, valkey):
        shop.add(60)
        slow(shop, 0.1)
        fleet.start("beat")
        fleet.started("worker")
        wait_for(lambda: fleet.states()["done"] >= 3, fleet.why)
        valkey.flush()
        finish(fleet, shop, 60)

    @ON_POSTGRESQL
    def test_restarted_in_the_middle_and_the_workers_resume_by_themselves(self, fleet, shop, valkey):
        shop.add(60)
        slow(shop, 0.1)
        beat = fleet.start("beat")
        workers = [fleet.started("worker"), fleet.started("worker")]
        wait_for(lambda: fleet.states()["done"] >= 3, fleet.why)
        valkey.kill()
        wait_for(lambda: not fleet.states()["running"], fleet.why)
        valkey.start()
        finish(fleet, shop, 60)
        assert [process.poll() for process in (beat, *workers)] == [None, None, None]

    @ON_SQLITE
    def test_away_when_orders_come_in(self, fleet, shop, valkey):
        """What cannot be sent stays in the ledger, and goes when the broker is back."""
        fleet.started("worker")
        fleet.start("beat")
        wait_for(lambda: queries.cursor(fleet.ledger, "cloudsuite.poll:default"), fleet.why)
        valkey.kill()
        shop.add(5)
        fleet.poll_here()
        assert sum(fleet.states().values()) == 5
        valkey.start()
        finish(fleet, shop, 5)

    @ON_POSTGRESQL
    def test_rabbitmq_carries_the_same_work(self, shop, rabbitmq_vhost, ledger_url, tmp_path):
        settings = {**shop_settings(shop), "BROKER_URL": rabbitmq_vhost, "DATABASE_URL": ledger_url}
        fleet = Fleet(tmp_path, settings)
        try:
            with an_erp(fleet.settings.erp_url, ship_after_seconds=0.2):
                shop.add(20)
                fleet.start("beat")
                fleet.kill(fleet.started("worker"))
                fleet.started("worker")
                finish(fleet, shop, 20)
        finally:
            fleet.close()


class TestMessages:
    def test_delivered_twice_and_at_the_same_time(self, fleet, shop):
        slow(shop, 0.2)
        fleet.start("beat")
        for _ in range(2):
            fleet.started("worker")
        shop.add(30)  # only now: one worker alone might be through before the other is there
        wait_for(lambda: fleet.states(), fleet.why)
        doubled = 0
        while not fleet.settled(30):
            for row in fleet.rows().values():
                if row["step"] is not None:
                    double = sending.ToSend(row["id"], ((row["position"], row["step"]),))
                    send_chain(fleet.app, "cloudsuite", double)
                    send_chain(fleet.app, "cloudsuite", double)
                    doubled += 2
        assert doubled > 60
        finish(fleet, shop, 30)

    @ON_POSTGRESQL
    def test_lost(self, fleet, shop, valkey):
        """Popped by nobody we know: as when Redis dies between handing out a message and noting it."""
        shop.add(20)
        fleet.poll_here()
        sent = fleet.dispatch()
        assert sent == 20
        with valkey.client() as client:
            assert client.delete("cloudsuite") == 1
        fleet.start("beat")
        fleet.started("worker")
        wait_for(lambda: fleet.settled(20), fleet.why)
        check_exactly_once(fleet, shop, 20)


@ON_SQLITE
class TestBeat:
    def test_two_beats_do_no_harm(self, fleet, shop):
        shop.add(20)
        for _ in range(2):
            fleet.start("beat")
        for _ in range(2):
            fleet.started("worker")
        finish(fleet, shop, 20)

    def test_none_for_a_while_leaves_no_gap(self, fleet, shop):
        beat = fleet.start("beat")
        fleet.started("worker")
        shop.add(5)
        wait_for(lambda: fleet.settled(5), fleet.why)
        fleet.kill(beat)
        shop.add(5, seed=2)
        shop.add(1, seed=3, confirm_date="2026-01-01T00:00:00.000000")  # confirmed long before anybody looked
        assert len(fleet.rows()) == 5
        fleet.start("beat")
        wait_for(lambda: fleet.settled(10), fleet.why)


class TestLedger:
    @pytest.fixture
    def cut_off(self, shop, valkey, postgresql_server: URL, migrated_postgresql, tmp_path):
        """A fleet whose ledger is behind a proxy that can be cut, and the proxy; the ERP is elsewhere."""
        with (
            services.fresh_postgresql(postgresql_server, migrated_postgresql) as url,
            proxy(postgresql_server.host or "127.0.0.1", postgresql_server.port or 5432) as between,
        ):
            through = make_url(url).set(host="127.0.0.1", port=between.port).render_as_string(hide_password=False)
            fleet = Fleet(
                tmp_path,
                {
                    **shop_settings(shop),
                    "BROKER_URL": valkey.url,
                    "DATABASE_URL": through,
                    "ERP_URL": f"sqlite:///{tmp_path / 'erp.db'}",
                },
            )
            try:
                with an_erp(fleet.settings.erp_url, ship_after_seconds=0.2):
                    yield fleet, between
            finally:
                fleet.close()

    def test_down_for_a_while(self, cut_off, shop):
        fleet, between = cut_off
        shop.add(40)
        slow(shop, 0.1)
        fleet.start("beat")
        worker = fleet.started("worker")
        wait_for(lambda: fleet.states()["done"] >= 3, fleet.why)
        between.cut()
        before = len(shop.control.backend.effects.of())
        wait_for(lambda: shop.quiet_for(1.0), "the shop is left alone", 30)
        # One write a thread may be under way; a write counts once here, whatever it changes.
        assert len(shop.control.backend.effects.of()) <= before + 16
        between.mend()
        slow(shop, 0.0)
        wait_for(lambda: fleet.settled_if_it_answers(40), "all settle", 90)
        assert worker.poll() is None
        assert fleet.states() == {"done": 40}
        per_order = shop.control.backend.effects.per_order()
        assert {max(counts.values()) for kind, counts in per_order.items() if kind not in ("patch", "put")} == {1}


class TestClocks:
    @ON_POSTGRESQL
    @pytest.mark.parametrize("off", [600, -600])
    def test_a_workers_clock_is_ten_minutes_off(self, fleet, shop, off):
        shop.add(20)
        shop.faults({"rate": 0.2, "kinds": ["500_before", "lost_answer"], "seed": 5})
        fleet.start("beat")
        fleet.started(LATE, CLOCK_OFF=str(off))
        fleet.started("worker")
        wait_for(lambda: sum(fleet.states().values()) == 20 and fleet.states()["done"] >= 10, fleet.why)
        shop.faults()
        finish(fleet, shop, 20)


class TestFrozen:
    def test_a_worker_that_wakes_up_past_its_lease_writes_nothing(self, fleet, shop):
        """Frozen between the shop's work and its answer; another worker finishes the orders meanwhile. Of another order
        a write whose look at the lease is behind it may arrive when the worker wakes up: it changes nothing."""
        shop.add(4)
        frozen = fleet.started("worker")
        frozen_at = []

        def freeze() -> None:
            frozen_at.append(request.path.split("/")[3])
            fleet.freeze(frozen)

        shop.when("PATCH", freeze)
        fleet.start("beat")
        wait_for(lambda: shop.effects()["patch"], fleet.why)
        fleet.started("worker")
        wait_for(lambda: fleet.settled(4), fleet.why)
        check_exactly_once(fleet, shop, 4)
        effects = shop.effects(frozen_at[0])
        frozen.send_signal(signal.SIGCONT)
        shop.add(4, seed=9)
        wait_for(lambda: fleet.settled(8), fleet.why)
        assert frozen.poll() is None
        check_exactly_once(fleet, shop, 8)
        assert effects
        assert shop.effects(frozen_at[0]) == effects


class TestRemote:
    @ON_SQLITE
    def test_down_burns_nothing_and_recovers_by_itself(self, fleet, shop):
        shop.add(10)
        shop.faults({"kinds": ["500_before"]})
        fleet.start("beat")
        fleet.started("worker")
        fleet.poll_when_it_answers(shop)
        shop.faults({"kinds": ["500_before"]})
        wait_for(lambda: "cloudsuite:default" in queries.closed_gates(fleet.ledger), fleet.why)
        wait_for(lambda: queries.closed_gates(fleet.ledger)["cloudsuite:default"].closures >= 2, fleet.why)
        assert max(row["failures"] for row in fleet.rows().values()) <= 5
        shop.faults()
        finish(fleet, shop, 10)

    @ON_SQLITE
    def test_refused_credentials_wait_for_a_person_and_cost_no_attempt(self, fleet, shop):
        shop.add(6)
        fleet.start("beat")
        fleet.started("worker")
        wait_for(lambda: fleet.rows(), fleet.why)
        shop.control.backend.options.change({"token_lifetime": 0.0, "client_secret": "changed by somebody"})
        shop.add(6, seed=2)
        wait_for(lambda: "cloudsuite:default" in queries.closed_gates(fleet.ledger), fleet.why)
        assert all(row["failures"] == 0 for row in fleet.rows().values())
        assert not fleet.states()["parked"]
        shop.control.backend.options.change({"token_lifetime": 300.0, "client_secret": "sandbox-secret"})
        finish(fleet, shop, 12)

    def test_a_slow_shop_does_not_slow_another(self, valkey, tmp_path, shop):
        """Two accounts of one system, each with a lane of its own: one answers after seconds, the other at once."""
        from tests.flows.harness import a_shop

        with a_shop() as snail:
            settings = {
                **shop_settings(shop),
                "BROKER_URL": valkey.url,
                "CLOUDSUITE_ACCOUNTS": "quick,snail",
                "CLOUDSUITE_SNAIL_URL": snail.url,
                "CLOUDSUITE_SNAIL_TOKEN_URL": snail.url + "/realms/sandbox/protocol/openid-connect/token",
                "CLOUDSUITE_TIMEOUT": "30",
            }
            fleet = Fleet(tmp_path, settings)
            try:
                with an_erp(fleet.settings.erp_url, ship_after_seconds=0.2):
                    fleet.start("beat")
                    fleet.started("worker")
                    snail.add(100)
                    wait_for(lambda: len(fleet.rows()) >= 100, fleet.why)
                    slow(snail, 8.0)
                    wait_for(lambda: fleet.running("snail") >= 12, fleet.why)
                    first = shop.add(30, seed=4)
                    wait_for(lambda: shop.effects()["shipment_state:sent"] == len(first), fleet.why, 90)
                    assert snail.effects()["shipment_state:sent"] < 100
                    slow(snail, 0.0)
            finally:
                fleet.close()


@ON_SQLITE
def test_old_and_new_workers_overlap(fleet, shop):
    """A newer sender's message has arguments that this worker does not know: they are let be."""
    shop.add(3)
    fleet.poll_here()
    rows = fleet.rows()
    fleet.started("worker")
    for row in rows.values():
        fleet.app.send_task(
            "cloudsuite.fetch",
            kwargs={"order": row["id"], "position": 0, "from_the_future": {"a": 1}},
            queue="cloudsuite",
        )
    fleet.start("beat")
    finish(fleet, shop, 3)


@ON_SQLITE
def test_stopping_a_worker_finishes_what_it_holds(fleet, shop):
    shop.add(30)
    slow(shop, 0.2)
    fleet.start("beat")
    worker = fleet.started("worker")
    wait_for(lambda: fleet.states()["running"] >= 8, fleet.why)
    stopper = Thread(target=worker.terminate)
    stopper.start()
    assert worker.wait(20) == 0
    assert not fleet.states()["running"]
    fleet.started("worker")
    finish(fleet, shop, 30)
