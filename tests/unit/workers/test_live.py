"""What `orderfleet up` shows: on a terminal and as lines."""

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from ledger import intake, upkeep
from ledger.connection import Ledger
from ledger.queries import Gate
from orders.arrival import Arrival
from orders.outcomes import Planned
from workers.live import (
    ALL_EVERY,
    LINE_EVERY,
    Lines,
    Page,
    Scene,
    Snapshot,
    Watch,
    duration,
    hints,
    open_view,
    page,
    standing,
)
from workers.supervisor import Status
from workers.tally import FINISHED, Backlog

PLAN = (Planned("acme.go"),)
SCENE = Scene("orderfleet", {"webhooks": "http://127.0.0.1:8000"}, "ORDERFLEET_HOME=here orderfleet")
CHILDREN = [Status("worker", 11, 2, None), Status("webhooks", None, 1, 4.0)]
BACKLOG = Backlog({("acme", "queued"): 2, ("acme", "running"): 3, ("acme", "parked"): 1, ("acme", FINISHED): 70}, 130)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def stopped(number: int, **other: Any) -> dict[str, Any]:
    row = {"id": number, "system": "acme", "account": "default", "external_id": str(number), "step": "acme.ship"}
    return {**row, "error": "[red]no\nway[/red] \x1b[2J", "version": 0, **other}


SNAPSHOT = Snapshot(
    backlog=BACKLOG,
    per_second=1.25,
    stopped=(stopped(9, account="north"), stopped(8)),
    gates=(Gate("acme:default", True, 1, datetime(2026, 1, 1, tzinfo=UTC), "503 from the shop"),),
    workers=1,
)


def console(width: int = 100, **options: Any) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, **options)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_page_says_how_things_stand():
    screen = console()
    screen.print(page(SCENE, SNAPSHOT, CHILDREN, 75))
    text = shown(screen)
    for expected in (
        "orderfleet, up for 75 s",
        "oldest waits 2 min",
        "acme:default is in trouble: 503 from the shop",
        "acme:north:9 stopped at acme.ship: [red]no way[/red] \N{REPLACEMENT CHARACTER}[2J",
        "ORDERFLEET_HOME=here orderfleet replay acme:north:9",
    ):
        assert expected in text
    rows = [line.split() for line in text.splitlines()]
    assert ["acme", "0", "5", "0", "0", "1", "70"] in rows
    assert ["worker", "11", "2"] in rows
    assert ["webhooks", "again", "in", "4", "s", "1", "http://127.0.0.1:8000"] in rows


def test_commands_are_shown_whole_on_a_narrow_terminal():
    screen = console(width=40)
    screen.print(page(SCENE, SNAPSHOT, [], 1))
    assert "ORDERFLEET_HOME=here orderfleet replay acme:north:9" in shown(screen).replace("\n", "")


def test_a_ledger_that_is_away_is_said():
    screen = console()
    screen.print(page(SCENE, Snapshot(problem="the ledger cannot be read: no route"), CHILDREN, 1))
    assert "the ledger cannot be read: no route" in shown(screen)
    assert standing(Snapshot(problem="away")) == ["away"]


def test_without_stopped_orders_nothing_is_to_be_replayed():
    assert hints(SCENE, Snapshot()) == ["ORDERFLEET_HOME=here orderfleet orders"]


