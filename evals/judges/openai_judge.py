"""A judge behind OpenAI-compatible endpoints: concurrent, cached, priced, under a budget.

Guarantee: each reply is kept and charged the moment it arrives (`evals.judges.cache`), each verdict handed over to be stored
as soon as it can be read; what was asked before is not asked again. A failed call is an attempt, not a result. A reply
without a verdict is kept too, and the next run asks for another sample of it: at temperature 0 the same words would
mostly come back, but a served model is seldom deterministic, and a new index makes the second reply a purchase of its own.
What concerns all requests (no key, no such model, no credit, or nothing but failures) ends the stage before more is spent.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import JudgeError
from evals.judges.cache import Charge, Place, Replies, Unkept, request_key
from evals.judges.endpoint import ATTEMPTS, FIRST_WAIT, TIMEOUT, Address, Completion, Endpoints, GivenUp, renamed
from evals.judges.judge import JudgedBenchmark, Task
from evals.judges.limits import Budget, estimated_tokens, output_limit
from evals.judges.prices import FREE, OPENAI_URL, Price, find_price
from evals.judges.server import JudgeServer
from evals.judges.session import Session, adjusted, reply_of
from evals.verdict import Verdict

_PROBE = [{"role": "user", "content": "Answer with the single letter m."}]


class OpenAIJudge:
    """Settings that decide the verdicts: model, base_url (default: OpenAI's), and, where they differ from the benchmark's own,
    temperature (a number, or "omit" for models that take none) and max_tokens (a lower limit on replies).

    Settings of the transport: endpoints ([{"base_url", "api_key_env"}]: replicas of the one that base_url names, by default
    the first), api_key_env ("" for an endpoint without keys), concurrency, requests_per_minute and tokens_per_minute (of
    each endpoint), transport (online | batch), max_tokens_name, price ({"input", "output"}, dollars per million tokens;
    default: the price tables), max_usd, attempts, first_wait, timeout. `work`: a folder that survives a crash, for batches.

    Raises JudgeError at once when a key is absent, or a budget is set and the price is not known.
    """

    kind = "openai"
    fingerprint: str | None = None

    def __init__(self, settings: Mapping[str, Any], work: Path | None = None, say: Callable[[str], None] = lambda text: None):
        self.name: str = settings["model"]
        self.settings, self.work, self.say = settings, work, say
        self.addresses = addresses_of(self.name, settings)
        # Always explicit: OPENAI_BASE_URL in the environment must not change who judges.
        self.base_url: str = settings.get("base_url") or self.addresses[0].base_url
        self.batch = settings.get("transport") == "batch"
        if self.batch and (len(self.addresses) > 1 or work is None):
            raise JudgeError(
                "Batch files go to one endpoint from a stage; give one endpoint, or set evaluate.judge.transport=online."
            )
        self.concurrency: int = settings.get("concurrency") or 16
        self.price: Price | None = check_budget(settings)
        max_usd: float | None = settings.get("max_usd")
        self.budget = Budget(None if max_usd is None else round(1e6 * max_usd))
        self.attempts: int = settings.get("attempts") or ATTEMPTS
        self.first_wait: float = settings.get("first_wait", FIRST_WAIT)
        self.max_tokens_name: str = settings.get("max_tokens_name") or "auto"

    def config(self, benchmark: JudgedBenchmark, files: Mapping[str, Path]) -> dict[str, Any]:
        config = {"benchmark": benchmark.name, "endpoint": self.endpoint} | benchmark.judge_config(files)
        changed = {name: self.settings.get(name) for name in ("temperature", "max_tokens")}
        return config | {name: value for name, value in changed.items() if value is not None}

    @property
    def endpoint(self) -> str:
        """What names the service in the judge's identity."""
        return self.base_url

    @property
    def asked(self) -> str:
        """What names the service in the keys of its replies."""
        return self.endpoint

    def open(self) -> None:
        """Make the endpoint ready to be asked."""

    def close(self) -> None:
        """Give back what `open` took."""

    def judge(
        self,
        benchmark: JudgedBenchmark,
        files: Mapping[str, Path],
        tasks: Sequence[Task],
        store: Callable[[list[Verdict]], None],
        replies: Replies | None = None,
    ) -> int:
        """See `evals.judges.judge.Judge`. Returns the number of HTTP requests, retries included.

        With `replies` (an `evals.judges.cache.Ledger`), what is spent is charged there as it is spent and the verdicts carry
        none of it; without, the verdicts carry it.
        """
        self.open()
        return asyncio.run(Session(self, benchmark, files, store, replies or Unkept(), replies is not None).run(tasks))

    def probe(self, benchmarks: Sequence[tuple[JudgedBenchmark, Mapping[str, Path]]], place: Place, replies: Replies) -> int:
        """Ask every endpoint one thing before anything dear: key, model, and log-probabilities where a benchmark reads them.

        What it costs is charged to the judgment at `place`. A probe that `replies` hold is not repeated; under which name the
        model takes the limit of replies is then known from it. Returns the number of HTTP requests. Raises JudgeError with
        the fix.
        """
        self.open()
        reads = any("logprobs" in benchmark.judge_config(files).get("parameters", {}) for benchmark, files in benchmarks)
        return asyncio.run(self._probe(reads, place, replies))

    async def _probe(self, reads: bool, place: Place, replies: Replies) -> int:
        parameters = adjusted({"temperature": 0, "max_tokens": 16}, self.settings)
        parameters |= {"logprobs": True, "top_logprobs": 5} if reads else {}
        served: dict[str, str | None] = {}
        async with self.endpoints() as endpoints:
            for number, address in enumerate(self.addresses):
                where = address.base_url if len(self.addresses) > 1 else self.endpoint
                body = await asyncio.to_thread(self._kept_probe, endpoints, where, parameters, replies)
                if body is None:
                    body = await self._probe_one(endpoints, number, where, parameters, place, replies)
                served[address.base_url] = body.get("model")
        if len(set(served.values())) > 1:
            said = ", ".join(f"{url}: {model}" for url, model in served.items())
            raise JudgeError(
                f"The endpoints of the judge {self.name} serve different models ({said}); list replicas of one model."
            )
        self.max_tokens_name = endpoints.max_tokens_name
        return endpoints.requests

    def _probe_key(self, where: str, parameters: dict[str, Any], name: str) -> str:
        """`name`: that of the limit of replies, as the model took it."""
        return request_key(f"probe:{where}", self.fingerprint or self.name, _PROBE, renamed(parameters, name), 0)

    def _kept_probe(
        self, endpoints: Endpoints, where: str, parameters: dict[str, Any], replies: Replies
    ) -> dict[str, Any] | None:
        """The body of an earlier probe's reply; what it found out is known to `endpoints` then."""
        known = endpoints.max_tokens_name
        for name in (known, "max_completion_tokens") if known == "auto" else (known,):
            body = replies.find(self._probe_key(where, parameters, name))
            if body is not None:
                endpoints.max_tokens_name = name
                return body
        return None

    async def _probe_one(
        self, endpoints: Endpoints, number: int, where: str, parameters: dict[str, Any], place: Place, replies: Replies
    ) -> dict[str, Any]:
        """The body of one endpoint's first reply, charged and, if it holds what is read, kept."""
        base_url, cost = self.addresses[number].base_url, 0

        async def charge(tokens_in: int, tokens_out: int, completion: Completion | None = None) -> None:
            nonlocal cost
            bill = self.charge(tokens_in, tokens_out)
            cost += bill.micro_dollars
            key = self._probe_key(where, parameters, endpoints.max_tokens_name)
            await asyncio.to_thread(replies.buy, place, bill, *((key, completion) if completion else ()))

        worst = self.micro_dollars(estimated_tokens(_PROBE), output_limit(parameters))
        await self.budget.reserve(worst)
        try:
            completion = await endpoints.call(_PROBE, parameters, charge, only=number)
            lacking = "logprobs" in parameters and reply_of(completion.body).top_logprobs is None
            await charge(completion.tokens_in, completion.tokens_out, None if lacking else completion)
        except GivenUp as error:
            raise JudgeError(
                f"The judge {self.name} at {base_url} did not answer a first small request ({error}); check model and endpoint, "
                "then run the same command again."
            ) from error
        finally:
            self.budget.settle(worst, cost)
        if lacking:
            raise JudgeError(
                f"The judge {self.name} at {base_url} gave no log-probabilities, which AlpacaEval's verdict is read from; use a "
                "model and endpoint that return top_logprobs, or leave alpaca_eval out."
            )
        return completion.body

    def endpoints(self) -> Endpoints:
        return Endpoints(
            self.name,
            self.addresses,
            self.attempts,
            self.first_wait,
            self.settings.get("timeout") or TIMEOUT,
            self.settings.get("requests_per_minute"),
            self.settings.get("tokens_per_minute"),
            self.max_tokens_name,
        )

    def micro_dollars(self, tokens_in: int, tokens_out: int) -> int:
        """Price of one call; 0 where none is known."""
        return 0 if self.price is None else self.price.micro_dollars(tokens_in, tokens_out)

    def charge(self, tokens_in: int, tokens_out: int) -> Charge:
        return Charge(tokens_in, tokens_out, self.micro_dollars(tokens_in, tokens_out))


class ServedJudge(OpenAIJudge):
    """A checkpoint of one's own behind vLLM's server on this machine; identified by the weights. Keyless and free.

    Further settings: max_model_len, dtype. `resources`: see `evals.judges.server.JudgeServer`.
    """

    kind = "serve"

    def __init__(
        self,
        checkpoint: Path,
        fingerprint: str,
        settings: Mapping[str, Any],
        resources: Mapping[str, Any],
        work: Path,
        say: Callable[[str], None] = lambda text: None,
    ):
        name = f"serve:{Path(checkpoint).name}-{fingerprint[:8]}"
        transport = {"model": name, "base_url": "http://127.0.0.1/v1", "api_key_env": "", "price": None, "max_usd": None}
        super().__init__(dict(settings) | transport | {"endpoints": [], "transport": "online"}, work, say)
        self.price, self.fingerprint = FREE, fingerprint
        self._server = JudgeServer(checkpoint, name, work / "judge-server.log", settings, resources)
        self._running = False

    @property
    def endpoint(self) -> str:
        return "vllm"

    @property
    def asked(self) -> str:
        """Served in another dtype, or with another context, the same weights say other things."""
        served = {name: self.settings.get(name) for name in ("dtype", "max_model_len")}
        other = [f"{name}={value}" for name, value in served.items() if value not in (None, "auto")]
        return " ".join([self.endpoint, *other])

    def config(self, benchmark: JudgedBenchmark, files: Mapping[str, Path]) -> dict[str, Any]:
        served = {"dtype": self.settings.get("dtype") or "auto", "max_model_len": self.settings.get("max_model_len")}
        return super().config(benchmark, files) | served

    def open(self) -> None:
        """Start the server, once."""
        if not self._running:
            self.say(f"starting vLLM's server for {self.name}; its log: {self._server.log}")
            self.base_url = self._server.__enter__()
            self.addresses = [Address(self.base_url, "none")]
            self._running = True

    def close(self) -> None:
        if self._running:
            self._server.stop()
            self._running = False


def check_budget(settings: Mapping[str, Any]) -> Price | None:
    """The price under these settings of an `OpenAIJudge`. Raises JudgeError where there is a budget and no price."""
    endpoints = settings.get("endpoints") or [{}]
    base_url = settings.get("base_url") or endpoints[0].get("base_url") or OPENAI_URL
    price = find_price(settings["model"], base_url, settings.get("price"), settings.get("transport") == "batch")
    if price is None and settings.get("max_usd") is not None:
        raise JudgeError(
            f"A budget needs a price, and none is known for the judge {settings['model']} at {base_url}; set "
            "evaluate.judge.price, add a line to HARNESS_HOME/prices.yaml, or leave --max-usd out."
        )
    return price


def addresses_of(model: str, settings: Mapping[str, Any]) -> list[Address]:
    """The endpoints of the settings with their keys. Raises JudgeError for a key that is not there."""
    given = settings.get("endpoints") or [{"base_url": settings.get("base_url")}]
    found = []
    for row in given:
        variable = row.get("api_key_env")
        if variable is None:
            variable = settings.get("api_key_env", "OPENAI_API_KEY")
        key = os.environ.get(variable) if variable else "none"
        if not key:
            raise JudgeError(f"The judge {model} needs a key; set the environment variable {variable}.")
        found.append(Address(row.get("base_url") or OPENAI_URL, key))
    return found
