"""The imitation of Storeganise behaves as its contract says: sections 2 to 9, the knobs of section 10, its traps."""

import base64
import hashlib
import hmac
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, Response, request

from sandbox import base, storeganise
from sandbox.storeganise import (
    ADMIN,
    ARCHIVE_BOX,
    BOX_STEPS,
    BULKY_STEPS,
    SOFA,
    STANDARD_BOX,
    UNKNOWN_PRODUCT,
    WARDROBE_BOX,
    Options,
    backend_of,
    create_app,
    fleet_settings,
    invent,
    point_at,
    signature,
)

START = 1_780_000_000.0
KEY = {"Authorization": "ApiKey sandbox-key"}
HEX = re.compile(r"[0-9a-f]{24}")
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
COMMANDS = ("valetOrder_add", "valetOrder_deliver", "valetOrder_collect", "valetOrder_store")


class Account:
    """A sandbox without a socket, its clock, and what one says to it."""

    def __init__(self, **options: Any) -> None:
        self.seconds = START
        self.app = create_app(Options(**options), clock=lambda: self.seconds)
        self.control = base.control_of(self.app)
        self.backend = backend_of(self.app)
        self.client = self.app.test_client()

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] = KEY) -> Any:
        """The answer, parsed; it has to be a 200."""
        answer = self.ask(method, path, body, headers)
        assert answer.status_code == 200, answer.text
        return answer.json

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] = KEY) -> Any:
        return self.client.open(ADMIN + path, method=method, json=body, headers=headers)

    def book(self, **specification: Any) -> str:
        return self.backend.add_orders([specification])[0]

    def read(self, order: str, include: str = "job,items,customFields") -> Any:
        return self.call("GET", f"/valet-orders/{order}?include={include}")

    def steps(self, order: str) -> dict[str, str]:
        return {step["type"]: step["state"] for step in self.read(order)["job"]["steps"]}

    def complete(self, order: str, step_type: str) -> Any:
        step = next(step for step in self.read(order)["job"]["steps"] if step["type"] == step_type)
        return self.ask("PUT", f"/valet-orders/{order}/steps/{step['id']}", {"state": "completed"})

    def items(self, command: str, sids: list[str], order: str, **data: Any) -> Any:
        body = {"command": command, "itemSids": sids, "data": {"valetOrderId": order, **data}}
        return self.ask("PUT", "/items", body)

    def sids(self, order: str) -> list[str]:
        """What is laid out for the order, or was on it from the start."""
        return [item["sid"] for item in self.backend.one_order(order)["items"]]

    def do(self, order: str, step_type: str, sids: list[str] | None = None) -> None:
        """The item command of the step, then its completion."""
        names = dict(zip(BOX_STEPS[1:], COMMANDS, strict=True))
        if step_type in names:
            where = {"location": "S1"} if step_type == "items_store" else {}
            answer = self.items(names[step_type], sids or self.sids(order), order, **where)
            assert answer.status_code == 200, answer.text
        answer = self.complete(order, step_type)
        assert answer.status_code == 200, answer.text

    def until(self, order: str, step_type: str) -> None:
        """Do what comes before the step."""
        for before in itertools.takewhile(lambda kind: kind != step_type, list(self.steps(order))):
            self.do(order, before)

    def deliveries(self, query: str = "") -> Any:
        return self.client.get(f"/_sandbox/deliveries{query}").json

    def kinds(self, order: str) -> Counter[str]:
        return Counter(kind for effect in self.backend.effects.of(order) for kind in effect.kinds)


@pytest.fixture
def account() -> Account:
    return Account()


def code(answer: Any) -> tuple[int, str]:
    assert answer.json["error"]["message"]
    return answer.status_code, answer.json["error"]["code"]


# === Credentials and errors (sections 2 and 9) ===============================================================


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "ApiKey wrong"}, {"Authorization": "Bearer sandbox-key"}, {"X-API-Key": "sandbox-key"}],
)
def test_a_missing_or_wrong_key_is_401(account, headers):
    assert code(account.ask("GET", "/valet-orders", headers=headers)) == (401, "unauthorized")


def test_a_key_that_only_reads_may_not_write():
    account = Account(role="api")
    order = account.book()
    account.read(order)
    assert code(account.ask("PUT", f"/valet-orders/{order}", {"date": "2027-01-01"})) == (403, "forbidden")
    assert not account.backend.effects.of()


def test_an_addon_has_its_own_header_and_is_shut_out_when_disabled():
    account = Account(addon_id="addon1")
    headers = {"Authorization": "Addon addon1|sandbox-key"}
    addon = account.call("GET", "/addons/addon1", headers=headers)
    assert addon == {"id": "addon1", "state": "enabled", "customFields": {}}
    assert code(account.ask("GET", "/addons/addon2", headers=headers)) == (404, "addon_not_found")
    account.backend.options.addon_state = "paused"
    account.call("GET", "/valet-orders", headers=headers)
    account.backend.options.addon_state = "disabled"
    assert code(account.ask("GET", "/valet-orders", headers=headers)) == (403, "forbidden")


def test_more_requests_than_allowed_are_429_with_seconds():
    account = Account(rate_per_minute=1)
    account.call("GET", "/valet-orders")
    answer = account.ask("GET", "/valet-orders")
    assert code(answer) == (429, "too_many_requests")
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/nothing", "/valet-orders/", "/items/", "/valet-orders/none", "/jobs/none"])
def test_what_is_not_there_is_404_in_json(account, path):
    answer = account.ask("GET", path)
    assert answer.status_code == 404
    assert answer.json["error"]["message"]


