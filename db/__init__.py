"""The registry: every run, checkpoint, answer, judgment, score and cost. SQLite by default, PostgreSQL by URL."""

from db import models
from db.record import add_to, complete_answer_set, insert_ignore, upsert
from db.registry import Registry

__all__ = ["Registry", "add_to", "complete_answer_set", "insert_ignore", "models", "upsert"]
