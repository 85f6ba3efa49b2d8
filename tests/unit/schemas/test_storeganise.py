"""Storeganise's documents: what is read of them, the order in our words, charges and edits."""

import copy
import json
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.errors import Refused
from orders.model import Order
from sandbox import storeganise as sandbox
from schemas import storeganise as schema
from schemas.storeganise import Item, RemoteStep, parse_items, parse_order, to_order

PAYLOADS = Path(__file__).parents[2] / "payloads" / "storeganise"
SMALL, LARGE, SOFA = "5f0000000000000000000001", "5f0000000000000000000002", "5f0000000000000000000011"


def payload(name):
    return json.loads((PAYLOADS / f"{name}.json").read_text(), parse_float=Decimal)


def changed(document, **fields):
    return {**copy.deepcopy(document), **fields}


def item(sid, kind=SMALL, **fields):
    return Item(**{"sid": sid, "state": None, "type": kind, "owner": None, "order": None, "location": None, **fields})


# === Orders =================================================================================================


def test_an_order():
    remote = parse_order(payload("order_boxes"))
    assert (remote.id, remote.sid, remote.state) == ("65a0000000000000000000a1", "V-1001", "started")
    assert (remote.owner, remote.job) == ("65a0000000000000000000c1", "65a0000000000000000000b1")
    assert (remote.day, remote.timeslot) == (date(2026, 12, 1), "1000-1200")
    assert remote.boxes == {SMALL: 3, LARGE: 1}
    assert [step.type for step in remote.steps] == list(schema.SIGNALS)
    assert [step.type for step in remote.open] == list(schema.SIGNALS)[1:]
    assert not remote.cancelled
    assert not remote.completed


def test_a_sparse_order_whose_job_is_the_list_of_steps():
    remote = parse_order(payload("order_sparse"))
    assert (remote.id, remote.sid, remote.state, remote.day) == ("4711", "1002", None, None)
    assert remote.steps == (
        RemoteStep("1", "order_start", False),
        RemoteStep("2", "items_collect", False),
        RemoteStep("3", "items_store", False),
    )
    assert remote.boxes == {}


@pytest.mark.parametrize("state", ["ready", "pending", "waiting", "", None])
def test_a_step_is_open_whatever_else_its_state_is_called(state):
    steps = [{"id": "1", "type": "order_start", "state": state}]
    remote = parse_order(changed(payload("order_boxes"), job={"steps": steps}))
    assert [step.id for step in remote.open] == ["1"]


@pytest.mark.parametrize("job", [None, {}, {"steps": None}, {"steps": []}, []])
def test_without_steps_only_the_state_says_whether_it_is_completed(job):
    document = changed(payload("order_boxes"), job=job)
    assert parse_order(document).steps == ()
    assert not parse_order(document).completed
    assert parse_order(changed(document, state="completed")).completed


def test_where_it_stands_its_steps_say_and_not_its_state():
    document = payload("order_boxes")
    assert not parse_order(changed(document, state="completed")).completed
    for step in document["job"]["steps"]:
        step["state"] = "completed"
    assert parse_order(changed(document, state="somethingNew")).completed


@pytest.mark.parametrize(("state", "cancelled"), [("cancelled", True), ("canceled", True), ("created", False)])
def test_cancelled(state, cancelled):
    assert parse_order(changed(payload("order_boxes"), state=state)).cancelled is cancelled


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": None}, "id: Field may not be null"),
        ({"id": ["x"]}, "id: Not a valid string"),
        ({"job": {"steps": [{"id": "1"}]}}, "steps 1 type: Missing data for required field"),
        ({"job": {"steps": [{"type": "order_start"}]}}, "steps 1 id: Missing data for required field"),
        ({"job": {"steps": "none"}}, "steps: Not a valid list"),
        ({"boxes": [{"itemTypeId": "a", "quantity": 1.5}]}, "boxes 1 quantity: Not a valid integer"),
        ({"boxes": [{"itemTypeId": "a", "quantity": -1}]}, "boxes 1 quantity: Must be greater than or equal to 0"),
        ({"boxes": [{"quantity": 1}]}, "boxes 1 itemTypeId: Missing data for required field"),
    ],
)
def test_what_cannot_be_read_is_named(fields, words):
    with pytest.raises(Refused, match="Storeganise's order cannot be read: ") as caught:
        parse_order(changed(payload("order_boxes"), **fields))
    assert words in caught.value.reason


@pytest.mark.parametrize("document", [None, [], "x", 7])
def test_what_is_no_order(document):
    with pytest.raises(Refused, match="Storeganise's order cannot be read"):
        parse_order(document)


