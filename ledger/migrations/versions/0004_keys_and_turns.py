"""What would grow with the ledger: keys that are to be forgotten are found by their age, and who waits for a turn is
found among all that wait.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEYED = sa.text("request_key IS NOT NULL")
_AWAITS_TURN = sa.text("state = 'waiting' AND awaits = 'turn'")


def upgrade() -> None:
    op.create_index(
        "ix_inbound_requests_keys",
        "inbound_requests",
        ["system", "created_at"],
        unique=False,
        postgresql_where=_KEYED,
        sqlite_where=_KEYED,
    )
    op.create_index(
        "ix_orders_turn",
        "orders",
        ["system", "lane", "wake_at"],
        unique=False,
        postgresql_where=_AWAITS_TURN,
        sqlite_where=_AWAITS_TURN,
    )


def downgrade() -> None:
    op.drop_index("ix_orders_turn", "orders")
    op.drop_index("ix_inbound_requests_keys", "inbound_requests")
