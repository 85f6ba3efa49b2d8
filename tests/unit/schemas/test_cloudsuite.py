"""CloudSuite's documents: what is read of them, what is put back, and the delivery message."""

import copy
import json
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orders.errors import Refused
from orders.model import Line, Order
from sandbox import cloudsuite as sandbox
from schemas.cloudsuite import (
    STATES,
    Payment,
    RemoteOrder,
    changes,
    desadv,
    gate,
    lines_differ,
    parse_order,
    replacement,
    same_content,
    to_order,
    with_first_keys,
)

PAYLOADS = Path(__file__).parents[2] / "payloads" / "cloudsuite"
NUMBERS = {"5001": 11, "5002": 22}


def payload(name):
    return json.loads((PAYLOADS / f"{name}.json").read_text(), parse_float=Decimal)


def changed(document, **fields):
    return {**copy.deepcopy(document), **fields}


def with_line(document, place, **fields):
    """The document with other fields in one of its lines."""
    document = copy.deepcopy(document)
    document["order_lines"][place] |= fields
    return document


# === Reading ================================================================================================


def test_detail():
    remote = parse_order(payload("detail"))
    assert (remote.id, remote.reference, remote.state, remote.payment_status) == (
        12345,
        "CS48193",
        "processing",
        "paid",
    )
    assert (remote.webshop, remote.customer, remote.shipment_address) == (1, 1324, 1695)
    assert remote.requested_delivery_date == date(2021, 7, 2)
    assert remote.offline is False
    assert [line.kind for line in remote.lines] == ["line", "line", "freight"]


def test_offline_order():
    remote = parse_order(payload("offline"))
    assert (remote.offline, remote.key, remote.shipment_state) == (True, "erp-124578", "sent")
    assert (remote.erp_order_number, remote.lines[0].erp_line_number) == ("ERP-124578", 11)


def test_what_is_not_told_is_nothing():
    remote = parse_order(payload("sparse"))
    assert (remote.payment_status, remote.reference, remote.customer, remote.requested_delivery_date) == (None,) * 4
    assert remote.offline is False
    line = remote.lines[0]
    assert (line.kind, line.description, line.product, line.unit_price) == ("line", "", None, None)


def test_numeric_strings_are_numbers():
    remote = parse_order(payload("numeric_strings"))
    assert (remote.id, remote.webshop, remote.customer) == (12346, 2, 1325)
    line = remote.lines[0]
    assert (line.id, line.quantity, line.unit_price, line.erp_line_number) == (
        5004,
        Decimal("2.125"),
        Decimal("7.4"),
        22,
    )


def test_floats_are_taken_at_their_word():
    document = json.loads((PAYLOADS / "detail.json").read_text())
    assert parse_order(document) == parse_order(payload("detail"))


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_the_contract_is_known(state):
    assert parse_order(changed(payload("detail"), state=state)).state == state


@pytest.mark.parametrize("state", ["cancelled", "Confirmed", "", None, 3])
def test_any_other_state_is_refused(state):
    with pytest.raises(Refused, match="state: "):
        parse_order(changed(payload("detail"), state=state))


def test_an_unknown_state_is_named():
    with pytest.raises(Refused, match=r"^CloudSuite's order cannot be read: state: 'paused' is not a known state$"):
        parse_order(changed(payload("detail"), state="paused"))


@pytest.mark.parametrize("name", ["id", "state", "webshop", "order_lines"])
def test_what_must_be_there_is_missed(name):
    document = payload("detail")
    del document[name]
    with pytest.raises(Refused, match=f"{name}: Missing data for required field"):
        parse_order(document)


@pytest.mark.parametrize("name", ["id", "quantity"])
def test_what_a_line_must_have_is_missed(name):
    document = payload("detail")
    del document["order_lines"][1][name]
    with pytest.raises(Refused, match=f"order_lines 2 {name}: Missing data for required field"):
        parse_order(document)


