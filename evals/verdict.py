"""One attempt at one judgment. Apart from the registry, so that scoring saved work needs no database."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """One attempt at one judgment, ready to be stored."""

    question_id: str
    value: float | None
    """On the benchmark's own scale, higher is better for the policy; None when the attempt failed."""
    turn: int = 1
    sample: int = 0
    game: int = 1
    error: str | None = None
    """Why `value` is None."""
    raw: dict[str, Any] | None = None
    """What the judge said, from which `value` can be derived again."""
    tokens_in: int = 0
    tokens_out: int = 0
    micro_dollars: int = 0
    shown: list[dict[str, Any]] | None = None
    """The messages that the judge was shown: an endpoint's prompt, or the conversation that a reward model compared with."""

    @property
    def key(self) -> tuple[str, int, int, int]:
        return self.question_id, self.turn, self.sample, self.game
