"""Every query that the running fleet repeats, at a million orders on PostgreSQL: `python -m bench.ledger`.

Calls the fleet's own functions, round after round, and looks at the plans that PostgreSQL really ran (bench/plans.py).
Ends with 1 if one of them reads a big table from end to end, or more pages than the orders it is about explain.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.filling import BIG, SYSTEMS, fill
from bench.plans import Plan, Statements, Watch
from bench.servers import SERVER, fresh_database
from erp.port import Erp, Stage, open_erp
from ledger import intake, interrupts, queries, records, remotes, sending, signals, upkeep
from ledger.connection import Ledger
from ledger.queries import Filter
from ledger.records import Claim
from ledger.signals import Signal
from orders.arrival import Arrival
from orders.lanes import ERP
from orders.model import Order, external_reference
from orders.outcomes import Done, Planned
from orders.states import State

PAGE = 100
"""Orders of a poll's page, and of a read of the ERP's feed."""
WINDOW = 64
ROUNDS = 16
"""More than the 5 runs after which psycopg prepares a statement and the 5 more after which PostgreSQL may settle for
a plan without parameters."""
MOST_PAGES = 300
"""Pages of 8 KiB that one statement may read, and for every order that it is about again `MOST_PAGES_EACH`."""
MOST_PAGES_EACH = 100
SYSTEM, ACCOUNT = "cloudsuite", "default"
LANE = f"{SYSTEM}:{ACCOUNT}"
WORKER = "host:1:0a1b2c3d"
PLAN = (
    Planned("cloudsuite.fetch"),
    Planned("erp.order"),
    Planned("cloudsuite.state"),
    Planned("cloudsuite.number", awaits="numbered", recheck=60.0),
    Planned("cloudsuite.lines"),
    Planned("cloudsuite.shipment", awaits="shipped"),
)
_ORDER = Order(reference="R", currency="EUR", lines=())
_FOR_PEOPLE: dict[str, Filter] = {
    "the newest orders": Filter(limit=50, newest_first=True),
    "the newest of a system": Filter(system=SYSTEM, limit=50, newest_first=True),
    "what stopped": Filter(states=(State.PARKED, State.IN_DOUBT), limit=50, newest_first=True),
}


class Round:
    """Everything the fleet repeats, done once. `about`: how many orders the statements of a name are about."""

    def __init__(self, watch: Watch, ledger: Ledger, erp: Erp, number: int, orders: int) -> None:
        self._watch = watch
        self._ledger = ledger
        self._erp = erp
        self._number = number
        self._orders = orders
        self.about: dict[str, int] = {}

    def run(self) -> None:
        """One round."""
        new = self._intake()
        self._sweep()
        self._dispatch(new)
        self._steps(new)
        self._troubles(new)
        self._feed(new)
        self._people(new)

    def _do(self, name: str, call: Callable[..., Any], *args: Any, about: int = 1, **kwargs: Any) -> Any:
        self.about[name] = about
        return self._watch.run(name, call, self._ledger, *args, **kwargs)

    def _intake(self) -> list[int]:
        rows = [self._arrival(place) for place in range(PAGE)]
        self._do("take_in: known orders", intake.take_in, SYSTEM, [self._known(n) for n in range(1, 6)], about=5)
        new = list(self._do("take_in: a new page", intake.take_in, SYSTEM, rows, about=PAGE).new)
        self._do("take_in: the same page", intake.take_in, SYSTEM, rows, about=PAGE)
        self._do("keep_odd_event", intake.keep_odd_event, "erp", "default", self._key("odd"), "kind", "{}", "odd")
        self._do("move_cursor", signals.move_cursor, f"{SYSTEM}.poll", str(self._number))
        return new

    def _arrival(self, place: int) -> Arrival:
        key = self._key(str(place))
        return Arrival(ACCOUNT, key, f"row:{key}", "row", "{}", PLAN, f"R-{key}")

    def _known(self, place: int) -> Arrival:
        number = 5 * (place + 5 * self._number)  # every fifth order is CloudSuite's
        return Arrival(ACCOUNT, str(number), f"row:{number}", "row", self._key("news"), PLAN)

    def _key(self, name: str) -> str:
        return f"{self._number}-{name}"

    def _sweep(self) -> None:
        self._do("beat", upkeep.beat, WORKER)
        self._do("closed_gates", queries.closed_gates)
        self._do("held_by", queries.held_by, WORKER, about=len(SYSTEMS) * WINDOW)
        self._do("take_tick", upkeep.take_tick, "sweep", 0.0, WORKER)
        self._do("orphans", queries.orphans, about=len(SYSTEMS) * WINDOW)
        self._do("interrupted", queries.interrupted)
        due: dict[str, list[int]] = {}
        for lane in (LANE, ERP):
            due |= self._do("overdue", queries.overdue, SYSTEM, lane, about=WINDOW)
        for order in (due.get("waiting") or [])[:3]:
            self._do("recheck", upkeep.recheck, order)
        self._do("take_suspect", sending.take_suspect, SYSTEM, LANE)
        self._do("end_tick", upkeep.end_tick, "sweep", WORKER)
        self._do("database_now", queries.database_now)

    def _dispatch(self, new: Sequence[int]) -> None:
        self._do("in_flight", queries.in_flight, SYSTEM, about=WINDOW)
        due = self._do("take_ready", sending.take_ready, SYSTEM, LANE, WINDOW, about=WINDOW)
        ids = [one.order_id for one in due]
        self._do("resend", sending.resend, ids, lost=False, about=WINDOW)
        self._do("not_sent", sending.not_sent, ids, about=WINDOW)
        self._do("take_ready_orders", sending.take_ready_orders, new[:20], about=20)

    def _claim(self, order: int, position: int) -> Claim:
        claim: Claim | None = self._do("claim", records.claim, order, position, PLAN[position].name, WORKER)
        assert claim is not None
        self._do("position_of", queries.position_of, order)
        return claim

    def _steps(self, new: Sequence[int]) -> None:
        """One order from its first to its last step, and another that is sent round the broker in between."""
        learnt = Done(raw="{}", document=_ORDER.to_json(), reference="R", facts={"a": 1}, signals=("seen",))
        for then, order in zip((State.RUNNING, State.QUEUED, State.READY), new, strict=False):
            claim = self._claim(order, 0)
            moved = self._do("done: learnt", records.done, claim, learnt, then)
            self._do("document", queries.document, order)
            claim = moved.next or self._claim(order, 1)
            moved = self._do("done: free", records.done, claim, Done(), then)
            claim = moved.next or self._claim(order, 2)
            self._do("done: gated", records.done, claim, Done(), then)
            self._do("signal", signals.signal, [Signal(order, "numbered", "erp:1")], ("erp.events", "{}"))
            moved = self._do("done: free", records.done, self._claim(order, 3), Done(), then)
            claim = moved.next or self._claim(order, 4)
            self._do("done: gated", records.done, claim, Done(), then)
            signals.signal(self._ledger, [Signal(order, "shipped", "erp:2")])
            self._do("has_tried", queries.has_tried, order, "erp.order")
            self._do("signals_of", queries.signals_of, order, "shipped")
            self._do("done: last", records.done, self._claim(order, 5), Done(), then)

    def _troubles(self, new: Sequence[int]) -> None:
        self._do("retry", records.retry, self._claim(new[3], 0), "an error", 9.0, 500)
        self._do("postpone", records.postpone, self._claim(new[4], 0), "an error", 9.0, 503)
        self._do("park", records.park, self._claim(new[5], 0), "a reason", 400, recheck=9.0)
        self._do("wait_again", records.wait_again, self._claim(new[6], 0), "shipped", "a part", {"part": 1}, more=False)
        self._do("end", records.end, self._claim(new[7], 0), "gone", State.CANCELLED, (Planned("erp.cancel"),))
        claim = self._claim(new[8], 0)
        self._do("interrupt", interrupts.interrupt, new[8], "cancelled", (), State.CANCELLED)
        self._do("let_go", records.let_go, new[8], claim.fence)
        self._do("apply_interrupt", interrupts.apply_interrupt, new[8])
        claim = self._claim(new[9], 0)
        self._do("take_over", upkeep.take_over, new[9], claim.fence, park_at=3, reason="gone")
        self._do("stop_for_a_person", interrupts.stop_for_a_person, new[10], "erp:3", "refused")
        self._do("close_gate", remotes.close_gate, LANE, 0.0, "down")
        self._do("open_gate", remotes.open_gate, LANE)
        self._do("take_call", remotes.take_call, LANE, 0.001, 5.0)

    def _feed(self, new: Sequence[int]) -> None:
        names = [self._key(str(place)) for place in range(PAGE)]
        self._do("cursor", queries.cursor, "erp.events")
        known = self._do("order_ids", queries.order_ids, SYSTEM, ACCOUNT, names, about=PAGE)
        told = [Signal(order, "numbered", f"erp:{order}", {}, {"n": 1}) for order in known.values()]
        self._do("signal: a page", signals.signal, told, ("erp.events", "{}"), about=PAGE)
        for name in names[:3]:
            reference = external_reference(SYSTEM, ACCOUNT, name)
            self._ask("erp: put", self._erp.put, reference, _ORDER, stage=Stage.CONFIRMED)
            self._ask("erp: find", self._erp.find, reference)
            self._ask("erp: put again", self._erp.put, reference, _ORDER, stage=Stage.CONFIRMED)
            self._ask("erp: cancel", self._erp.cancel, reference)
        last = f'{{"high":{self._orders},"gaps":[[{self._orders - 20},{self._orders - 1},4000000000.0]]}}'
        self._ask("erp: events", self._erp.events, last, PAGE, about=PAGE)

    def _ask(self, name: str, call: Callable[..., Any], *args: Any, about: int = 1, **kwargs: Any) -> None:
        self.about[name] = about
        self._watch.run(name, call, *args, **kwargs)

    def _people(self, new: Sequence[int]) -> None:
        """What metrics and the console ask again and again, and what a person asks for one order."""
        backlog = self._orders // 25
        self._do("metrics: unfinished_counts", queries.unfinished_counts, about=backlog)
        self._do("metrics: oldest_waiting", queries.oldest_waiting, about=backlog)
        newest = self._do("metrics: newest_id", queries.newest_id)
        self._do("metrics: known_between", queries.known_between, newest - PAGE, newest, about=PAGE)
        self._do("console: how_many", queries.how_many, (State.PARKED, State.IN_DOUBT), about=backlog)
        self._do("console: live_workers", queries.live_workers)
        self._do("console: odd_events", queries.odd_events, 50, about=50)
        for name, chosen in _FOR_PEOPLE.items():
            self._do(f"console: {name}", queries.listing, chosen, about=50)
        order = new[20]
        self._do("one order: find_order", queries.find_order, f"{SYSTEM}:{self._key('20')}")
        self._do("one order: plan_of", queries.plan_of, order)
        self._do("one order: last_tries", queries.last_tries, order)
        self._do("one order: timeline", queries.timeline, order)


# -- what is shown ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table. `problem`: why a statement must not run like this."""

    name: str
    statements: int
    milliseconds: float
    pages: int
    scans: tuple[str, ...]
    problem: str | None


