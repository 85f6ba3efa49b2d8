"""What PostgreSQL does for each statement that a piece of our own code sends: the plans it really ran, by auto_explain.

An EXPLAIN of our own would have fresh statistics and known parameters for every run; a worker's statements are
prepared, and after some runs PostgreSQL may settle for a plan that knows none of the parameters.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import Engine, event

_SETUP = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_analyze = on;
SET auto_explain.log_buffers = on;
SET auto_explain.log_timing = off;
SET auto_explain.log_format = json;
SET auto_explain.log_level = notice;
SET client_min_messages = notice
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One statement as it ran. `scans`: how each table was read, e.g. "Index Scan ix_orders_reference"; `sequential`:
    the tables of which everything was read; `buffers`: pages of 8 KiB, cached or not."""

    statement: str
    milliseconds: float
    buffers: int
    scans: tuple[str, ...]
    sequential: frozenset[str]


@dataclass(slots=True)
class Statements:
    """All the plans of one piece of code, over all its runs."""

    plans: list[Plan] = field(default_factory=list)
    runs: int = 0


class Watch:
    """Collects plans while it is told whose they are. Watches every connection opened after it was made, in this
    process; they need a superuser, who alone may load auto_explain."""

    def __init__(self) -> None:
        self.seen: dict[str, Statements] = {}
        self._current: Statements | None = None
        event.listen(Engine, "connect", self._connected)

    def close(self) -> None:
        """Watch no further connections."""
        event.remove(Engine, "connect", self._connected)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What runs inside belongs to `name`."""
        self._current = self.seen.setdefault(name, Statements())
        self._current.runs += 1
        try:
            yield
        finally:
            self._current = None

    def run(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`call(...)`, whose statements belong to `name`."""
        with self.of(name):
            return call(*args, **kwargs)

    def _connected(self, connection: Any, record: Any) -> None:
        connection.add_notice_handler(self._noticed)
        with connection.cursor() as cursor:
            cursor.execute(_SETUP)
        connection.commit()

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        head, found, text = (notice.message_primary or "").partition("plan:\n")
        if self._current is not None and found:
            self._current.plans.append(_plan(json.loads(text), float(head.split()[1])))


def _plan(explained: dict[str, Any], milliseconds: float) -> Plan:
    top = explained["Plan"]
    nodes = list(_nodes(top))
    scans = [_scan(node) for node in nodes if "Scan" in node["Node Type"] and node["Node Type"] != "CTE Scan"]
    return Plan(
        statement=" ".join(explained["Query Text"].split()),
        milliseconds=milliseconds,
        buffers=top["Shared Hit Blocks"] + top["Shared Read Blocks"],
        scans=tuple(dict.fromkeys(filter(None, scans))),
        sequential=frozenset(node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"),
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", []):
        yield from _nodes(inner)


def _scan(node: dict[str, Any]) -> str:
    place = node.get("Index Name") or node.get("Relation Name")
    return f"{node['Node Type']} {place}" if place else ""