def test_a_body_that_is_not_json_is_400(account):
    order = account.book()
    answer = account.client.put(f"{ADMIN}/valet-orders/{order}", data=b"{", headers=KEY)
    assert code(answer) == (400, "validation_error")
    assert code(account.ask("PUT", f"/valet-orders/{order}", ["a list"])) == (400, "validation_error")


def test_an_error_page_in_html_does_no_work(account):
    order = account.book()
    step = account.read(order)["job"]["steps"][0]["id"]
    account.control.faults.set([base.FaultRule(kinds=("html_502",), method="PUT")])
    answer = account.ask("PUT", f"/valet-orders/{order}/steps/{step}", {"state": "completed"})
    assert (answer.status_code, answer.mimetype) == (502, "text/html")
    assert not account.backend.effects.of()


# === Reading (sections 3.1, 3.2, 3.6, 4) =====================================================================


def test_an_order_has_the_fields_of_the_contract(account):
    boxes = [{"itemTypeId": WARDROBE_BOX, "quantity": 2}, {"itemTypeId": ARCHIVE_BOX, "quantity": 1}]
    order = account.book(boxes=boxes, timeslot="0800-1000", customFields={"notes": "Müller"})
    document = account.read(order)
    assert document["id"] == order
    assert document["sid"] == "V-1001"
    assert document["state"] == "created"
    assert document["boxes"] == boxes
    assert document["charges"] == []
    assert document["items"] == []
    assert document["customFields"] == {"notes": "Müller"}
    assert (document["date"], document["timeslot"]) == ("2026-05-30", "0800-1000")
    assert all(HEX.fullmatch(document[name]) for name in ("id", "jobId", "ownerId"))
    assert all(STAMP.fullmatch(document[name]) for name in ("created", "updated"))
    job = document["job"]
    assert (job["id"], job["type"]) == (document["jobId"], "valetOrder")
    assert [step["type"] for step in job["steps"]] == list(BOX_STEPS)
    assert [step["state"] for step in job["steps"]] == ["ready", "pending", "pending", "pending", "pending"]


def test_trap_02_the_job_has_another_id_than_the_order(account):
    order = account.book()
    document = account.read(order)
    assert document["jobId"] != order
    assert code(account.ask("GET", f"/valet-orders/{document['jobId']}")) == (404, "order_not_found")
    job = account.call("GET", f"/jobs/{document['jobId']}")
    assert job == {**document["job"], "state": "created", "ownerId": document["ownerId"], "valetOrderId": order}


def test_trap_07_without_include_there_are_no_steps(account):
    order = account.book()
    document = account.call("GET", f"/valet-orders/{order}")
    assert document.keys().isdisjoint({"job", "items", "customFields", "steps"})


def test_the_job_may_be_the_list_of_steps():
    account = Account(job_as_list=True)
    assert account.read(account.book())["job"][0]["type"] == "order_start"


def test_a_list_is_sorted_by_update_and_cut_into_pages(account):
    first, second, third = (account.book() for _ in range(3))
    account.seconds += 60
    account.do(first, "order_start")
    account.seconds += 60
    account.do(third, "order_start")
    pages = [account.call("GET", f"/valet-orders?limit=2&offset={offset}") for offset in (0, 2, 4)]
    assert [[row["id"] for row in page] for page in pages] == [[second, first], [third], []]
    started = account.call("GET", "/valet-orders?state=started&include=job")
    assert [row["id"] for row in started] == [first, third]
    assert started[0]["job"]["steps"][0]["state"] == "completed"


def test_updated_after_is_inclusive(account):
    order = account.book()
    updated = account.read(order)["updated"]
    assert [row["id"] for row in account.call("GET", f"/valet-orders?updatedAfter={updated}")] == [order]
    later = updated.replace(updated[-4:], f"{(int(updated[-4:-1]) + 1):03d}Z")
    assert account.call("GET", f"/valet-orders?updatedAfter={later}") == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "offset=-1", "updatedAfter=yesterday", "updatedAfter=2026-01-01"]
)
def test_a_list_refuses_nonsense(account, query):
    assert code(account.ask("GET", f"/valet-orders?{query}")) == (400, "validation_error")


def test_a_page_has_a_hundred_rows_and_never_more_than_a_thousand():
    account = Account(page_max=150)
    account.backend.add_orders({} for _ in range(160))
    assert len(account.call("GET", "/valet-orders")) == 100
    assert len(account.call("GET", "/valet-orders?limit=1000")) == 150
    assert Options().page_max == 1000


@pytest.mark.parametrize("name", ["data", "results", "items"])
def test_a_list_may_come_in_an_object(name):
    account = Account(list_in=name)
    order = account.book()
    assert [row["id"] for row in account.call("GET", "/valet-orders")[name]] == [order]


def test_items_are_read_by_sid(account):
    order = account.book()
    account.book()
    item = account.call("GET", "/items/V-1001-1")
    assert HEX.fullmatch(item.pop("id"))
    assert item == {
        "sid": "V-1001-1",
        "state": "unassigned",
        "itemTypeId": STANDARD_BOX,
        "ownerId": None,
        "valetOrderId": None,
        "location": None,
    }
    both = account.call("GET", "/items?sids=V-1002-2,V-1001-1,none")
    assert [item["sid"] for item in both] == ["V-1002-2", "V-1001-1"]
    assert len(account.call("GET", "/items?limit=3")) == 3
    assert account.sids(order) == ["V-1001-1", "V-1001-2"]
    assert code(account.ask("GET", f"/items/{both[0]['id']}")) == (404, "item_not_found")


