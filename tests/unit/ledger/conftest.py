"""A ledger on each database, and an order of a made-up system in it."""

from collections.abc import Iterator

import pytest

from ledger import intake
from ledger.connection import Ledger
from orders.arrival import Arrival
from orders.outcomes import Planned

PLAN = (Planned("acme.fetch"), Planned("erp.order"), Planned("acme.number", awaits="numbered"), Planned("acme.ship"))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def order(ledger: Ledger) -> int:
    """The id of one new order."""
    return intake.take_in(ledger, "acme", [Arrival("default", "1", "row:1", "row", "{}", PLAN, "R-1")]).new[0]