def test_two_lines_of_one_id_are_refused():
    with pytest.raises(Refused, match="order_lines: more than one line has the id 5001"):
        parse_order(with_line(payload("detail"), 1, id="5001"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.sampled_from([*payload("detail"), "line"]),
)
def test_whatever_comes_is_read_or_refused(junk, name):
    document = payload("detail")
    if name == "line":
        document["order_lines"][0] = junk
    else:
        document[name] = junk
    with suppress(Refused):  # anything else would be a bug of ours
        assert isinstance(parse_order(document), RemoteOrder)


@pytest.mark.parametrize(
    ("status", "with_none_held", "with_none_processed"),
    [
        ("closed_success", Payment.PROCESS, Payment.PROCESS),
        ("paid", Payment.PROCESS, Payment.PROCESS),
        ("account", Payment.PROCESS, Payment.PROCESS),
        ("started", Payment.HOLD, Payment.HOLD),
        ("closed_canceled", Payment.STOP, Payment.STOP),
        ("none", Payment.STOP, Payment.PROCESS),
        ("refunded", Payment.STOP, Payment.STOP),
        ("PAID", Payment.STOP, Payment.STOP),
        ("", Payment.STOP, Payment.STOP),
        (None, Payment.STOP, Payment.STOP),
    ],
)
def test_gate(status, with_none_held, with_none_processed):
    assert gate(status, "hold") is with_none_held
    assert gate(status, "process") is with_none_processed


# === In our words ===========================================================================================


def test_our_order():
    order = to_order(parse_order(payload("detail")))
    assert (order.reference, order.currency, order.notes) == ("CS48193", "EUR", "Deliver at the back")
    assert (order.customer.remote_id, order.ship_to.remote_id) == ("1324", "1695")
    assert order.requested_at == datetime(2021, 7, 2, tzinfo=UTC)
    assert order.total is None
    assert order.lines[1] == Line(
        key="5002",
        position=2,
        product="123_KG",
        product_origin="myorigin",
        description="My description 2",
        quantity=Decimal("2.125"),
        unit_price=Decimal("7.4"),
        total=Decimal("15.725"),
    )
    assert (order.lines[2].kind, order.lines[2].product, order.lines[2].product_origin) == ("freight", None, None)


def test_without_a_price_there_is_no_line_total():
    line = to_order(parse_order(payload("sparse"))).lines[0]
    assert (line.unit_price, line.total) == (None, None)


@pytest.mark.parametrize("name", ["detail", "numeric_strings", "offline", "sparse", "unknown_fields"])
def test_our_order_survives_the_ledger(name):
    order = to_order(parse_order(payload(name)))
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_an_order_without_lines_can_be_read_but_not_passed_on():
    remote = parse_order(changed(payload("detail"), state="cancel", order_lines=[]))
    assert remote.state == "cancel"
    with pytest.raises(Refused, match="no lines"):
        to_order(remote)


# === What has changed since it was known ====================================================================


def an_order(document):
    return to_order(parse_order(document))


def with_new_ids(document, *places):
    for place in places:
        document = with_line(document, place, id=9000 + place)
    return document


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (payload("detail"), []),
        (changed(payload("detail"), state="done", erp_order_number="X", payment_status="none"), []),
        (with_line(payload("detail"), 0, erp_line_number=11), []),
        (with_new_ids(payload("detail"), 0, 1, 2), []),
        (changed(payload("detail"), currency="USD", customer=1), ["the currency changed", "the customer changed"]),
        (
            changed(payload("detail"), reference="CS1", description="Ring"),
            ["the reference changed", "the notes changed"],
        ),
        (changed(payload("detail"), shipment_address=1), ["the delivery address changed"]),
        (changed(payload("detail"), requested_delivery_date=None), ["the date it is wanted changed"]),
        (with_line(payload("detail"), 1, description="X", type="freight"), ["line 5002: description changed"]),
        (with_line(payload("detail"), 1, product={"key": "X", "origin": "Y"}), ["line 5002: product changed"]),
        (with_line(payload("detail"), 0, quantity=Decimal(9)), ["line 5001: quantity was 1.0 and is 9"]),
        (with_line(payload("detail"), 0, unit_price=None), ["line 5001: unit_price was"]),
        (with_line(with_new_ids(payload("detail"), 0), 0, quantity=9), ["line 5001 is gone", "line 9000 is new"]),
    ],
)
def test_changes_are_told_in_words(now, words):
    told = changes(an_order(payload("detail")), an_order(now))
    assert bool(told) == bool(words)
    for word in words:
        assert any(text.startswith(word) for text in told), told


