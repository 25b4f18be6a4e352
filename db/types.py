"""Column types that hold the same values on SQLite and PostgreSQL.

Language models, diverging trainings and strangers' files produce what one of the two databases refuses: NUL characters,
lone surrogates, NaN, names longer than their column. Each type here settles once what is stored instead.
"""

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Float, String, Text
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.types import TypeDecorator, TypeEngine

from core.errors import RegistryError


class UTCDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC in Python on both databases (SQLite drops the zone). A naive datetime is a ValueError."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no timezone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def result_processor(self, dialect: Any, coltype: Any) -> Callable[[Any], datetime | None]:
        if dialect.name == "sqlite":  # stored as text without a zone; the standard parser is four times SQLAlchemy's
            return lambda value: None if value is None else datetime.fromisoformat(f"{value}+00:00")
        return lambda value: None if value is None else value.astimezone(UTC)


class FiniteFloat(TypeDecorator[float]):
    """A float where NaN and infinities are stored as NULL: SQLite turns NaN into NULL by itself, PostgreSQL keeps it."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Any) -> float | None:
        return value if value is not None and math.isfinite(value) else None


class ModelText(TypeDecorator[str]):
    """Text of any length, made `storable`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else storable(value)


class NameTooLong(RegistryError, DontWrapMixin):
    """A name or id is longer than its column; not wrapped by SQLAlchemy, so that the sentence reaches the user."""


class Name(TypeDecorator[str]):
    """A name or id made `storable`. Longer than its column it is refused: PostgreSQL would fail and SQLite not count."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Raises NameTooLong."""
        if value is None:
            return None
        text, most = storable(value), self.impl.length
        if len(text) > most:
            raise NameTooLong(
                f"A name or id that begins with {text[:40]!r} has {len(text)} characters and the registry holds {most}; "
                "shorten it where it comes from (the file, the recipe or the option), then run the same command again."
            )
        return text

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """What a name is compared with may be longer: it is not found."""
        return ModelText()


def storable(text: str) -> str:
    """`text` as both databases hold it: NUL (refused by PostgreSQL) and lone surrogates (refused by both) become U+FFFD."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


# NUL and surrogates as `json.dumps` writes them. A pair of surrogates is a good character: this finds what to look at.
_DOUBTFUL = re.compile(r"\\u(?:0000|d[89a-f])")


def to_json(value: Any) -> str:
    """JSON for a JSON column: NaN and infinities, which are not JSON, become null; keys and texts are made `storable`.

    PostgreSQL takes an escaped NUL into a `json` column and then fails on every query that looks inside. Raises TypeError
    for what JSON lacks.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_storable(value), allow_nan=False)
    return json.dumps(_storable(value), allow_nan=False) if _DOUBTFUL.search(text) else text


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(key) if isinstance(key, str) else key: _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value
