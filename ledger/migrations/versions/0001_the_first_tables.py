"""The first tables.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from databases.types import UTC, Id

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("at", UTC(), nullable=False),
        sa.Column("who", sa.String(length=190), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("order_id", Id, nullable=True),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_order_id", "audit", ["order_id"], unique=False)

    op.create_table(
        "cursors",
        sa.Column("name", sa.String(length=190), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("updated_at", UTC(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cursors")),
    )
    op.create_table(
        "events",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("dedupe_key", sa.String(length=190), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("external_id", sa.String(length=190), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("received_at", UTC(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint(
            "system", "account", "dedupe_key", "body_hash", name=op.f("uq_events_system_account_dedupe_key_body_hash")
        ),
    )
    op.create_index("ix_events_external_id", "events", ["system", "account", "external_id"], unique=False)
    op.create_index(
        "ix_events_problem",
        "events",
        ["id"],
        unique=False,
        postgresql_where=sa.text("problem IS NOT NULL"),
        sqlite_where=sa.text("problem IS NOT NULL"),
    )

    op.create_table(
        "gates",
        sa.Column("lane", sa.String(length=128), nullable=False),
        sa.Column("closed_until", UTC(), nullable=True),
        sa.Column("closures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("since", UTC(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("next_call_at", UTC(), nullable=True),
        sa.PrimaryKeyConstraint("lane", name=op.f("pk_gates")),
    )
    op.create_table(
        "orders",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("external_id", sa.String(length=190), nullable=False),
        sa.Column("reference", sa.String(length=190), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("step", sa.String(length=64), nullable=True),
        sa.Column("lane", sa.String(length=128), nullable=False),
        sa.Column("awaits", sa.String(length=32), nullable=True),
        sa.Column("signalled", sa.Text(), server_default="", nullable=False),
        sa.Column("signal_seq", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("wake_at", UTC(), nullable=True),
        sa.Column("worker", sa.String(length=96), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claimed_at", UTC(), nullable=True),
        sa.Column("ending", sa.String(length=16), server_default="done", nullable=False),
        sa.Column("interrupt", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("facts", sa.Text(), server_default="{}", nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", UTC(), nullable=False),
        sa.Column("updated_at", UTC(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orders")),
        sa.UniqueConstraint("system", "external_id", "account", name=op.f("uq_orders_system_external_id_account")),
    )
    op.create_index(
        "ix_orders_due",
        "orders",
        ["system", "lane", "wake_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'retrying')"),
        sqlite_where=sa.text("state IN ('ready', 'retrying')"),
    )
    op.create_index(
        "ix_orders_in_flight",
        "orders",
        ["system"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running')"),
        sqlite_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_orders_interrupt",
        "orders",
        ["id"],
        unique=False,
        postgresql_where=sa.text("interrupt IS NOT NULL"),
        sqlite_where=sa.text("interrupt IS NOT NULL"),
    )
    op.create_index(
        "ix_orders_overdue",
        "orders",
        ["system", "lane", "wake_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'waiting', 'parked') AND wake_at IS NOT NULL"),
        sqlite_where=sa.text("state IN ('queued', 'waiting', 'parked') AND wake_at IS NOT NULL"),
    )
    op.create_index("ix_orders_state_id", "orders", ["state", "id"], unique=False)
    op.create_index(
        "ix_orders_suspect",
        "orders",
        ["system", "lane"],
        unique=False,
        postgresql_where=sa.text("crashes >= 2"),
        sqlite_where=sa.text("crashes >= 2"),
    )

    op.create_table(
        "ticks",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("next_at", UTC(), nullable=False),
        sa.Column("holder", sa.String(length=96), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ticks")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("started_at", UTC(), nullable=False),
        sa.Column("seen_at", UTC(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "attempts",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("order_id", Id, nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("step", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("worker", sa.String(length=96), nullable=True),
        sa.Column("started_at", UTC(), nullable=True),
        sa.Column("finished_at", UTC(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_attempts_order_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
    )
    op.create_index("ix_attempts_order_id_id", "attempts", ["order_id", "id"], unique=False)

    op.create_table(
        "documents",
        sa.Column("order_id", Id, nullable=False),
        sa.Column("raw", sa.Text(), nullable=True),
        sa.Column("document", sa.Text(), nullable=True),
        sa.Column("updated_at", UTC(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_documents_order_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_documents")),
    )
    op.create_table(
        "signals",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("order_id", Id, nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=190), nullable=False),
        sa.Column("data", sa.Text(), server_default="{}", nullable=False),
        sa.Column("received_at", UTC(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_signals_order_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signals")),
        sa.UniqueConstraint("order_id", "name", "source", name=op.f("uq_signals_order_id_name_source")),
    )
    op.create_table(
        "steps",
        sa.Column("order_id", Id, nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("awaits", sa.String(length=32), nullable=True),
        sa.Column("recheck", sa.Integer(), nullable=True),
        sa.Column("data", sa.Text(), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_steps_order_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("order_id", "position", name=op.f("pk_steps")),
    )


def downgrade() -> None:
    op.drop_table("steps")
    op.drop_table("signals")
    op.drop_table("documents")
    op.drop_table("attempts")
    op.drop_table("workers")
    op.drop_table("ticks")
    op.drop_table("orders")
    op.drop_table("gates")
    op.drop_table("events")
    op.drop_table("cursors")
    op.drop_table("audit")