# === The whole way (sections 5 and 6) ========================================================================


def test_an_order_goes_from_start_to_put_away_with_one_effect_each(account):
    order = account.book(
        boxes=[{"itemTypeId": STANDARD_BOX, "quantity": 1}, {"itemTypeId": WARDROBE_BOX, "quantity": 1}]
    )
    sids = account.sids(order)
    states = []
    for step in BOX_STEPS:
        account.do(order, step)
        document = account.read(order)
        states.append((document["state"], [item["state"] for item in document["items"]]))
    assert states == [
        ("started", []),
        ("started", ["transit_to_customer"] * 2),
        ("started", ["with_customer"] * 2),
        ("started", ["transit_to_warehouse"] * 2),
        ("completed", ["stored"] * 2),
    ]
    assert set(account.steps(order).values()) == {"completed"}
    assert account.kinds(order) == {
        "complete_step": 5,
        **{f"step:{step}:completed": 1 for step in BOX_STEPS},
        "state:created->started": 1,
        "state:started->completed": 1,
        "invoice": 1,
        **dict.fromkeys(COMMANDS, 1),
        **{f"item:{command}": 2 for command in COMMANDS},
    }
    stored = account.call("GET", f"/items?sids={','.join(sids)}")
    assert {(item["location"], item["valetOrderId"], item["ownerId"]) for item in stored} == {
        ("S1", order, document["ownerId"])
    }
    assert account.backend.effects.repeated_keys() == {}


def test_trap_06_a_bulky_order_has_three_steps_and_its_things_are_with_the_customer(account):
    order = account.book(items=[SOFA, SOFA])
    document = account.read(order)
    assert [step["type"] for step in document["job"]["steps"]] == list(BULKY_STEPS)
    assert document["boxes"] == []
    assert [(item["sid"], item["state"]) for item in document["items"]] == [
        ("V-1001-1", "with_customer"),
        ("V-1001-2", "with_customer"),
    ]
    for step in BULKY_STEPS:
        account.do(order, step)
    assert account.read(order)["state"] == "completed"


def test_the_steps_of_a_kind_are_a_knob_and_an_order_may_have_its_own():
    account = Account(steps={"boxes": ["order_start", "items_weigh"]})
    assert list(account.steps(account.book())) == ["order_start", "items_weigh"]
    assert list(account.steps(account.book(steps=["products_pick"]))) == ["products_pick"]
    with pytest.raises(ValueError, match="no steps for orders of the kind bulky"):
        account.book(items=[SOFA])


def test_trap_04_ready_means_next_in_line(account):
    order = account.book()
    account.do(order, "order_start")
    account.do(order, "items_pickEmptyBoxes")
    assert account.steps(order)["items_deliver"] == "ready"
    assert {item["state"] for item in account.read(order)["items"]} == {"transit_to_customer"}


def test_the_customer_may_keep_some_boxes(account):
    order = account.book()
    account.until(order, "items_collect")
    account.do(order, "items_collect", ["V-1001-2"])
    account.do(order, "items_store", ["V-1001-2"])
    document = account.read(order)
    assert document["state"] == "completed"
    assert [item["state"] for item in document["items"]] == ["with_customer", "stored"]


# === Completing steps (section 3.3) ==========================================================================


def test_trap_01_the_command_does_not_complete_the_step_nor_the_reverse(account):
    order = account.book()
    account.do(order, "order_start")
    assert code(account.complete(order, "items_pickEmptyBoxes")) == (400, "step_requirements_not_met")
    assert account.items("valetOrder_add", account.sids(order), order).status_code == 200
    assert account.steps(order)["items_pickEmptyBoxes"] == "ready"
    assert account.complete(order, "items_pickEmptyBoxes").status_code == 200
    assert {item["state"] for item in account.read(order)["items"]} == {"transit_to_customer"}


def test_trap_03_completing_the_start_makes_the_invoice_once(account):
    order = account.book()
    assert account.complete(order, "order_start").status_code == 200
    assert code(account.complete(order, "order_start")) == (400, "step_already_completed")
    assert account.kinds(order)["invoice"] == 1


def test_a_later_step_waits(account):
    order = account.book()
    assert code(account.complete(order, "items_deliver")) == (400, "step_not_ready")


@pytest.mark.parametrize("body", [{}, {"state": "ready"}, {"state": None}])
def test_a_step_can_only_be_completed(account, body):
    order = account.book()
    step = account.read(order)["job"]["steps"][0]["id"]
    assert code(account.ask("PUT", f"/valet-orders/{order}/steps/{step}", body)) == (400, "validation_error")


def test_the_step_of_another_order_is_404(account):
    order, other = account.book(), account.book()
    step = account.read(other)["job"]["steps"][0]["id"]
    answer = account.ask("PUT", f"/valet-orders/{order}/steps/{step}", {"state": "completed"})
    assert code(answer) == (404, "step_not_found")
    assert account.steps(other)["order_start"] == "ready"


def test_a_closed_order_takes_no_steps(account):
    done, cancelled = account.book(items=[SOFA]), account.book()
    for step in BULKY_STEPS:
        account.do(done, step)
    account.backend.edit_order(cancelled, {"state": "cancelled"})
    assert code(account.complete(done, "items_store")) == (400, "step_already_completed")
    assert code(account.complete(cancelled, "order_start")) == (400, "order_closed")
    assert code(account.items("valetOrder_add", account.sids(cancelled), cancelled)) == (400, "order_closed")
    assert code(account.ask("PUT", f"/valet-orders/{done}", {"date": "2027-01-01"})) == (400, "order_closed")


