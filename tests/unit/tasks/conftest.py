"""The real pieces without Celery: a worker in this process, the shop's imitation on loopback, and an ERP that works
when the test lets it."""

import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, insert, literal, select, update

from databases.clock import later, now
from erp.port import open_erp
from erp.sql_tables import erp_event, erp_order, erp_order_line
from ledger import by_hand, intake, queries, records, sending
from ledger.connection import Ledger
from ledger.models import events, gates, orders, ticks
from ledger.records import Claim
from ledger.sending import ToSend
from orders.arrival import Arrival
from orders.outcomes import Planned
from orders.states import State
from sandbox import base, cloudsuite
from sandbox.erp import SandboxErp
from tasks.base import STEPS, Account, Fleet, Job, StepFunction, System, step
from tasks.bulkhead import Bulkhead
from tasks.dispatch import BrokerAway, Dispatcher
from tasks.gates import Gates
from tasks.pulse import Pulse
from tasks.runner import Ending, Runner
from tasks.sweep import Sweep
from tasks.ticks import Ticks
from tests import services
from tests.flows.harness import Remote, Shop, a_remote
from workers.bootstrap import build_fleet
from workers.settings import read_settings

LONG_AGO = later(literal(-3600.0))


class Worker:
    """What a worker process has, but for Celery: messages wait in `queue` until `work` runs their links."""

    def __init__(self, fleet: Fleet, name: str = "w1", *, window: int = 16, pulse: Pulse | None = None) -> None:
        self.fleet = fleet
        self.ledger = fleet.ledger
        self.queue: deque[ToSend] = deque()
        self.broker_away = False
        self.pulse = pulse or Pulse(self.ledger, name)
        self.pulse.beat()
        self.gates = Gates(self.ledger, Bulkhead(8))
        self.runner = Runner(fleet, self.pulse, self.gates)
        self.dispatcher = Dispatcher(self.ledger, self.gates, fleet.lanes, self._send, window)
        self.ticks = Ticks(fleet, self.dispatcher, self.gates, name)
        self.told_news: list[tuple[str, str]] = []
        self.sweep = Sweep(self.ledger, self.dispatcher, self.runner, self._depth, self._tell_news, name)

    def _send(self, system: str, run: ToSend) -> None:
        if self.broker_away:
            raise BrokerAway("no broker")
        self.queue.append(run)

    def _tell_news(self, system: str, account: str) -> None:
        if self.broker_away:
            raise BrokerAway("no broker")
        self.told_news.append((system, account))

    def _depth(self, system: str) -> int:
        if self.broker_away:
            raise BrokerAway("no broker")
        return len(self.queue)

    def work(self, hold: Collection[str] = ()) -> list[Ending]:
        """Send and run what is due until nothing is, but no step in `hold`: the messages of those are lost."""
        endings: list[Ending] = []
        self.dispatcher.fill()
        while self.queue:
            self.pulse.beat()
            endings += self.run(self.queue.popleft(), hold)
            self.dispatcher.fill()
        return endings

    def run(self, message: ToSend, hold: Collection[str] = ()) -> list[Ending]:
        """Run a message's links as a worker does: on and on, as long as the next link is the next step."""
        links = deque(message.links)

        def then(position: int, name: str) -> State:
            goes_on = links and links[0] == (position, name) and name not in hold
            return State.RUNNING if goes_on else State.READY

        endings: list[Ending] = []
        position, name = links.popleft()
        claim = None if name in hold else self.runner.claim(message.order_id, position, name)
        order = None
        while claim is not None:
            ending = self.runner.run(claim, then, order)
            endings.append(ending)
            claim, order = ending.next, ending.order
            if claim is not None:
                links.popleft()
        return endings


