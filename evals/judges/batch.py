"""OpenAI batch files as a judge's transport: half the price, within a day.

Requests that are waited for at the same time become one batch (a judge that asks again makes further rounds). What is
submitted is written down before and after: a killed stage finds its batches by id, or by a mark in their metadata when it
died in between, and never submits a request twice.

Reference: OpenAI API, `POST /files` (purpose batch), `POST /batches`, `GET /batches/{id}`, `GET /files/{id}/content`; at most
50,000 requests and 200 MB a batch (Batch API guide).
"""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from core.artifacts import write_durably
from core.errors import JudgeError
from core.fingerprint import digest
from evals.judges.endpoint import Address, Billed, Completion, GivenUp, read_completion, renamed, usage_of

MOST_REQUESTS = 50_000
MOST_BYTES = 190 * 2**20
FIRST_POLL = 5.0
LONGEST_POLL = 60.0
"""Seconds between two looks at a batch; the wait grows by half each time."""
_MARK = "harness_batch"
_ENDED = ("completed", "failed", "expired", "cancelled")


class BatchTransport:
    """One endpoint's batches; an async context manager. `folder` is kept over a crash and belongs to one evaluation.

    `begin(n)` says how many judgments will be asked for; each calls `send`, and `finish` when it is over. When all that
    are left wait for a reply, what they wait for is submitted.
    """

    def __init__(
        self,
        model: str,
        address: Address,
        folder: Path,
        say: Callable[[str], None],
        first_poll: float = FIRST_POLL,
        max_tokens_name: str = "auto",
    ):
        self.model, self.address, self.folder, self.say, self.first_poll = model, address, Path(folder), say, first_poll
        self.max_tokens_name = max_tokens_name
        """What the probe, which is asked online, has found the model to take."""
        self.live = self.requests = 0
        self.before: Callable[[list[tuple[list[dict[str, str]], Mapping[str, Any]]]], Awaitable[None]] | None = None
        """Called with the (messages, parameters) of a batch before it is submitted; may raise."""
        self._waiting: dict[str, tuple[list[dict[str, str]], Mapping[str, Any], asyncio.Future]] = {}
        self._read: list[dict[str, Any]] = []
        self._flusher: asyncio.Task | None = None

    async def __aenter__(self) -> "BatchTransport":
        from openai import AsyncOpenAI

        self.folder.mkdir(parents=True, exist_ok=True)
        self.client = AsyncOpenAI(api_key=self.address.key, base_url=self.address.base_url, max_retries=6)
        return self

    async def __aexit__(self, *arguments: object) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self.client.close()

    def stop(self) -> None:
        """Nothing more is submitted; a batch that was is read by the next run."""
        for _, _, future in self._waiting.values():
            if not future.done():
                future.set_exception(GivenUp("stopped before it was submitted"))
        self._waiting = {}

    def begin(self, live: int) -> None:
        self.live = live

    def finish(self) -> None:
        """One judgment is over."""
        self.live -= 1
        self._flush_if_all_wait()

    def leave(self) -> None:
        """One judgment waits for another's reply; `join` takes it back."""
        self.finish()

    def join(self) -> None:
        self.live += 1

    def settle(self) -> None:
        """Mark the batches that were read: every reply of theirs is kept by now, and what failed in them may be asked anew."""
        for record in self._read:
            path = self.folder / f"batch-{record['number']:04d}.json"
            path.rename(path.with_name(f"read-{record['number']:04d}.json"))
        self._read = []

    def clear(self) -> None:
        """Forget all batches."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def send(self, key: str, messages: list[dict[str, str]], parameters: Mapping[str, Any], billed: Billed) -> Completion:
        """The reply to one request, once its batch has ended. Raises GivenUp for this one, JudgeError for all."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[key] = (messages, parameters, future)
        self._flush_if_all_wait()
        line = await future
        response = line.get("response") or {}
        if line.get("error") or response.get("status_code") != 200:
            raise GivenUp(*_failure(line))
        body = response.get("body")
        try:
            return read_completion(body)
        except (TypeError, ValueError) as error:
            spent = usage_of(body)
            if sum(spent):
                await billed(*spent)
            raise GivenUp(f"no reply in the batch: {error}") from error

    def _flush_if_all_wait(self) -> None:
        if self._waiting and len(self._waiting) >= self.live and (self._flusher is None or self._flusher.done()):
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        """Collect what earlier batches hold, submit the rest, and answer everyone who waits."""
        waiting, self._waiting = self._waiting, {}
        try:
            # Everyone waits again: the replies of earlier rounds have been kept.
            self.settle()
            lines: dict[str, dict[str, Any]] = {}
            for record in self._records():
                if set(record["keys"]) & set(waiting):
                    lines |= await self._collect(record)
            rest = {key: value for key, value in waiting.items() if key not in lines}
            if rest and self.before is not None:
                await self.before([(messages, parameters) for messages, parameters, _ in rest.values()])
            written = {key: self._line(key, messages, parameters) for key, (messages, parameters, _) in rest.items()}
            for record in [await self._submit(part) for part in _parts(written)]:
                lines |= await self._collect(record)
            for key, (_, _, future) in waiting.items():
                gone = {"error": {"code": "missing", "message": "the batch's files hold no line for this request"}}
                if not future.done():
                    future.set_result(lines.get(key, gone))
        except BaseException as error:
            for _, _, future in waiting.values():
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else JudgeError("The batch was interrupted."))
            if not isinstance(error, Exception):
                raise

    def _line(self, key: str, messages: list[dict[str, str]], parameters: Mapping[str, Any]) -> str:
        body = {"model": self.model, "messages": messages, **renamed(parameters, self.max_tokens_name)}
        request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(request, ensure_ascii=False) + "\n"

    def _records(self) -> list[dict[str, Any]]:
        """What was submitted, oldest first: {"mark", "keys", "id": None while it is not known}."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("batch-*.json"))]

    def _numbers(self) -> list[int]:
        return [int(path.stem.split("-")[1]) for path in self.folder.glob("*-*.json")]

    def _save(self, record: dict[str, Any]) -> None:
        write_durably(self.folder / f"batch-{record['number']:04d}.json", json.dumps(record))

    async def _submit(self, lines: dict[str, str]) -> dict[str, Any]:
        number = 1 + max(self._numbers(), default=0)
        record = {
            "number": number,
            "mark": digest([self.model, str(self.folder), number, sorted(lines)]),
            "keys": list(lines),
            "id": None,
        }
        self._save(record)  # before: a crash between this and the id is mended by the mark
        return await self._create(record, lines)

    async def _create(self, record: dict[str, Any], lines: dict[str, str]) -> dict[str, Any]:
        import openai

        content = "".join(lines.values()).encode()
        try:
            file = await self.client.files.create(file=("requests.jsonl", content), purpose="batch")
            batch = await self.client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_MARK: record["mark"]},
            )
        except openai.APIError as error:
            raise JudgeError(
                f"The judge {self.model} takes no batch at {self.address.base_url} ({error}); set "
                "evaluate.judge.transport=online, or mend this and run the same command again."
            ) from error
        self.requests += 2
        record["id"] = batch.id
        self._save(record)
        self.say(f"batch {batch.id} submitted: {len(lines)} requests")
        return record

    async def _collect(self, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """custom_id -> line of the output or error file, once the batch has ended. Raises JudgeError when it failed whole."""
        import openai

        try:
            if record["id"] is None:
                record["id"] = await self._find(record["mark"])
                if record["id"] is None:  # it never reached the endpoint: its requests are submitted anew
                    (self.folder / f"batch-{record['number']:04d}.json").unlink()
                    return {}
                self._save(record)
            wait = self.first_poll
            while True:
                batch = await self.client.batches.retrieve(record["id"])
                self.requests += 1
                if batch.status in _ENDED:
                    break
                counts = batch.request_counts
                if counts is not None:
                    self.say(f"batch {batch.id}: {batch.status}, {counts.completed + counts.failed} of {counts.total}")
                await asyncio.sleep(wait)
                wait = min(1.5 * wait, LONGEST_POLL)
            lines: dict[str, dict[str, Any]] = {}
            for name in (batch.output_file_id, batch.error_file_id):
                if name:
                    self.requests += 1
                    lines |= _by_id((await self.client.files.content(name)).text)
        except openai.APIError as error:
            raise JudgeError(
                f"Batch {record['id']} of the judge {self.model} cannot be read ({error}); run the same command again: it is "
                "waited for, not submitted twice."
            ) from error
        self._read.append(record)
        if not lines:
            self.settle()
            said = "; ".join(e.message or "" for e in (batch.errors.data or [])) if batch.errors else batch.status
            raise JudgeError(
                f"Batch {batch.id} of the judge {self.model} ended as {batch.status} ({said}); mend this and run again."
            )
        return lines

    async def _find(self, mark: str) -> str | None:
        """Id of the batch with that mark, among the account's latest thousand."""
        seen = 0
        async for batch in self.client.batches.list(limit=100):
            if (batch.metadata or {}).get(_MARK) == mark:
                return batch.id
            seen += 1
            if seen >= 1000:
                break
        return None


def _parts(lines: dict[str, str]) -> list[dict[str, str]]:
    """Requests in batches within the endpoint's limits."""
    parts: list[dict[str, str]] = []
    size = 0
    for key, line in lines.items():
        length = len(line.encode())
        if not parts or len(parts[-1]) >= MOST_REQUESTS or size + length > MOST_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = line
        size += length
    return parts


def _by_id(text: str) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    return {row["custom_id"]: row for row in rows}


def _failure(line: Mapping[str, Any]) -> tuple[str, bool]:
    """(what a failed line says, whether the request itself was refused)."""
    response = line.get("response") or {}
    error = line.get("error") or (response.get("body") or {}).get("error") or {}
    status = response.get("status_code")
    refused = status in (400, 422)
    said = error.get("message") or error.get("code") or "no reason given"
    return (f"refused: HTTP {status}: {said}" if refused else f"no reply in the batch: {said}"), refused
