"""What `orderfleet up` shows: a page that renews itself on a terminal, lines everywhere else."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from ledger import queries
from ledger.connection import Ledger
from orders.states import IN_FLIGHT, NEEDS_A_PERSON, State
from workers.pace import Paced
from workers.show import safe
from workers.supervisor import Status
from workers.tally import FINISHED, Backlog, Tally

LOOK_EVERY = 1.0
LINE_EVERY = 5.0
ALL_EVERY = 60.0
"""Seconds after which lines are said again that have not changed."""
RATE_SECONDS = 10.0
"""How far back the rate of finished orders looks."""
STOPPED_SHOWN = 5

COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ready", (State.READY,)),
    ("in flight", IN_FLIGHT),
    ("retrying", (State.RETRYING,)),
    ("waiting", (State.WAITING,)),
    ("stopped", NEEDS_A_PERSON),
    ("finished", (FINISHED,)),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the ledger said last. `stopped`: rows of `queries.stopped`; `problem`: why it could not be read."""

    backlog: Backlog = field(default_factory=Backlog)
    per_second: float = 0.0
    stopped: tuple[dict[str, Any], ...] = ()
    gates: tuple[queries.Gate, ...] = ()
    workers: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What stays the same: a title, addresses by the child's name, and how to call `orderfleet` in another terminal."""

    title: str
    addresses: Mapping[str, str]
    command: str


class Watch:
    """Looks into the ledger from a thread of its own, so that a slow database does not keep anybody waiting."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._backlog = Paced(Tally(ledger, clock=clock).read, clock=clock)
        self._stopped = Paced(lambda: tuple(queries.stopped(ledger, STOPPED_SHOWN)), clock=clock)
        self._finished: deque[tuple[float, int]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.latest = Snapshot()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Not waited for long: it only reads."""
        self._stop.set()
        self._thread.join(timeout=1)

    def look(self) -> Snapshot:
        """What there is to see now."""
        try:
            backlog = self._backlog.value()
            return Snapshot(
                backlog=backlog,
                per_second=self._rate(backlog),
                stopped=self._stopped.value(),
                gates=tuple(queries.closed_gates(self._ledger).values()),
                workers=len(queries.live_workers(self._ledger)),
            )
        except SQLAlchemyError as error:
            return Snapshot(problem=f"the ledger cannot be read: {str(error.__cause__ or error).splitlines()[0]}")

    def _rate(self, backlog: Backlog) -> float:
        now = self._clock()
        self._finished.append((now, backlog.number(None, FINISHED)))
        while len(self._finished) > 2 and self._finished[1][0] <= now - RATE_SECONDS:
            self._finished.popleft()
        (began, before), (ended, after) = self._finished[0], self._finished[-1]
        return max(0.0, (after - before) / (ended - began)) if ended > began else 0.0

    def _run(self) -> None:
        while not self._stop.is_set():
            self.latest = self.look()
            self._stop.wait(LOOK_EVERY)