class Look:
    """What tests read of a ledger, and how they let time pass in it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def order(self, external_id: object) -> dict[str, Any]:
        """An order as the ledger has it."""
        (found,) = [
            row for row in queries.listing(self.ledger, queries.Filter()) if row["external_id"] == str(external_id)
        ]
        return found

    def state(self, external_id: object) -> str:
        return str(self.order(external_id)["state"])

    def attempts(self, external_id: object) -> list[tuple[str, str]]:
        """(step, outcome) of every try."""
        told = queries.timeline(self.ledger, self.order(external_id)["id"])
        return [(entry["step"], entry["outcome"]) for entry in told if entry["kind"] == "attempt"]

    def column(self, external_id: object, name: str) -> Any:
        """A column of the order that no listing shows."""
        with self.ledger.reading() as connection:
            wanted = select(orders.c[name]).where(orders.c.external_id == str(external_id))
            return connection.execute(wanted).scalar_one()

    def ticks_are_due(self) -> None:
        """Polls, the feed and the sweep may take their next turn."""
        with self.ledger.transaction() as connection:
            connection.execute(update(ticks).values(next_at=LONG_AGO))

    def news_gets_old(self) -> None:
        """Unread news has lain there for long."""
        with self.ledger.transaction() as connection:
            connection.execute(update(events).where(events.c.news_at.is_not(None)).values(news_at=LONG_AGO))

    def time_passes(self) -> None:
        """Whatever waits for a time is due: retries, rechecks, lost messages, gates, ticks."""
        with self.ledger.transaction() as connection:
            asleep = orders.c.wake_at.is_not(None) & (orders.c.state != State.RUNNING)
            connection.execute(update(orders).where(asleep).values(wake_at=LONG_AGO))
            connection.execute(update(gates).where(gates.c.closed_until.is_not(None)).values(closed_until=LONG_AGO))
        self.ticks_are_due()


class Driver(Look):
    """A worker, the imitation of a system, and an ERP. Orders are named by their external id."""

    def __init__(self, remote: Remote, environment: dict[str, str], url: str) -> None:
        pulses: list[Pulse] = []
        self.settings = read_settings(remote.settings() | {"DATABASE_URL": url} | environment)
        self.remote = remote
        self.fleet = build_fleet(self.settings, before_write=lambda: pulses[0].check())
        super().__init__(self.fleet.ledger)
        self.fleet.erp.prepare()
        pulses.append(Pulse(self.ledger, "w1"))
        self.worker = Worker(self.fleet, pulse=pulses[0])
        self._hours = 0.0
        erp_url = self.settings.erp_url.partition("?")[0]
        self.erp = SandboxErp(erp_url, ship_after_seconds=1.0, clock=lambda: self._hours)

    def close(self) -> None:
        self.erp.close()
        self.fleet.erp.close()
        for account in self.fleet.accounts.values():
            if account.client is not None:
                account.client.close()
        self.ledger.close()

    def poll(self) -> None:
        """Visit the remote, as beat has it done, and read what is new of known orders."""
        self.ticks_are_due()
        assert self.worker.ticks.poll(self.remote.system, "default") == "done"

    def read_news(self) -> None:
        """Read known orders again of which there is news, as a webhook has it done."""
        self.ticks_are_due()
        self.worker.ticks.news(self.remote.system, "default")

    def feed(self) -> None:
        """Read the ERP's events, as beat has it done."""
        self.ticks_are_due()
        assert self.worker.ticks.feed() == "done"

    def go(self, *, hold: Collection[str] = (), ships: bool = False, erp: bool = True) -> None:
        """Work, and let the ERP work, until nothing moves any more; no retry and no recheck becomes due by it.

        Steps in `hold` are not run, nor what follows them. The ERP numbers (unless `erp` is off); with `ships` it
        ships, too."""
        for _ in range(30):
            moved = len(self.worker.work(hold))
            if erp:
                self._hours += ships
                moved += self.erp.step()
                self.feed()
            if not moved and not self.worker.queue:
                return
        raise AssertionError("it never comes to rest")

    def go_on(self, times: int = 3, *, ships: bool = False) -> None:
        """What is due by time goes, too: `times` turns of a sweep with everything due, and of `go`."""
        for _ in range(times):
            self.time_passes()
            self.worker.gates.refresh()
            self.worker.sweep.run()
            self.go(ships=ships)

    def tell(self, number: object, kind: str, **data: Any) -> None:
        """The ERP writes an event of its own, and the feed is read."""
        values = {
            "external_reference": self.reference(number),
            "kind": kind,
            "data": json.dumps(data),
            "created_at": now(),
        }
        with self.ledger.transaction() as connection:
            connection.execute(insert(erp_event).values(values))
        self.feed()

    def in_erp(self, number: object) -> list[dict[str, Any]]:
        """The ERP's rows for an order."""
        wanted = select(erp_order).where(erp_order.c.external_reference == self.reference(number))
        with self.ledger.reading() as connection:
            return [dict(row) for row in connection.execute(wanted).mappings()]

    def erp_lines(self, number: object) -> list[dict[str, Any]]:
        wanted = select(erp_order_line).where(erp_order_line.c.external_reference == self.reference(number))
        with self.ledger.reading() as connection:
            return [dict(row) for row in connection.execute(wanted.order_by("position")).mappings()]

    def dies_at(self, number: object) -> None:
        """Another worker makes the effect of the order's current step, and is gone before it records it."""
        row = self.order(number)
        claim = records.claim(self.ledger, row["id"], row["position"], row["step"], "dead")
        assert claim is not None
        STEPS[claim.step](Job(self.ledger, claim), self.fleet.partner_of(claim))

    def replay(self, number: object, *, position: int | None = None) -> None:
        """An operator's order to try again."""
        row = self.order(number)
        by_hand.replay(self.ledger, row["id"], row["version"], position, "ann")

    def reference(self, number: object) -> str:
        """The name that the ERP knows an order by."""
        return f"{self.remote.system}:default:{number}"

    def effects(self, number: object) -> Counter[str]:
        """How often each kind of effect took place on an order."""
        return self.remote.effects(number)


