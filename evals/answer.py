"""Stage program `answer`: one policy answers every generation benchmark of the settings, in one engine.

Guarantee: answers are committed in batches of questions, turn by turn, and what is stored is never generated again; when
everything is stored the engine is not even loaded. Seeds depend on the question, turn and sample alone. A prompt is never
cut: one that leaves no room in `max_model_len` is a failed answer (`prompt_too_long`); one that leaves less than
`max_tokens` gets what room there is, which the answer's `detail` says.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifacts import write_durably
from core.seeds import derive_seed
from core.stage import Stage, main
from db.record import complete_answer_set
from db.registry import Registry
from evals import records
from evals.benchmark import PROMPT_TOO_LONG, Benchmark, Message, Place, Question, files_of, get_benchmark
from evals.knowledge.logprobs import encode_text, leading_bos

if TYPE_CHECKING:
    from train.engines import Completion, Sampling


@dataclass
class Work:
    """One benchmark, and which of its answers are stored."""

    benchmark: Benchmark
    overrides: Mapping[str, Any]
    questions: list[Question]
    answer_set_id: int
    key: str
    texts: dict[Place, str]
    """Texts of the stored answers."""
    chat_template: bool = True
    """False: the last message's text is continued as it is."""

    def places(self, question: Question) -> list[Place]:
        samples = self.benchmark.samples(self.overrides)
        return [(question.id, turn, sample) for turn in range(1, len(question.turns) + 1) for sample in range(samples)]

    def unfinished(self) -> list[Question]:
        return [q for q in self.questions if any(place not in self.texts for place in self.places(q))]


