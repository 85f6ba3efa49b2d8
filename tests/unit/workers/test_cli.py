"""The command line as an operator has it: on both databases, against the shop's imitation and the staging tables."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import intake, interrupts, queries, records, sending
from ledger.connection import Ledger
from orders.errors import Refused
from orders.outcomes import Done, Planned
from orders.states import State
from tasks.base import STEPS, Fleet, Job
from tests.flows.harness import wait_for
from tests.unit.workers.conftest import Desk
from workers.bootstrap import build_fleet
from workers.settings import read_settings

ROOT = Path(__file__).parents[3]
PAID = (Planned("erp.order", awaits="paid", recheck=60.0), Planned("cloudsuite.state"))


@pytest.fixture
def fleet(open_desk: Desk) -> Iterator[Fleet]:
    built = build_fleet(read_settings(open_desk.environment))
    yield built
    built.erp.close()
    built.ledger.close()


def work(fleet: Fleet, order: int) -> None:
    """Run an order's steps one by one until it waits or stops."""
    while sending.take_ready_orders(fleet.ledger, [order]):
        position, step, _ = queries.position_of(fleet.ledger, order) or (0, None, "")
        claim = records.claim(fleet.ledger, order, position, step or "", "w1")
        assert claim is not None
        try:
            outcome = STEPS[claim.step](Job(fleet.ledger, claim), fleet.partner_of(claim))
        except Refused as refusal:
            records.park(fleet.ledger, claim, refusal.reason, refusal.status, recheck=refusal.recheck)
        else:
            assert isinstance(outcome, Done)
            records.done(fleet.ledger, claim, outcome, State.READY)