def test_lines_that_change_places_under_their_ids_are_changed():
    document = payload("detail")
    first, second, *rest = document["order_lines"]
    swapped = [{**second, "id": first["id"]}, {**first, "id": second["id"]}, *rest]
    assert changes(an_order(document), an_order({**document, "order_lines": swapped}))


def test_lines_keep_the_keys_that_the_erp_knows_them_by():
    document = with_new_ids(payload("detail"), 0, 1)
    document = with_line(with_line(document, 0, erp_line_number=11), 1, erp_line_number=22)
    order = with_first_keys(an_order(document), parse_order(document), NUMBERS)
    assert [line.key for line in order.lines] == ["5001", "5002", "5003"]


def test_a_line_of_its_own_keeps_its_own_key():
    document = with_line(payload("detail"), 2, erp_line_number=11)
    order = with_first_keys(an_order(document), parse_order(document), NUMBERS)
    assert [line.key for line in order.lines] == ["5001", "5002", "5003"]


# === The numbers: what goes back ============================================================================


def test_which_numbers_are_not_there():
    document = payload("detail")
    assert lines_differ(document, NUMBERS) == [
        "line 5001 has no ERP line number, and not 11",
        "line 5002 has no ERP line number, and not 22",
    ]
    document["order_lines"][0]["erp_line_number"] = "11"
    document["order_lines"][1]["erp_line_number"] = Decimal("22.0")
    assert lines_differ(document, NUMBERS) == []
    assert lines_differ(document, {**NUMBERS, "5001": 12}) == ["line 5001 has ERP line number 11, and not 12"]
    assert lines_differ(document, {**NUMBERS, "5009": 90}) == ["line 5009 is no longer there"]


def test_a_number_on_two_lines_is_not_there():
    document = with_line(with_line(payload("detail"), 0, erp_line_number=11), 2, erp_line_number=11)
    assert lines_differ(document, {"5001": 11}) == ["2 lines have ERP line number 11"]


def test_the_body_is_the_whole_order_with_the_numbers():
    document = payload("detail")
    body = replacement(document, "ERP-1", NUMBERS)
    served = {"id", "payment_status", "offline", "create_date", "modified_date", "confirm_date"}
    expected = {name: value for name, value in payload("detail").items() if name not in served}
    expected["erp_order_number"] = "ERP-1"
    expected["order_lines"][0]["erp_line_number"] = 11
    expected["order_lines"][1]["erp_line_number"] = 22
    assert body == expected
    assert document == payload("detail")


def test_the_body_has_the_state_of_now():
    assert replacement(changed(payload("detail"), state="done"), "ERP-1", NUMBERS)["state"] == "done"


def test_the_body_carries_what_we_do_not_know_and_no_empty_text():
    document = payload("unknown_fields")
    body = replacement(document, "ERP-1", {"5007": 10})
    assert body["payment_term"] == document["payment_term"]
    assert "customer_order_number" not in body
    line = body["order_lines"][0]
    assert (line["discount"], line["cost_center"], line["product"]["stock"]) == (Decimal("1.0"), "K-12", 40)
    assert "description" not in line


def test_numbers_of_other_lines_stay():
    document = with_line(payload("detail"), 2, erp_line_number=99)
    assert replacement(document, "ERP-1", NUMBERS)["order_lines"][2]["erp_line_number"] == 99