class View(Protocol):
    """Shows what happens."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """A sentence that stays to be read."""

    def show(self, snapshot: Snapshot, children: Sequence[Status]) -> None:
        """How things stand; may be called as often as one likes."""


def open_view(scene: Scene, console: Console) -> View:
    """The page on a terminal, else lines."""
    return Page(scene, console) if console.is_terminal and not console.is_dumb_terminal else Lines(scene, console)


class Page:
    """A page at the bottom of the terminal; what is said scrolls above it."""

    def __init__(self, scene: Scene, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._scene = scene
        self._console = console
        self._clock = clock
        self._began = clock()
        self._shown_at = float("-inf")
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(_stamped(text))

    def show(self, snapshot: Snapshot, children: Sequence[Status]) -> None:
        if self._clock() < self._shown_at + LOOK_EVERY / 2:
            return
        self._shown_at = self._clock()
        self._live.update(page(self._scene, snapshot, children, self._shown_at - self._began), refresh=True)


class Lines:
    """Every few seconds a line for each system whose orders moved, and one at once for every order that stops."""

    def __init__(self, scene: Scene, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._scene = scene
        self._console = console
        self._clock = clock
        self._shown_at = self._all_at = clock()
        self._said: set[str] = set()
        self._told: set[tuple[int, str]] = set()

    def __enter__(self) -> Self:
        for name, address in self._scene.addresses.items():
            self.say(f"{name}: {address}")
        self.say(f"what stopped, and why: {self._scene.command} failed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def say(self, text: str) -> None:
        self._console.print(_stamped(text), soft_wrap=True)

    def show(self, snapshot: Snapshot, children: Sequence[Status]) -> None:
        for row in reversed(snapshot.stopped):
            if (row["id"], row["error"]) not in self._told:  # some are looked at again, and stop again
                self._told.add((row["id"], row["error"]))
                self.say(f"{stopped_line(row)}; then: {self._scene.command} replay {order_name(row)}")
        if self._clock() >= self._shown_at + LINE_EVERY:
            self._shown_at = self._clock()
            self._say_what_changed(standing(snapshot))

    def _say_what_changed(self, lines: list[str]) -> None:
        if self._shown_at >= self._all_at + ALL_EVERY:
            self._all_at = self._shown_at
            self._said = set()
        for line in lines:
            if line not in self._said:
                self.say(line)
        self._said = set(lines)


def _stamped(text: str) -> Text:
    return Text.assemble(f"{time.strftime('%H:%M:%S')} ", safe(text))


# -- words ------------------------------------------------------------------------------------------------------------


def order_name(row: dict[str, Any]) -> str:
    """An order as an operator would type it."""
    account = "" if row["account"] == "default" else f"{row['account']}:"
    return f"{row['system']}:{account}{row['external_id']}"


def stopped_line(row: dict[str, Any]) -> str:
    """Which order stopped, where, and why."""
    return f"{order_name(row)} stopped at {row['step']}: {row['error']}"


def standing(snapshot: Snapshot) -> list[str]:
    """How things stand: a line for each system, and one for the fleet."""
    if snapshot.problem is not None:
        return [snapshot.problem]
    counts = [
        f"{system}: "
        + ", ".join(
            f"{number} {name}" for name, states in COLUMNS if (number := snapshot.backlog.number(system, *states))
        )
        for system in snapshot.backlog.systems
    ]
    return [*(counts or ["no orders yet"]), "; ".join(_conditions(snapshot))]


def _conditions(snapshot: Snapshot) -> list[str]:
    told = [f"{snapshot.per_second:.1f} finished a second"]
    if snapshot.backlog.oldest_seconds >= 1:
        told.append(f"oldest waits {duration(snapshot.backlog.oldest_seconds)}")
    told.append(f"{snapshot.workers} worker{'' if snapshot.workers == 1 else 's'} alive")
    told += [f"{gate.lane} is in trouble: {gate.reason}" for gate in snapshot.gates]
    return told


def duration(seconds: float) -> str:
    """A length of time for people: `7 s`, `3 min`, `5 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# -- the page ---------------------------------------------------------------------------------------------------------


def page(scene: Scene, snapshot: Snapshot, children: Sequence[Status], seconds: float) -> RenderableType:
    """The whole page; `seconds` since the start."""
    parts: list[RenderableType] = [
        Text(""),
        Text(f"{scene.title}, up for {duration(seconds)}. Ctrl-C stops it.", style="bold"),
    ]
    if snapshot.problem is not None:
        parts.append(_line(snapshot.problem, "bold red"))
    else:
        parts.append(_counts(snapshot.backlog))
        parts += [_line(told, "yellow" if "trouble" in told else "") for told in _conditions(snapshot)]
    if snapshot.stopped:
        parts.append(Text("\nStopped last, waiting for a person:", style="bold"))
        parts += [_line(stopped_line(row), "red") for row in snapshot.stopped]
    parts.append(_children(scene, children))
    parts.append(Text("\nIn another terminal:", style="bold"))
    parts += [Text(command, overflow="fold") for command in hints(scene, snapshot)]  # whole: it will be copied
    return Group(*parts)


def hints(scene: Scene, snapshot: Snapshot) -> list[str]:
    """What to type next: with the order that stopped last, if there is one."""
    if not snapshot.stopped:
        return [f"{scene.command} orders"]
    name = order_name(snapshot.stopped[0])
    return [f"{scene.command} failed", f"{scene.command} show {name}", f"{scene.command} replay {name}"]


def _line(text: str, style: str = "") -> Text:
    line = safe(text, style)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _counts(backlog: Backlog) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("system")
    for name, _ in COLUMNS:
        table.add_column(name, justify="right")
    for system in backlog.systems:
        numbers = [backlog.number(system, *states) for _, states in COLUMNS]
        table.add_row(system, *(Text(str(number), style="" if number else "dim") for number in numbers))
    if not backlog.systems:
        table.add_row(Text("none yet", style="dim"))
    return table


def _children(scene: Scene, children: Sequence[Status]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("\nprocess", "\npid", "\nrestarts", "\naddress"):
        table.add_column(name)
    for child in children:
        state = str(child.pid) if child.pid is not None else f"again in {child.again_in or 0:.0f} s"
        style = "red" if child.pid is None else "yellow" if child.restarts else ""
        table.add_row(child.name, state, str(child.restarts), scene.addresses.get(child.name, ""), style=style)
    return table
