"""lm-eval's files: its own are read to its own numbers, and ours are written so that they read the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from core.errors import MissingInput, RecipeError
from db.models import Score
from evals import records
from evals.benchmark import Question, get_benchmark
from evals.formats.lm_eval import LMEvalFormat
from evals.formats.saved import Stored, get_format
from tests.knowledge_runs import LIMIT, PATHS, SEED, entry, files, lm_evals_own, rows, run_here

FORMAT = LMEvalFormat()


@pytest.fixture(scope="module")
def theirs(tiny_llama, data, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """benchmark -> (folder that lm-eval itself wrote, the results that it returned)."""
    found = {}
    for name in PATHS:
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder, lm_evals_own(data, name, tiny_llama, folder / "tasks", folder / "out")
    return found


def _saved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json*") if path.name.startswith(("samples_", "results_")))


@pytest.mark.parametrize("name", PATHS)
def test_reads_what_lm_eval_wrote_to_lm_evals_own_numbers(name, theirs) -> None:
    folder, results = theirs[name]
    (one,) = FORMAT.read(_saved(folder / "out"), {}, {})
    assert (one.model, one.benchmark, one.judge_kind, one.judge_config["shots"]) == ("tiny", name, "none", 1)
    scores = {row.metric: row for row in one.scores}
    benchmark = get_benchmark(name)
    assert [row.metric for row in one.scores if row.headline] == [benchmark.headline]
    sizes = {task: results["n-samples"][task]["effective"] for task in results["results"]}
    for ours, key in benchmark.metrics.items():
        mean = sum(results["results"][task][key] * size for task, size in sizes.items()) / LIMIT
        assert (scores[ours].value, scores[ours].n) == (pytest.approx(mean), LIMIT)
        assert scores[ours].low <= mean <= scores[ours].high
        if len(sizes) == 1:
            (task,) = sizes
            assert scores[ours].stderr == pytest.approx(results["results"][task][key.replace(",", "_stderr,")])
    assert len(one.verdicts) == len(one.answers) == LIMIT


@pytest.mark.parametrize("name", PATHS)
def test_what_we_measure_and_write_reads_as_lm_evals_own_file(
    name, theirs, make_spec, registry, data, tiny_llama, tmp_path
) -> None:
    run_here(make_spec, registry, data, tiny_llama, [entry(name)])
    with registry.read() as session:
        stored = Stored(
            questions=get_benchmark(name).load(files(data, name), LIMIT, SEED),
            answers=records.stored_answers(session, 1),
            judgments=records.stored_judgments(session, 1),
            judge="lm-eval metrics",
            scores=session.scalars(select(Score)).all(),
            version="official@test",
            settings={"shots": 1, "lm_eval": "0.4.13"},
        )
        session.expunge_all()
    written = FORMAT.write("tiny", stored, tmp_path / "ours")
    folder, results = theirs[name]
    mine, other = (FORMAT.read(_saved(where), {}, {})[0] for where in (tmp_path / "ours", folder / "out"))
    assert mine.scores == other.scores
    assert {v.question_id: v.value for v in mine.verdicts} == {v.question_id: v.value for v in other.verdicts}
    assert {a.question_id: (a.text, a.prompt) for a in mine.answers} == {a.question_id: (a.text, a.prompt) for a in other.answers}
    # hash by hash, and key by key
    by_task = {path.name.split("_20")[0]: path for path in _saved(folder / "out") if path.name.startswith("samples_")}
    for path in written[1:]:
        ours = {(r["doc_id"], r["filter"]): r for r in map(json.loads, path.read_text().splitlines())}
        expected = [json.loads(line) for line in by_task[path.name.split("_20")[0]].read_text().splitlines()]
        assert len(ours) == len(expected)
        for row in expected:
            found = ours[row["doc_id"], row["filter"]]
            assert set(found) == set(row)
            for key in ("doc", "target", "doc_hash", "prompt_hash", "target_hash", "metrics", *row["metrics"]):
                assert found[key] == row[key], key
            if name == "gsm8k":
                assert (found["arguments"], found["resps"], found["filtered_resps"]) == (
                    row["arguments"],
                    row["resps"],
                    row["filtered_resps"],
                )
    aggregated = json.loads(written[0].read_text())
    for task in results["n-samples"]:
        for key, value in results["results"][task].items():
            if key.startswith(("acc", "exact_match")) and isinstance(value, float):
                assert aggregated["results"][task][key] == pytest.approx(value)
    # the registry's percent is a hundred times what the file gives
    in_registry = {row.metric: row.value for row in rows(registry, Score)}
    assert {row.metric: pytest.approx(100 * row.value) for row in mine.scores} == in_registry


def test_results_alone_are_published_numbers(theirs) -> None:
    results = [path for path in _saved(theirs["gsm8k"][0] / "out") if path.name.startswith("results_")]
    with pytest.raises(MissingInput, match="--published"):
        FORMAT.read(results, {}, {})
    published = {one.score.metric: one for one in FORMAT.read_published(results)}
    expected = theirs["gsm8k"][1]["results"]["gsm8k"]
    flexible = published["exact_match_flexible"]
    assert flexible.score.value == pytest.approx(100 * expected["exact_match,flexible-extract"])
    assert (flexible.benchmark, flexible.score.headline, flexible.score.n) == ("gsm8k", True, LIMIT)
    assert flexible.score.method.startswith("published")
    assert not published["exact_match_strict"].score.headline


def test_a_group_is_published_with_the_questions_of_its_subjects(tmp_path) -> None:
    content = {
        "results": {"mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.05}, "mmlu_anatomy": {"acc,none": 0.4}},
        "group_subtasks": {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_anatomy"]},
        "n-samples": {"mmlu_anatomy": {"original": 135, "effective": 135}},
        "model_name": "somebody/model",
    }
    path = tmp_path / "results_2024-01-01T00-00-00.json"
    path.write_text(json.dumps(content))
    (one,) = FORMAT.read_published([path])
    assert (one.model, one.benchmark, one.score.value, one.score.n) == ("somebody/model", "mmlu", 50.0, 135)
    assert one.score.low == pytest.approx(50 - 1.96 * 5)


def test_the_newest_of_several_runs_counts(theirs, tmp_path) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    lines = next(p for p in _saved(theirs["gsm8k"][0] / "out") if p.name.startswith("samples_")).read_text().splitlines()
    failed = [json.dumps(json.loads(line) | {"exact_match": 0.0}) for line in lines]
    right = [json.dumps(json.loads(line) | {"exact_match": 1.0}) for line in lines]
    (model / "samples_gsm8k_2024-01-01T00-00-00.000001.jsonl").write_text("\n".join(failed))
    (model / "samples_gsm8k_2024-02-01T00-00-00.000001.jsonl").write_text("\n".join([*right, right[0]]))
    (one,) = FORMAT.read(_saved(tmp_path), {}, {})
    assert one.scores[0].value == 1.0
    assert any("newest of 2 runs" in note for note in one.notes) and any("there twice" in note for note in one.notes)


def test_tasks_that_are_none_of_ours_are_scored_under_their_own_names(tmp_path) -> None:
    rows = [
        {
            "doc_id": i,
            "doc": {"q": str(i)},
            "filter": "none",
            "metrics": ["acc", "perplexity"],
            "acc": float(i < 3),
            "perplexity": 9.0,
        }
        for i in range(4)
    ]
    path = tmp_path / "samples_boolq_2024-01-01T00-00-00.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (one,) = FORMAT.read([path], {}, {})
    assert (one.benchmark, [(row.metric, row.value) for row in one.scores]) == ("boolq", [("acc,none", 0.75)])
    assert "perplexity,none of boolq is not a proportion and is left out." in one.notes


def test_a_damaged_file_is_named(tmp_path) -> None:
    path = tmp_path / "samples_gsm8k_2024-01-01T00-00-00.jsonl"
    path.write_text('{"doc_id": 0}\n')
    with pytest.raises(MissingInput, match="no `doc`"):
        FORMAT.read([path], {}, {})
    results = tmp_path / "results_2024-01-01T00-00-00.json"
    results.write_text("[]")
    with pytest.raises(MissingInput, match="no `results`"):
        FORMAT.read_published([results])


def test_truthful_qa_and_human_eval_are_written_too(tmp_path) -> None:
    choices = {"mc1": {"a": 1, "b": 0}, "mc2": {"a": 1, "b": 0}}
    truthful = Question("7", "", ("why?",), choices)
    human = Question("HumanEval/3", "code", ("p",), {"task_id": "HumanEval/3", "prompt": "p", "entry_point": "f", "test": "t"})
    for question, answer, raw, tasks in (
        (
            truthful,
            SimpleNamespace(prompt="c", text="", detail={"choices": ["a", "b"], "logprobs": [-1.0, -2.0]}),
            {"mc1": 1.0, "mc2": 0.73},
            {"truthful_qa": {"mc1": 1.0, "mc2": 0.73}},
        ),
        (human, SimpleNamespace(prompt="c", text="code", detail={}), {"code": "code"}, {"human_eval": {"pass@1": 1.0}}),
    ):
        stored = Stored(
            questions=[question],
            answers={(question.id, 1, 0): answer},
            judgments={(question.id, 1, 0, 1): SimpleNamespace(value=1.0, raw=raw)},
            judge="",
            scores=[],
            version="v",
            settings={},
        )
        folder = tmp_path / question.id.replace("/", "-")
        FORMAT.write("org/model", stored, folder)
        read = FORMAT.read(_saved(folder), {}, {})
        assert {one.benchmark: {row.metric: row.value for row in one.scores} for one in read} == tasks
        assert read[0].model == "org__model"
        assert [verdict.question_id for verdict in read[0].verdicts] == [question.id]


def test_a_benchmark_without_an_lm_eval_task_is_refused(tmp_path) -> None:
    stored = Stored([Question("1", "writing", ("hello",))], {}, {}, "", [], "v", {})
    with pytest.raises(RecipeError, match="no task for this benchmark"):
        get_format("lm_eval").write("m", stored, tmp_path)
