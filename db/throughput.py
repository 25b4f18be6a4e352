"""How fast a judge replies right now and how fast a stage computed, each beside its limit."""

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


@dataclass(frozen=True, slots=True)
class Computing:
    """What a stage computed a second, by the metrics that `train.performance` gives."""

    tokens_per_second: float
    limit_share: float | None
    """Least time that the hardware needs for the work, over the time taken; None where its limit is not known."""
    limit: str | None
    """Whose limit, in words."""


def computing(metrics: Mapping[str, Any]) -> Computing | None:
    """The speed among a stage's metrics; None of a stage that computed nothing or does not measure it."""
    tokens = metrics.get("tokens_per_second")
    return None if tokens is None else Computing(tokens, metrics.get("limit_share"), metrics.get("limit"))


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
