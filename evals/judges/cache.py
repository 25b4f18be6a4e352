"""The ledger of a judge's replies: kept when they arrive, charged once, found again by what was asked.

Guarantee: a reply and what it cost (on its judgment, on its evaluation, on the run) are one transaction, so that a process
killed at any moment has neither lost a reply that was paid for nor charged one twice. Verdicts derive from kept replies.
What a useless reply cost is charged too, and kept nowhere else. Failed calls are never kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select

from core.fingerprint import digest
from db.models import Cost, Evaluation, JudgeResponse
from db.record import insert_ignore
from db.registry import Registry
from evals import records
from evals.judges.endpoint import Completion

Place = tuple[str, int, int, int]
"""(question id, turn, sample, game): the judgment that a reply is bought for."""


def request_key(
    endpoint: str, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any], sample: int
) -> str:
    """Identity (sha256, hex) of a request: who is asked, what, how, and for which of several samples.

    `model` is the fingerprint of a judge served from its weights. Earlier turns of a conversation are in `messages`.
    """
    asked = [dict(message) for message in messages]
    return digest({"endpoint": endpoint, "model": model, "messages": asked, "parameters": dict(parameters), "sample": sample})


@dataclass(frozen=True)
class Charge:
    """What one reply was charged."""

    tokens_in: int
    tokens_out: int
    micro_dollars: int


class Replies(Protocol):
    """Where replies are kept."""

    def find(self, key: str) -> dict[str, Any] | None:
        """The kept reply to that request (the body of a chat completion), or None."""

    def buy(self, place: Place, cost: Charge, key: str | None = None, completion: Completion | None = None) -> None:
        """Charge the judgment at `place`; keep the completion under `key` where there is one."""


class Unkept:
    """Keeps nothing: what was spent is then on the verdicts."""

    def find(self, key: str) -> dict[str, Any] | None:
        return None

    def buy(self, place: Place, cost: Charge, key: str | None = None, completion: Completion | None = None) -> None:
        return


class Ledger:
    """The replies of one evaluation in the registry, shared with every other one."""

    def __init__(self, registry: Registry, evaluation_id: int, model: str, endpoint: str, run: str):
        self.registry, self.evaluation_id, self.run = registry, evaluation_id, run
        self.model, self.endpoint = model, endpoint
        with registry.read() as session:
            self.evaluation_key = session.get_one(Evaluation, evaluation_id).key

    def find(self, key: str) -> dict[str, Any] | None:
        with self.registry.read() as session:
            return session.scalar(select(JudgeResponse.response).where(JudgeResponse.key == key))

    def buy(self, place: Place, cost: Charge, key: str | None = None, completion: Completion | None = None) -> None:
        spent = {"tokens_in": cost.tokens_in, "tokens_out": cost.tokens_out, "micro_dollars": cost.micro_dollars}
        with self.registry.write() as session:
            if completion is not None:
                row = {
                    "key": key,
                    "model": self.model,
                    "served_model": completion.served_model,
                    "endpoint": self.endpoint,
                    "response": completion.body,
                }
                insert_ignore(session, JudgeResponse, [row | spent], ["key"])
            records.charge_judgment(session, self.evaluation_id, place, spent)
            for scope, scope_key in (("evaluation", self.evaluation_key), ("run", run_key(self.run))):
                records.add_cost(session, scope, scope_key, cost.tokens_in + cost.tokens_out, cost.micro_dollars)


def run_key(run: str) -> str:
    """`cost.scope_key` of what a run bought: names may be longer than the column."""
    return digest({"run": run})


def spent_by_run(registry: Registry, run: str) -> int:
    """Micro-dollars that a run's judge stages have spent so far, all attempts together."""
    with registry.read() as session:
        query = select(Cost.micro_dollars).where(Cost.scope == "run", Cost.scope_key == run_key(run), Cost.kind == "judge_tokens")
        return session.scalar(query) or 0