class ShopDriver(Driver):
    """With CloudSuite's shop."""

    def __init__(self, shop: Shop, environment: dict[str, str], url: str) -> None:
        super().__init__(shop, environment, url)
        self.shop = shop

    def add(self, **overrides: Any) -> int:
        """One confirmed and paid order in the shop, of two lines, taken in by nobody yet."""
        lines = [_line("124_STUK", 2.0), _line("160_STUK", 3.0)]
        (number,) = self.shop.control.backend.add_orders([{"order_lines": lines, **overrides}])
        return int(number)

    def take_in(self, **overrides: Any) -> int:
        """The same, and polled."""
        number = self.add(**overrides)
        self.poll()
        return number

    def shipped(self, **overrides: Any) -> int:
        """A new order, from the poll to the end."""
        number = self.take_in(**overrides)
        self.go(ships=True)
        return number

    def effects(self, number: object) -> Counter[str]:
        """Writes that reached the shop, by their name alone: patch, put, desadv."""
        return Counter(effect.kinds[0] for effect in self.shop.control.backend.effects.of(number))


@contextmanager
def a_driver_for(system: str, url: str, options: dict[str, Any] | None = None, **environment: str) -> Iterator[Driver]:
    """A driver of any system; `options` are its imitation's knobs."""
    with a_remote(system, **(options or {})) as remote:
        driver = Driver(remote, environment, url)
        try:
            yield driver
        finally:
            driver.close()


def _line(product: str, quantity: float) -> dict[str, Any]:
    return {
        "product": {"key": product, "origin": "sandbox"},
        "description": product.lower(),
        "quantity": quantity,
        "unit_price": 4.95,
    }


def reference(number: object) -> str:
    """The name that the ERP knows an order by."""
    return f"cloudsuite:default:{number}"


