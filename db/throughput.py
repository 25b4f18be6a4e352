"""How fast a judge replies right now, beside the limit that its recipe sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import JudgeResponse

WINDOW = timedelta(seconds=60)
"""As long as the limits' own period: requests and tokens per minute."""
_NEWEST = 20_000
"""Replies looked at: more than an endpoint gives in a minute, however many are kept."""


@dataclass(frozen=True, slots=True)
class Judging:
    """Replies of the last minute. All runs that ask this model share it, as they share its limit."""

    model: str
    requests_per_minute: int
    tokens_per_minute: int
    """In and out."""
    request_limit: float | None
    token_limit: float | None
    """Per minute; None where the recipe sets none."""


def judging(session: Session, recipe: Mapping[str, Any], at: datetime) -> Judging | None:
    """The judge of a recipe that asks an endpoint; None for judges without one."""
    judge = recipe.get("evaluate", {}).get("judge") or {}
    model = judge.get("model")
    if not model:
        return None
    newest = select(func.max(JudgeResponse.id)).scalar_subquery()
    spent = func.coalesce(func.sum(JudgeResponse.tokens_in + JudgeResponse.tokens_out), 0)
    count, tokens = session.execute(
        select(func.count(), spent).where(
            JudgeResponse.id > newest - _NEWEST, JudgeResponse.model == model, JudgeResponse.created_at > at - WINDOW
        )
    ).one()
    return Judging(model, count, int(tokens), judge.get("requests_per_minute"), judge.get("tokens_per_minute"))