def process(desk: Desk, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers", *(str(argument) for argument in arguments)]
    environment = {"PATH": os.environ["PATH"], "HOME": desk.environment["ORDERFLEET_HOME"], **desk.environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


class TestListing:
    def test_json_has_every_order_and_what_is_asked_of_each(self, desk):
        desk.take_in(*(str(number) for number in range(300)))
        found = desk.json("orders")
        assert [order["id"] for order in found] == sorted(order["id"] for order in found)
        assert len(found) == 300
        wanted = {"id", "system", "account", "external_id", "reference", "state", "step", "error"}
        assert all(wanted <= order.keys() for order in found)

    def test_a_limit_means_the_newest(self, desk):
        orders = desk.take_in("1", "2", "3")
        assert [order["id"] for order in desk.json("orders", "--limit", 2)] == orders[1:]

    def test_a_table_says_that_there_are_more(self, desk):
        desk.take_in(*(str(number) for number in range(101)))
        result = desk.run("orders")
        assert "cloudsuite:default:100" in result.stdout
        assert "cloudsuite:default:0 " not in result.stdout
        assert "the newest 100" in result.stderr

    def test_filters(self, desk):
        first, second = desk.take_in("17", "18")
        (third,) = desk.take_in("19", account="south")
        desk.advance(second)
        desk.park(second, "no such product: X-1")

        def ids(*arguments: object) -> list[int]:
            return [order["id"] for order in desk.json("orders", *arguments)]

        assert ids("--account", "south") == [third]
        assert ids("--state", "parked", "--state", "in_doubt") == [second]
        assert ids("--search", "R-17") == ids("--search", "17") == [first]
        assert ids("--step", "erp.order", "--error", "X-1") == [second]
        assert ids("--since", "1h", "--system", "cloudsuite") == [first, second, third]
        assert ids("--since", "2999-01-01") == []

    def test_failed_says_why_in_the_remotes_own_words(self, desk):
        first, second, third = desk.take_in("1", "2", "3")
        desk.park(second, "the ERP refuses the order: [bold]unknown\x1b[31m product[/bold]")
        desk.park(third, "sent, and no answer", State.IN_DOUBT)
        assert [order["id"] for order in desk.json("failed")] == [second, third]
        shown = desk.run("failed").stdout
        assert "the ERP refuses the order: [bold]unknown\N{REPLACEMENT CHARACTER}[31m product[/bold]" in shown
        assert "\x1b" not in shown
        assert first not in (order["id"] for order in desk.json("failed"))

    def test_events_that_could_not_be_used(self, desk):
        intake.keep_odd_event(desk.ledger, "erp", "default", "erp:1", "shipped", "{}", "no order is known by x:y:z")
        assert [event["problem"] for event in desk.json("events")] == ["no order is known by x:y:z"]
        assert "erp:default shipped: no order is known" in desk.run("events").stdout
        assert "orderfleet events" in desk.run("failed").stderr

    @pytest.mark.parametrize(
        ("option", "value", "says"),
        [
            ("--system", "acme", "cloudsuite"),
            ("--state", "lost", "in_doubt"),
            ("--step", "acme.ship", "cloudsuite.fetch"),
            ("--since", "yesterday", "2h"),
            ("--limit", "0", "x>=1"),
        ],
    )
    def test_a_wrong_word_is_answered_with_the_right_ones(self, desk, option, value, says):
        assert says in desk.run("orders", option, value, code=2).stderr


class TestShow:
    def test_an_order_is_found_by_its_reference(self, desk):
        desk.take_in("17", "R-9")
        (south,) = desk.take_in("18", account="south")
        assert "cloudsuite:default:17" in desk.run("show", "cloudsuite:R-17").stdout
        assert f"order {south}" in " ".join(desk.run("show", "cloudsuite:south:R-18").stdout.split())
        desk.run("show", "cloudsuite:north:R-18", code=1)
        desk.run("show", "doshii:R-17", code=1)

    def test_an_external_id_goes_before_a_reference(self, desk):
        (first,) = desk.take_in("R-9")
        desk.take_in("9")
        assert desk.json("show", "cloudsuite:R-9")["id"] == first

    def test_a_reference_that_several_have_names_none(self, desk):
        desk.take_in("17")
        desk.take_in("17", account="south")
        assert "may be any of 2 orders" in desk.run("show", "cloudsuite:R-17", code=2).stderr

    def test_the_timeline_has_everything_that_happened(self, desk):
        (order,) = desk.take_in("17")
        desk.advance(order)
        desk.run("signal", order, "shipped", "--data", '{"tracking": "T-9"}')
        desk.park(order, "no such product")
        shown = desk.run("show", f"cloudsuite:{17}").stdout
        for words in (
            "cloudsuite:default:17",
            "R-17",
            "no such product",
            "▸ erp.order",
            "T-9",
            "ann: shipped",
            "parked",
        ):
            assert words in shown
        page = desk.json("show", order)
        assert [entry["kind"] for entry in page["timeline"]].count("attempt") == 2
        assert [step["name"] for step in page["plan"]][:2] == ["cloudsuite.fetch", "erp.order"]

    def test_a_narrow_terminal_loses_nothing(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order, "a long reason " * 10)
        result = desk.run("show", order)
        assert " ".join(["a long reason"] * 10) in " ".join(result.stdout.split())

    def test_an_unknown_order(self, desk):
        assert "orderfleet orders --search 99" in desk.run("show", "cloudsuite:99", code=1).stderr

    def test_a_name_that_two_orders_have(self, desk):
        (first,) = desk.take_in("17")
        (second,) = desk.take_in("17", account="south")
        says = desk.run("show", "cloudsuite:17", code=2).stderr
        assert f"{first} (cloudsuite:default:17)" in says
        assert f"{second} (cloudsuite:south:17)" in says
        assert desk.json("show", "cloudsuite:south:17")["id"] == second


class TestReplay:
    def test_a_preview_changes_nothing(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order)
        before = desk.order(order)
        (seen,) = desk.json("replay", order, "--dry-run")
        assert (seen["from"], seen["version"], seen["result"]) == ("cloudsuite.fetch", before["version"], None)
        assert desk.order(order) == before

    def test_an_order_goes_on_and_it_is_known_who_wanted_it(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order)
        desk.run("--who", "bob", "replay", order, "--yes")
        assert (desk.order(order)["state"], desk.order(order)["error"]) == (State.READY, None)
        assert desk.audit(order) == [("bob", "replay")]

    def test_a_filter_means_what_waits_for_a_person(self, desk):
        orders = desk.take_in("1", "2", "3")
        desk.park(orders[0], "no such product")
        desk.park(orders[1], "refused")
        assert [order["id"] for order in desk.json("replay", "--system", "cloudsuite", "--dry-run")] == orders[:2]
        found = desk.json("replay", "--error", "PRODUCT", "--yes")
        assert [(order["id"], order["result"]) for order in found] == [(orders[0], "replayed")]
        assert desk.order(orders[1])["state"] == State.PARKED
        desk.run("replay", "--state", "ready", "--yes")
        assert desk.audit(orders[2]) == [("ann", "replay")]

    @pytest.mark.parametrize(
        "arguments",
        [("replay",), ("replay", "1", "--system", "cloudsuite"), ("replay", "1", "--done", "--from", "erp.order")],
    )
    def test_what_it_does_not_understand(self, desk, arguments):
        desk.run(*arguments, "--yes", code=2)

    def test_nobody_to_ask_means_no(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order)
        assert "--yes" in desk.run("replay", order, code=2).stderr
        assert desk.order(order)["state"] == State.PARKED

    def test_a_plan_that_has_moved_on_is_refused(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order)
        plan = desk.json("replay", order, "--dry-run")[0]["plan"]
        desk.run("replay", order, "--yes", "--plan", plan)
        desk.park(order)
        assert "moved on" in desk.run("replay", order, "--yes", "--plan", plan, code=1).stderr
        assert desk.audit(order) == [("ann", "replay")]

    def test_from_an_earlier_step_but_never_a_later_one(self, desk):
        (order,) = desk.take_in("17")
        desk.advance(order)
        desk.park(order)
        says = desk.run("replay", order, "--from", "cloudsuite.lines", "--yes", code=1).stderr
        assert "a replay leaves no step out" in says
        desk.run("replay", order, "--from", "cloudsuite.fetch", "--yes")
        assert desk.order(order)["step"] == "cloudsuite.fetch"

    def test_orders_that_cannot_be_replayed_do_not_keep_the_others(self, desk):
        first, second = desk.take_in("1", "2")
        desk.park(first)
        held = desk.claim(second)
        found = desk.json("replay", "--state", "parked", "--state", "running", "--yes", code=1)
        assert [order["result"] for order in found] == [
            "replayed",
            "is running: it goes on by itself, look again in a moment",
        ]
        assert records.done(desk.ledger, held, Done(), State.READY) is not None

    def test_a_finished_order_needs_to_be_told_where_to_begin(self, desk):
        (order,) = desk.take_in("17")
        records.end(desk.ledger, desk.claim(order), "not ours", State.IGNORED, ())
        assert "--from: cloudsuite.fetch" in desk.run("replay", order, "--yes", code=1).stderr
        desk.run("replay", order, "--from", "cloudsuite.fetch", "--yes")
        assert desk.order(order)["state"] == State.READY

    def test_a_cancelled_order_stays_so(self, desk):
        (order,) = desk.take_in("17")
        records.end(desk.ledger, desk.claim(order), "cancelled", State.CANCELLED, (Planned("erp.cancel"),))
        desk.advance(order)
        assert desk.order(order)["state"] == State.CANCELLED
        says = desk.run("replay", order, "--from", "cloudsuite.fetch", "--yes", code=1).stderr
        assert "is cancelled, and stays so" in says
        assert desk.order(order)["state"] == State.CANCELLED

    def test_one_on_its_way_there_does_not_go_back(self, desk):
        (order,) = desk.take_in("17")
        records.end(desk.ledger, desk.claim(order), "cancelled", State.CANCELLED, (Planned("erp.cancel"),))
        desk.park(order, "the ERP did not cancel the order")
        desk.run("replay", order, "--from", "cloudsuite.fetch", "--yes", code=1)
        desk.run("replay", order, "--yes")
        assert desk.order(order)["step"] == "erp.cancel"


class TestDoubt:
    def test_is_neither_repeated_nor_forgotten_without_a_word(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order, "sent, and no answer", State.IN_DOUBT)
        (seen,) = desk.json("replay", order, "--yes", code=1)
        assert seen["steps"][0] == {
            "step": "cloudsuite.fetch",
            "effect": "irreversible",
            "text": "may have happened: sent, and no answer",
        }
        assert desk.order(order)["state"] == State.IN_DOUBT

    @pytest.mark.parametrize("word", ["--again", "--acknowledge"])
    def test_it_did_not_happen(self, desk, word):
        (order,) = desk.take_in("17")
        desk.park(order, "sent, and no answer", State.IN_DOUBT)
        desk.run("replay", order, "--yes", word)
        assert (desk.order(order)["step"], desk.order(order)["state"]) == ("cloudsuite.fetch", State.READY)

    def test_it_did_happen(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order, "sent, and no answer", State.IN_DOUBT)
        desk.run("replay", order, "--yes", "--done")
        assert desk.order(order)["step"] == "erp.order"
        assert desk.audit(order) == [("ann", "skip")]

    def test_what_is_not_in_doubt_cannot_be_said_to_be_done(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order)
        assert "not in doubt" in desk.run("replay", order, "--yes", "--done", code=1).stderr


class TestPreview:
    """What the other side has is seen there."""

    def test_an_order_that_the_erp_refused(self, open_desk, fleet, shop):
        (number,) = shop.add(1)
        (order,) = open_desk.take_in(str(number))
        work(fleet, order)
        assert open_desk.order(order)["awaits"] == "numbered"
        open_desk.run("signal", order, "refused", "--data", '{"reason": "unknown product"}')
        assert open_desk.order(order)["error"] == "the ERP refuses the order: unknown product"
        (seen,) = open_desk.json("replay", order, "--dry-run", "--from", "cloudsuite.fetch")
        assert [(step["step"], step["effect"]) for step in seen["steps"]] == [
            ("cloudsuite.fetch", "call"),
            ("erp.order", "skip"),
            ("cloudsuite.state", "skip"),
            ("cloudsuite.erp_order_number", "call"),
            ("cloudsuite.lines", "call"),
            ("cloudsuite.shipment", "call"),
        ]
        assert [step["text"] for step in seen["steps"]][2:4] == ["is processing already", "waits for numbered first"]

    def test_what_will_have_been_read_anew_is_not_held_against_it(self, open_desk, fleet, shop):
        (number,) = shop.add(1)
        (order,) = open_desk.take_in(str(number))
        work(fleet, order)
        open_desk.run("signal", order, "refused", "--data", '{"reason": "unknown product"}')
        shop.edit(number, order_lines=[{**line, "quantity": 9.0} for line in shop.order(number)["order_lines"]])
        (seen,) = open_desk.json("replay", order, "--dry-run", "--from", "cloudsuite.fetch")
        assert seen["steps"][2]["text"] == "is processing already"
        (seen,) = open_desk.json("replay", order, "--dry-run")
        assert "changed in the webshop" in seen["steps"][1]["text"]

    def test_looking_writes_nothing_anywhere(self, open_desk, fleet, shop):
        (number,) = shop.add(1)
        (order,) = open_desk.take_in(str(number))
        open_desk.park(order)
        before, effects = shop.order(number), shop.effects()
        (seen,) = open_desk.json("replay", order, "--dry-run")
        assert [step["text"] for step in seen["steps"]][1:3] == [
            "puts the order into the ERP as confirmed",
            "sets the state to processing",
        ]
        assert (shop.order(number), shop.effects()) == (before, effects)

    def test_a_delivery_message_must_be_acknowledged(self, open_desk, fleet, shop):
        open_desk.environment |= {
            "CLOUDSUITE_DELIVERY": "desadv",
            "CLOUDSUITE_DESADV_SHOP": "1",
            "CLOUDSUITE_DESADV_USER": "2",
        }
        (number,) = shop.add(1)
        (order,) = open_desk.take_in(str(number))
        work(fleet, order)
        keys = [line["key"] for line in (queries.document(open_desk.ledger, order) or {})["lines"]]
        numbered = {"order_number": "SO-1", "lines": {key: place for place, key in enumerate(keys, 10)}}
        open_desk.run("signal", order, "numbered", "--data", json.dumps(numbered))
        work(fleet, order)
        assert open_desk.order(order)["awaits"] == "shipped"
        open_desk.run("signal", order, "shipped")
        open_desk.park(order, "the shop was closed")
        (seen,) = open_desk.json("replay", order, "--yes", code=1)
        assert seen["steps"] == [
            {"step": "cloudsuite.shipment", "effect": "irreversible", "text": "sends 1 delivery messages"}
        ]
        assert open_desk.order(order)["state"] == State.PARKED
        open_desk.run("replay", order, "--yes", "--acknowledge")
        assert open_desk.order(order)["state"] == State.READY

    def test_a_shop_that_does_not_answer_is_no_reason_not_to_replay(self, open_desk):
        open_desk.environment |= {"CLOUDSUITE_URL": "http://127.0.0.1:9"}
        (order,) = open_desk.take_in("17")
        open_desk.park(order)
        (seen,) = open_desk.json("replay", order, "--yes")
        assert seen["steps"][0]["text"].startswith("cannot be foreseen: ")
        assert seen["result"] == "replayed"


class TestRelease:
    def test_an_order_that_waits_for_its_payment(self, open_desk, fleet, shop):
        (number,) = shop.add(1, payment_status="started")
        (order,) = open_desk.take_in(str(number))
        work(fleet, order)
        assert open_desk.order(order)["awaits"] == "paid"
        assert "goes on at once" in open_desk.run("release", order).stderr
        work(fleet, order)
        assert open_desk.order(order)["awaits"] == "numbered"
        assert open_desk.audit(order) == [("ann", "release")]

    def test_an_order_whose_payment_was_cancelled(self, open_desk, fleet, shop):
        (number,) = shop.add(1, payment_status="closed_canceled")
        (order,) = open_desk.take_in(str(number))
        work(fleet, order)
        assert "release it" in open_desk.order(order)["error"]
        open_desk.run("release", order)
        open_desk.run("release", order)
        work(fleet, order)
        assert open_desk.order(order)["awaits"] == "numbered"

    def test_an_order_that_is_held_for_another_reason(self, desk):
        (order,) = desk.take_in("17")
        desk.advance(order)
        desk.park(order)
        assert "it is parked at erp.order" in desk.run("release", order).stderr

    def test_a_finished_order(self, desk):
        (order,) = desk.take_in("17")
        interrupts.interrupt(desk.ledger, order, "gone", (), State.CANCELLED)
        assert "cancelled already" in desk.run("release", order, code=1).stderr

    def test_a_system_that_holds_nothing(self, desk):
        (order,) = desk.take_in("17", system="acme")
        assert "acme holds no order" in desk.run("release", order, code=1).stderr


class TestSignal:
    def test_a_waiting_order_goes_on(self, desk):
        (order,) = desk.take_in("17")
        desk.advance(order, Done(rest=PAID))
        assert "it goes on" in desk.run("signal", order, "paid").stderr
        assert (desk.order(order)["state"], desk.order(order)["step"]) == (State.READY, "erp.order")
        (told,) = queries.signals_of(desk.ledger, order, "paid")
        assert told.source.startswith("operator:ann:")
        assert desk.audit(order) == [("ann", "signal")]

    def test_a_number_is_known_from_then_on(self, desk):
        (order,) = desk.take_in("17")
        desk.run("signal", order, "numbered", "--data", '{"order_number": 17, "lines": {"1": "10"}}')
        assert desk.order(order)["facts"] == {"erp_number": "17", "erp_lines": {"1": 10}}

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            ("sent", "{}", "numbered"),
            ("numbered", "{}", "order_number is missing"),
            ("shipped", '{"lines": {"1": "many"}}', "not a number"),
            ("shipped", '{"lines": {"8": 1}}', "the order has no line 8; its lines are 1"),
            ("paid", "[]", "not a JSON object"),
            ("completed", "{", "not JSON"),
        ],
    )
    def test_what_is_wrong_with_it(self, desk, name, data, says):
        (order,) = desk.take_in("17")
        desk.advance(order, Done(document={"lines": [{"key": "1"}]}))
        assert says in desk.run("signal", order, name, "--data", data, code=2).stderr
        assert desk.audit(order) == []

    def test_cancelled_by_the_erp_as_the_operator_says(self, desk):
        (order,) = desk.take_in("17")
        desk.run("signal", order, "cancelled")
        assert desk.order(order)["step"] == "cloudsuite.cancel"

    def test_a_finished_order_waits_for_nothing(self, desk):
        (order,) = desk.take_in("17")
        interrupts.interrupt(desk.ledger, order, "gone", (), State.CANCELLED)
        desk.run("signal", order, "shipped", code=1)


