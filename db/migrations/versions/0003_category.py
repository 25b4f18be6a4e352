"""The category of the question beside each answer; unknown for answers stored before."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("answer", sa.Column("category", sa.String(length=100), nullable=True))