class Policy:
    """The policy in its engine, loaded when it is first asked."""

    def __init__(self, checkpoint: Path, settings: Mapping[str, Any], resources: dict[str, Any]):
        from train.chat import load_tokenizer
        from train.engines import make_engine

        self.system_prompt = settings.get("system_prompt")
        self.max_model_len = settings["max_model_len"]
        self.tokenizer = load_tokenizer(checkpoint)
        self.engine = make_engine(
            settings["engine"],
            checkpoint,
            max_model_len=self.max_model_len,
            dtype=settings.get("dtype", "auto"),
            seed=settings["seed"],
            resources=resources,
        )
        self.seconds = 0.0
        """Time spent in generation."""

    def prompt(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The rendered text and token ids of a conversation under the recipe's system prompt.

        A last message of the assistant's is the beginning of the answer, which the policy continues.
        """
        from train.chat import render

        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        *before, last = messages
        if last["role"] != "assistant":
            return render(self.tokenizer, [*system, *messages])
        text = render(self.tokenizer, [*system, *before])[0] + last["content"]
        return text, self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def plain_prompt(self, text: str) -> tuple[str, list[int]]:
        """A text that is continued as it is, and its token ids, checked to begin with one BOS where the tokenizer writes one."""
        ids = encode_text(self.tokenizer, text)
        leading_bos(self.tokenizer, ids)
        return text, ids

    def generate(self, requests: list[tuple[list[int], "Sampling"]]) -> list["Completion"]:
        began = time.monotonic()
        completions = self.engine.generate(requests) if requests else []
        self.seconds += time.monotonic() - began
        return completions


def run(stage: Stage) -> dict[str, Any]:
    """Returns {"answers", "reused", "tokens", "tokens_per_second", "answer_sets": [keys]}."""
    registry = records.open_registry(stage.spec)
    try:
        return _run(stage, registry)
    finally:
        registry.close()


def _run(stage: Stage, registry: Registry) -> dict[str, Any]:
    entries = [e for e in stage.settings["benchmarks"] if get_benchmark(e["name"]).kind == "generation"]
    works = [_open(stage, registry, entry) for entry in entries]
    total = sum(len(work.places(question)) for work in works for question in work.questions)
    reused = done = sum(place in work.texts for work in works for question in work.questions for place in work.places(question))
    stage.progress(done, total, "answers")
    policy, tokens = None, 0
    for work in works:
        for batch in _batches(work.unfinished(), stage.spec.resources.get("batch", 32)):
            policy = policy or Policy(stage.input("policy"), stage.settings, stage.spec.resources)
            for turn in range(1, max(len(question.turns) for question in batch) + 1):
                rows = answer_turn(work, batch, turn, policy, stage.settings["seed"])
                with registry.write() as session:
                    records.store_answers(session, work.answer_set_id, rows)
                done += len(rows)
                tokens += sum(row["output_tokens"] for row in rows)
                stage.progress(done, total, "answers")
        with registry.write() as session:
            complete_answer_set(session, work.answer_set_id)
    metrics = {
        "answers": done - reused,
        "reused": reused,
        "tokens": tokens,
        "tokens_per_second": round(tokens / policy.seconds, 1) if policy and policy.seconds else None,
        "answer_sets": [work.key for work in works],
    }
    write_durably(stage.work / "summary.json", json.dumps(metrics, indent=1))
    return metrics


def answer_turn(work: Work, questions: list[Question], turn: int, policy: Policy, seed: int) -> list[dict[str, Any]]:
    """Rows (columns of `db.models.Answer`) of the answers that are missing at one turn; their texts are added to `work`."""
    rows, requests = [], []
    for question in questions:
        for place in work.places(question):
            if place[1] == turn and place not in work.texts:
                row, request = _ask(work, question, place, policy, seed)
                rows.append(row)
                if request is not None:
                    requests.append((row, request))
    completions = policy.generate([request for _, request in requests])
    for (row, _), completion in zip(requests, completions, strict=True):
        row |= {"text": completion.text, "finish_reason": completion.finish_reason, "output_tokens": len(completion.token_ids)}
    for row in rows:
        work.texts[row["question_id"], row["turn"], row["sample"]] = row["text"]
    return rows


def _ask(work: Work, question: Question, place: Place, policy: Policy, seed: int) -> tuple[dict[str, Any], Any]:
    """The row of an answer without its text, and the engine's request; no request when the prompt leaves no room."""
    from train.engines import Sampling

    _, turn, sample = place
    earlier = [work.texts[question.id, t, sample] for t in range(1, turn)]
    messages = work.benchmark.messages(question, earlier)
    text, ids = policy.prompt(messages) if work.chat_template else policy.plain_prompt(messages[-1]["content"])
    decoding = work.benchmark.decoding(question, turn, work.overrides)
    room = policy.max_model_len - len(ids)
    row = {
        "question_id": question.id,
        "category": question.category or None,
        "turn": turn,
        "sample": sample,
        "prompt": text,
        "text": "",
        "finish_reason": PROMPT_TOO_LONG,
        "prompt_tokens": len(ids),
        "output_tokens": 0,
        "seed": derive_seed(seed, work.benchmark.name, question.id, turn, sample),
        "detail": {**decoding, "max_tokens": max(0, min(decoding["max_tokens"], room))},
    }
    if room < 1:
        return row, None
    return row, (ids, Sampling(**row["detail"], seed=row["seed"]))


def _open(stage: Stage, registry: Registry, entry: Mapping[str, Any]) -> Work:
    benchmark = get_benchmark(entry["name"])
    inputs = {name: Path(value["path"]) for name, value in stage.spec.inputs.items()}
    files = files_of(benchmark, entry["variant"], inputs)
    questions = benchmark.load(files, entry.get("limit"), entry.get("sample_seed", 0))
    settings = benchmark.answer_settings(entry, stage.settings)
    policy = stage.spec.inputs["policy"]
    with registry.write() as session:
        checkpoint = records.get_checkpoint(session, policy["fingerprint"], Path(policy["path"]))
        found = records.get_answer_set(session, checkpoint, benchmark, entry, stage.settings, len(questions))
        texts = {place: answer.text for place, answer in records.stored_answers(session, found.id).items()}
    overrides = entry.get("decoding") or {}
    return Work(benchmark, overrides, questions, found.id, found.key, texts, settings.get("chat_template", True))


def _batches(questions: list[Question], size: int) -> Iterator[list[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


if __name__ == "__main__":
    main(run)