class TestCancel:
    def test_the_erp_and_the_shop_learn_of_it(self, open_desk, fleet, shop):
        (number,) = shop.add(1)
        (order,) = open_desk.take_in(str(number))
        work(fleet, order)
        open_desk.run("cancel", order)
        work(fleet, order)
        assert open_desk.order(order)["state"] == State.CANCELLED
        assert shop.order(number)["state"] == "cancel"
        assert fleet.erp.find(f"cloudsuite:default:{number}").stage == "cancelled"
        assert open_desk.audit(order) == [("ann", "cancelled")]

    def test_not_twice_and_not_when_it_is_over(self, desk):
        (order,) = desk.take_in("17")
        desk.run("cancel", order)
        assert "on its way to be cancelled" in desk.run("cancel", order, code=1).stderr
        assert desk.audit(order) == [("ann", "cancelled")]


class TestProcesses:
    def test_a_ledger_that_is_behind_is_not_worked_on(self, empty_database_url, tmp_path):
        desk = Desk(Ledger(empty_database_url), {"ORDERFLEET_HOME": str(tmp_path), "DATABASE_URL": empty_database_url})
        for command in (("worker",), ("beat",), ("webhooks",)):
            assert "orderfleet migrate" in desk.run(*command, code=1, BROKER_URL="redis://127.0.0.1:9/0").stderr
        assert "orderfleet migrate" in desk.run("orders", code=1).stderr
        desk.run("migrate")
        assert desk.json("orders") == []
        desk.ledger.close()

    @pytest.mark.parametrize("command", ["worker", "beat", "flower"])
    def test_without_a_broker_they_say_what_to_set(self, desk, command):
        assert "BROKER_URL: not set" in desk.run(command, code=2).stderr

    def test_wrong_settings_are_all_named(self, desk):
        says = desk.run("orders", code=2, WEBHOOKS_BIND="x", ERP_POLL_SECONDS="y").stderr
        assert "WEBHOOKS_BIND: " in says
        assert "ERP_POLL_SECONDS: " in says

    def test_a_ledger_that_does_not_answer(self, desk):
        url = "postgresql://nobody@127.0.0.1:9/none"
        assert "orderfleet doctor" in desk.run("orders", code=1, DATABASE_URL=url).stderr

    def test_the_installed_command(self, desk):
        desk.take_in("17")
        result = process(desk, "orders", "--json")
        assert (result.returncode, result.stderr) == (0, "")
        assert [order["external_id"] for order in json.loads(result.stdout)] == ["17"]

    def test_on_a_terminal_it_asks(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order, "sent, and no answer", State.IN_DOUBT)
        assert "set going again: 1 of 1 order" in _typed(desk, ["replay", str(order)], "acknowledge\ny\n")
        assert desk.order(order)["state"] == State.READY

    def test_on_a_terminal_no_means_no(self, desk):
        (order,) = desk.take_in("17")
        desk.park(order)
        assert "Aborted" in _typed(desk, ["replay", str(order)], "n\n")
        assert desk.order(order)["state"] == State.PARKED

    def test_beat_sends_every_tick_at_once_and_stops_when_told(self, open_desk, valkey):
        command = [sys.executable, "-m", "workers", "beat"]
        environment = {"PATH": os.environ["PATH"], **open_desk.environment, "BROKER_URL": valkey.url}
        environment |= {"CLOUDSUITE_POLL_SECONDS": "3600", "ERP_POLL_SECONDS": "3600"}
        with (
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as beat,
            valkey.client() as client,
        ):
            try:
                wait_for(lambda: client.llen("fleet") == 2, "two ticks are sent", 30)
            finally:
                beat.terminate()
            assert beat.wait(10) == 0
            tasks = {json.loads(message)["headers"]["task"] for message in client.lrange("fleet", 0, -1)}
        assert tasks == {"erp.events", "cloudsuite.poll"}


def _typed(desk: Desk, arguments: list[str], text: str) -> str:
    """What an operator sees who types `text`."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "workers", *arguments]
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", **desk.environment}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        os.write(ours, text.encode())
        seen = b"".join(iter(lambda: _read(ours), b""))
        running.wait(30)
    os.close(ours)
    return seen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says EIO once nobody has the other end open
        return b""
