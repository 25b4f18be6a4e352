"""Tables of published scores by model and benchmark, as Online-RLHF's README prints them (RLHFlow/Online-RLHF @ 3a00ed8).

One JSON object: {"source", "columns": [names], "rows": {model: [values]}}. Only a published leaderboard can be read from it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError
from evals.benchmark import ScoreRow, read_text
from evals.formats.saved import PublishedScore, SavedEvaluation, SavedOutputs, Stored

# Column -> (benchmark, metric, whether it is the headline, factor to percent). Its authors' settings: length-controlled
# AlpacaEval 2, 8-shot GSM8K, pass@1, 5-shot MMLU, 25-shot ARC, TruthfulQA's MC2 (paper, section 4).
_COLUMNS: Mapping[str, tuple[str, str, bool, float]] = {
    "LC_AlpacaEval": ("alpaca_eval", "length_controlled_winrate", True, 1.0),
    "GSM8K": ("gsm8k", "exact_match_flexible", True, 1.0),
    "HumanEval": ("human_eval", "pass@1", True, 100.0),
    "HumanEval+": ("human_eval", "plus_pass@1", False, 100.0),
    "MMLU": ("mmlu", "acc", True, 100.0),
    "ARC-c": ("arc_challenge", "acc_norm", True, 100.0),
    "TruthfulQA": ("truthful_qa", "mc2", True, 100.0),
}
_JUDGES = {"alpaca_eval": "gpt-4-1106-preview"}


class OnlineRLHFFormat:
    """See `evals.formats.saved.SavedFormat`."""

    benchmark = "online_rlhf"
    options: Mapping[str, tuple[str, ...]] = {}
    assets: Sequence[str] = ()

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        raise RecipeError(_ONLY_PUBLISHED)

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        raise RecipeError(_ONLY_PUBLISHED)

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        raise RecipeError("A table of published scores is only read; `harness leaderboard --csv` writes one of this registry.")

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        """Every known column of every model; a column of no benchmark here (MATH) is left out."""
        return [score for path in paths for score in _read(path)]


_ONLY_PUBLISHED = "This is a table of published scores; record it with `harness import online_rlhf FILE --published`."


def _read(path: Path) -> list[PublishedScore]:

    try:
        table: dict[str, Any] = json.loads(read_text(path))
        columns, models = table["columns"], table["rows"].items()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MissingInput(f'{path} is not a table {{"source", "columns", "rows"}} ({error}); give the JSON file.') from error
    found = []
    for model, values in models:
        if len(values) != len(columns):
            raise MissingInput(f"{path}: {model} has {len(values)} values for {len(columns)} columns; correct the row.")
        for column, value in zip(columns, values, strict=True):
            if column in _COLUMNS and value is not None:
                benchmark, metric, headline, factor = _COLUMNS[column]
                score = ScoreRow(metric, factor * value, None, None, f"published as {column}", 0, 0, headline=headline)
                found.append(PublishedScore(model, score, _JUDGES.get(benchmark, "published"), benchmark))
    return found
