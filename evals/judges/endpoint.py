"""OpenAI-compatible endpoints: one call with its retries, limits and errors, spread over replicas.

Errors are sorted: what may pass (rate limits, timeouts, 5xx, malformed replies) is tried again with jitter, never sooner
than the endpoint's Retry-After; what concerns one request (400, 422) is `GivenUp`; what concerns all of them (no key, no
such model, no credit, a parameter that the model refuses) is JudgeError. A replica that keeps failing rests while the
others go on.
"""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.errors import JudgeError
from evals.judges.limits import RateLimit, estimated_tokens, output_limit

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ATTEMPTS = 6
FIRST_WAIT = 1.0
"""Seconds before the second attempt; doubled each time, with jitter, up to LONGEST_WAIT."""
LONGEST_WAIT = 60.0
TIMEOUT = 180.0
"""Seconds for one call: a judgment of 4,096 tokens on a busy endpoint takes a minute or two."""
_FAILURES_BEFORE_REST = 3
"""In a row, of one replica among several."""

Billed = Callable[[int, int], Awaitable[None]]
"""Told (prompt tokens, completion tokens) of a reply that was charged for and is of no use."""


class GivenUp(Exception):
    """One request got no reply; `str` says why."""

    def __init__(self, text: str, refused: bool = False):
        super().__init__(text)
        self.refused = refused


@dataclass(frozen=True)
class Address:
    """Where requests go."""

    base_url: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Completion:
    """A chat completion as it came."""

    body: dict[str, Any]
    tokens_in: int
    tokens_out: int

    @property
    def served_model(self) -> str | None:
        """Name of the model that the endpoint says it answered with."""
        return self.body.get("model")


def read_completion(text: str | dict[str, Any]) -> Completion:
    """A chat completion from its JSON. Raises ValueError for what is none; `usage_of` may still know what it cost."""
    body = json.loads(text) if isinstance(text, str) else text
    choices = body.get("choices") if isinstance(body, dict) else None
    if not choices or not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        raise ValueError("the endpoint's reply holds no choices")
    return Completion(body, *usage_of(body))


def usage_of(body: Any) -> tuple[int, int]:
    """(prompt tokens, completion tokens) that a reply's usage names; (0, 0) without one."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


@dataclass
class _Replica:
    address: Address
    client: "AsyncOpenAI"
    limit: RateLimit
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0


def renamed(parameters: Mapping[str, Any], max_tokens_name: str) -> dict[str, Any]:
    """The parameters with the reply's limit under the name that the model takes (`max_completion_tokens`, else as it is)."""
    named = dict(parameters)
    if max_tokens_name == "max_completion_tokens" and "max_tokens" in named:
        named["max_completion_tokens"] = named.pop("max_tokens")
    return named