def test_a_step_is_found_by_its_id_or_by_its_type_if_that_is_the_only_one():
    remote = parse_order(payload("order_boxes"))
    deliver = remote.steps[2]
    assert remote.step(deliver.id, "items_deliver") == deliver
    assert remote.step("made anew", "items_deliver") == deliver
    assert remote.step("made anew", "products_pick") is None


def test_of_two_steps_of_a_type_only_the_id_tells():
    steps = [{"id": str(number), "type": "items_deliver", "state": "ready"} for number in (1, 2)]
    remote = parse_order(changed(payload("order_boxes"), job={"steps": steps}))
    assert remote.step("2", "items_deliver") == remote.steps[1]
    assert remote.step("3", "items_deliver") is None


def test_what_the_imitation_has_is_read():
    app = sandbox.create_app()
    backend = sandbox.backend_of(app)
    for order_id in backend.add_orders(backend.invent(40, 3, False)):
        document = backend.one_order(order_id)
        remote = parse_order(document)
        order = to_order(remote, parse_items(document["items"]).values())
        assert Order.from_json(order.to_json()) == order
        assert sum(line.quantity for line in order.lines) == len(document["items"])


# === Items ==================================================================================================


def test_items():
    items = parse_items(payload("items"))
    assert items["V-1001-1"] == item(
        "V-1001-1",
        state="with_customer",
        owner="65a0000000000000000000c1",
        order="65a0000000000000000000a1",
    )
    assert (items["V-1001-2"].location, items["V-1001-2"].order) == ("S4", None)


def test_an_item_needs_no_more_than_its_sid():
    assert parse_items([{"sid": 42}]) == {"42": item("42", None)}
    with pytest.raises(Refused, match="an item of Storeganise's cannot be read: sid: Missing"):
        parse_items([{"id": "x"}])


def test_boxes_that_were_not_asked_for():
    boxes = {SMALL: 2, LARGE: 1}
    assert schema.not_asked_for(boxes, [item("1"), item("2"), item("3", LARGE)]) == []
    assert schema.not_asked_for(boxes, [item("1"), item("2"), item("3")]) == [
        f"1, 2, 3: 3 of item type {SMALL}, and the order asks for 2"
    ]
    assert schema.not_asked_for(boxes, [item("9", SOFA)]) == [f"9: 1 of item type {SOFA}, and the order asks for 0"]


def test_boxes_whose_type_is_not_shown_are_left_to_the_server():
    assert schema.not_asked_for({SMALL: 1}, [item("1", None), item("2", None)]) == []


# === The order in our words =================================================================================


def test_an_order_of_boxes():
    order = to_order(parse_order(payload("order_boxes")), [])
    assert (order.reference, order.currency, order.total) == ("V-1001", None, None)
    assert order.customer.remote_id == "65a0000000000000000000c1"
    assert order.requested_at == datetime(2026, 12, 1, tzinfo=UTC)
    assert order.notes == "time slot 1000-1200"
    assert [(line.key, line.position, line.product, line.quantity) for line in order.lines] == [
        (f"box:{SMALL}", 1, SMALL, Decimal(3)),
        (f"box:{LARGE}", 2, LARGE, Decimal(1)),
    ]
    assert {line.unit_price for line in order.lines} == {None}


def test_a_bulky_order_has_a_line_for_each_item():
    order = to_order(parse_order(payload("order_sparse")), [item("1002-1", SOFA), item("1002-2", None)])
    assert [(line.key, line.product, line.quantity) for line in order.lines] == [
        ("item:1002-1", SOFA, Decimal(1)),
        ("item:1002-2", None, Decimal(1)),
    ]
    assert (order.requested_at, order.notes) == (None, None)


def test_boxes_and_something_bulky_and_read_again_after_picking_it_is_the_same_order():
    remote = parse_order(payload("order_boxes"))
    sofa = item("V-1001-5", SOFA)
    order = to_order(remote, [sofa])
    assert [line.key for line in order.lines] == [f"box:{SMALL}", f"box:{LARGE}", "item:V-1001-5"]
    assert to_order(remote, [item("V-1001-1"), sofa, item("V-1001-2", LARGE)]) == order


