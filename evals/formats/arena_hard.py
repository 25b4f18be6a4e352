"""Arena-Hard's own files: `model_judgment/JUDGE/MODEL.jsonl`, `model_answer/MODEL.jsonl`, battles, published leaderboards.

Both layouts are read: v0.1's (`question_id`, `games`) and the later one (`uid`, `category`, `baseline`, `games`). Files are
known by their rows, not by their names, so that a whole folder of the reference may be given. Style control needs the style
of every answer, which judgments do not hold: it is taken from the answer files or the table of style metadata among the
files given, else from those beside `model_judgment/`.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError
from evals.benchmark import ScoreRow, read_text
from evals.chat.arena_hard import category_suffix
from evals.chat.arena_hard_v2 import BASELINES, HARD
from evals.chat.arena_scores import Game, breakdown, label_counts, points, score_rows, style_battles, style_rows
from evals.chat.style_control import FEATURES, TOKENIZER_FIX, Version, flat_style, markdown_counts, token_counter
from evals.formats.arena_hard_tables import read_leaderboards
from evals.formats.arena_hard_write import write_answers, write_judgments
from evals.formats.saved import PublishedScore, SavedAnswer, SavedEvaluation, SavedOutputs, Stored, read_rows, shown
from evals.verdict import Verdict

V01_BASELINE = "gpt-4-0314"
STYLE_CONTROL = ("none", "all", "length", "markdown")


@dataclass
class _Judged:
    """One model's judgments by one judge."""

    model: str
    judge: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    battles: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Files:
    """What was found in the files given."""

    judged: dict[tuple[str, str], _Judged] = field(default_factory=dict)
    answers: dict[str, dict[str, SavedAnswer]] = field(default_factory=dict)
    """model -> question -> answer; its detail holds "style", the row's metadata, where it has any."""
    styles: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """model -> question -> FEATURES, of a table of style metadata."""
    judgment_paths: list[Path] = field(default_factory=list)


class ArenaHardFormat:
    """v0.1; see `evals.formats.saved.SavedFormat`."""

    benchmark = "arena_hard"
    options: Mapping[str, tuple[str, ...]] = {"style-control": STYLE_CONTROL}
    assets: Sequence[str] = ("questions", "baseline")
    version: Version = "v0.1"
    headline_category: str | None = None

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        """One evaluation a model and judge; style control fits all models of one judge together, as the reference does."""
        found = _read_files(paths)
        if not found.judged:
            raise MissingInput(
                f"{', '.join(str(path) for path in paths)}: no rows with `games`; give model_judgment/JUDGE/MODEL.jsonl."
            )
        control = options.get("style-control", STYLE_CONTROL[0])
        questions = {row["uid"]: row for row in read_rows(files["questions"])} if "questions" in files else {}
        if control != "none":
            _read_beside(found, files)
        sets = [_GameSet(one, questions, self) for one in found.judged.values()]
        style = {}
        for judge in dict.fromkeys(one.judged.judge for one in sets):
            same = [one for one in sets if one.judged.judge == judge]
            style |= self._style(same, found, control) if control != "none" else {}
        made = [self._evaluation(one, style.get(id(one), {}), found, control) for one in sets]
        return sorted(made, key=lambda evaluation: (evaluation.model, evaluation.judge))

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        """Answers of `model_answer/MODEL.jsonl`, in either layout."""
        found = _read_files(paths)
        if not found.answers:
            raise MissingInput(f"{', '.join(str(path) for path in paths)}: no answers; give model_answer/MODEL.jsonl.")
        return [SavedOutputs(model, list(answers.values())) for model, answers in sorted(found.answers.items())]

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        """`model_answer/MODEL.jsonl` and `model_judgment/JUDGE/MODEL.jsonl`."""
        return [
            write_answers(model, rows, folder, self.version),
            write_judgments(model, rows, folder, self.version, V01_BASELINE),
        ]

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        """Leaderboard CSVs, and the console tables of upstream's Markdown files; other versions' tables are left out."""
        return [score for path in paths for score in read_leaderboards(path, self.version)]

    def _evaluation(self, one: "_GameSet", style: dict[str, Any], found: _Files, control: str) -> SavedEvaluation:
        scores: list[ScoreRow] = []
        for category, games in one.categories().items():
            suffix = category_suffix(category, self.headline_category)
            rows = score_rows(games, self.version, suffix=suffix, headline=not suffix) + style.get(suffix, ([], {}))[0]
            scores += [_as_asked(row, suffix) for row in rows] if control != "none" else rows
        statistics: dict[str, Any] = one.statistics()
        if style:
            statistics["style"] = {suffix.removeprefix("_") or "score": fitted for suffix, (_, fitted) in style.items()}
        config = {"version": self.version, "baseline": one.baseline, "style_control": control}
        answers = list(found.answers.get(one.judged.model, {}).values())
        return SavedEvaluation(
            *(one.judged.model, one.judged.judge, "openai", config, scores),
            verdicts=one.verdicts,
            answers=answers,
            statistics=statistics,
            notes=one.notes,
        )

    def _style(self, sets: Sequence["_GameSet"], found: _Files, control: str) -> dict[int, dict[str, Any]]:
        """id of a game set -> suffix -> (its rows, statistics of the fit)."""
        result: dict[int, dict[str, Any]] = defaultdict(dict)
        for category in dict.fromkeys(category for one in sets for category in one.categories()):
            chosen = [one for one in sets if category in one.categories()]
            models = []
            for one in chosen:
                games = one.categories()[category]
                keys = list({(game.prompt, game.sample) for game in games})
                baseline = one.baselines[category]
                ours, theirs = (_styles(name, keys, found, control, self.version) for name in (one.judged.model, baseline))
                models.append((games, ours, theirs))
            failed = [sum(game.points is None for game in games) for games, _, _ in models]
            suffix = category_suffix(category, self.headline_category)
            battles = style_battles(models, self.version)
            rows, statistics = style_rows(battles, self.version, control, "tokens", failed, suffix)
            for one, mine in zip(chosen, rows, strict=True):
                result[id(one)][suffix] = (mine, statistics)
        return result