def test_every_system_has_a_line_and_so_has_the_fleet():
    backlog = Backlog({**BACKLOG.orders, ("bmce", FINISHED): 3}, 130)
    assert standing(replace(SNAPSHOT, backlog=backlog)) == [
        "acme: 5 in flight, 1 stopped, 70 finished",
        "bmce: 3 finished",
        "1.2 finished a second; oldest waits 2 min; 1 worker alive; acme:default is in trouble: 503 from the shop",
    ]
    assert standing(Snapshot(workers=2)) == ["no orders yet", "0.0 finished a second; 2 workers alive"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (260_000, "3 d")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_come_every_few_seconds_and_for_each_stopped_order_once():
    now = [0.0]
    screen = console()
    with Lines(SCENE, screen, clock=lambda: now[0]) as view:
        for _ in range(3):
            view.show(SNAPSHOT, CHILDREN)
        before = shown(screen)
        now[0] = LINE_EVERY
        view.show(SNAPSHOT, CHILDREN)
        after = shown(screen)
        view.show(Snapshot(stopped=(stopped(9, account="north", version=1), stopped(8, error="it burns"))), CHILDREN)
    assert "webhooks: http://127.0.0.1:8000" in before
    assert before.index("acme:8 stopped") < before.index("acme:north:9 stopped")
    assert before.count("stopped at") == 2
    assert "70 finished" not in before
    assert after.count("70 finished") == 1
    assert after.count("stopped at") == 2
    assert shown(screen).count("acme:8 stopped at") == 2
    assert shown(screen).count("acme:north:9 stopped at") == 1


def test_only_what_changed_is_said_again_and_everything_once_a_minute():
    now = [0.0]
    screen = console()
    moved = replace(SNAPSHOT, backlog=Backlog({**BACKLOG.orders, ("bmce", FINISHED): 3}, 130))

    def counts() -> tuple[int, int, int]:
        now[0] += LINE_EVERY
        view.show(snapshot, CHILDREN)
        text = shown(screen)
        return text.count("acme: 5 in flight"), text.count("bmce: 3 finished"), text.count("1 worker alive")

    with Lines(SCENE, screen, clock=lambda: now[0]) as view:
        snapshot = SNAPSHOT
        assert [counts(), counts()] == [(1, 0, 1), (1, 0, 1)]
        snapshot = moved
        assert [counts(), counts()] == [(1, 1, 1), (1, 1, 1)]
        now[0] = ALL_EVERY
        assert counts() == (2, 2, 2)


def test_a_terminal_gets_the_page_and_anything_else_lines():
    assert isinstance(open_view(SCENE, console(force_terminal=True)), Page)
    assert isinstance(open_view(SCENE, console(force_terminal=False)), Lines)


def test_what_is_said_stays_above_the_page():
    screen = console(force_terminal=True, color_system=None)
    with open_view(SCENE, screen) as view:
        view.show(SNAPSHOT, CHILDREN)
        view.say("worker (pid 11) was killed")
    text = shown(screen)
    assert text.index("up for") < text.index("worker (pid 11) was killed")


def test_the_watch_sees_orders_and_workers_come(ledger):
    now = [0.0]
    watch = Watch(ledger, clock=lambda: now[0])
    assert watch.look() == Snapshot()
    arrivals = [Arrival("default", str(n), f"row:{n}", "row", "{}", PLAN, None) for n in "12"]
    intake.take_in(ledger, "acme", arrivals)
    upkeep.beat(ledger, "worker:1")
    now[0] = 1.0
    seen = watch.look()
    assert (seen.backlog.number("acme", "ready"), seen.workers, seen.problem) == (2, 1, None)


def test_the_rate_looks_back_ten_seconds(ledger):
    now = [0.0]
    watch = Watch(ledger, clock=lambda: now[0])
    rates = []
    for second in range(0, 31, 5):
        now[0] = float(second)
        arrivals = [Arrival("default", str(second), f"row:{second}", "row", "{}", PLAN, None)]
        intake.take_in(ledger, "acme", arrivals)
        with ledger.transaction() as connection:
            connection.exec_driver_sql("UPDATE orders SET state = 'done', wake_at = NULL")
        rates.append(watch.look().per_second)
    now[0] = 60.0
    assert rates[0] == 0.0
    assert rates[1:] == [pytest.approx(0.2)] * 6
    assert watch.look().per_second == 0.0


def test_a_ledger_without_tables_is_a_problem_in_words(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'empty.db'}")
    assert Watch(ledger).look().problem == "the ledger cannot be read: no such table: orders"
    ledger.close()