@pytest.mark.parametrize(
    ("document", "numbers", "words"),
    [
        (changed(payload("detail"), erp_order_number="X-9"), NUMBERS, "carries ERP number X-9, ours is ERP-1"),
        (with_line(payload("detail"), 0, erp_line_number=7), NUMBERS, "line 5001 has ERP line number 7, ours is 11"),
        (with_line(payload("detail"), 0, erp_line_number=0), NUMBERS, "line 5001 has ERP line number 0, ours is 11"),
        (with_line(payload("detail"), 2, erp_line_number=11), NUMBERS, "2 lines have ERP line number 11"),
        (payload("detail"), {"5001": 11, "5002": 11}, "2 lines have ERP line number 11"),
        (payload("detail"), {**NUMBERS, "5009": 90}, "no longer in the order: 5009"),
    ],
)
def test_what_a_person_wrote_is_not_overwritten_and_nothing_is_guessed(document, numbers, words):
    with pytest.raises(Refused, match=words):
        replacement(document, "ERP-1", numbers)


def test_our_own_numbers_may_be_there():
    document = with_line(changed(payload("detail"), erp_order_number="ERP-1"), 0, erp_line_number="11")
    body = replacement(document, "ERP-1", NUMBERS)
    assert [line["erp_line_number"] for line in body["order_lines"]] == [11, 22, None]


# === The numbers: what a PUT did ============================================================================

READ_ONLY = frozenset(
    ("id", "reference", "payment_status", "offline", "create_date", "modified_date", "confirm_date", "total_weight")
)


def put(document, body, new_ids=None):
    """The order after a PUT that replaces: what the body leaves out is null. `new_ids` gives lines new ids."""
    after = {name: value if name in READ_ONLY else body.get(name) for name, value in document.items()}
    after["order_lines"] = copy.deepcopy(body["order_lines"])
    for line in after["order_lines"]:
        line.setdefault("description", "")
        if new_ids is not None:
            line["id"] = next(new_ids)
    return {**after, "modified_date": "2022-01-01T00:00:00.000000"}


@pytest.mark.parametrize(
    ("name", "numbers"), [("detail", NUMBERS), ("numeric_strings", {"5004": 22}), ("unknown_fields", {"5007": 10})]
)
@pytest.mark.parametrize("new_ids", [False, True])
def test_a_put_of_the_body_changes_the_numbers_only(name, numbers, new_ids):
    before = payload(name)
    after = put(before, replacement(before, "ERP-1", numbers), count(9001) if new_ids else None)
    assert after["erp_order_number"] == "ERP-1"
    assert lines_differ(after, numbers) == []
    assert same_content(before, after) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"state": "confirmed"}, "state was processing and is confirmed"),
        ({"shipment_state": "sent"}, "shipment_state was None and is sent"),
        ({"description": "Mail alex@example.com"}, "description changed"),
        ({"description": None}, "description was emptied"),
        ({"paid_amount": Decimal("44.78")}, "paid_amount changed"),
        ({"customer_order_number": None}, "customer_order_number was emptied"),
        ({"customer": 7}, "customer changed"),
        ({"payment_term": None}, "payment_term was emptied"),
    ],
)
def test_a_field_that_a_put_changed_is_told(fields, words):
    before = changed(payload("detail"), payment_term={"days": 14})
    assert same_content(before, changed(before, **fields)) == [words]


@pytest.mark.parametrize(
    "fields",
    [
        {"modified_date": "2022-01-01T00:00:00"},
        {"payment_status": "closed_success"},
        {"paid_amount": "44.7700"},
        {"total_weight": Decimal("12.6")},
        {"key": ""},
        {"new_field": 1},
    ],
)
def test_what_may_move_is_not_told(fields):
    before = changed(payload("detail"), total_weight=Decimal("12.5"))
    assert same_content(before, changed(before, **fields)) == []