class ArenaHardV2Format(ArenaHardFormat):
    """v2.0: scores by category, `hard_prompt`'s under the plain names."""

    benchmark = "arena_hard_v2"
    version: Version = "v2"
    headline_category: str | None = HARD


def _as_asked(row: ScoreRow, suffix: str) -> ScoreRow:
    """Names under style control as the reference prints them: its `score` is then the controlled one."""
    if row.metric == f"score{suffix}":
        return replace(row, metric=f"uncontrolled_score{suffix}", headline=False)
    if row.metric == f"style_controlled_score{suffix}":
        return replace(row, metric=f"score{suffix}", headline=not suffix)
    return row


class _GameSet:
    """The games of one model by one judge, with what a reader must know of them."""

    def __init__(self, judged: _Judged, questions: Mapping[str, Mapping[str, Any]], form: ArenaHardFormat):
        self.judged, self.questions, self.form = judged, questions, form
        self.notes: list[str] = []
        self.verdicts: list[Verdict] = []
        self.labels: list[tuple[int, str]] = []
        self.category_of: dict[str, str] = {}
        self.games: list[Game] = []
        self.baselines: dict[str, str] = {}
        self.seen: Counter[str] = Counter()
        if judged.rows and judged.battles:
            raise RecipeError(f"{judged.model} comes as judgments and as battles; give one of them.")
        for row in judged.rows:
            self._add(row)
        self._add_battles(judged.battles)
        self._add_absent()
        failed = sum(verdict.value is None for verdict in self.verdicts)
        if failed:
            self.notes.append(f"{failed} games have no verdict; they count as failed.")
        repeated = sum(verdict.sample > 0 for verdict in self.verdicts) // 2
        if repeated:
            self.notes.append(f"{repeated} rows repeat a question; every one counts, as in the reference's show_result.")

    @property
    def baseline(self) -> str | dict[str, str]:
        names = set(self.baselines.values())
        return names.pop() if len(names) == 1 else dict(self.baselines)

    def categories(self) -> dict[str, list[Game]]:
        """Category -> its games; the headline's first."""
        found: dict[str, list[Game]] = {}
        if self.form.headline_category in self.baselines:
            found[self.form.headline_category] = []
        for game in self.games:
            found.setdefault(self.category_of[game.prompt], []).append(game)
        return found

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = {"labels": label_counts(self.labels)} if self.labels else {}
        of = {"categories": self.category_of}
        for name, column in (("subcategories", "subcategory"), ("clusters", "cluster")):
            of[name] = {prompt: self.questions.get(prompt, {}).get(column, "") for prompt in self.category_of}
        for name, group in of.items():
            if len(set(group.values())) > 1:
                found[name] = breakdown(self.games, group, self.form.version)
        return found

    def _place(self, row: Mapping[str, Any], baseline: str | None) -> str:
        """The question's id, after noting its category and that category's baseline."""
        prompt = _question(row)
        category = (
            "" if self.form.headline_category is None else row.get("category") or self.questions.get(prompt, {}).get("category")
        )
        if category is None:
            raise MissingInput(
                f"The judgment of question {prompt} by {self.judged.model} names no category, and the benchmark's questions "
                f"are not here; run `harness data fetch {self.form.benchmark}`."
            )
        usual = V01_BASELINE if self.form.headline_category is None else BASELINES.get(category)
        if self.baselines.setdefault(category, baseline or usual or "unknown") != (baseline or usual or "unknown"):
            raise RecipeError(f"{self.judged.model} was judged against several baselines; give their files one at a time.")
        self.category_of[prompt] = category
        return prompt

    def _add(self, row: Mapping[str, Any]) -> None:
        prompt = self._place(row, row.get("baseline"))
        sample = self.seen[prompt]
        self.seen[prompt] += 1
        games = [*(row["games"] or []), None, None][:2]
        for number, game in enumerate(games, 1):
            label = (game or {}).get("score")
            judged = points(label, number, self.form.version) if label else None
            error = None if judged else "no verdict" if not label else f"{label!r} is not a verdict label"
            raw: dict[str, Any] = {"rule": "saved"} | ({"label": label} if label else {})
            text = _text((game or {}).get("judgment"))
            if text:
                raw["replies"] = [{"text": text, "finish_reason": None, "top_logprobs": None}]
            value, weight = judged or (None, 1)
            if judged:
                raw["weight"] = weight
                self.labels.append((number, label))
            self.games.append(Game(prompt, number, value, weight, sample))
            said = shown((game or {}).get("user_prompt") or (game or {}).get("prompt"))
            self.verdicts.append(Verdict(prompt, value, sample=sample, game=number, error=error, raw=raw, shown=said))

    def _add_battles(self, battles: Sequence[Mapping[str, Any]]) -> None:
        """Rows of `arena_hard_battles.jsonl`: one a counted verdict, in which games can no longer be told apart."""
        for row in battles:
            other = row["model_a"] if row["model_b"] == self.judged.model else row["model_b"]
            prompt = self._place(row, other)
            winner = row.get(row["winner"])
            self.games.append(Game(prompt, 1, 0.5 if winner is None else float(winner == self.judged.model)))
        if battles:
            self.notes.append("Battles hold counted rows, not games: failed games are not in them, and no verdicts are kept.")

    def _add_absent(self) -> None:
        """Both games of every question that the file should have and has not, as failures."""
        prompts = set(self.category_of)
        if not self.questions or not prompts <= self.questions.keys():
            if self.questions:
                self.notes.append("Some questions are not the benchmark's own; questions without a row cannot be told.")
            return
        wanted = {uid: row.get("category", "") if self.form.headline_category else "" for uid, row in self.questions.items()}
        absent = [uid for uid, category in wanted.items() if uid not in prompts and category in self.baselines]
        for uid in absent:
            self.category_of[uid] = wanted[uid]
            self.games += [Game(uid, number, None) for number in (1, 2)]
        if absent:
            self.notes.append(f"{len(absent)} questions have no row; their {2 * len(absent)} games count as failed.")


