"""One pass of an endpoint judge over the tasks of a benchmark: kept replies first, then purchases, verdicts as they come.

Calls in flight when another ends the pass are awaited, stored and charged: they are being paid for.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import JudgeError
from evals.judges.batch import FIRST_POLL, BatchTransport
from evals.judges.cache import Replies, request_key
from evals.judges.endpoint import Completion, Endpoints, GivenUp
from evals.judges.judge import JudgedBenchmark, Prompt, Reading, Reply, Task
from evals.judges.limits import estimated_tokens, output_limit
from evals.verdict import Verdict

if TYPE_CHECKING:
    from evals.judges.openai_judge import OpenAIJudge


class Session:
    """One pass. `charged`: whether `replies` record what is spent, so that the verdicts carry none of it."""

    def __init__(
        self,
        judge: "OpenAIJudge",
        benchmark: JudgedBenchmark,
        files: Mapping[str, Path],
        store: Callable[[list[Verdict]], None],
        replies: Replies,
        charged: bool,
    ):
        self.judge, self.benchmark, self.files, self.store = judge, benchmark, files, store
        self.replies, self.charged = replies, charged
        self.valued = self.read_in_vain = self.exhausted = 0
        self.storing = asyncio.Lock()
        self.asking: dict[str, asyncio.Lock] = {}
        self.transport: Endpoints | BatchTransport
        self.failure: Exception | None = None

    async def run(self, tasks: Sequence[Task]) -> int:
        judge, waiting = self.judge, list(reversed(tasks))
        batched = judge.batch and BatchTransport(
            judge.name,
            judge.addresses[0],
            judge.work / "batches" / self.benchmark.name,
            judge.say,
            judge.settings.get("first_poll", FIRST_POLL),
            judge.max_tokens_name,
        )

        async def work() -> None:
            while waiting and self.failure is None:
                task = waiting.pop()
                try:
                    verdict = await self._verdict(task)
                    async with self.storing:
                        # In a thread: waiting for the registry must not stop the clock of the calls in flight.
                        await asyncio.to_thread(self.store, [verdict])
                    self._stop_if_hopeless(len(tasks), verdict)
                except _Stopped:
                    return
                except Exception as error:
                    # The others end their calls in flight, which are paid for, and begin no new ones.
                    self.failure = self.failure or error
                    self.transport.stop()
                finally:
                    if batched:
                        batched.finish()

        async with AsyncExitStack() as stack:
            self.transport = await stack.enter_async_context(batched or judge.endpoints())
            workers = len(tasks) if batched else min(judge.concurrency, len(tasks))
            if batched:
                batched.begin(len(tasks))
                batched.before = self._reserve_batch
            running = [asyncio.create_task(work()) for _ in range(workers)]
            try:
                await asyncio.gather(*running)
            finally:
                for worker in running:
                    worker.cancel()
                await asyncio.gather(*running, return_exceptions=True)
            if batched:
                batched.settle()
        if not batched:
            judge.max_tokens_name = self.transport.max_tokens_name
        if self.failure is not None:
            raise self.failure
        if batched:
            batched.clear()
        return self.transport.requests

    def _stop_if_hopeless(self, total: int, verdict: Verdict) -> None:
        """Raise JudgeError when nothing has succeeded and enough has failed: the endpoint is away, or of no use."""
        if self.valued or self.judge.batch:
            return
        batch = max(4, self.judge.concurrency)
        # A few unreadable replies left over from an earlier pass are no sign of anything; a few calls without reply are.
        if self.exhausted >= min(total, batch) or self.read_in_vain >= 2 * batch:
            raise JudgeError(
                f"The judge {self.judge.name} at {self.judge.base_url} gave no verdict in its first "
                f"{self.exhausted + self.read_in_vain} judgments (last: {verdict.error}); check model and endpoint, then run the "
                "same command again."
            )

    async def _verdict(self, task: Task) -> Verdict:
        place = {"question_id": task.question.id, "turn": task.turn, "sample": task.sample, "game": task.game}
        if task.unanswered:
            return Verdict(**place, value=None, error=task.unanswered, raw={"rule": "no answer"})
        decided = self.benchmark.decided(task)
        if decided is not None:
            return Verdict(**asdict(decided) | place)
        prompt = self.benchmark.prompt(task, self.files)
        replies: list[Reply] = []
        shown, spent = list(prompt.messages), [0, 0, 0]
        try:
            reading = await self._ask(task, prompt, shown, replies, spent)
            raw = reading.detail | {"replies": [asdict(reply) for reply in replies]}
        except GivenUp as error:
            if self.failure is not None:
                raise _Stopped from error
            reading, raw = Reading(None, str(error)), {"rule": "refused"} if error.refused else {}
        if reading.value is not None:
            self.valued += 1
        elif raw:
            self.read_in_vain += 1
        else:
            self.exhausted += 1
        tokens_in, tokens_out, micro_dollars = (0, 0, 0) if self.charged else spent
        return Verdict(
            **place,
            value=reading.value,
            error=reading.error,
            raw=raw,
            shown=shown,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            micro_dollars=micro_dollars,
        )

    async def _ask(
        self, task: Task, prompt: Prompt, messages: list[dict[str, str]], replies: list[Reply], spent: list[int]
    ) -> Reading:
        """The reading of one or more calls; what they were asked, said and cost is left in `messages`, `replies` and `spent`.

        Kept replies are read first; one without a verdict leads to the next sample index, bought at most once a pass.
        """
        parameters = adjusted(prompt.parameters, self.judge.settings)
        for sample in itertools.count():
            replies.clear()
            messages[:], bought = prompt.messages, False
            while True:
                body, fresh = await self._reply(task, messages, parameters, sample, spent)
                bought = bought or fresh
                replies.append(reply_of(body))
                reading = self.benchmark.read(task, replies, prompt)
                if reading.value is not None or reading.ask_again is None or len(replies) >= prompt.calls:
                    break
                messages += [{"role": "assistant", "content": replies[-1].text}, {"role": "user", "content": reading.ask_again}]
            if reading.value is not None:
                return reading
            if bought:
                return _typed(reading, body, parameters)
        raise AssertionError("unreachable")

    async def _reply(
        self, task: Task, messages: list[dict[str, str]], parameters: Mapping[str, Any], sample: int, spent: list[int]
    ) -> tuple[dict[str, Any], bool]:
        """(body of the completion, whether it was bought just now)."""
        judge = self.judge
        key = request_key(judge.asked, judge.fingerprint or judge.name, messages, parameters, sample)
        lock = self.asking.setdefault(key, asyncio.Lock())
        # Two answers that are the same ask the same: the second one waits for the first one's reply.
        if lock.locked() and isinstance(self.transport, BatchTransport):
            self.transport.leave()
            await lock.acquire()
            self.transport.join()
        else:
            await lock.acquire()
        try:
            body = await asyncio.to_thread(self.replies.find, key)
            if body is not None:
                return body, False
            if self.failure is not None:
                raise _Stopped
            completion = await self._buy(task, key, messages, parameters, spent)
            return completion.body, True
        finally:
            lock.release()

    async def _buy(
        self, task: Task, key: str, messages: list[dict[str, str]], parameters: Mapping[str, Any], spent: list[int]
    ) -> Completion:
        budget, batched = self.judge.budget, isinstance(self.transport, BatchTransport)
        estimate = estimated_tokens(messages)
        # A batch's worst case was weighed as a whole.
        worst = 0 if batched else self.judge.micro_dollars(budget.prompt_tokens(estimate), output_limit(parameters))
        await budget.reserve(worst)
        cost = 0

        async def charge(tokens_in: int, tokens_out: int, completion: Completion | None = None) -> None:
            nonlocal cost
            bill = self.judge.charge(tokens_in, tokens_out)
            for i, amount in enumerate((bill.tokens_in, bill.tokens_out, bill.micro_dollars)):
                spent[i] += amount
            cost += bill.micro_dollars
            async with self.storing:
                await asyncio.to_thread(self.replies.buy, task.key, bill, *((key, completion) if completion else ()))

        try:
            if batched:
                completion = await self.transport.send(key, messages, parameters, charge)
            else:
                completion = await self.transport.call(messages, parameters, charge)
            budget.learn(estimate, completion.tokens_in)
            await charge(completion.tokens_in, completion.tokens_out, completion)
            return completion
        finally:
            budget.settle(worst, cost)

    async def _reserve_batch(self, requests: list[tuple[list[dict[str, str]], Mapping[str, Any]]]) -> None:
        """Raise BudgetReached for a batch whose worst case passes what is left."""
        budget = self.judge.budget
        worst = sum(
            self.judge.micro_dollars(budget.prompt_tokens(estimated_tokens(messages)), output_limit(parameters))
            for messages, parameters in requests
        )
        if budget.limit is not None and budget.spent + worst > budget.limit:
            budget.refuse(worst)


class _Stopped(Exception):
    """The session ends before this judgment was made."""


def adjusted(parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's sampling parameters under the judge's own settings `temperature` and `max_tokens`."""
    changed = dict(parameters)
    temperature, limit = settings.get("temperature"), settings.get("max_tokens")
    if temperature == "omit":
        changed.pop("temperature", None)
    elif temperature is not None:
        changed["temperature"] = temperature
    if limit is not None and "max_tokens" in changed:
        changed["max_tokens"] = min(limit, changed["max_tokens"])
    return changed


def reply_of(body: Mapping[str, Any]) -> Reply:
    """What a kept chat completion says."""
    choice = body["choices"][0]
    content = (choice.get("logprobs") or {}).get("content")
    top = {entry["token"]: entry["logprob"] for entry in content[0].get("top_logprobs") or []} if content else None
    return Reply(choice["message"].get("content") or "", choice.get("finish_reason"), top)


def _typed(reading: Reading, body: Mapping[str, Any], parameters: Mapping[str, Any]) -> Reading:
    """A reading without a verdict, with the kind of failure under `rule`."""
    choice = body["choices"][0]
    message = choice["message"]
    if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
        rule, error = "refused", f"the judge refused: {message.get('refusal') or 'content filter'}"
    elif not message.get("content"):
        rule, error = "empty reply", "the judge said nothing"
    elif parameters.get("logprobs") and reply_of(body).top_logprobs is None:
        rule, error = "no logprobs", reading.error
    else:
        rule, error = "unreadable", reading.error
    return Reading(None, error, {"rule": rule} | reading.detail)
