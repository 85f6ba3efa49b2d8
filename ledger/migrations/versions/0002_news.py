"""Events that say something new of a known order, until a worker has read the order again.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from databases.types import UTC

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNREAD = sa.text("news_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("events", sa.Column("news_at", UTC(), nullable=True))
    op.create_index(
        "ix_events_news",
        "events",
        ["system", "account", "news_at"],
        unique=False,
        postgresql_where=_UNREAD,
        sqlite_where=_UNREAD,
    )


def downgrade() -> None:
    op.drop_index("ix_events_news", table_name="events", postgresql_where=_UNREAD, sqlite_where=_UNREAD)
    op.drop_column("events", "news_at")
