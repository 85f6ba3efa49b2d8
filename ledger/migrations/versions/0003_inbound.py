"""Orders that are put in at our own door: requests, their images, tokens, and counters.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from databases.types import UTC, Id

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UNLINKED = sa.text("number IS NULL")


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=190), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "inbound_tokens",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=190), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", UTC(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbound_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_inbound_tokens_digest")),
    )
    op.create_index("ix_inbound_tokens_holder", "inbound_tokens", ["system", "holder", "id"], unique=False)
    op.create_table(
        "inbound_requests",
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("order_id", Id, nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("request_key", sa.String(length=255), nullable=True),
        sa.Column("same", sa.String(length=64), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("likeness", sa.String(length=64), nullable=False),
        sa.Column("place", sa.String(length=190), nullable=False),
        sa.Column("search", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created_at", UTC(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"], ["orders.id"], name=op.f("fk_inbound_requests_order_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("system", "number", name=op.f("pk_inbound_requests")),
        sa.UniqueConstraint("order_id", name=op.f("uq_inbound_requests_order_id")),
        sa.UniqueConstraint(
            "system", "sender", "request_key", name=op.f("uq_inbound_requests_system_sender_request_key")
        ),
    )
    op.create_index("ix_inbound_requests_sender", "inbound_requests", ["system", "sender", "number"], unique=False)
    op.create_index("ix_inbound_requests_same", "inbound_requests", ["system", "sender", "same"], unique=False)
    op.create_index("ix_inbound_requests_likeness", "inbound_requests", ["system", "sender", "likeness"], unique=False)
    op.create_table(
        "inbound_images",
        sa.Column("id", sa.String(length=24), nullable=False),
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("mimetype", sa.String(length=32), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("position", sa.SmallInteger(), nullable=True),
        sa.Column("created_at", UTC(), nullable=False),
        sa.ForeignKeyConstraint(
            ["system", "number"],
            ["inbound_requests.system", "inbound_requests.number"],
            name=op.f("fk_inbound_images_system_number"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbound_images")),
    )
    op.create_index("ix_inbound_images_number", "inbound_images", ["system", "number", "position"], unique=False)
    op.create_index(
        "ix_inbound_images_unlinked",
        "inbound_images",
        ["system", "created_at"],
        unique=False,
        postgresql_where=_UNLINKED,
        sqlite_where=_UNLINKED,
    )


def downgrade() -> None:
    op.drop_table("inbound_images")
    op.drop_table("inbound_requests")
    op.drop_table("inbound_tokens")
    op.drop_table("counters")
