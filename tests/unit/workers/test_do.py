"""What an operator does to an order beside its plan: asked first, done once, written down before and after."""

from collections.abc import Iterator
from typing import Any

import pytest

from ledger import queries
from orders.errors import Refused, TryLater
from orders.outcomes import Planned
from tasks.base import Account, Command, Job, System
from tests.unit.tasks.conftest import Acme
from workers import operators


class Charges:
    """A command and what it did."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, Any]]] = []
        self.refuses: Exception | None = None

    def ask(self, job: Job, account: Account, data: dict[str, Any]) -> str:
        return f"would charge {data['amount']} to {job.external_id}"

    def run(self, job: Job, account: Account, data: dict[str, Any]) -> str:
        if self.refuses is not None:
            raise self.refuses
        self.done.append((job.external_id, data))
        return f"charged {data['amount']}"


@pytest.fixture
def acme(ledger_url: str) -> Iterator[Acme]:
    made = Acme(ledger_url)
    made.take_in("7", plan=(Planned("acme.wait", awaits="done"),))
    yield made
    made.close()


def doing(acme: Acme, charges: Charges, data: dict[str, Any] | None = None) -> operators.Doing:
    order = operators.find_order(acme.ledger, "acme:7")
    command = Command("adds a charge", charges.ask, charges.run)
    return operators.Doing(acme.fleet, order, "charge", command, data or {"amount": 5}, "ann")


def audited(acme: Acme) -> list[tuple[str, str, str]]:
    order = operators.find_order(acme.ledger, "acme:7")
    told = queries.timeline(acme.ledger, order["id"])
    return [(row["who"], row["what"], row["detail"]) for row in told if row["kind"] == "audit"]


def test_it_says_what_it_would_do_and_does_nothing(acme):
    charges = Charges()
    assert doing(acme, charges).ask() == "would charge 5 to 7"
    assert charges.done == []
    assert audited(acme) == []


def test_it_is_written_down_before_and_after(acme):
    charges = Charges()
    assert doing(acme, charges).run() == "charged 5"
    assert charges.done == [("7", {"amount": 5})]
    assert audited(acme) == [("ann", "charge", 'begun: {"amount": 5}'), ("ann", "charge", "charged 5")]


@pytest.mark.parametrize("error", [Refused("the order is completed"), TryLater("no answer")])
def test_what_fails_is_written_down_and_told(acme, error):
    charges = Charges()
    charges.refuses = error
    with pytest.raises(type(error)):
        doing(acme, charges).run()
    assert audited(acme)[-1] == ("ann", "charge", f"failed: {error.reason}")


def test_what_would_be_something_else_by_now_is_not_done(acme):
    charges = Charges()
    data = {"amount": 5}
    asked = doing(acme, charges, data)
    asked.ask()
    data["amount"] = 50
    with pytest.raises(operators.NotPossible, match="changed meanwhile, and now would charge 50 to 7"):
        asked.run()
    assert charges.done == []
    assert audited(acme) == []


def test_an_account_that_is_not_set_up_here(acme):
    charges = Charges()
    acme.take_in("8", account="west", plan=(Planned("acme.wait", awaits="done"),))
    order = operators.find_order(acme.ledger, "acme:8")
    west = operators.Doing(acme.fleet, order, "charge", Command("", charges.ask, charges.run), {"amount": 5}, "ann")
    with pytest.raises(operators.NotPossible, match="not set up here"):
        west.ask()


def test_words_for_a_command_that_is_not_there():
    command = Command("adds a charge", lambda *_: "", lambda *_: "")
    order = {"system": "acme", "account": "north", "external_id": "7"}
    assert "there are charge" in operators.no_such_command(order, "refund", {"charge": command})
    assert "acme offers none" in operators.no_such_command(order, "refund", {})
    assert operators.commands_of(System("acme")) == operators.commands_of(None) == {}