def judge(name: str, seen: Statements, about: int) -> Verdict:
    """The worst of all runs counts; the time is the mean of the whole call, without the client's share."""
    plans = seen.plans
    worst = max((plan.buffers for plan in plans), default=0)
    return Verdict(
        name=name,
        statements=round(len(plans) / seen.runs),
        milliseconds=sum(plan.milliseconds for plan in plans) / seen.runs,
        pages=worst,
        scans=tuple(dict.fromkeys(scan for plan in plans for scan in plan.scans)),
        problem=next(filter(None, map(partial(_problem, about=about), plans)), None),
    )


def _problem(plan: Plan, about: int) -> str | None:
    whole = plan.sequential & set(BIG)
    if whole:
        return f"reads all of {', '.join(sorted(whole))}: {plan.statement}"
    most = MOST_PAGES + MOST_PAGES_EACH * about
    return f"reads {plan.buffers} pages, not at most {most}: {plan.statement}" if plan.buffers > most else None


def table(verdicts: Sequence[Verdict], orders: int) -> Table:
    """All verdicts, the bad ones in red."""
    shown = Table(title=f"{orders:,} orders")
    for heading in ("what", "statements", "ms", "most pages", "reads"):
        shown.add_column(heading, justify="right" if heading in ("statements", "ms", "most pages") else "left")
    for one in verdicts:
        scans = "\n".join(one.scans) or "-"
        figures = (str(one.statements), f"{one.milliseconds:.2f}", str(one.pages))
        shown.add_row(one.name, *figures, scans, style="red" if one.problem else None)
    return shown