def test_what_was_paid_may_be_any_text():
    before = changed(payload("detail"), paid_amount="44,77 euro")
    assert same_content(before, copy.deepcopy(before)) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantity": Decimal("1.5")}, "line 5001: quantity was 1.0 and is 1.5"),
        ({"unit_price": None}, "line 5001: unit_price was 4.95 and is None"),
        ({"product": {"key": "125_STUK", "origin": "myorigin"}}, "line 5001: product changed"),
        ({"description": "Other"}, "line 5001: description changed"),
        ({"discount": 0}, "line 5001: discount was emptied"),
        ({"erp_line_number": None}, "line 5001: had ERP line number 11, and has no ERP line number"),
    ],
)
def test_a_line_that_a_put_changed_is_told(fields, words):
    before = with_line(payload("detail"), 0, discount=1, erp_line_number=11)
    assert same_content(before, with_line(before, 0, **fields)) == [words]


def test_lines_that_a_put_lost_or_made_are_told():
    before, after = payload("detail"), payload("detail")
    after["order_lines"][2] |= {"id": 9001, "unit_price": Decimal(9)}
    assert same_content(before, after) == ["line 5003 is gone", "line 9001 is new"]
    del after["order_lines"][2]
    assert same_content(before, after) == ["line 5003 is gone"]


def test_an_order_number_that_was_there_may_not_change():
    before = payload("offline")
    assert same_content(before, changed(before, erp_order_number="X-1")) == ["the ERP order number changed"]


@pytest.mark.parametrize("order", [1, -1])
def test_equal_lines_under_new_ids_are_told_apart_by_their_number(order):
    before, after = payload("detail"), payload("detail")
    line = before["order_lines"][0]
    before["order_lines"] = [line, {**line, "id": 5002, "erp_line_number": 22}]
    renumbered = [{**line, "id": 9001, "erp_line_number": 22}, {**line, "id": 9002, "erp_line_number": 11}]
    after["order_lines"] = renumbered[::order]
    assert same_content(before, after) == []


AMOUNTS = st.decimals(min_value=0, max_value=10**6, places=4, allow_nan=False)
LINES = st.fixed_dictionaries(
    {
        "product": st.none() | st.fixed_dictionaries({"key": st.sampled_from("AB"), "origin": st.just("o")}),
        "description": st.sampled_from(["", "one", "two"]),
        "type": st.sampled_from(["line", "freight"]),
        "quantity": AMOUNTS | AMOUNTS.map(str),
        "unit_price": st.none() | AMOUNTS | st.sampled_from([1.1, 2]),
        "discount": st.none() | AMOUNTS,
    }
)
DOCUMENTS = st.builds(
    lambda lines, **fields: {
        **payload("detail"),
        **fields,
        "order_lines": [{"id": 5001 + place, "erp_line_number": None, **line} for place, line in enumerate(lines)],
    },
    st.lists(LINES, min_size=1, max_size=6),
    state=st.sampled_from(STATES),
    description=st.none() | st.text(max_size=5),
    paid_amount=st.none() | AMOUNTS,
    payment_term=st.none() | st.just({"days": 14}),
)


@given(DOCUMENTS, st.data())
def test_any_order_is_put_back_as_it_was(document, data):
    keys = [str(line["id"]) for line in document["order_lines"]]
    numbers = {key: 10 * place for place, key in enumerate(data.draw(st.permutations(keys)))}
    new_ids = count(9001) if data.draw(st.booleans()) else None
    parse_order(document)
    after = put(document, replacement(document, "ERP-1", numbers), new_ids)
    assert lines_differ(after, numbers) == []
    assert same_content(document, after) == []


@given(DOCUMENTS, st.data())
def test_a_put_that_loses_a_line_is_always_noticed(document, data):
    place = data.draw(st.integers(0, len(document["order_lines"]) - 1))
    body = replacement(document, "ERP-1", {})
    del body["order_lines"][place]
    new_ids = count(9001) if data.draw(st.booleans()) else None
    assert any("is gone" in words for words in same_content(document, put(document, body, new_ids)))


# === The imitation, which was written from the contract alone ===============================================


