"""Numbers of strangers' files: in the registry's unit, and never ranked with those of a larger part."""

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from core.errors import RecipeError
from db import Registry
from db.models import AnswerSet, Checkpoint, Score
from evals.benchmark import ScoreRow
from evals.formats.saved import SavedAnswer, SavedEvaluation, file_name, get_format
from evals.verdict import Verdict
from harness.exporting import export
from harness.importing import Source, import_evaluations, import_published


def test_published_results_of_lm_eval_are_percent_once(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "results_2024-01-01T00-00-00.0.json"
    metrics = {"exact_match,flexible-extract": 0.45, "exact_match_stderr,flexible-extract": 0.013}
    content = {"model_name": "m", "results": {"gsm8k": metrics}, "n-samples": {"gsm8k": {"effective": 1319}}}
    path.write_text(json.dumps(content))
    made = get_format("lm_eval")
    import_published(registry, made, made.read_published([path]), Source("x", [path], "lm_eval"))
    with registry.read() as session:
        (score,) = session.scalars(select(Score))
    assert score.value == 45.0 and 42.0 < score.low < 45.0 < score.high < 48.0


def _samples(folder: Path, count: int) -> Path:
    folder.mkdir()
    path = folder / "samples_gsm8k_2024-01-01T00-00-00.0.jsonl"
    with open(path, "w") as handle:
        for i in range(count):
            for name in ("strict-match", "flexible-extract"):
                row = {"doc_id": i, "doc": {"question": f"q{i}", "answer": "#### 1"}, "filter": name, "exact_match": float(i % 2)}
                asked = {"arguments": {"gen_args_0": {"arg_0": "p", "arg_1": {}}}, "resps": [["1"]], "filtered_resps": ["1"]}
                handle.write(json.dumps(row | asked | {"metrics": ["exact_match"]}) + "\n")
    return path


def test_a_part_of_a_benchmark_is_a_group_of_its_own(registry: Registry, tmp_path: Path) -> None:
    made = get_format("lm_eval")
    for model, count in (("whole", 1319), ("also-whole", 1319), ("part", 20)):
        path = _samples(tmp_path / model, count)
        import_evaluations(registry, made, made.read([path], {}, {}), Source("x", [path], "lm_eval"))
    with registry.read() as session:
        query = select(Checkpoint.name, AnswerSet).join(Checkpoint, AnswerSet.checkpoint_id == Checkpoint.id)
        sets = {name: answers for name, answers in session.execute(query).tuples()}
    assert sets["whole"].settings_hash == sets["also-whole"].settings_hash != sets["part"].settings_hash
    assert sets["part"].settings["limit"] == 20 and "limit" not in sets["whole"].settings


def _programs(registry: Registry, model: str, benchmark: str, tasks: list[str]) -> AnswerSet:
    """Judged programs to some tasks, imported as a file of them would be."""
    answers = [SavedAnswer(task, "```python\npass\n```") for task in tasks]
    scores = [ScoreRow("pass@1", 0.5, 0.4, 0.6, "Wilson", len(tasks), 0, headline=True)]
    one = SavedEvaluation(model, "sandbox:x", "sandbox", {}, scores, [Verdict(task, 1.0) for task in tasks], answers, {}, [])
    import_evaluations(registry, get_format(benchmark), [one], Source("x", [Path(__file__)], benchmark))
    with registry.read() as session:
        return session.scalars(select(AnswerSet).order_by(AnswerSet.id.desc())).first()


def test_two_parts_of_one_size_are_two_groups_and_more_than_the_whole_is_one(registry: Registry) -> None:
    first, same, other = (
        _programs(registry, model, "human_eval", [f"HumanEval/{i}" for i in tasks])
        for model, tasks in (("a", [1, 2]), ("b", [2, 1]), ("c", [2, 3]))
    )
    assert first.settings_hash == same.settings_hash != other.settings_hash
    whole, more = (_programs(registry, f"m{n}", "mbpp", [str(i) for i in range(11, 11 + n)]) for n in (500, 974))
    assert whole.settings_hash != more.settings_hash, "MBPP's file has tasks outside its test split"


def test_a_part_that_was_imported_is_written_as_it_came(registry: Registry, tmp_path: Path) -> None:
    _programs(registry, "part", "human_eval", ["HumanEval/120", "HumanEval/121"])
    (path,) = export(registry, "human_eval", "human_eval", "part", None, tmp_path)
    assert [json.loads(line)["task_id"] for line in path.read_text().splitlines()] == ["HumanEval/120", "HumanEval/121"]


def test_a_published_part_ranks_with_no_whole(registry: Registry, tmp_path: Path) -> None:
    made = get_format("lm_eval")
    for model, count in (("whole", 1319), ("part", 20)):
        path = tmp_path / model / "results_2024-01-01T00-00-00.0.json"
        path.parent.mkdir()
        results = {"gsm8k": {"exact_match,flexible-extract": 0.45}}
        content = {"model_name": model, "results": results, "n-samples": {"gsm8k": {"original": 1319, "effective": count}}}
        path.write_text(json.dumps(content))
        import_published(registry, made, made.read_published([path]), Source("x", [path], "lm_eval"))
    with registry.read() as session:
        hashes = session.scalars(select(AnswerSet.settings_hash)).all()
    assert len(set(hashes)) == 2


@pytest.mark.parametrize("name", ["..", ".", "", "a\x00b"])
def test_a_name_that_leads_out_of_the_folder_names_no_file(name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be the name of a folder"):
        file_name(name)
    assert file_name("run/iter-2") == "run__iter-2" and file_name("../../x") == "..__..__x"
