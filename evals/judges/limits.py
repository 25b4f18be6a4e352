"""What may be sent when: requests and tokens per minute, and a ceiling on money. One event loop, no threads.

A bucket fills continuously and holds ten seconds' worth, so that no minute, wherever it begins, sees more than
7/6 of the limit; a request larger than the bucket waits for a full one and leaves it in debt.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from core.errors import JudgeError

_BURST = 1 / 6
"""Share of a minute's amount that may go at once."""

CHARACTERS_PER_TOKEN = 3.0
"""Below the 4 that OpenAI gives for English (help.openai.com, "What are tokens"): an estimate should err upwards."""
_MESSAGE_TOKENS = 4
"""Tokens that a chat format adds to each message (OpenAI cookbook, "How to count tokens with tiktoken": 3 or 4)."""


class BudgetReached(JudgeError):
    """The next request could cost more than is left; what was bought is kept."""


def estimated_tokens(messages: Sequence[Mapping[str, str]], characters_per_token: float = CHARACTERS_PER_TOKEN) -> int:
    """Tokens of a conversation, from its characters: so many ASCII ones to a token, others one each."""
    total = 0.0
    for message in messages:
        text = message["content"]
        ascii_characters = len(text.encode("ascii", "ignore"))
        total += _MESSAGE_TOKENS + ascii_characters / characters_per_token + (len(text) - ascii_characters)
    return int(total) + 1


def output_limit(parameters: Mapping[str, Any]) -> int:
    """The most tokens that a reply may have under these sampling parameters."""
    return int(parameters.get("max_tokens") or parameters.get("max_completion_tokens") or 0)


class Bucket:
    """A token bucket; `clock` in seconds."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self.rate = per_minute / 60
        self.capacity = max(1.0, per_minute * _BURST)
        self.level, self.clock, self.then = self.capacity, clock, clock()

    def wait(self, amount: float) -> float:
        """Seconds until `amount` (or a full bucket, if that is less) is there."""
        now = self.clock()
        self.level = min(self.capacity, self.level + (now - self.then) * self.rate)
        self.then = now
        return max(0.0, (min(amount, self.capacity) - self.level) / self.rate)

    def take(self, amount: float) -> None:
        """Remove `amount`; a negative one gives back what an estimate took too much."""
        self.level = min(self.capacity, self.level - amount)


class RateLimit:
    """Requests and tokens per minute of one endpoint; None is no limit. Waiters go in the order in which they came."""

    def __init__(
        self,
        requests: float | None = None,
        tokens: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self.requests = Bucket(requests, clock) if requests else None
        self.tokens = Bucket(tokens, clock) if tokens else None
        self.sleep, self.turn = sleep, asyncio.Lock()

    async def acquire(self, tokens: int) -> None:
        """Wait until one request of `tokens` (prompt and reply, estimated) may go."""
        parts = [(bucket, amount) for bucket, amount in ((self.requests, 1), (self.tokens, tokens)) if bucket is not None]
        async with self.turn:
            while (wait := max((bucket.wait(amount) for bucket, amount in parts), default=0.0)) > 0:
                await self.sleep(wait)
            for bucket, amount in parts:
                bucket.take(amount)

    def correct(self, estimated: int, used: int) -> None:
        """Replace an estimate by the tokens that the reply's usage names."""
        if self.tokens is not None:
            self.tokens.take(used - estimated)


class Budget:
    """At most `limit` micro-dollars (None: no ceiling), of which `spent` are gone.

    The worst case of a request is set aside before it is sent and replaced by its cost afterwards: the sum of what was
    spent and what could still be charged never passes the limit, as far as prompt estimates are not exceeded (an
    estimate that was is remembered, and later ones are raised by as much).
    """

    def __init__(self, limit: int | None = None, spent: int = 0):
        self.limit, self.spent, self.reserved, self.closed = limit, spent, 0, False
        self._raise = 1.0
        # Futures, made where they are waited for: a judge outlives the event loop of each of its benchmarks.
        self._waiting: list[asyncio.Future] = []

    def prompt_tokens(self, estimated: int) -> int:
        """An estimate, raised by the largest error seen so far."""
        return int(estimated * self._raise) + 1

    def learn(self, estimated: int, used: int) -> None:
        """Remember how far a prompt's tokens went over their estimate."""
        self._raise = max(self._raise, used / max(estimated, 1))

    async def reserve(self, worst: int) -> None:
        """Set `worst` aside, waiting for requests in flight where that may help. Raises BudgetReached when it cannot."""
        while self.limit is not None and self.spent + self.reserved + worst > self.limit:
            # Only once nothing is in flight: stopping then loses no reply that is being paid for.
            if self.reserved == 0 or self.closed:
                self.refuse(worst)
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        if self.closed:
            self.refuse(worst)
        self.reserved += worst

    def refuse(self, worst: int) -> None:
        """Raise BudgetReached for a request of that worst case; every later reservation is refused too."""
        self.closed = True
        self._wake()
        raise BudgetReached(
            f"The judge's budget of {self.limit / 1e6:.2f} dollars leaves {max(0, self.limit - self.spent) / 1e6:.4f}, and the "
            f"next request could cost {worst / 1e6:.4f}; raise --max-usd (evaluate.judge.max_usd) and run the same command "
            "again: paid judgments are kept."
        )

    def settle(self, worst: int, cost: int) -> None:
        """Replace a reservation by what the request cost."""
        self.reserved -= worst
        self.spent += cost
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