@pytest.mark.parametrize(
    ("step", "sids"),
    [("items_pickEmptyBoxes", 1), ("items_deliver", 1), ("items_collect", 0), ("items_store", 1)],
)
def test_an_item_step_needs_its_items_first(account, step, sids):
    order = account.book()
    account.until(order, step)
    command = COMMANDS[BOX_STEPS.index(step) - 1]
    if sids:
        assert account.items(command, account.sids(order)[:sids], order, location="S2").status_code == 200
    assert code(account.complete(order, step)) == (400, "step_requirements_not_met")
    assert account.steps(order)[step] == "ready"


def test_boxes_of_the_wrong_type_do_not_make_a_pick(account):
    order = account.book(boxes=[{"itemTypeId": STANDARD_BOX, "quantity": 1}])
    other = account.book(boxes=[{"itemTypeId": WARDROBE_BOX, "quantity": 1}])
    account.do(order, "order_start")
    assert account.items("valetOrder_add", account.sids(other), order).status_code == 200
    assert code(account.complete(order, "items_pickEmptyBoxes")) == (400, "step_requirements_not_met")
    account.backend.edit_order(order, {"items": {account.sids(other)[0]: {"valetOrderId": None}}})
    account.do(order, "items_pickEmptyBoxes")


def test_an_unknown_step_asks_for_nothing(account):
    order = account.book(steps=["order_start", "items_weigh"])
    account.do(order, "order_start")
    account.do(order, "items_weigh")
    assert account.read(order)["state"] == "completed"


# === Item commands (section 3.4) =============================================================================


@pytest.mark.parametrize("command", COMMANDS)
def test_trap_05_a_command_given_twice_is_an_error_and_changes_nothing(account, command):
    order = account.book()
    account.until(order, BOX_STEPS[COMMANDS.index(command) + 1])
    assert account.items(command, account.sids(order), order, location="S1").status_code == 200
    before = account.call("GET", "/items")
    assert code(account.items(command, account.sids(order), order, location="S2")) == (400, "item_wrong_state")
    assert account.call("GET", "/items") == before
    assert account.kinds(order)[f"item:{command}"] == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_belongs_to_its_step(account, command):
    order = account.book()
    assert code(account.items(command, account.sids(order), order, location="S1")) == (400, "step_not_ready")
    account.until(order, BOX_STEPS[COMMANDS.index(command) + 1])
    account.do(order, BOX_STEPS[COMMANDS.index(command) + 1])
    expected = "order_closed" if command == "valetOrder_store" else "step_not_ready"
    assert code(account.items(command, account.sids(order), order, location="S1")) == (400, expected)


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"itemSids": []}, 400, "validation_error"),
        ({"itemSids": "V-1001-1"}, 400, "validation_error"),
        ({"command": "valetOrder_weigh"}, 400, "unknown_command"),
        ({"command": ["valetOrder_add"]}, 400, "unknown_command"),
        ({"data": {}}, 400, "validation_error"),
        ({"data": None}, 400, "validation_error"),
        ({"data": {"valetOrderId": "none"}}, 404, "order_not_found"),
        ({"itemSids": ["V-1001-1", "V-9999-9"]}, 404, "item_not_found"),
    ],
)
def test_a_command_that_is_wrong(account, change, status, error):
    order = account.book()
    account.do(order, "order_start")
    body = {"command": "valetOrder_add", "itemSids": ["V-1001-1"], "data": {"valetOrderId": order}, **change}
    assert code(account.ask("PUT", "/items", body)) == (status, error)
    assert account.call("GET", "/items/V-1001-1")["valetOrderId"] is None


def test_items_go_by_the_code_on_the_box_and_not_by_their_id(account):
    order = account.book()
    account.do(order, "order_start")
    item = account.call("GET", "/items/V-1001-1")
    assert code(account.items("valetOrder_add", [item["id"]], order)) == (404, "item_not_found")
    changed = account.items("valetOrder_add", ["V-1001-1"], order).json
    assert changed == [{**item, "valetOrderId": order, "ownerId": account.read(order)["ownerId"]}]


def test_trap_12_a_bulk_command_is_all_or_nothing_unless_it_is_not():
    for partial, status, added in ((False, 400, []), (True, 200, ["V-1001-2"])):
        account = Account(items_partial=partial)
        order = account.book(box_elsewhere=True)
        account.do(order, "order_start")
        answer = account.items("valetOrder_add", ["V-1001-2", "V-1001-1", "V-9999-9"][: 3 if partial else 2], order)
        assert answer.status_code == status
        assert [item["sid"] for item in account.read(order)["items"]] == added
        assert account.kinds(order)["item:valetOrder_add"] == len(added)


def test_trap_13_each_call_has_one_known_location(account):
    order = account.book()
    account.until(order, "items_store")
    first, second = account.sids(order)
    assert code(account.items("valetOrder_store", [first], order)) == (400, "validation_error")
    assert code(account.items("valetOrder_store", [first], order, location="S77")) == (400, "unknown_location")
    assert account.items("valetOrder_store", [first], order, location="S3").status_code == 200
    assert account.items("valetOrder_store", [second], order, location="S9").status_code == 200
    stored = account.call("GET", f"/items?sids={first},{second}")
    assert [(item["state"], item["location"]) for item in stored] == [("stored", "S3"), ("stored", "S9")]


