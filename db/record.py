"""Idempotent writes: the same row written twice, or by two processes at once, is one row."""

from typing import Any, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Answer, AnswerSet, Base

Model = TypeVar("Model", bound=Base)


def upsert(session: Session, model: type[Model], key: dict[str, Any], values: dict[str, Any]) -> Model:
    """Insert the row that `key` identifies, or set `values` on the one that exists; returns it.

    `key` holds exactly the columns of a unique constraint. Columns in neither keep their value, or get their default
    in a new row.
    """
    changed = values or key  # an UPDATE of nothing would return no row
    statement = (
        _insert(session, model)
        .values(**key, **values)
        .on_conflict_do_update(index_elements=list(key), set_=changed)
        .returning(model)
        .execution_options(populate_existing=True)
    )
    return session.scalars(statement).one()


def add_to(session: Session, model: type[Base], key: dict[str, Any], amounts: dict[str, float]) -> None:
    """Add `amounts` to the columns of the row that `key` (a unique constraint) identifies; they are its values if it is new."""
    columns = {name: getattr(model, name) + amount for name, amount in amounts.items()}
    statement = _insert(session, model).values(**key, **amounts)
    session.connection().execute(statement.on_conflict_do_update(index_elements=list(key), set_=columns))


def insert_ignore(session: Session, model: type[Base], rows: list[dict[str, Any]], key: list[str]) -> int:
    """Insert `rows` except those whose `key` (the columns of a unique constraint) exists; returns how many were new.

    All rows give the same columns. A row that exists is left as it is.
    """
    if not rows:
        return 0
    statement = _insert(session, model).on_conflict_do_nothing(index_elements=key).execution_options(preserve_rowcount=True)
    return session.connection().execute(statement, rows).rowcount


def complete_answer_set(session: Session, answer_set_id: int) -> None:
    """Mark an answer set complete and keep the mean output tokens of its answers."""
    answered = select(func.avg(Answer.output_tokens)).where(Answer.answer_set_id == answer_set_id, Answer.output_tokens > 0)
    statement = update(AnswerSet).where(AnswerSet.id == answer_set_id)
    session.execute(
        statement.values(status="complete", mean_tokens=answered.scalar_subquery()),
        execution_options={"synchronize_session": "fetch"},
    )


def _insert(session: Session, model: type[Base]) -> Any:
    return {"sqlite": sqlite, "postgresql": postgresql}[session.get_bind().dialect.name].insert(model)