def test_an_order_of_nothing():
    with pytest.raises(Refused, match="asks for no boxes and has no items"):
        to_order(parse_order(payload("order_sparse")), [])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, []),
        ({"charges": [], "sid": "V-2"}, []),
        ({"date": None}, ["the day is none, and was 2026-12-01"]),
        ({"timeslot": None}, ["no time slot, and was time slot 1000-1200"]),
        ({"timeslot": "0800-1000"}, ["time slot 0800-1000, and was time slot 1000-1200"]),
        ({"boxes": []}, [f"box:{SMALL} is 0, and was 3", f"box:{LARGE} is 0, and was 1"]),
        (
            {"boxes": [{"itemTypeId": LARGE, "quantity": 1}, {"itemTypeId": SMALL, "quantity": 4}]},
            [f"box:{SMALL} is 4, and was 3"],
        ),
    ],
)
def test_what_has_changed_since_the_erp_was_told(fields, words):
    document = payload("order_boxes")
    picked, sofa = [item("V-1001-1"), item("V-1001-2", LARGE)], item("V-1001-5", SOFA)
    told = to_order(parse_order(document), [sofa])
    now = parse_order(changed(document, **fields))
    assert schema.changed(told, now, [*picked, sofa]) == words
    assert schema.changed(told, now, None) == words
    assert set(schema.changed(told, now, picked)) == {*words, "item:V-1001-5 is 0, and was 1"}


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=8).filter(
        lambda rows: any(n for _, n in rows)
    )
)
def test_lines_have_stable_keys_whatever_the_order_of_the_boxes(rows):
    boxes = [{"itemTypeId": kind, "quantity": number} for kind, number in rows]
    there, back = (
        {line.key: line.quantity for line in to_order(parse_order({"id": "1", "boxes": some}), []).lines}
        for some in (boxes, boxes[::-1])
    )
    assert there == back
    assert sum(there.values()) == sum(number for _, number in rows)


# === Charges and edits ======================================================================================


def charge(**fields):
    return schema.parse_charge("65a1", {"title": "Late fee", "amount": 12.5} | fields)


def test_a_charge_carries_its_marker():
    one = charge(quantity=2)
    assert one.as_json() == {"title": f"Late fee [{one.marker}]", "amount": Decimal("12.5"), "quantity": 2}
    assert schema.count_charge([one.as_json()], one) == 1
    assert schema.count_charge(["odd", {"title": None}, {}], one) == 0


@pytest.mark.parametrize("amount", [12.5, "12.50", Decimal("12.500")])
def test_the_same_data_is_the_same_charge(amount):
    assert charge(amount=amount, title=" Late fee ").marker == charge().marker


@pytest.mark.parametrize("other", [{"title": "Fee"}, {"amount": 12.51}, {"quantity": 2}, {"key": "second"}])
def test_other_data_is_another_charge(other):
    assert charge(**other).marker != charge().marker
    same = {"title": "Late fee", "amount": 12.5}
    assert schema.parse_charge("65a2", same).marker != charge().marker


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"title": ""}, "title: Length must be between 1 and 200"),
        ({"title": "  "}, "needs a title"),
        ({"amount": 0}, "an amount other than 0"),
        ({"amount": "much"}, "amount: Not a valid number"),
        ({"quantity": 0}, "quantity: Must be greater than or equal to 1"),
        ({"quantity": 1.5}, "quantity: Not a valid integer"),
        ({"tittle": "x"}, "tittle: Unknown field"),
    ],
)
def test_a_wrong_charge(fields, words):
    with pytest.raises(Refused) as caught:
        charge(**fields)
    assert words in caught.value.reason


def test_charges_are_compared_but_for_the_new_one():
    one = charge()
    before = [{"title": "Tape", "amount": Decimal("2.50"), "quantity": 1}, "odd"]
    after = [{"quantity": 1.0, "amount": 2.5, "title": "Tape"}, "odd", one.as_json()]
    assert schema.other_charges(before, one) == schema.other_charges(after, one)
    assert schema.other_charges([*after, after[0]], one) - schema.other_charges(before, one) != Counter()


@pytest.mark.parametrize("document", [{}, {"charges": None}, {"charges": {}}])
def test_charges_that_are_not_shown_are_not_replaced(document):
    with pytest.raises(Refused, match="shows no list of charges"):
        schema.charges_of(document)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "say what to change"),
        ({"charges": []}, "cannot be edited: charges: that is the command `charge`"),
        ({"state": "started", "date": "2026-12-01"}, "cannot be edited: state: "),
        ({"customFields": "x"}, "customFields: give an object"),
    ],
)
def test_what_may_not_be_edited(data, words):
    with pytest.raises(Refused) as caught:
        schema.check_edit(data)
    assert words in caught.value.reason


def test_what_an_edit_changes():
    document = payload("order_boxes")
    data = {"date": "2026-12-02", "timeslot": "1000-1200", "customFields": {"notes": "x", "erpNumber": 5}}
    schema.check_edit(data)
    assert schema.edited(document, data) == {
        "date": ("2026-12-01", "2026-12-02"),
        "customFields.notes": ("Bitte bei Müller klingeln", "x"),
        "customFields.erpNumber": (None, 5),
    }
    assert schema.edited({"a": Decimal("5.00")}, {"a": 5}) == {}
    assert schema.edited({"customFields": None}, {"customFields": {"a": None}}) == {}