def test_trap_15_a_box_on_another_order_stops_the_pick(account):
    order, other = account.book(), account.book()
    for each in (order, other):
        account.do(each, "order_start")
    assert account.items("valetOrder_add", ["V-1002-1"], other).status_code == 200
    assert code(account.items("valetOrder_add", ["V-1001-1", "V-1002-1"], order)) == (400, "item_wrong_state")
    assert account.read(order)["items"] == []
    assert account.call("GET", "/items/V-1002-1")["valetOrderId"] == other


def test_only_the_customers_own_things_are_collected(account):
    order, other = account.book(items=[SOFA]), account.book(items=[SOFA])
    account.do(order, "order_start")
    assert code(account.items("valetOrder_collect", account.sids(other), order)) == (400, "item_wrong_state")


@pytest.mark.parametrize(
    ("step", "command"), [("items_deliver", "valetOrder_deliver"), ("items_store", "valetOrder_store")]
)
def test_only_what_is_on_the_order_is_delivered_and_stored(account, step, command):
    order, other = account.book(), account.book()
    for each in (order, other):
        account.until(each, step)
    assert code(account.items(command, account.sids(other), order, location="S1")) == (400, "item_wrong_state")


def test_trap_10_two_workers_cannot_pick_the_same_boxes(account):
    order = account.book()
    account.do(order, "order_start")
    sids = account.sids(order)

    def pick(worker: int) -> int:
        body = {"command": "valetOrder_add", "itemSids": sids, "data": {"valetOrderId": order}}
        return account.app.test_client().put(f"{ADMIN}/items", json=body, headers=KEY).status_code

    with ThreadPoolExecutor(8) as workers:
        assert sorted(workers.map(pick, range(8))) == [200] + [400] * 7
    assert account.kinds(order)["valetOrder_add"] == 1


def test_what_an_earlier_order_delivered_can_be_collected_on_the_next(account):
    owner = "a" * 24
    order = account.book(ownerId=owner)
    account.until(order, "items_collect")
    account.do(order, "items_collect", ["V-1001-1"])
    account.do(order, "items_store", ["V-1001-1"])
    again = account.book(ownerId=owner, items=[SOFA])
    account.do(again, "order_start")
    account.do(again, "items_collect", ["V-1001-2"])
    account.do(again, "items_store", ["V-1001-2"])
    assert account.call("GET", "/items/V-1001-2")["valetOrderId"] == again


# === Data and charges (section 3.5) ==========================================================================


def test_trap_08_put_changes_only_what_was_sent(account):
    order = account.book(customFields={"notes": "ring"}, charges=[{"title": "Tape", "amount": 2, "quantity": 1}])
    before = account.read(order)
    account.seconds += 1
    answer = account.call(
        "PUT", f"/valet-orders/{order}", {"date": "2027-02-01", "customFields": {"erpNumber": "SO-1"}}
    )
    after = account.read(order)
    assert after == {
        **before,
        "date": "2027-02-01",
        "customFields": {"notes": "ring", "erpNumber": "SO-1"},
        "updated": answer["updated"],
    }
    assert answer["updated"] > before["updated"]
    assert account.kinds(order) == {"put_order": 1, "date": 1, "customFields:erpNumber": 1}


def test_trap_16_charges_are_replaced_whole_or_bill_twice(account):
    tape = {"title": "Tape", "amount": 2.5, "quantity": 1}
    key = {"title": "Lost key", "amount": 9, "quantity": 1}
    order = account.book(charges=[tape])
    for _ in range(2):
        account.call("PUT", f"/valet-orders/{order}", {"charges": [tape, key]})
    assert account.read(order)["charges"] == [tape, key]
    assert account.kinds(order)["charge"] == 1
    account.backend.options.charges_append = True
    account.call("PUT", f"/valet-orders/{order}", {"charges": [key]})
    assert account.read(order)["charges"] == [tape, key, key]
    assert account.backend.effects.repeated_keys()["charge"] == {"Lost key": 2}


def test_trap_18_a_custom_field_must_be_defined_first(account):
    order = account.book()
    body = {"customFields": {"color": "red"}}
    assert code(account.ask("PUT", f"/valet-orders/{order}", body)) == (400, "validation_error")
    account.backend.options.custom_fields = ["color"]
    account.call("PUT", f"/valet-orders/{order}", body)
    assert account.read(order)["customFields"] == {"color": "red"}


@pytest.mark.parametrize(
    "body",
    [
        {"state": "completed"},
        {"date": "01.02.2027"},
        {"timeslot": 1000},
        {"customFields": []},
        {"charges": {}},
        {"charges": ["Tape"]},
        {"charges": [{"title": "Tape"}]},
        {"charges": [{"title": "", "amount": 1}]},
        {"charges": [{"title": "Tape", "amount": "1"}]},
    ],
)
def test_put_refuses_what_does_not_fit(account, body):
    order = account.book()
    assert code(account.ask("PUT", f"/valet-orders/{order}", body)) == (400, "validation_error")
    assert not account.backend.effects.of()


def test_a_task_for_an_operator_is_a_new_one_each_time(account):
    order = account.book()
    data = {"targetType": "valetOrder", "targetId": order, "title": "Box missing", "desc": "V-1001-2"}
    body = {"type": "task", "ownerId": None, "data": data}
    first, second = (account.call("POST", "/jobs", body) for _ in range(2))
    assert first["id"] != second["id"]
    assert account.call("GET", f"/jobs/{first['id']}")["data"] == data
    assert account.kinds(order) == {"task": 2}
    assert code(account.ask("POST", "/jobs", {**body, "type": "other"})) == (400, "validation_error")
    assert code(account.ask("POST", "/jobs", {"type": "task", "data": {}})) == (400, "validation_error")
    unknown = {**body, "data": {**data, "targetId": "none"}}
    assert code(account.ask("POST", "/jobs", unknown)) == (404, "order_not_found")


