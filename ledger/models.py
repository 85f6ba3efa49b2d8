"""Tables and constraints. Unique constraints carry the promises: nothing here is looked up first and inserted then."""

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from databases.types import UTC, Id
from orders.states import State

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_IN_FLIGHT = text("state IN ('queued', 'running')")
_AWAKE = text("wake_at IS NOT NULL")

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
    UniqueConstraint("system", "account", "external_id"),
    Index("ix_orders_lane_wake_at", "system", "lane", "wake_at", postgresql_where=_AWAKE, sqlite_where=_AWAKE),
    Index("ix_orders_in_flight", "system", postgresql_where=_IN_FLIGHT, sqlite_where=_IN_FLIGHT),
    Index(
        "ix_orders_interrupt",
        "id",
        postgresql_where=text("interrupt IS NOT NULL"),
        sqlite_where=text("interrupt IS NOT NULL"),
    ),
    Index("ix_orders_state_id", "state", "id"),
    Index("ix_orders_external_id", "external_id"),
    Index("ix_orders_reference", "reference"),
    Index("ix_orders_created_at", "created_at"),
)

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
    UniqueConstraint("system", "account", "dedupe_key", "body_hash"),
    Index("ix_events_external_id", "system", "account", "external_id"),
    Index(
        "ix_events_problem",
        "id",
        postgresql_where=text("problem IS NOT NULL"),
        sqlite_where=text("problem IS NOT NULL"),
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
