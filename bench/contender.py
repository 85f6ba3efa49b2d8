"""What the harness asks of a contender, and the comparators in these terms. The fleet's own is one more of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bench.place import Place
from bench.processes import Child, RunFailed
from bench.store import Tally


class Contender(Protocol):
    """Something that takes orders through the work of `Place.steps`.

    A run is: `start`, any number of `produce`, `stop`; the harness makes a fresh contender for each. Orders are told
    by ascending ids, none twice. The remote answers for every id."""

    name: str
    databases: tuple[str, ...]
    """Of "sqlite" and "postgresql", where it can keep its record."""

    def start(self, place: Place) -> Sequence[Child]:
        """Its processes, all of them ready for work. Raises `RunFailed`."""

    def produce(self, orders: range) -> None:
        """Make these orders known, as if a poll had found them; does not wait for their end. Raises `RunFailed`."""

    def done_count(self) -> int:
        """Orders that have come to their end since `start`, by the contender's own record. Cheap: asked often."""

    def check(self) -> None:
        """Raises `RunFailed` if what is recorded or in the ERP's staging table is not what `done_count` orders leave:
        one row in the ERP, and one record a step where a record is kept."""

    def stop(self) -> None:
        """End every process; nothing is left running, whatever happened before."""


class Comparator:
    """A contender of `bench/comparators/`: a module that is a worker, and a producer if it needs one of its own."""

    def __init__(
        self,
        name: str,
        module: str,
        *,
        databases: tuple[str, ...] = ("sqlite", "postgresql"),
        own_producer: bool = True,
        records: bool = True,
    ) -> None:
        self.name = name
        self.databases = databases
        self._module = f"bench.comparators.{module}"
        self._roles = ("worker", "producer") if own_producer else ("worker",)
        self._records = records
        self._children: list[Child] = []

    def start(self, place: Place) -> Sequence[Child]:
        self._steps = place.steps
        self._tally = Tally(place.database, len(place.steps) - 1)
        for role in self._roles:
            child = Child(
                self._module,
                role,
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
        if self._records:
            return self._tally.finished()
        word, _, count = self._children[-1].last_line.partition(" ")
        return int(count) if word == "done" else 0

    def check(self) -> None:
        done, erp_orders, recorded = self.done_count(), self._tally.erp_orders(), self._tally.recorded()
        if erp_orders != done:
            raise RunFailed(f"{self.name}: {erp_orders} rows in the ERP for {done} orders")
        if recorded != (done * len(self._steps) if self._records else 0):
            raise RunFailed(f"{self.name}: {recorded} recorded steps for {done} orders")

    def stop(self) -> None:
        for child in reversed(self._children):
            child.stop()
        if self._children:
            self._tally.close()


COMPARATORS: dict[str, Callable[[], Contender]] = {
    "chain": lambda: Comparator("chain", "celery_chain"),
    "procrastinate": lambda: Comparator("procrastinate", "procrastinate_job", databases=("postgresql",)),
    "threads": lambda: Comparator("threads", "threads", own_producer=False, records=False),
}
