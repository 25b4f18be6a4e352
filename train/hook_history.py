"""What a training hook sees and says: the run's history in, a decision out. Both are plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

PROXY = "held_out_reward/proxy_reward"
"""Name of the proxy reward model's values on the held-out prompts among `Record.per_question`."""

Value = tuple[float | None, float | None, float | None, int]
"""(value, low, high, n); the value is None when it was withheld."""


@dataclass(frozen=True)
class Record:
    """What is known of one iteration once it was evaluated. Iteration 0 is the policy before the first one."""

    iteration: int
    checkpoint: str
    """Fingerprint of the policy's weights."""
    scores: Mapping[str, Value] = field(default_factory=dict)
    """metric name -> headline value and interval."""
    per_question: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """benchmark -> question id -> value; higher is better. `PROXY` holds the reward that training maximises."""
    preferences: Mapping[str, Any] = field(default_factory=dict)
    """Statistics of the preference pairs that this iteration trained on."""
    kl: float | None = None
    """Estimated KL to the first policy at the end of this iteration's training (nats an answer); 0 in iteration 0."""
    seconds: float = 0.0
    gpu_hours: float = 0.0
    dollars: float = 0.0
    """Spent in this iteration, its evaluation included."""


@dataclass(frozen=True)
class History:
    """All iterations so far, oldest first; the last one has just ended."""

    records: tuple[Record, ...]

    @property
    def newest(self) -> Record:
        return self.records[-1]


@dataclass(frozen=True)
class Decision:
    """What to do next. `checkpoint` is where to roll back to; `best` and `rule` say which iterate leads, and by what."""

    action: Literal["continue", "stop", "roll_back"]
    reason: str
    checkpoint: str | None = None
    best: str | None = None
    rule: str | None = None


class Hook(Protocol):
    def after_iteration(self, history: History) -> Decision: ...
