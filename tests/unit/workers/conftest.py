"""The command line on a ledger of its own, with orders in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger import intake, queries, records, sending
from ledger.connection import Ledger
from orders.arrival import Arrival
from orders.outcomes import Done
from orders.states import State
from tasks.cloudsuite_order import PLAN
from tests.flows.harness import Shop, a_shop, shop_settings
from workers.cli import main


class Desk:
    """An operator with a ledger: runs `orderfleet` in this process."""

    def __init__(self, ledger: Ledger, environment: dict[str, str]) -> None:
        self.ledger = ledger
        self.environment = environment

    def run(self, *arguments: object, code: int = 0, **environment: str) -> Result:
        """`orderfleet ARGUMENTS`; fails with its output when it ends otherwise than with `code`."""
        result = CliRunner().invoke(
            main, [str(argument) for argument in arguments], env=self.environment | environment, catch_exceptions=False
        )
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: object, code: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def take_in(self, *external_ids: str, account: str = "default", system: str = "cloudsuite") -> list[int]:
        """New orders, as webhooks would write them: one after another, ids ascending."""
        return [self._take_in(external_id, account, system) for external_id in external_ids]

    def _take_in(self, external_id: str, account: str, system: str) -> int:
        row = Arrival(account, external_id, f"row:{external_id}", "row", "{}", PLAN, f"R-{external_id}")
        return intake.take_in(self.ledger, system, [row]).new[0]

    def order(self, order: int) -> dict[str, Any]:
        return queries.find_order(self.ledger, str(order))[0]

    def claim(self, order: int) -> records.Claim:
        """Hold it, as a worker does."""
        sending.take_ready_orders(self.ledger, [order])
        row = self.order(order)
        claimed = records.claim(self.ledger, order, row["position"], row["step"], "w1")
        assert claimed is not None
        return claimed

    def advance(self, order: int, outcome: Done | None = None) -> None:
        """Record its current step as done."""
        records.done(self.ledger, self.claim(order), outcome or Done(), State.READY)

    def park(self, order: int, reason: str = "no such product", state: State = State.PARKED) -> int:
        """Stop it where it stands."""
        records.park(self.ledger, self.claim(order), reason, 422, state=state)
        return order

    def audit(self, order: int) -> list[tuple[str, str]]:
        """(who, action) of everything people did to it."""
        told = queries.timeline(self.ledger, order)
        return [(entry["who"], entry["action"]) for entry in told if entry["kind"] == "audit"]


@pytest.fixture
def desk(ledger_url: str, tmp_path: Path) -> Iterator[Desk]:
    ledger = Ledger(ledger_url)
    environment = {"ORDERFLEET_HOME": str(tmp_path), "DATABASE_URL": ledger_url, "ORDERFLEET_WHO": "ann"}
    yield Desk(ledger, environment)
    ledger.close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    with a_shop() as shop:
        yield shop


@pytest.fixture
def open_desk(desk: Desk, shop: Shop) -> Desk:
    """With a shop to look at, and the ERP's tables."""
    desk.environment |= shop_settings(shop)
    desk.run("migrate")
    return desk