def measure(orders: int, rounds: int, postgresql: str, console: Console) -> list[Verdict]:
    """Fill a database that is gone afterwards, and run all rounds in it."""
    with (
        tempfile.TemporaryDirectory(prefix="orderfleet-bench-") as folder,
        fresh_database("postgresql", Path(folder), postgresql) as url,
    ):
        began = time.monotonic()
        filler, filling_erp = Ledger(url), open_erp(url)
        fill(filler, filling_erp, orders)
        filler.close()
        filling_erp.close()
        console.print(f"{orders:,} orders in {time.monotonic() - began:.0f} s", highlight=False)
        return _measure(url, orders, rounds)


def _measure(url: str, orders: int, rounds: int) -> list[Verdict]:
    watch = Watch()
    ledger, erp = Ledger(url), open_erp(url)
    try:
        about: dict[str, int] = {}
        for number in range(1, rounds + 1):
            one = Round(watch, ledger, erp, number, orders)
            one.run()
            about |= one.about
    finally:
        watch.close()
        ledger.close()
        erp.close()
    return [judge(name, seen, about[name]) for name, seen in watch.seen.items()]


def main(words: Sequence[str] | None = None) -> int:
    """The command line; 1 when a statement reads more than it should."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__.partition("\n")[0])
    parser.add_argument("--orders", type=int, default=1_000_000, help="orders in the ledger (1000000)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often everything is done ({ROUNDS})")
    parser.add_argument("--postgresql", default=SERVER, help="a server in which databases may be made")
    asked = parser.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 150)
    verdicts = measure(asked.orders, asked.rounds, asked.postgresql, console)
    console.print(table(verdicts, asked.orders))
    problems = [f"{one.name} {one.problem}" for one in verdicts if one.problem]
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