@contextmanager
def a_driver(url: str, shop_options: dict[str, Any] | None = None, **environment: str) -> Iterator[ShopDriver]:
    """A driver on the ledger at `url`; `shop_options` are the imitation's knobs."""
    app = cloudsuite.create_app(cloudsuite.Options(**(shop_options or {})))
    with a_driver_of(app, url, **environment) as driver:
        yield driver


@contextmanager
def a_driver_of(app: Flask, url: str, **environment: str) -> Iterator[ShopDriver]:
    """The same with a shop that the test has made."""
    server = base.serve(app)
    driver = ShopDriver(Shop(server, app), environment, url)
    try:
        yield driver
    finally:
        driver.close()
        server.stop()


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A new SQLite ledger: for the many tests to which the kind of database makes no difference."""
    path = tmp_path / "ledger.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def driver(sqlite_url: str) -> Iterator[ShopDriver]:
    with a_driver(sqlite_url) as driver:
        yield driver


@pytest.fixture
def driver_with(sqlite_url: str) -> Iterator[Callable[..., ShopDriver]]:
    """`driver_with(CLOUDSUITE_DELIVERY="desadv")`; `shop_options` are the imitation's knobs. One a test."""
    opened: list[Any] = []

    def open_driver(shop_options: dict[str, Any] | None = None, **environment: str) -> ShopDriver:
        opened.append(a_driver(sqlite_url, shop_options, **environment))
        driver: ShopDriver = opened[-1].__enter__()
        return driver

    yield open_driver
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def driver_on_both(ledger_url: str) -> Iterator[ShopDriver]:
    """On SQLite, then on PostgreSQL."""
    with a_driver(ledger_url) as driver:
        yield driver


# === A made-up system: its steps are written by the test ====================================================


class Acme(Look):
    """A system of the accounts north and south whose steps tests write; orders are named by their external id."""

    def __init__(self, url: str) -> None:
        ledger = Ledger(url)
        super().__init__(ledger)
        erp = open_erp(url)
        erp.prepare()
        accounts = {("acme", name): Account("acme", name, name, poll_seconds=60.0) for name in ("north", "south")}
        lanes = (("acme", "acme:north"), ("acme", "acme:south"), ("acme", "erp"))
        self.fleet = Fleet(ledger, erp, accounts, {"acme": System("acme")}, lanes=lanes)
        self._steps: list[str] = []

    def close(self) -> None:
        for name in self._steps:
            del STEPS[name]
        self.fleet.erp.close()
        self.ledger.close()

    def step(self, name: str, function: StepFunction) -> None:
        """Register a step for this test."""
        step(name)(function)
        self._steps.append(name)

    def take_in(self, *external_ids: object, account: str = "north", plan: tuple[Planned, ...]) -> list[int]:
        """New orders; their ids."""
        rows = [Arrival(account, str(name), f"row:{name}", "row", "{}", plan) for name in external_ids]
        return list(intake.take_in(self.ledger, "acme", rows).new)

    def worker(self, name: str = "w1", *, window: int = 16) -> Worker:
        return Worker(self.fleet, name, window=window)

    def claim(self, order: int, worker: str = "w1") -> Claim:
        """Hold an order at its current step, as a worker does."""
        sending.take_ready_orders(self.ledger, [order])
        row = queries.find_order(self.ledger, str(order))[0]
        claim = records.claim(self.ledger, order, row["position"], row["step"], worker)
        assert claim is not None
        return claim


@pytest.fixture
def acme(sqlite_url: str) -> Iterator[Acme]:
    made = Acme(sqlite_url)
    yield made
    made.close()


@pytest.fixture
def acme_on_both(ledger_url: str) -> Iterator[Acme]:
    made = Acme(ledger_url)
    yield made
    made.close()


@pytest.fixture
def acme_on_postgresql(postgresql_server: URL, migrated_postgresql: str) -> Iterator[Acme]:
    with services.fresh_postgresql(postgresql_server, migrated_postgresql) as url:
        made = Acme(url)
        yield made
        made.close()
