"""Every ERP adapter, and the ERP's side of it: what an ERP does to orders, seen by nobody but a test."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from databases.connect import open_database
from erp.port import Erp, open_erp
from orders.model import Address, Customer, Line, Order

# The next adapter adds a line here and a class like `SqlSide`.
ADAPTERS = ("sqlite", "sqlite?numbering=ours", "postgresql", "mysql")

_TRIGGERS = {
    "sqlite": """
        CREATE TRIGGER refuses BEFORE INSERT ON erp_order WHEN NEW.notes LIKE '%refuse me%'
        BEGIN SELECT RAISE(ABORT, '{words}'); END
    """,
    "postgresql": """
        CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{words}'; END $$;
        CREATE TRIGGER refuses BEFORE INSERT ON erp_order FOR EACH ROW
        WHEN (NEW.notes LIKE '%%refuse me%%') EXECUTE FUNCTION refuses()
    """,
    "mysql": """
        CREATE TRIGGER refuses BEFORE INSERT ON erp_order FOR EACH ROW
        IF NEW.notes LIKE '%%refuse me%%' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{words}'; END IF
    """,
}


class SqlSide:
    """The ERP behind staging tables at `url`."""

    def __init__(self, url: str, parameters: str = "") -> None:
        self.url = url
        self.parameters = parameters
        self.engine = open_database(url)
        self._opened: list[Erp] = []

    def open(self, parameters: str = "") -> Erp:
        """An adapter that talks to this ERP; several may do so at once."""
        adapter = open_erp(self.url + (parameters or self.parameters))
        self._opened.append(adapter)
        return adapter

    def close(self) -> None:
        for adapter in self._opened:
            adapter.close()
        self.engine.dispose()

    def run(self, sql: str, **values: Any) -> Any:
        """Run one statement as the ERP; its rows, if it has any."""
        with self.engine.connect() as connection:
            result = connection.execute(text(sql), values)
            return result.mappings().all() if result.returns_rows else None

    def script(self, sql: str) -> None:
        """Run DDL as it stands."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql(sql)

    def tell(self, reference: str, kind: str, data: dict[str, Any] | None = None) -> None:
        """Report a fact, as the ERP does."""
        self.run(
            "INSERT INTO erp_event (external_reference, kind, data) VALUES (:reference, :kind, :data)",
            reference=reference,
            kind=kind,
            data=json.dumps(data or {}),
        )

    def orders(self) -> list[dict[str, Any]]:
        """Every order the ERP has been given: `reference` and `notes`."""
        rows = self.run("SELECT external_reference, notes FROM erp_order ORDER BY external_reference")
        return [{"reference": row["external_reference"], "notes": row["notes"]} for row in rows]

    def lines(self, reference: str) -> dict[str, tuple[Decimal | None, ...]]:
        """Quantity, unit price and total by line key, as the ERP has them."""
        rows = self.run(
            "SELECT line_key, quantity, unit_price, line_total FROM erp_order_line"
            " WHERE external_reference = :reference",
            reference=reference,
        )
        amounts = ("quantity", "unit_price", "line_total")
        return {row["line_key"]: tuple(_decimal(row[name]) for name in amounts) for row in rows}

    def refuse(self, words: str) -> None:
        """From now on the ERP takes no new order whose notes contain "refuse me", and says `words`."""
        self.script(_TRIGGERS[self.engine.dialect.name].format(words=words))

    def unprepared(self) -> Erp:
        """An adapter for an ERP in which `prepare` was never called."""
        for table in ("erp_event", "erp_order_line", "erp_order"):
            self.script(f"DROP TABLE IF EXISTS {table}")
        return self.open()

    def away(self) -> Erp:
        """An adapter for an ERP of this kind that does not run."""
        if self.engine.dialect.name == "sqlite":
            folder = Path(self.url.partition(":///")[2]).parent
            url = f"sqlite:///{folder}"  # a folder cannot be opened as a file
        else:
            away = self.engine.url.set(host="127.0.0.1", port=_closed_port())
            url = away.render_as_string(hide_password=False)
        adapter = open_erp(url)
        self._opened.append(adapter)
        return adapter


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(value)


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=ADAPTERS)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlSide]:
    """The ERP's side of each adapter, prepared and empty."""
    yield from opened_side(request, tmp_path, request.param)


def opened_side(request: pytest.FixtureRequest, tmp_path: Path, adapter: str) -> Iterator[SqlSide]:
    name, question, parameters = adapter.partition("?")
    url = f"sqlite:///{tmp_path / 'erp.db'}" if name == "sqlite" else request.getfixturevalue(f"{name}_url")
    erp_side = SqlSide(url, question + parameters)
    erp_side.open().prepare()
    try:
        yield erp_side
    finally:
        erp_side.close()


@pytest.fixture
def erp(side) -> Erp:
    """The adapter under test."""
    return side.open()


@pytest.fixture
def order() -> Order:
    """An order with two lines, `a` and `b`."""
    return make_order()


def make_order(*, notes: str | None = "Ring twice", quantity: str = "2", **changes: Any) -> Order:
    """An order with two lines, `a` and `b`."""
    lines = (
        Line("a", 1, "SKU-1", Decimal(quantity), "Mug", None, Decimal("10.50"), Decimal("21.00")),
        Line("b", 2, "SKU-2", Decimal("1"), "Bowl", None, Decimal("5"), Decimal("5")),
    )
    values = {
        "reference": "CS6",
        "currency": "EUR",
        "lines": lines,
        "customer": Customer("Ann Example", "ann@example.com", "+31 20 000 0000", "7"),
        "ship_to": Address("Ann Example", None, "High Street 1", "1234 AB", "Exampleton", None, "NL", "9"),
        "total": Decimal("26.00"),
        "requested_at": datetime(2026, 3, 1, 9, 30, tzinfo=UTC),
        "notes": notes,
    }
    return Order(**{**values, **changes})