def _question(row: Mapping[str, Any]) -> str:
    return str(row.get("uid") or row.get("question_id"))


def _text(judgment: Any) -> str:
    """A judgment's text: a string in the old layout, {"answer": text} in the new."""
    return str(judgment.get("answer") or "") if isinstance(judgment, Mapping) else judgment or ""


def _read_files(paths: Sequence[Path]) -> _Files:
    found = _Files()
    for path in paths:
        if ".csv" in path.suffixes:
            _read_style_table(path, found)
            continue
        if ".jsonl" not in path.suffixes and ".json" not in path.suffixes:
            raise MissingInput(f"{path} is no .jsonl or .csv file; give files of model_judgment/ or model_answer/.")
        judgments = False
        for number, row in enumerate(read_rows(path), 1):
            if "games" in row:
                judgments = True
                judge = str(row.get("judge") or path.parent.name)
                key = (_needed(row, "model", path, number), judge)
                found.judged.setdefault(key, _Judged(*key)).rows.append(row)
            elif {"model_a", "model_b", "winner", "question_id"} <= row.keys():
                key = (row["model_b"], str(row.get("judge") or "unknown"))
                found.judged.setdefault(key, _Judged(*key)).battles.append(row)
            elif "messages" in row or "choices" in row:
                model, answer = _answer(row, path, number)
                found.answers.setdefault(model, {})[answer.question_id] = answer
            elif "prompt" not in row:
                raise MissingInput(
                    f"{path}, row {number} is neither a judgment, a battle, an answer nor a question of Arena-Hard."
                )
        if judgments:
            found.judgment_paths.append(path)
    return found


