"""The fleet itself as a contender: its own worker, ledger, broker messages, client and ERP adapter, unchanged.

Only the system is made up. CloudSuite's steps read before they write, which the comparators do not; "bench" makes the
calls of `Place.steps` and no others, one recorded step each. `python -m bench.fleet worker|producer`, in the
harness's environment; with `--documents` the first step also keeps the remote document and the canonical order, and
the order goes to the ERP from there, as all our systems do and none of the comparators.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from sqlalchemy import func, select

from bench.place import Place, produce_on_demand, say, this_place
from bench.processes import Child, RunFailed
from bench.sampling import Sampler
from bench.work import Step, body_of, document
from clients.base import Client, StaticToken
from erp.port import Erp, Stage, open_erp
from erp.sql_tables import erp_order
from ledger import intake, queries
from ledger.connection import Ledger
from ledger.migrate import migrate
from ledger.models import attempts
from orders.arrival import Arrival
from orders.model import Line, Order
from orders.outcomes import Done, Outcome, Planned
from orders.states import State
from tasks.base import STEPS, Account, Job, System, step
from tasks.bulkhead import Bulkhead
from tasks.dispatch import Dispatcher
from tasks.gates import Gates
from workers.bootstrap import build_fleet
from workers.celery import build_app, send_chain
from workers.settings import AccountSettings, Bind, Settings
from workers.systems.base import Wiring
from workers.worker import WINDOW_PER_THREAD, build_worker, run_worker

SYSTEM, ACCOUNT = "bench", "default"
PAGE = 100
"""Orders taken in at once, as a poll takes in a page."""

_LINES = tuple(
    Line(
        key=str(line["id"]),
        position=position,
        product=line["product"]["key"],
        product_origin=line["product"]["origin"],
        description=line["description"],
        quantity=Decimal(str(line["quantity"])),
        unit_price=Decimal(str(line["unit_price"])),
    )
    for position, line in enumerate(document(1)["order_lines"], start=1)
)
_ORDER = Order(reference=None, currency="EUR", lines=_LINES, total=Decimal("1127.875"))


def settings_of(place: Place, remotes: Mapping[str, str] | None = None) -> Settings:
    """The settings that an operator would have made for this place; `remotes`: addresses by system, if not "bench"."""
    nowhere = Bind("127.0.0.1", 0)
    accounts = [
        AccountSettings(system, ACCOUNT, url, poll_seconds=60.0, timeout=10.0, rate=None)
        for system, url in (remotes or {SYSTEM: place.remote}).items()
    ]
    return Settings(
        home=Path(place.folder),
        database_url=place.database,
        broker_url=place.broker,
        erp_url=place.database,
        erp_poll_seconds=15.0,
        webhooks=nowhere,
        console=nowhere,
        flower=nowhere,
        concurrency=place.threads,
        accounts=tuple(accounts),
    )


def _account(settings: AccountSettings, **common: Any) -> Account:
    auth = StaticToken("Authorization", "Bearer example")
    return Account(settings.system, settings.name, Client(settings.url, auth=auth, timeout=settings.timeout, **common))


def systems_of(settings: Settings) -> dict[str, Wiring]:
    """What `build_fleet` needs to know of them."""
    return {name: Wiring(System(name), 60.0, read=lambda reader: {}, build=_account) for name in settings.systems}


# -- the steps --------------------------------------------------------------------------------------------------------


def plan_of(steps: Sequence[Step], *, documents: bool = False, system: str = SYSTEM) -> tuple[Planned, ...]:
    """The plan of every order, whose steps are registered by `register_steps`."""
    return tuple(Planned(_name(one, documents, system)) for one in steps)


def _name(one: Step, documents: bool, system: str) -> str:
    if one.in_erp:
        return "erp.order" if documents else "erp.bench"
    return f"{system}.{one.name}"


def register_steps(steps: Sequence[Step], *, documents: bool = False, system: str = SYSTEM) -> None:
    """Make steps of ours of what is to be done."""
    for one in steps:
        name = _name(one, documents, system)
        if not one.in_erp:
            step(name)(_calls(one, keeps=documents and one is steps[0]))
        elif name not in STEPS:
            step(name)(_put)


def _calls(one: Step, *, keeps: bool) -> Any:
    def run(job: Job, account: Account) -> Outcome:
        number = int(job.external_id)
        answers = [_call(account.client, words, number) for words in one.calls]
        if not keeps:
            return Done()
        raw = json.dumps(answers[0], default=str, separators=(",", ":"))
        return Done(raw=raw, document=_order(answers[0]["reference"]).to_json(), reference=answers[0]["reference"])

    return run


def _call(client: Client, words: str, number: int) -> Any:
    method, _, field = words.partition(" ")
    return client.request(method, f"/api/order/{number}/", document=body_of(method, field, number))


def _put(job: Job, erp: Erp) -> Outcome:
    erp.put(job.erp_reference, _order(f"CS{job.external_id}"), stage=Stage.CONFIRMED)
    return Done()


def _order(reference: str) -> Order:
    return replace(_ORDER, reference=reference)


# -- the processes ----------------------------------------------------------------------------------------------------


def work_until_told(settings: Settings, samples: Path | None = None) -> None:
    """Be a worker of the fleet until SIGTERM; `samples`: where to write what `Sampler` saw of it."""
    worker_ready.connect(lambda **_: say("ready"), weak=False)
    if samples is not None:
        _sample(samples)
    run_worker(build_worker(settings, systems=systems_of(settings)), settings, log_level="WARNING")


def _sample(samples: Path) -> None:
    sampler = Sampler()
    worker_ready.connect(lambda **_: sampler.start(), weak=False)

    def write(**_: Any) -> None:
        sampler.stop()
        samples.write_text(json.dumps(list(sampler.seconds.items())))

    worker_shutting_down.connect(write, weak=False)


class Producer:
    """Takes orders in by the page and sends what there is room for, as polls and webhooks do."""

    def __init__(self, settings: Settings) -> None:
        fleet = build_fleet(settings, systems=systems_of(settings))
        app = build_app(settings.broker_url or "", settings.systems)
        self.ledger = fleet.ledger
        self._dispatcher = Dispatcher(
            fleet.ledger,
            Gates(fleet.ledger, Bulkhead(settings.concurrency)),
            fleet.lanes,
            lambda system, run: send_chain(app, system, run),
            window=settings.concurrency * WINDOW_PER_THREAD,
        )

    def take_in(self, orders: range, plan: tuple[Planned, ...], system: str = SYSTEM) -> list[int]:
        """Make these orders known to the ledger, then to the broker; their ids in the ledger."""
        ids: list[int] = []
        for start in range(0, len(orders), PAGE):
            page = [_arrival(number, plan) for number in orders[start : start + PAGE]]
            new = intake.take_in(self.ledger, system, page).new
            self._dispatcher.send_now(system, new)
            ids += new
        return ids


def _arrival(number: int, plan: tuple[Planned, ...]) -> Arrival:
    reference = f"CS{number}"
    row = {"id": number, "reference": reference, "state": "confirmed", "currency": "EUR"}
    return Arrival(ACCOUNT, str(number), f"row:{number}", "row", json.dumps(row), plan, reference)


def make_tables(database: str) -> Ledger:
    """The ledger's and the ERP's tables in an empty database."""
    ledger, erp = Ledger(database), open_erp(database)
    migrate(ledger)
    erp.prepare()
    erp.close()
    return ledger


# -- the contender ----------------------------------------------------------------------------------------------------


class FleetContender:
    """See `Contender`."""

    databases: tuple[str, ...] = ("sqlite", "postgresql")

    def __init__(self, name: str, *, documents: bool = False, samples: Path | None = None) -> None:
        self.name = name
        self._words = [*(["--documents"] if documents else []), *(["--samples", str(samples)] if samples else [])]
        self._children: list[Child] = []
        self._ledger: Ledger | None = None

    def start(self, place: Place) -> Sequence[Child]:
        self._steps = place.steps
        self._ledger = make_tables(place.database)
        for role in ("worker", "producer"):
            child = Child(
                "bench.fleet",
                role,
                *self._words,
                environment=place.environment(),
                log=Path(place.folder) / f"{self.name}-{role}.log",
                producer=role == "producer",
            )
            self._children.append(child)
            child.wait_until_ready()
        return self._children

    def produce(self, orders: range) -> None:
        for child in self._children:
            child.check()
        self._children[-1].tell(f"produce {orders.start} {len(orders)}")

    def done_count(self) -> int:
        assert self._ledger is not None
        return queries.how_many(self._ledger, (State.DONE,))

    def check(self) -> None:
        done, tried = self.done_count(), self._count(attempts)
        if self._count(erp_order) != done:
            raise RunFailed(f"{self.name}: {self._count(erp_order)} rows in the ERP for {done} orders")
        if tried != done * len(self._steps):
            raise RunFailed(f"{self.name}: {tried} tries for {done} orders of {len(self._steps)} steps")

    def stop(self) -> None:
        for child in reversed(self._children):
            child.stop()
        if self._ledger is not None:
            self._ledger.close()

    def _count(self, table: Any) -> int:
        assert self._ledger is not None
        with self._ledger.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet")
    parser.add_argument("role", choices=("worker", "producer"))
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--samples", type=Path)
    asked = parser.parse_args()
    place = this_place()
    settings = settings_of(place)
    register_steps(place.steps, documents=asked.documents)
    if asked.role == "worker":
        work_until_told(settings, asked.samples)
    else:
        producer, plan = Producer(settings), plan_of(place.steps, documents=asked.documents)

        def produce(orders: range) -> None:
            producer.take_in(orders, plan)

        produce_on_demand(produce)


if __name__ == "__main__":
    main()
