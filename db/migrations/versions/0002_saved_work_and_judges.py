"""Saved work and judges: replies kept by content, calibrations; flags, statistics and provenance of an evaluation."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "calibration",
        sa.Column("id", IDENTITY, nullable=False),
        sa.Column("judge_key", sa.String(length=64), nullable=False),
        sa.Column("judge_name", sa.String(length=200), nullable=False),
        sa.Column("judge_kind", sa.String(length=30), nullable=False),
        sa.Column("dataset", sa.String(length=100), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("n_failed", sa.Integer(), nullable=False),
        sa.Column("statistics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibration")),
        sa.UniqueConstraint("judge_key", "dataset", name=op.f("uq_calibration_judge_key_dataset")),
    )
    op.create_index(op.f("ix_calibration_judge_name"), "calibration", ["judge_name"])
    op.create_table(
        "judge_response",
        sa.Column("id", IDENTITY, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("served_model", sa.String(length=200), nullable=True),
        sa.Column("endpoint", sa.String(length=300), nullable=False),
        sa.Column("response", sa.JSON(), nullable=False),
        sa.Column("tokens_in", sa.Integer(), nullable=False),
        sa.Column("tokens_out", sa.Integer(), nullable=False),
        sa.Column("micro_dollars", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_response")),
        sa.UniqueConstraint("key", name=op.f("uq_judge_response_key")),
    )
    # Rows that exist need a value; new ones get theirs from the models.
    for column, empty in (("flags", "[]"), ("statistics", "{}"), ("provenance", "{}")):
        op.add_column("evaluation", sa.Column(column, sa.JSON(), nullable=False, server_default=empty))
    op.add_column("score", sa.Column("stderr", sa.Float(precision=53), nullable=True))