def _needed(row: Mapping[str, Any], name: str, path: Path, number: int) -> str:
    if row.get(name) is None:
        raise MissingInput(f"{path}, row {number} has no {name!r}; give a file of model_judgment/ or model_answer/.")
    return str(row[name])


def _answer(row: Mapping[str, Any], path: Path, number: int) -> tuple[str, SavedAnswer]:
    """(model, answer) of a row: `messages` in the present layout, `choices` in the old one."""
    style = row.get("metadata") or row.get("conv_metadata")
    try:
        if "messages" in row:
            model, content = row["model"], row["messages"][-1]["content"]
            text = content["answer"] if isinstance(content, Mapping) else content
            prompt, tokens = str(row["messages"][0]["content"]), (style or {}).get("token_len")
        else:
            model, turn, prompt = row["model_id"], row["choices"][0]["turns"][0], ""
            text, tokens = turn["content"], turn.get("token_len")
    except (KeyError, IndexError, TypeError) as error:
        raise MissingInput(
            f"{path}, row {number} is not an answer of Arena-Hard (no {error}); give model_answer/MODEL.jsonl."
        ) from error
    detail = {"style": dict(style)} if style else {}
    category = row.get("category")
    return model, SavedAnswer(
        _question(row), text or "", prompt=prompt, output_tokens=int(tokens or 0), category=category, detail=detail
    )


def _read_style_table(path: Path, found: _Files) -> None:
    table = csv.DictReader(io.StringIO(read_text(path)))
    if not {"model", "question_id", *FEATURES} <= set(table.fieldnames or ()):
        raise MissingInput(
            f"{path} is no table of style metadata (columns model, question_id, {', '.join(FEATURES)}); leave it out."
        )
    for row in table:
        found.styles.setdefault(row["model"], {})[row["question_id"]] = [float(row[name]) for name in FEATURES]


def _read_beside(found: _Files, files: Mapping[str, Path]) -> None:
    """Add the styles and answers that lie beside `model_judgment/`, and the benchmark's own baseline, to those given."""
    tables, answers = set(), {files["baseline"]} if "baseline" in files else set()
    for path in found.judgment_paths:
        folder = path.parent.parent.parent
        if path.parent.parent.name == "model_judgment":
            tables |= set(folder.glob("style_metadata*.csv*"))
            answers |= set((folder / "model_answer").glob("*.jsonl*"))
    wanted = {model for model, _ in found.judged}
    for path in sorted(answers):
        if path in files.values() or path.name.split(".jsonl")[0] in wanted | {V01_BASELINE, *BASELINES.values()}:
            for model, given in _read_files([path]).answers.items():
                found.answers.setdefault(model, given)
    for path in sorted(tables):
        _read_style_table(path, found)


def _styles(
    model: str, keys: Sequence[tuple[str, int]], found: _Files, control: str, version: Version
) -> dict[tuple[str, int], list[float]]:
    """(question, row) -> FEATURES of a model's answers. Raises MissingInput naming what is missing and the fix."""
    table, answers, count = found.styles.get(model, {}), found.answers.get(model, {}), token_counter()
    # v0.1's Markdown features do without a length; v2.0's are counts per token.
    needs_length = control != "markdown" or version != "v0.1"
    result, missing, uncounted = {}, 0, 0
    for question, row in keys:
        answer = answers.get(question)
        style = flat_style(answer.detail.get("style") or {}) if answer else None
        style = style or table.get(question)
        if style is None and answer is not None:
            marks = [float(sum(kinds.values())) for kinds in markdown_counts(answer.text).values()]
            if count is not None or not needs_length:
                style = [float(count(answer.text)) if count else 0.0, *marks]
            else:
                uncounted += 1
        missing += answer is None and style is None
        result[question, row] = style
    if missing:
        raise MissingInput(
            f"Style control needs the style of {model}'s answers, and {missing} of {len(keys)} are not here; give "
            f"model_answer/{model}.jsonl, or a table of style metadata, too."
        )
    if uncounted:
        raise MissingInput(
            f"The rows of {model}'s answers hold no token_len, and tiktoken's vocabulary of gpt-4o is not here: give a "
            f"table of style metadata (CSV), or {TOKENIZER_FIX}."
        )
    return result