# === Lost answers, and staff (sections 6, 7, 10) =============================================================


def test_an_answer_lost_after_the_work_leaves_one_effect(account):
    order = account.book()
    account.do(order, "order_start")
    account.control.faults.set([base.FaultRule(kinds=("lost_answer",), method="PUT", times=1)])
    with pytest.raises(ConnectionError):
        account.items("valetOrder_add", account.sids(order), order)
    assert code(account.items("valetOrder_add", account.sids(order), order)) == (400, "item_wrong_state")
    assert {item["valetOrderId"] for item in account.call("GET", "/items")} == {order}
    assert account.kinds(order)["valetOrder_add"] == 1


def test_staff_complete_a_step_between_our_read_and_our_write(account):
    order = account.book()
    patch = {"order": order, "after": "GET", "patch": {"complete_step": "order_start"}}
    assert account.client.post("/_sandbox/interpose", json=patch).status_code == 201
    step = account.read(order)["job"]["steps"][0]
    assert step["state"] == "ready"
    answer = account.ask("PUT", f"/valet-orders/{order}/steps/{step['id']}", {"state": "completed"})
    assert code(answer) == (400, "step_already_completed")
    assert account.kinds(order) == {
        "staff_complete_step": 1,
        "step:order_start:completed": 1,
        "state:created->started": 1,
        "invoice": 1,
    }


def test_a_person_who_comes_too_late_changes_nothing(account):
    order = account.book()
    account.backend.interpositions.add(order, "GET", {"complete_step": "items_store"})
    account.read(order)
    assert account.steps(order)["order_start"] == "ready"


def test_staff_can_do_the_whole_order(account):
    order = account.book()
    for step in BOX_STEPS:
        answer = account.client.patch(f"/_sandbox/orders/{order}", json={"complete_step": step})
        assert answer.status_code == 200
    assert account.read(order)["state"] == "completed"
    assert {item["state"] for item in account.read(order)["items"]} == {"stored"}
    assert account.kinds(order)["staff_complete_step"] == 5
    answer = account.client.patch(f"/_sandbox/orders/{order}", json={"complete_step": "items_store"})
    assert answer.status_code == 400


def test_staff_cannot_pick_a_box_that_is_elsewhere(account):
    order = account.book(box_elsewhere=True)
    account.backend.edit_order(order, {"complete_step": "order_start"})
    with pytest.raises(ValueError, match="not done yet"):
        account.backend.edit_order(order, {"complete_step": "items_pickEmptyBoxes"})


def test_a_person_edits_by_id_or_sid(account):
    order = account.book()
    charge = {"title": "Tape", "amount": 1, "quantity": 1}
    account.backend.edit_order("V-1001", {"date": "2027-03-01", "charges": [charge], "customFields": {"any": "é"}})
    account.backend.edit_order(order, {"items": {"1": {"location": "S4"}, "V-1001-2": {"state": "stored"}}})
    everything = account.client.get("/_sandbox/orders/V-1001").json
    assert (everything["date"], everything["charges"]) == ("2027-03-01", [charge])
    assert everything["customFields"] == {"any": "é"}
    assert [(item["location"], item["state"]) for item in everything["items"]] == [
        ("S4", "unassigned"),
        (None, "stored"),
    ]
    assert account.client.get("/_sandbox/orders?fields=sid,kind").json == [{"sid": "V-1001", "kind": "boxes"}]
    with pytest.raises(KeyError):
        account.backend.edit_order("V-9999", {})
    for wrong in ({"color": "red"}, {"state": "lost"}, {"items": {"1": {"color": "red"}}}):
        with pytest.raises(ValueError, match=r"not a field|unknown state"):
            account.backend.edit_order(order, wrong)


def test_a_booking_refuses_what_it_does_not_know(account):
    account.book(sid="V-1001")
    assert account.read(account.book())["sid"] == "V-1002"
    for wrong in ({"sid": "V-1001"}, {"color": "red"}, {"state": "started"}):
        with pytest.raises(ValueError, match=r"exists|not a field|cannot be"):
            account.book(**wrong)


# === What happens by itself ==================================================================================


def test_a_customer_cancels_after_a_while_if_the_order_has_not_started(account):
    later = [{"after": 5, "patch": {"state": "cancelled"}}]
    cancelled, started = account.book(later=later), account.book(later=later)
    account.do(started, "order_start")
    assert account.read(cancelled)["state"] == "created"
    account.seconds += 5
    assert account.read(cancelled)["state"] == "cancelled"
    assert account.read(started)["state"] == "started"


def test_staff_wait_for_their_step(account):
    order = account.book(kind="products", later=[{"after": 5, "patch": {"complete_step": "products_pick"}}])
    account.seconds += 60
    assert account.steps(order)["products_pick"] == "pending"
    account.do(order, "order_start")
    account.seconds += 2
    assert account.steps(order)["products_pick"] == "completed"
    assert account.steps(order)["items_pickEmptyBoxes"] == "ready"


def test_staff_find_a_step_that_is_done_already(account):
    order = account.book(later=[{"after": 5, "patch": {"complete_step": "order_start"}}])
    account.do(order, "order_start")
    account.seconds += 60
    assert account.steps(order)["order_start"] == "completed"
    assert account.kinds(order)["invoice"] == 1


