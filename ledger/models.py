"""Tables and constraints. Unique constraints carry the promises: nothing here is looked up first and inserted then."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

from databases.types import UTC, Id
from orders.states import IN_FLIGHT, State

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

DUE = (State.READY, State.RETRYING)
"""Dispatch sends them as soon as `wake_at` has come."""
OVERDUE = (State.QUEUED, State.WAITING, State.PARKED)
"""The sweep moves them once `wake_at` has come."""
SUSPECT = 2
"""Workers lost on the same step after which the order is suspected to be what kills them."""


def _words(states: Sequence[State]) -> str:
    return ", ".join(f"'{state.value}'" for state in states)


_IN_FLIGHT = text(f"state IN ({_words(IN_FLIGHT)})")
_DUE = text(f"state IN ({_words(DUE)})")
_OVERDUE = text(f"state IN ({_words(OVERDUE)}) AND wake_at IS NOT NULL")
AWAITS_TURN = text("state = 'waiting' AND awaits = 'turn'")
"""Orders that wait for the turn (`intents`), written out like `in_state`."""
_SUSPECT = text(f"crashes >= {SUSPECT}")

orders = Table(
    "orders",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("system", String(32), nullable=False),
    Column("account", String(64), nullable=False),
    Column("external_id", String(190), nullable=False),
    Column("reference", String(190)),
    Column("state", String(16), nullable=False),
    # The current step: its place in the plan, its name, whom it talks to, and the signal it needs.
    Column("position", SmallInteger, nullable=False),
    Column("step", String(64)),
    Column("lane", String(128), nullable=False),
    Column("awaits", String(32)),
    # Names of the signals that have come, each followed by "|"; `signal_seq` counts them, so that none is missed.
    Column("signalled", Text, nullable=False, server_default=""),
    Column("signal_seq", Integer, nullable=False, server_default="0"),
    # Of the current step: tries begun, tries that count against it, and workers that died on it.
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    # When the sweep looks at this order next; NULL means only a signal or a person moves it.
    Column("wake_at", UTC),
    # The claim: who holds it since when; each claim has a number of its own, which fences older holders off.
    Column("worker", String(96)),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("claimed_at", UTC),
    Column("ending", String(16), nullable=False, server_default=State.DONE.value),
    Column("interrupt", Text),
    Column("error", Text),
    Column("facts", Text, nullable=False, server_default="{}"),
    Column("version", Integer, nullable=False, server_default="0"),
    Column("created_at", UTC, nullable=False),
    Column("updated_at", UTC, nullable=False),
    # The account comes last, so that people may leave it out.
    UniqueConstraint("system", "external_id", "account"),
    # Every change of an order writes its new version into each index that holds it: the fewer, the better. One index
    # for both of these would have the sweep, every second, walk past all that waits for room in the window.
    Index("ix_orders_due", "system", "lane", "wake_at", postgresql_where=_DUE, sqlite_where=_DUE),
    Index("ix_orders_overdue", "system", "lane", "wake_at", postgresql_where=_OVERDUE, sqlite_where=_OVERDUE),
    Index("ix_orders_suspect", "system", "lane", postgresql_where=_SUSPECT, sqlite_where=_SUSPECT),
    # The one of overdue orders holds all that waits for something else, too, and who is next is asked at every turn.
    Index("ix_orders_turn", "system", "lane", "wake_at", postgresql_where=AWAITS_TURN, sqlite_where=AWAITS_TURN),
    Index("ix_orders_in_flight", "system", postgresql_where=_IN_FLIGHT, sqlite_where=_IN_FLIGHT),
    Index(
        "ix_orders_interrupt",
        "id",
        postgresql_where=text("interrupt IS NOT NULL"),
        sqlite_where=text("interrupt IS NOT NULL"),
    ),
    Index("ix_orders_state_id", "state", "id"),
)


def in_state(states: Sequence[State], table: Any = orders) -> ColumnElement[bool]:
    """Orders in one of these states, which are written into the statement: a database uses a partial index only where
    it can tell from the statement alone, without its parameters, that the index holds all that is wanted."""
    found: ColumnElement[bool] = table.c.state.in_([literal_column(f"'{state.value}'") for state in states])
    return found


def is_suspect(table: Any = orders) -> ColumnElement[bool]:
    """Orders that `SUSPECT` workers died on; written out like `in_state`."""
    found: ColumnElement[bool] = table.c.crashes >= literal_column(str(SUSPECT), Integer)
    return found


steps = Table(
    "steps",
    metadata,
    Column("order_id", Id, ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True),
    Column("position", SmallInteger, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("awaits", String(32)),
    Column("recheck", Integer),
    Column("data", Text, nullable=False, server_default="{}"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("order_id", Id, ForeignKey("orders.id", ondelete="CASCADE"), nullable=False),
    Column("position", SmallInteger, nullable=False),
    Column("step", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("detail", Text),
    Column("status", SmallInteger),
    Column("worker", String(96)),
    Column("started_at", UTC),
    Column("finished_at", UTC, nullable=False),
    Index("ix_attempts_order_id_id", "order_id", "id"),
)

documents = Table(
    "documents",
    metadata,
    Column("order_id", Id, ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True),
    Column("raw", Text),
    Column("document", Text),
    Column("updated_at", UTC, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("system", String(32), nullable=False),
    Column("account", String(64), nullable=False),
    Column("dedupe_key", String(190), nullable=False),
    # Part of the key: the same dedupe key with another body is a second event, kept and shown as a conflict.
    Column("body_hash", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("external_id", String(190)),
    Column("body", Text, nullable=False),
    Column("problem", Text),
    Column("received_at", UTC, nullable=False),
    # News of a known order: when a worker is to read that order again; NULL: nothing to do, or done.
    Column("news_at", UTC),
    UniqueConstraint("system", "account", "dedupe_key", "body_hash"),
    Index("ix_events_external_id", "system", "account", "external_id"),
    Index(
        "ix_events_problem",
        "id",
        postgresql_where=text("problem IS NOT NULL"),
        sqlite_where=text("problem IS NOT NULL"),
    ),
    Index(
        "ix_events_news",
        "system",
        "account",
        "news_at",
        postgresql_where=text("news_at IS NOT NULL"),
        sqlite_where=text("news_at IS NOT NULL"),
    ),
)

signals = Table(
    "signals",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("order_id", Id, ForeignKey("orders.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(32), nullable=False),
    # Unique per order: the same fact told twice is one signal (an ERP event's id, an operator's request).
    Column("source", String(190), nullable=False),
    Column("data", Text, nullable=False, server_default="{}"),
    Column("received_at", UTC, nullable=False),
    UniqueConstraint("order_id", "name", "source"),
)

cursors = Table(
    "cursors",
    metadata,
    Column("name", String(190), primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_at", UTC, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("at", UTC, nullable=False),
    Column("who", String(190), nullable=False),
    Column("action", String(32), nullable=False),
    Column("order_id", Id),
    Column("detail", Text, nullable=False, server_default=""),
    Index("ix_audit_order_id", "order_id"),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(96), primary_key=True),
    Column("started_at", UTC, nullable=False),
    Column("seen_at", UTC, nullable=False),
)

ticks = Table(
    "ticks",
    metadata,
    Column("name", String(128), primary_key=True),
    # Whoever moves `next_at` on does the work of the tick; everybody else's message is a double.
    Column("next_at", UTC, nullable=False),
    Column("holder", String(96)),  # the worker at work on it; a dead worker's hold does not count
)

gates = Table(
    "gates",
    metadata,
    Column("lane", String(128), primary_key=True),
    # Closed until then; after that one order at a time goes through until one succeeds (`closures` back to 0).
    Column("closed_until", UTC),
    Column("closures", Integer, nullable=False, server_default="0"),
    Column("since", UTC),
    Column("reason", Text),
    # Rate limit: when the next call may leave.
    Column("next_call_at", UTC),
)

# -- orders that are put in at our own door ---------------------------------------------------------------------------

counters = Table(
    "counters",
    metadata,
    Column("name", String(190), primary_key=True),
    # The next number. Taken in the transaction that uses it: what is rolled back leaves no gap.
    Column("value", BigInteger, nullable=False),
)

inbound_tokens = Table(
    "inbound_tokens",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("system", String(32), nullable=False),
    Column("holder", String(190), nullable=False),
    # Never the token itself.
    Column("digest", String(64), nullable=False),
    Column("created_at", UTC, nullable=False),
    UniqueConstraint("digest"),
    Index("ix_inbound_tokens_holder", "system", "holder", "id"),
)

inbound_requests = Table(
    "inbound_requests",
    metadata,
    Column("system", String(32), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("order_id", Id, ForeignKey("orders.id", ondelete="CASCADE"), nullable=False),
    Column("sender", String(64), nullable=False),
    # Empty again after 30 days: the sender may then use it anew.
    Column("request_key", String(255)),
    # Digests of the request: of all of it, of what a blind retry has in common with it, of all but its images.
    Column("same", String(64), nullable=False),
    Column("content", String(64), nullable=False),
    Column("likeness", String(64), nullable=False),
    Column("place", String(190), nullable=False),
    Column("search", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("created_at", UTC, nullable=False),
    UniqueConstraint("order_id"),
    UniqueConstraint("system", "sender", "request_key"),
    Index("ix_inbound_requests_sender", "system", "sender", "number"),
    Index("ix_inbound_requests_same", "system", "sender", "same"),
    Index("ix_inbound_requests_likeness", "system", "sender", "likeness"),
    Index(
        "ix_inbound_requests_keys",
        "system",
        "created_at",
        postgresql_where=text("request_key IS NOT NULL"),
        sqlite_where=text("request_key IS NOT NULL"),
    ),
)

inbound_images = Table(
    "inbound_images",
    metadata,
    Column("id", String(24), primary_key=True),
    Column("system", String(32), nullable=False),
    Column("sender", String(64), nullable=False),
    Column("mimetype", String(32), nullable=False),
    Column("content", LargeBinary, nullable=False),
    # The one order that it belongs to, and its place among that order's images.
    Column("number", BigInteger),
    Column("position", SmallInteger),
    Column("created_at", UTC, nullable=False),
    ForeignKeyConstraint(
        ["system", "number"],
        ["inbound_requests.system", "inbound_requests.number"],
        ondelete="CASCADE",
        name="fk_inbound_images_system_number",
    ),
    Index("ix_inbound_images_number", "system", "number", "position"),
    Index(
        "ix_inbound_images_unlinked",
        "system",
        "created_at",
        postgresql_where=text("number IS NULL"),
        sqlite_where=text("number IS NULL"),
    ),
)
