"""How orders look on a terminal, and as JSON. Texts come from strangers: they are shown as text, never as markup."""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orders.outcomes import alternatives
from orders.states import FINISHED, NEEDS_A_PERSON, State
from tasks.base import Effect
from workers.doctor import Check, Level
from workers.operators import Foreseen, Row, full_name

WIDE = 100
PIPED_WIDTH = 220
"""Columns when nobody looks: wide enough that no line is folded in a place where `grep` would miss it."""

_STATE_STYLES: dict[str, str] = {
    **dict.fromkeys(NEEDS_A_PERSON, "bold red"),
    **dict.fromkeys(FINISHED, "dim"),
    State.DONE: "green",
    State.RETRYING: "yellow",
    State.WAITING: "cyan",
}
_OUTCOME_STYLES: dict[str, str] = {
    "done": "green",
    "skipped": "green",
    "partly": "green",
    "retry": "yellow",
    "unavailable": "yellow",
    "lost": "yellow",
    "replanned": "yellow",
    **dict.fromkeys(NEEDS_A_PERSON, "bold red"),
}
_OF_NO_INTEREST = ("replayed", "acknowledged")
"""Facts that steer a step, and that the timeline tells better."""
_EFFECTS = {
    Effect.CALL: ("would call", "yellow"),
    Effect.SKIP: ("already there: skipped", "green"),
    Effect.IRREVERSIBLE: ("cannot be taken back", "bold red"),
}
_LEVELS = {Level.OK: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.RED: ("red", "bold red")}


def terminal(*, errors: bool = False) -> Console:
    """Where tables go (or, with `errors`, what is no result)."""
    width = None if (sys.stderr if errors else sys.stdout).isatty() else PIPED_WIDTH
    return Console(stderr=errors, width=width, highlight=False, markup=False, emoji=False)