def test_a_box_elsewhere_is_freed(account):
    freed = {"items": {"1": {"valetOrderId": None, "ownerId": None}}}
    order = account.book(box_elsewhere=True, later=[{"after": 20, "patch": freed}])
    account.do(order, "order_start")
    assert code(account.items("valetOrder_add", ["V-1001-1"], order)) == (400, "item_wrong_state")
    account.seconds += 20
    assert account.items("valetOrder_add", ["V-1001-1"], order).status_code == 200


# === Webhooks (section 8) ====================================================================================


@dataclass
class Fleet:
    """Somebody's web server: what it was sent, and what it answers."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    """Given one after another, the last of them for ever."""
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def take(self, path: str) -> Response:
        self.requests.append((path, dict(request.headers), request.get_data()))
        return Response("{}", self.statuses[min(len(self.requests), len(self.statuses)) - 1])

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(raw) for _, _, raw in self.requests]

    def types(self) -> list[str]:
        return [body["type"].removeprefix("job.valetOrder.") for body in self.bodies]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    known = Fleet()
    app = Flask("fleet")
    app.add_url_rule("/<path:path>", view_func=known.take, methods=["POST"])
    with base.running(app) as known.url:
        yield known


def sent(account: Account) -> None:
    """Wait until all that was to be delivered is, or is given up."""
    wait_until(account.backend.webhooks.post.quiet)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen")


def pointed(fleet: Fleet, **options: Any) -> Account:
    account = Account(time_factor=0.001, **options)
    point_at(account.app, fleet.url)
    return account


def test_a_delivery_is_signed_over_its_raw_bytes(fleet):
    account = pointed(fleet)
    order = account.book()
    sent(account)
    for path, headers, raw in fleet.requests:
        assert path == "webhooks/storeganise/default"
        assert headers["Content-Type"] == "application/json;charset=UTF-8"
        digest = hmac.new(b"sandbox-secret", raw, hashlib.sha256).digest()
        assert headers["Sg-Signature"] == base64.b64encode(digest).decode() == signature("sandbox-secret", raw)
        assert len(headers["Sg-Signature"]) == 44
    body = next(body for body in fleet.bodies if body["type"] == "job.valetOrder.created")
    assert HEX.fullmatch(body["id"])
    assert STAMP.fullmatch(body["created"])
    assert body["data"] == {"jobId": account.read(order)["jobId"], "valetOrderId": order}
    assert {"apiUrl", "addonId"}.isdisjoint(body)


def test_trap_09_the_bytes_are_compact_and_not_all_ascii(fleet):
    account = pointed(fleet)
    account.book()
    sent(account)
    raw = fleet.requests[0][2]
    assert not raw.isascii()
    assert raw == json.dumps(json.loads(raw), ensure_ascii=False, separators=(",", ":")).encode()
    assert raw != json.dumps(json.loads(raw)).encode()


def test_trap_11_our_own_writes_send_events(fleet):
    account = pointed(fleet)
    order = account.book()
    sent(account)
    for step, expected in (
        ("order_start", ["started"]),
        ("items_pickEmptyBoxes", ["items.updated", "items.updated"]),
        ("items_deliver", ["items.updated"]),
        ("items_collect", ["items.updated"]),
        ("items_store", ["completed", "items.updated"]),
    ):
        fleet.requests.clear()
        account.do(order, step)
        sent(account)
        assert sorted(fleet.types()) == expected
    ids = {item["id"] for item in account.read(order)["items"]}
    body = next(body for body in fleet.bodies if body["type"] == "items.updated")
    assert set(body["data"].pop("itemIds")) == ids
    assert body["data"] == {"jobId": account.read(order)["jobId"], "valetOrderId": order}


def test_people_send_events_too(fleet):
    account = pointed(fleet)
    order = account.book(state="submitted")
    account.backend.edit_order(order, {"state": "created"})
    account.backend.edit_order(order, {"items": {"1": {"location": "S2"}}})
    account.backend.edit_order(order, {"date": "2027-01-01"})
    account.backend.edit_order(order, {"state": "cancelled"})
    account.backend.edit_order(order, {"state": "cancelled"})
    sent(account)
    assert sorted(fleet.types()) == ["cancelled", "created", "items.updated", "submitted"]


def test_trap_02_a_delivery_may_name_the_job_only(fleet):
    account = pointed(fleet, webhook_data="job", webhook_id=False)
    order = account.book()
    sent(account)
    job = account.read(order)["jobId"]
    assert [body["data"] for body in fleet.bodies] == [{"jobId": job}] * 2
    assert all("id" not in body for body in fleet.bodies)


def test_an_addons_deliveries_say_so(fleet):
    account = pointed(fleet, addon_id="addon1")
    account.book()
    sent(account)
    assert fleet.bodies[0]["addonId"] == "addon1"
    assert fleet.bodies[0]["apiUrl"].endswith("/api")


def test_trap_17_events_of_a_paused_addon_are_lost(fleet):
    account = pointed(fleet, addon_state="paused")
    order = account.book()
    account.backend.options.addon_state = "enabled"
    account.do(order, "order_start")
    sent(account)
    assert fleet.types() == ["started"]


@pytest.mark.parametrize("status", [204, 302, 401, 500])
def test_anything_but_200_is_tried_again_with_the_same_bytes(fleet, status):
    account = pointed(fleet)
    fleet.statuses = [status, status, 200]
    account.book(state="cancelled")
    sent(account)
    assert len(fleet.requests) == 3
    assert len({raw for _, _, raw in fleet.requests}) == 1
    (delivery,) = account.deliveries()
    assert (delivery["statuses"], delivery["lost"], delivery["alert_mail"]) == ([status, status, 200], False, False)


def test_after_three_tries_an_event_is_dropped_and_somebody_is_mailed(fleet):
    account = pointed(fleet)
    fleet.statuses = [503]
    order = account.book(state="cancelled")
    sent(account)
    (delivery,) = account.deliveries(f"?order={order}")
    assert (delivery["statuses"], delivery["lost"], delivery["alert_mail"]) == ([503] * 3, True, True)
    assert account.deliveries("?order=none") == []


def test_retries_come_after_one_and_five_minutes():
    assert storeganise.RETRY_WAITS == (60.0, 300.0)


def test_a_webhook_may_be_disabled_after_failures_in_a_row(fleet):
    account = pointed(fleet, webhook_disabled_after=2)
    fleet.statuses = [500]
    account.book()
    sent(account)
    fleet.statuses, before = [200], len(fleet.requests)
    account.book()
    sent(account)
    assert len(fleet.requests) == before == 6


def test_trap_14_deliveries_are_doubled_late_and_lost_on_request(fleet):
    account = pointed(fleet, webhook_doubled=1.0, webhook_late_seconds=0.05)
    account.backend.add_orders({"state": "cancelled"} for _ in range(20))
    sent(account)
    assert Counter(body["id"] for body in fleet.bodies).most_common()[-1][1] == 2
    account.backend.options.webhook_lost = 1.0
    account.book()
    sent(account)
    assert len(fleet.requests) == 40


def test_a_delivery_may_be_wrongly_signed(fleet):
    account = pointed(fleet, webhook_wrongly_signed=1.0)
    account.book()
    sent(account)
    _, headers, raw = fleet.requests[0]
    assert headers["Sg-Signature"] != signature("sandbox-secret", raw)
    assert len(headers["Sg-Signature"]) == 44


def test_nobody_is_told_before_the_address_is_known(account):
    account.book()
    assert account.deliveries() == []


# === Pointing a fleet at it, and invented orders =============================================================


def test_a_fleet_is_pointed_at_it():
    settings = fleet_settings("http://127.0.0.1:1234")
    assert settings == {
        "STOREGANISE_URL": "http://127.0.0.1:1234",
        "STOREGANISE_API_KEY": "sandbox-key",
        "STOREGANISE_WEBHOOK_SECRET": "sandbox-secret",
        "STOREGANISE_AUTO_APPROVE": "no",
        "STOREGANISE_POLL_SECONDS": "3",
    }
    with base.running(create_app()) as url:
        key = {"Authorization": f"ApiKey {settings['STOREGANISE_API_KEY']}"}
        assert requests.get(f"{url}{ADMIN}/valet-orders", headers=key, timeout=5).json() == []


def test_two_accounts_have_addresses_of_their_own(fleet, account):
    point_at(account.app, fleet.url, account="north")
    account.book()
    sent(account)
    assert {path for path, _, _ in fleet.requests} == {"webhooks/storeganise/north"}


def test_invented_orders_are_the_same_for_a_seed():
    assert list(invent(50, 7)) == list(invent(50, 7))
    assert list(invent(50, 7)) != list(invent(50, 8))
    assert list(itertools.islice(invent(None, 7), 50)) == list(invent(50, 7))


def test_plain_orders_are_boxes_and_bulky_and_nothing_happens_to_them():
    orders = list(invent(300, 1, plain=True))
    assert {order.get("kind") for order in orders} == {None, "bulky"}
    assert not any({"later", "box_elsewhere", "steps"} & order.keys() for order in orders)
    assert not any(box["itemTypeId"] == UNKNOWN_PRODUCT for order in orders for box in order.get("boxes", ()))


def test_about_one_in_ten_is_odd_in_each_of_the_ways(account):
    orders = list(invent(2000, 1))
    odd = [order for order, plain in zip(orders, invent(2000, 1, plain=True), strict=True) if order != plain]
    assert 120 < len(odd) < 280
    patches = [event["patch"] for order in odd for event in order.get("later", ())]
    assert {name for patch in patches for name in patch} == {"state", "complete_step", "items"}
    assert {patch["complete_step"] for patch in patches if "complete_step" in patch} == {
        *BOX_STEPS,
        "products_pick",
        "items_inspect",
    }
    assert any(box["itemTypeId"] == UNKNOWN_PRODUCT for order in odd for box in order["boxes"])
    account.backend.add_orders(orders)
    account.seconds += 3600
    assert len(list(account.backend.all_orders())) == 2000


def test_invented_orders_can_be_completed(account):
    for order in account.backend.add_orders(invent(30, 3, plain=True)):
        for step in list(account.steps(order)):
            account.do(order, step)
        assert account.read(order)["state"] == "completed"


def test_orders_arrive_through_the_control_endpoint(account):
    answer = account.client.post(
        "/_sandbox/orders", json={"count": 3, "seed": 1, "overrides": {"timeslot": "0900-1000"}}
    )
    ids = answer.json["ids"]
    assert {account.read(order)["timeslot"] for order in ids} == {"0900-1000"}


def test_it_imports_nothing_of_what_it_tests():
    source = Path(storeganise.__file__).read_text()
    ours = re.findall(r"^(?:from|import) (clients|schemas|webhooks|tasks|ledger|orders|erp|workers)\b", source, re.M)
    assert ours == []
