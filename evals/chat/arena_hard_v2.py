"""Arena-Hard v2.0: 500 hard prompts against o3-mini-2025-01-31, 250 of creative writing against gemini-2.0-flash-001.

Reference: lmarena/arena-hard-auto (`gen_judgment.py`, `show_result.py`, `utils/judge_utils.py`). Another benchmark than
v0.1, with which it never ranks. The headline `score` is that of `hard_prompt`, as upstream's main table; every other
category's metrics carry its name (`score_creative_writing`). Upstream's official table adds style control, which is a joint
fit of all its models (`evals.chat.style_control`).
"""

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import MissingInput
from core.judged import Judged
from evals.benchmark import Question, read_jsonl, read_text, require_asset, sample
from evals.chat.arena_hard import ArenaHard, read_baseline, read_config
from evals.chat.arena_scores import points
from evals.judges.judge import Prompt, Reading, Reply, Task, fill

HARD, CREATIVE = "hard_prompt", "creative_writing"
BASELINES = {HARD: "o3-mini-2025-01-31", CREATIVE: "gemini-2.0-flash-001"}
_BASELINE_ASSETS = {HARD: "baseline", CREATIVE: "baseline_creative_writing"}


def find_label(text: str, patterns: Sequence[str]) -> str | None:
    """The last match of the first pattern that matches the upper-cased text (`get_score`); None without one."""
    for pattern in patterns:
        matches = [match for match in re.findall(pattern, text.upper()) if match]
        if matches:
            return matches[-1].strip("\n")
    return None


@lru_cache(maxsize=4)
def read_judge_settings(path: Path) -> dict[str, dict[str, str]]:
    """JUDGE_SETTINGS, category -> {"baseline", "system_prompt"}, of upstream's `utils/judge_utils.py`: parsed, never run.

    Raises MissingInput for a file without it.
    """
    constants: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {}

    def text(node: ast.expr) -> str:
        return constants[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    try:
        for statement in ast.parse(read_text(path)).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                continue
            value = statement.value
            if statement.targets[0].id == "JUDGE_SETTINGS":
                for category, settings in zip(value.keys, value.values, strict=True):
                    pairs = zip(settings.keys, settings.values, strict=True)
                    found[text(category)] = {text(name): text(item) for name, item in pairs}
            elif isinstance(value, ast.Constant) and isinstance(value.value, str):
                constants[statement.targets[0].id] = value.value
    except (SyntaxError, ValueError, KeyError, AttributeError) as error:
        raise MissingInput(f"{path} is not upstream's utils/judge_utils.py ({error}); fetch that file again.") from error
    if not found:
        raise MissingInput(f"{path} holds no JUDGE_SETTINGS; give upstream's utils/judge_utils.py.")
    return found


class ArenaHardV2(ArenaHard):
    """750 prompts in two categories; those of a category whose baseline answers are not here are left out.

    The system prompt of `hard_prompt` is v0.1's, from v0.1's judge config; where upstream's `judge_utils.py` is here too
    (asset `judge_settings`), every category's comes from it, and `creative_writing` can be judged by an endpoint at all.
    """

    name = "arena_hard_v2"
    assets = {"official": ("questions", "baseline", "judge_config", "judge_prompt")}
    optional_assets = {"official": (_BASELINE_ASSETS[CREATIVE], "judge_settings")}
    scoring = "v2"
    headline_category = HARD
    # Upstream names no decoding for all models; v0.1's.
    default_decoding = ArenaHard.default_decoding

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        answers = {HARD: read_baseline(require_asset(files, "baseline", self.name))}
        if _BASELINE_ASSETS[CREATIVE] in files:
            answers[CREATIVE] = read_baseline(require_asset(files, _BASELINE_ASSETS[CREATIVE], self.name))
        questions = []
        for row in read_jsonl(require_asset(files, "questions", self.name)):
            if row["category"] not in answers:
                continue
            known = answers[row["category"]]
            if row["uid"] not in known:
                raise MissingInput(
                    f"The baseline of {self.name} ({row['category']}) has no answer to question {row['uid']}; "
                    f"run `harness data fetch {self.name}`."
                )
            data = {**known[row["uid"]], "subcategory": row.get("subcategory", "")}
            questions.append(Question(row["uid"], row["category"], (row["prompt"],), data))
        return sample(questions, limit, sample_seed)

    def question_value(self, judged: Sequence[Judged]) -> float | None:
        """None where one of the two games failed: upstream drops such a prompt, since the other order alone is biased."""
        return None if any(one.value is None for one in judged) else super().question_value(judged)

    def _system_prompt(self, category: str, files: Mapping[str, Path]) -> str:
        if "judge_settings" in files:
            settings = read_judge_settings(require_asset(files, "judge_settings", self.name))
            if category in settings:
                return settings[category]["system_prompt"]
        if category != HARD:
            raise MissingInput(
                f"The judge's prompt for {category} is not here; bring the asset judge_settings (upstream's "
                "utils/judge_utils.py), or judge with a reward model."
            )
        return read_config(require_asset(files, "judge_prompt", self.name))["system_prompt"]

    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        config = self._config(files)
        categories = [HARD, *([CREATIVE] if _BASELINE_ASSETS[CREATIVE] in files else [])]
        prompts = [*(self._system_prompt(category, files) for category in categories), config["prompt_template"]]
        return {
            "prompt_sha256": hashlib.sha256("\x1f".join(prompts).encode()).hexdigest(),
            "parameters": {"temperature": config["temperature"], "max_tokens": config["max_tokens"]},
            "parser": " then ".join(config["regex_patterns"]) + ", upper-cased, last match",
        }

    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        config = self._config(files)
        baseline, answer = task.question.data["baseline"], task.answer
        first, second = (baseline, answer) if task.game == 1 else (answer, baseline)
        values = {"QUESTION": task.question.turns[0], "ANSWER_A": first, "ANSWER_B": second}
        messages = [
            {"role": "system", "content": self._system_prompt(task.question.category, files)},
            {"role": "user", "content": fill(config["prompt_template"], values)},
        ]
        parameters = {"temperature": config["temperature"], "max_tokens": config["max_tokens"]}
        return Prompt(messages, parameters, pattern="\n".join(config["regex_patterns"]))

    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        label = find_label(replies[-1].text, prompt.pattern.split("\n"))
        if label is None:
            return Reading(None, "the judge gave no verdict label")
        judged = points(label, task.game, self.scoring)
        if judged is None:
            return Reading(None, f"{label!r} is not a verdict label", {"label": label})
        return Reading(judged[0], detail={"label": label, "weight": judged[1]})