def as_json(value: Any) -> str:
    """`value` as JSON text; times as ISO 8601 with their zone."""
    return json.dumps(value, default=_plain, ensure_ascii=False, indent=2)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def safe(text: object, style: str = "") -> Text:
    """A text on one line; what could steer a terminal is shown as a replacement character."""
    joined = " ".join(str(text).split())
    return Text("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in joined), style=style)


def orders_in_words(number: int) -> str:
    """`1 order`, `2 orders`."""
    return f"{number} order{'' if number == 1 else 's'}"


def minute(at: datetime) -> str:
    """A time in UTC, to the minute."""
    return f"{at:%Y-%m-%d %H:%M}Z"


def age(at: datetime, now: datetime) -> str:
    """How long ago, or how soon, in one unit."""
    seconds = (now - at).total_seconds()
    size, unit = next(
        ((size, unit) for size, unit in ((86400, "d"), (3600, "h"), (60, "m")) if abs(seconds) >= size), (1, "s")
    )
    text = f"{abs(seconds) / size:.0f}{unit}"
    return f"in {text}" if seconds < 0 else f"{text} ago"


def order_table(orders: Iterable[Row], now: datetime, width: int) -> Table:
    """One line an order; the reference only where there is room."""
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", justify="right", no_wrap=True)
    table.add_column("ORDER", overflow="fold")
    if wide:
        table.add_column("REFERENCE", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    table.add_column("STEP", overflow="fold")
    table.add_column("CHANGED", no_wrap=True)
    table.add_column("WHY", overflow="fold", ratio=1 if not wide else None)
    for order in orders:
        reference = [safe(order["reference"] or "")] if wide else []
        table.add_row(
            str(order["id"]),
            safe(full_name(order)),
            *reference,
            _state(order),
            safe(order["step"] or ""),
            age(order["updated_at"], now),
            safe(_why(order)),
        )
    return table


def _state(order: Row) -> Text:
    return Text(order["state"], style=_STATE_STYLES.get(order["state"], ""))


def _why(order: Row) -> str:
    if order["state"] == State.WAITING and not order["error"]:
        return f"waits for {_either(order['awaits'])}"
    return order["error"] or ""


def _either(awaits: str | None) -> str:
    return " or ".join(alternatives(awaits or ""))


def order_page(order: Row, plan: Iterable[Row], timeline: Iterable[Row], now: datetime) -> RenderableType:
    """Everything about one order: where it stands, its plan, and what happened to it."""
    return Group(_head(order, now), Text(), _plan(order, plan), Text(), _timeline(timeline, now))


def _head(order: Row, now: datetime) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    lines: list[tuple[str, Text]] = [
        (f"order {order['id']}", safe(full_name(order))),
        ("state", Text.assemble(_state(order), f", {_when(order, now)}")),
    ]
    if order["reference"]:
        lines.append(("reference", safe(order["reference"])))
    if _why(order):
        lines.append(("why", safe(_why(order), _STATE_STYLES.get(order["state"], ""))))
    known = {name: value for name, value in order["facts"].items() if name not in _OF_NO_INTEREST}
    lines += [(name.replace("_", " "), safe(_short(value))) for name, value in known.items()]
    for name, text in lines:
        table.add_row(name, text)
    return table


def _when(order: Row, now: datetime) -> str:
    since = f"since {minute(order['updated_at'])} ({age(order['updated_at'], now)})"
    if order["wake_at"] is None or order["wake_at"] <= now:
        return since
    return f"{since}, looked at again {age(order['wake_at'], now)}"


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "; ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plan(order: Row, plan: Iterable[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("PLAN", overflow="fold")
    table.add_column("", overflow="fold")
    for step in plan:
        here = step["position"] == order["position"] and order["state"] not in FINISHED
        mark = "▸" if here else "✓" if step["position"] < order["position"] else "·"
        awaits = f"needs {_either(step['awaits'])}" if step["awaits"] else ""
        table.add_row(safe(f"{mark} {step['name']}", "bold" if here else ""), Text(awaits, "dim"))
    return table


def _timeline(timeline: Iterable[Row], now: datetime) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("TIME (UTC)", no_wrap=True)
    table.add_column("AGE", no_wrap=True)
    table.add_column("WHAT", overflow="fold")
    table.add_column("DETAIL", overflow="fold")
    for entry in timeline:
        table.add_row(f"{entry['at']:%m-%d %H:%M:%S}", age(entry["at"], now), _what(entry), safe(_detail(entry)))
    return table


def _what(entry: Row) -> Text:
    if entry["kind"] != "attempt":
        return safe(f"{entry['kind']} {entry['what']}", "cyan" if entry["kind"] == "signal" else "dim")
    outcome = entry["outcome"]
    return Text.assemble(safe(entry["what"]), " ", Text(outcome, _OUTCOME_STYLES.get(outcome, "")))


def _detail(entry: Row) -> str:
    if entry["kind"] == "audit":
        return f"{entry['who']}: {entry['detail']}"
    if entry["kind"] == "signal":
        return f"{entry['data']} from {entry['source']}"
    if entry["kind"] == "event":
        return str(entry["detail"])
    status = f"HTTP {entry['status']}: " if entry["status"] else ""
    number = f" (try {entry['number']})" if entry["number"] > 1 else ""
    return f"{status}{entry['detail'] or ''}{number}".strip()


def preview_table(foreseen: Iterable[Foreseen]) -> Table:
    """What a replay would do: per order a heading, and a line a step."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in foreseen:
        refusal = safe(one.refusal or "", "bold red")
        label = "not replayed:" if one.refusal is not None else f"{one.order['state']}"
        table.add_row(safe(f"{one.order['id']} {full_name(one.order)}", "bold"), Text(label), refusal)
        for name, preview in one.steps:
            words, style = _EFFECTS[preview.effect]
            table.add_row(Text.assemble("  ", safe(name)), Text(words, style), safe(preview.text))
    return table


def preview_json(one: Foreseen, plan: str, result: str | None) -> Mapping[str, Any]:
    """The same for one order as JSON types; `plan` is the version of the whole preview."""
    return {
        **one.order,
        "plan": plan,
        "from": one.steps[0][0] if one.steps else None,
        "steps": [{"step": name, "effect": preview.effect, "text": preview.text} for name, preview in one.steps],
        "must_acknowledge": one.must_acknowledge,
        "refusal": one.refusal,
        "result": result,
    }


def check_table(checks: Iterable[Check]) -> Table:
    """One line a check, and what to do below it when it is not good."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        words, style = _LEVELS[check.level]
        advice = f" → {check.advice}" if check.advice else ""
        table.add_row(Text(words, style), safe(check.name), safe(f"{check.text}{advice}"))
    return table