class Endpoints:
    """Replicas that serve one model; an async context manager.

    `max_tokens_name`: `max_tokens`, `max_completion_tokens`, or `auto`, which begins with the first and turns to the second
    for good when a model refuses it.
    """

    def __init__(
        self,
        model: str,
        addresses: Sequence[Address],
        attempts: int = ATTEMPTS,
        first_wait: float = FIRST_WAIT,
        timeout: float = TIMEOUT,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_tokens_name: str = "auto",
    ):
        self.model, self.addresses = model, list(addresses)
        self.attempts, self.first_wait, self.timeout = attempts, first_wait, timeout
        self.limits = (requests_per_minute, tokens_per_minute)
        self.max_tokens_name = max_tokens_name
        self.requests = 0

    async def __aenter__(self) -> "Endpoints":
        from openai import AsyncOpenAI

        self._stack, self._halt = AsyncExitStack(), asyncio.Event()
        self.replicas = []
        for address in self.addresses:
            client = AsyncOpenAI(api_key=address.key, base_url=address.base_url, timeout=self.timeout, max_retries=0)
            await self._stack.enter_async_context(client)
            self.replicas.append(_Replica(address, client, RateLimit(*self.limits, sleep=self._pause)))
        return self

    async def __aexit__(self, *arguments: object) -> None:
        await self._stack.aclose()

    def stop(self) -> None:
        """End every call before its next attempt; those that the endpoint works on are still awaited."""
        self._halt.set()

    async def _pause(self, seconds: float) -> None:
        """Sleep. Raises GivenUp once `stop` was called."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)
            raise GivenUp("stopped before its next attempt")

    async def call(
        self, messages: list[dict[str, str]], parameters: Mapping[str, Any], billed: Billed, only: int | None = None
    ) -> Completion:
        """One completion, after retries; `only` keeps to one replica.

        Raises GivenUp for this request, JudgeError where no request can succeed.
        """
        last, avoid = "", None
        attempt = 0
        while attempt < self.attempts:
            replica = self.replicas[only] if only is not None else await self._free(avoid)
            wait, told = min(self.first_wait * 2**attempt, LONGEST_WAIT), 0.0
            try:
                completion = await self._send(replica, messages, parameters, billed)
                replica.failures = 0
                return completion
            except _Again:
                continue  # not a failed attempt: the request is sent in the form that this model takes
            except _Passing as fault:
                last, told = str(fault), fault.retry_after
            attempt += 1
            replica.failures += 1
            resting = replica.failures >= _FAILURES_BEFORE_REST and len(self.replicas) > 1
            if told or resting:
                rest = max(told, wait if resting else 0.0)
                replica.rests_until = max(replica.rests_until, time.monotonic() + rest)
            avoid = replica
            elsewhere = only is None and any(r is not replica and r.rests_until <= time.monotonic() for r in self.replicas)
            if attempt < self.attempts and not elsewhere:
                await self._pause(jittered(max(wait, told), self.first_wait))
        raise GivenUp(f"no reply after {self.attempts} attempts; last: {last}"[:2000])

    async def _free(self, avoid: _Replica | None) -> _Replica:
        """The least busy replica that does not rest, another than `avoid` where there is one."""
        while True:
            now = time.monotonic()
            ready = [r for r in self.replicas if r.rests_until <= now]
            if ready:
                return min(ready, key=lambda r: (r is avoid, r.in_flight))
            await self._pause(min(r.rests_until for r in self.replicas) - now)

    async def _send(
        self, replica: _Replica, messages: list[dict[str, str]], parameters: Mapping[str, Any], billed: Billed
    ) -> Completion:
        """One HTTP request. Raises _Passing, _Again, GivenUp or JudgeError."""
        import openai

        estimate = estimated_tokens(messages) + output_limit(parameters)
        await replica.limit.acquire(estimate)
        if self._halt.is_set():
            raise GivenUp("stopped before its next attempt")
        used = 0
        self.requests += 1
        replica.in_flight += 1
        where = f"the judge {self.model} at {replica.address.base_url}"
        sent_as = self.max_tokens_name
        try:
            raw = await replica.client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, **self._renamed(parameters)
            )
            text = raw.text
            try:
                completion = read_completion(text)
            except ValueError as error:
                spent = _usage_in(text)
                used = sum(spent)
                if used:
                    await billed(*spent)
                raise _Passing(f"{type(error).__name__}: {error}") from error
            used = completion.tokens_in + completion.tokens_out
            return completion
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise JudgeError(
                f"{where[0].upper()}{where[1:]} refuses every request ({_text(error)}); check its key, model name and base_url."
            ) from error
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise JudgeError(
                    f"The account of {where} has no credit left ({_text(error)}); "
                    "add some, then run the same command again: paid judgments are kept."
                ) from error
            raise _Passing(_text(error), retry_after(error.response.headers)) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if sent_as == "auto" and _is_about(error, "max_completion_tokens"):
                self.max_tokens_name = "max_completion_tokens"
                raise _Again from error
            self._stop_for_parameter(error, parameters)
            raise GivenUp(f"refused: {_text(error)}", refused=True) from error
        except openai.APIStatusError as error:
            if error.status_code not in (408, 409) and error.status_code < 500:
                raise GivenUp(f"refused: {_text(error)}", refused=True) from error
            raise _Passing(_text(error), retry_after(error.response.headers)) from error
        except openai.APIError as error:
            # No connection, a cut body, or no answer in time.
            raise _Passing(f"{type(error).__name__}: {error}") from error
        finally:
            replica.in_flight -= 1
            replica.limit.correct(estimate, used)

    def _renamed(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with the reply's limit under the name that this model takes."""
        return renamed(parameters, self.max_tokens_name)

    def _stop_for_parameter(self, error: Any, parameters: Mapping[str, Any]) -> None:
        """Raise JudgeError where the model takes no temperature or log-probabilities at all: every request has them."""
        if "temperature" in parameters and _is_about(error, "temperature"):
            raise JudgeError(
                f"The judge {self.model} does not take temperature {parameters['temperature']} ({_text(error)}); use another "
                "judge, or set evaluate.judge.temperature to a value that it takes, or to omit: recorded in its identity."
            ) from error
        if "logprobs" in parameters and (_is_about(error, "logprobs") or _is_about(error, "top_logprobs")):
            raise JudgeError(
                f"The judge {self.model} gives no log-probabilities ({_text(error)}), which AlpacaEval's verdict is read from; "
                "use a model and endpoint that return them."
            ) from error


class _Passing(Exception):
    """A fault that may pass; `retry_after` in seconds, 0 when the endpoint names none."""

    def __init__(self, text: str, retry_after: float = 0.0):
        super().__init__(text)
        self.retry_after = retry_after


class _Again(Exception):
    """Send the request again at once, in another form."""


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint asks to wait (retry-after-ms, or Retry-After in seconds or as a date); 0 when it does not."""
    with suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def jittered(wait: float, jitter: float) -> float:
    """The wait, spread upwards so that workers do not come back together."""
    return wait + random.uniform(0, max(jitter, 0.25 * min(wait, LONGEST_WAIT)))


def _is_about(error: Any, parameter: str) -> bool:
    """Whether a 400 refuses that parameter, by OpenAI's `param` or, elsewhere, by name and the word for it."""
    text = str(error.message).lower()
    unsupported = "support" in text or "unknown" in text or "unrecognized" in text or "not allowed" in text
    return unsupported and (error.param == parameter or f"'{parameter}'" in text or f"`{parameter}`" in text)


def _usage_in(text: str) -> tuple[int, int]:
    with suppress(ValueError):
        return usage_of(json.loads(text))
    return 0, 0


def _text(error: Any) -> str:
    return f"HTTP {error.status_code}: {error.message}"[:500]
