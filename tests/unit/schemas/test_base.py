"""What every dictionary takes and refuses, and how it says so."""

from decimal import Decimal
from typing import Any

import pytest
from marshmallow import fields

from orders.errors import Refused
from schemas.base import Amount, Document, Whole, load


class Item(Document):
    amount = Amount()
    number = Whole()


class Basket(Document):
    owner = fields.String(required=True)
    items = fields.List(fields.Nested(Item))


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (2, "2"),
        (-1.1, "-1.1"),
        ("2.1250", "2.125"),
        (Decimal("0.1"), "0.1"),
        ("99999999999999", "99999999999999"),
        ("1e-9", "0.000000001"),
    ],
)
def test_amounts_that_are_taken(value, amount):
    taken = load(Item(), {"amount": value}, "it")["amount"]
    assert isinstance(taken, Decimal)
    assert taken == Decimal(amount)


BAD: list[Any] = [True, False, None, "", "abc", float("nan"), Decimal("sNaN"), "Infinity", float("-inf"), [], {}]


@pytest.mark.parametrize("value", [*BAD, "1e14", "-1e999999"], ids=repr)
def test_amounts_that_are_refused(value):
    with pytest.raises(Refused, match=r"^it cannot be read: amount: "):
        load(Item(), {"amount": value}, "it")


@pytest.mark.parametrize("value", [12, "12", 12.0, Decimal("12.0")], ids=repr)
def test_whole_numbers_that_are_taken(value):
    taken = load(Item(), {"number": value}, "it")["number"]
    assert (type(taken), taken) == (int, 12)


@pytest.mark.parametrize("value", [*BAD, 1.5, "1.5", Decimal("1.5")], ids=repr)
def test_whole_numbers_that_are_refused(value):
    with pytest.raises(Refused, match=r"^it cannot be read: number: "):
        load(Item(), {"number": value}, "it")


def test_unknown_fields_pass():
    assert load(Item(), {"amount": 1, "colour": "red"}, "it") == {"amount": Decimal(1)}


def test_every_bad_field_is_named_and_no_value():
    with pytest.raises(Refused) as refusal:
        load(Basket(), {"items": [{"amount": 1}, {"amount": "alex@example.com", "number": "secret"}]}, "the basket")
    assert refusal.value.reason == (
        "the basket cannot be read: owner: Missing data for required field; "
        "items 2 amount: Not a valid number; items 2 number: Not a valid integer"
    )


@pytest.mark.parametrize("document", [None, [], "text", 3], ids=repr)
def test_what_is_no_object_is_refused(document):
    with pytest.raises(Refused, match=r"^the basket cannot be read: \w"):
        load(Basket(), document, "the basket")