class Shop:
    """The sandbox, asked without a socket."""

    def __init__(self):
        self.options = sandbox.Options(auth="token")
        self.client = sandbox.create_app(self.options).test_client()

    def ask(self, method, path, body=None):
        """The parsed answer to a JSON request."""
        answer = self.send(method, path, None if body is None else json.dumps(body, default=float), "application/json")
        return json.loads(answer.data, parse_float=Decimal)

    def send(self, method, path, data, kind):
        headers = {"Authorization": f"Token {self.options.token}", "Content-Type": kind}
        answer = self.client.open(path, method=method, data=data, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        return answer

    def numbered(self, number, erp_order_number):
        """Put ERP numbers on an order: what they are, and the order before and after."""
        before = self.ask("GET", f"/api/order/{number}/")
        numbers = {str(line["id"]): 10 * place for place, line in enumerate(before["order_lines"], 1)}
        self.ask("PUT", f"/api/order/{number}/", replacement(before, erp_order_number, numbers))
        return numbers, before, self.ask("GET", f"/api/order/{number}/")


@pytest.fixture
def shop():
    return Shop()


@pytest.mark.parametrize("numeric_strings", [False, True])
def test_every_order_the_sandbox_invents_is_read(shop, numeric_strings):
    shop.options.numeric_strings = numeric_strings
    ids = shop.ask("POST", "/_sandbox/orders", {"orders": list(sandbox.invent(300, seed=7))})["ids"]
    assert len(ids) == 300
    for number in ids:
        order = to_order(parse_order(shop.ask("GET", f"/api/order/{number}/")))
        assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


@pytest.mark.parametrize("mode", ["replace", "merge"])
@pytest.mark.parametrize("numeric_strings", [False, True])
def test_a_put_to_the_sandbox_changes_the_numbers_only(shop, mode, numeric_strings):
    shop.options.put, shop.options.numeric_strings = mode, numeric_strings
    orders = list(sandbox.invent(20, seed=3, plain=True))
    for number in shop.ask("POST", "/_sandbox/orders", {"orders": orders})["ids"]:
        numbers, before, after = shop.numbered(number, "ERP-1")
        assert after["erp_order_number"] == "ERP-1"
        assert lines_differ(after, numbers) == []
        assert same_content(before, after) == []
        assert [line["id"] for line in after["order_lines"]] == [line["id"] for line in before["order_lines"]]


def test_the_sandbox_takes_a_delivery_of_everything(shop):
    orders = list(sandbox.invent(20, seed=5, plain=True))
    for number in shop.ask("POST", "/_sandbox/orders", {"orders": orders})["ids"]:
        numbers, before, _ = shop.numbered(number, f"ERP-{number}")
        order = to_order(parse_order(before))
        message = delivery(
            number=f"{number}-1",
            order_number=f"ERP-{number}",
            lines=order.lines,
            line_numbers=numbers,
            quantities={line.key: line.quantity for line in order.lines},
        )
        shop.send("POST", "/proxy/des_adv_xml/delivery/?shop=1&user=10", message, "application/xml")
        assert parse_order(shop.ask("GET", f"/api/order/{number}/")).shipment_state == "sent"


# === The delivery message ===================================================================================

GOODS = (
    Line("5002", 2, "B & <C>", Decimal("2.125")),
    Line("5001", 1, "124_STUK", Decimal(1)),
    Line("5003", 3, None, Decimal(1), kind="freight"),
)


def delivery(**changes):
    arguments: dict[str, Any] = {
        "number": "12345-erp-7",
        "date": date(2021, 7, 1),
        "order_number": "SO-1",
        "lines": GOODS,
        "line_numbers": {"5001": 11, "5002": 22, "5003": 33},
        "quantities": {"5002": Decimal("2.125"), "5001": Decimal(1), "5003": Decimal(1)},
        "carrier": "PostNL",
        "tracking": "3S<&>",
        "customer": 1324,
    }
    return desadv(**(arguments | changes))


def test_the_delivery_message_byte_for_byte():
    assert delivery() == (
        b"<?xml version='1.0' encoding='utf-8'?>\n"
        b"<Desadv><DesadvHeader><DesadvNumber>12345-erp-7</DesadvNumber><DesadvDate>2021-07-01</DesadvDate>"
        b"<PlannedDeliveryDate>2021-07-01</PlannedDeliveryDate><TransportDetails>"
        b"<TransportModeCode>PostNL</TransportModeCode><MeansOfTransport>"
        b"<Identification>3S&lt;&amp;&gt;</Identification></MeansOfTransport></TransportDetails></DesadvHeader>"
        b"<DesadvDetail><Packaging><LineItems>"
        b"<Item><ItemNum>11</ItemNum><OrderNum>SO-1</OrderNum><QuantityValue>1.0000</QuantityValue>"
        b"<SellerItemID>124_STUK</SellerItemID></Item>"
        b"<Item><ItemNum>22</ItemNum><OrderNum>SO-1</OrderNum><QuantityValue>2.1250</QuantityValue>"
        b"<SellerItemID>B &amp; &lt;C&gt;</SellerItemID></Item>"
        b"</LineItems></Packaging></DesadvDetail>"
        b"<DesadvParty><BuyerParty><PartyID>1324</PartyID></BuyerParty></DesadvParty></Desadv>"
    )


def test_the_same_delivery_is_the_same_message_however_it_was_counted():
    counted = {"5001": Decimal("1.000"), "5003": Decimal("1E0"), "5002": Decimal("2.12500")}
    assert delivery(quantities=counted, lines=GOODS[::-1]) == delivery()


def test_only_what_is_delivered_is_told():
    root = ElementTree.fromstring(delivery(quantities={"5002": Decimal(1)}))
    assert [item.text for item in root.iter("ItemNum")] == ["22"]


def test_carrier_and_tracking_may_be_empty():
    root = ElementTree.fromstring(delivery(carrier="", tracking="", customer=None))
    for name in ("TransportModeCode", "Identification", "PartyID"):
        assert [element.text for element in root.iter(name)] == [None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantities": {"5002": Decimal("0.00001")}}, "line 5002: 0.00001 has more than the 4 decimals"),
        ({"quantities": {"5002": Decimal(0)}}, "not above 0"),
        ({"quantities": {"5002": Decimal(-1)}}, "not above 0"),
        ({"quantities": {"5002": Decimal("1e8")}}, "below 100000000"),
        ({"quantities": {"5002": Decimal("NaN")}}, "NaN"),
        ({"quantities": {"5003": Decimal(1)}}, "no goods"),
        ({"quantities": {}}, "no goods"),
        ({"quantities": {"7": Decimal(1)}}, "lines that the order has not: 7"),
        ({"line_numbers": {"5001": 11}}, "line 5002 is delivered, and the ERP gave it no line number"),
        ({"tracking": "3S\x00"}, "Identification has a character that XML has not"),
    ],
)
def test_what_cannot_be_told_is_refused(changes, words):
    with pytest.raises(Refused, match=words):
        delivery(**changes)


@given(
    st.lists(
        st.tuples(
            st.text("aZ9<>&\"' é漢", min_size=1, max_size=8),
            st.decimals("0.0001", "99999999.9999", places=4),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    st.text("aZ9<>&\"'é漢", max_size=20),
)
def test_the_message_reads_back_as_what_was_delivered(told, tracking):
    lines = [Line(str(place), place, product, quantity) for place, (product, quantity, _) in enumerate(told, 1)]
    quantities = {line.key: line.quantity for line, (*_, delivered) in zip(lines, told, strict=True) if delivered}
    if not quantities:
        return
    message = delivery(
        lines=lines,
        line_numbers={line.key: line.position * 10 for line in lines},
        quantities=quantities,
        tracking=tracking,
    )
    root = ElementTree.fromstring(message)
    assert root.findtext("DesadvHeader/TransportDetails/MeansOfTransport/Identification") == tracking
    assert [
        (item.findtext("ItemNum"), item.findtext("SellerItemID"), Decimal(item.findtext("QuantityValue") or ""))
        for item in root.iter("Item")
    ] == [(str(line.position * 10), line.product, line.quantity) for line in lines if line.key in quantities]
