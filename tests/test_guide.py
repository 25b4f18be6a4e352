"""The guide and the README say what is there: their recipes validate, their commands parse, their keys exist."""

import itertools
import re
import shlex
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from harness.cli import app
from harness.mixture_file import load_mixture
from harness.recipe import Recipe
from harness.recipe_file import load_recipe, shipped
from train.hooks import make_hook

ROOT = Path(__file__).resolve().parent.parent
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
CONFLICTS = ROOT / "docs" / "guide" / "conflicts.md"
WITH_RECIPES = [*GUIDE, ROOT / "docs" / "preference-model.md"]
WITH_COMMANDS = [*GUIDE, ROOT / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the page's fenced blocks in one language ("" for none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def merged(base: Any, change: Any) -> Any:
    """`change` laid over `base`: sections key by key, everything else as a whole."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def as_recipe(fragment: str) -> Recipe:
    """The quickstart with a fragment laid over it. Raises ValueError where that is no recipe."""
    return Recipe.model_validate(merged(yaml.safe_load(shipped()["quickstart"].read_text()), yaml.safe_load(fragment)))


def test_every_recipe_in_the_guide_is_one(tmp_path):
    recipes = mixtures = 0
    for page in WITH_RECIPES:
        for fragment in blocks(page, "yaml"):
            if "sources" in yaml.safe_load(fragment):
                (tmp_path / "mine.yaml").write_text(fragment, encoding="utf-8")
                assert load_mixture(str(tmp_path / "mine.yaml")).sources
                mixtures += 1
            else:
                assert as_recipe(fragment).name == "quickstart"
                recipes += 1
    assert recipes >= 4 and mixtures >= 1


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("hooks: [{name: over_optimisation, options: {watch: held_out_reward}}]", "watch is a list"),
        ("annotate: {ensemble: {scorers: [bradley_terry, length_bonds]}}", "length_bonds"),
        ("genrate: {arms: [{n: 4}]}", "genrate"),
    ],
)
def test_a_recipe_that_is_none_would_be_noticed(fragment, said):
    with pytest.raises(ValueError, match=said):
        as_recipe(fragment)


def parse(words: list[str], whole: bool = True) -> dict[str, Any]:
    """Parameters of `harness WORDS` as the command line itself reads them. Raises its own error for what it does not know.

    `whole` false: arguments may be missing, as where a command is only named.
    """
    command, name, context = typer.main.get_command(app), "harness", None
    while True:
        try:
            context = command.make_context(name, list(words), parent=context)
        except Exception as error:
            if not whole and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
                return {}
            raise
        if not hasattr(command, "resolve_command"):
            return context.params
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def typed(page: Path) -> list[list[str]]:
    """Words of each `harness ...` line in the page's blocks, with the variables that its block sets put in."""
    found = []
    for block in blocks(page, ""):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            if assigned := re.match(r'(\w+)="(.*)"$', line):
                variables[assigned[1]] = assigned[2]
            elif line.startswith("harness "):
                for name in re.findall(r"\$(\w+)", line):
                    line = line.replace(f"${name}", variables[name])
                found.append(shlex.split(line, comments=True)[1:])
    return found


def named(page: Path) -> list[list[str]]:
    """Words of each `harness ...` within the page's text; of alternatives (`list|fetch`) and options in brackets, all."""
    found, text = [], re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`harness ([^`]+)`", text):
        words = shlex.split(re.sub(r"[\[\]]", " ", code.replace("\\|", "|")))
        found += [list(chosen) for chosen in itertools.product(*(word.split("|") for word in words))]
    return found


def test_every_command_of_the_guide_and_the_readme_parses():
    lines = [words for page in WITH_COMMANDS for words in typed(page)]
    for words in lines:
        given = parse(words)
        if words[0] == "train-and-eval" and given["recipe"] in shipped():
            load_recipe(given["recipe"], given["overrides"])
    mentions = [words for page in WITH_COMMANDS for words in named(page)]
    for words in mentions:
        parse(words, whole=False)
    texts = [page.read_text(encoding="utf-8") for page in WITH_COMMANDS]
    assert len(lines) == sum(text.count("\nharness ") for text in texts) >= 25 and len(mentions) >= 30
    assert {"train-and-eval", "eval", "compare", "export", "data", "watch", "doctor"} <= {words[0] for words in lines}


def test_a_command_that_is_none_would_be_noticed():
    assert parse(["eval", "x", "--benchmarks", "human_eval"])["checkpoint"] == "x"
    for words, said in (
        (["eval", "x", "--benchmark", "human_eval"], "No such option: --benchmark"),
        (["evaluate", "x"], "No such command 'evaluate'"),
        (["data", "get", "x"], "No such command 'get'"),
        (["export", "model", "x", "--license"], "requires an argument"),
        (["export", "x", "--licence", "mit"], "No such option"),
        (["eval", "x", "--seed", "first"], "valid integer"),
    ):
        for whole in (True, False):
            with pytest.raises(Exception, match=said):
                parse(words, whole)
    with pytest.raises(Exception, match="Missing parameter: checkpoint"):
        parse(["eval"])
    assert parse(["eval"], whole=False) == {}


def alternatives(kind: Any) -> list[Any]:
    """The types that a union allows; any other type is its only one."""
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def type_of(key: str) -> Any:
    """Type of a recipe key; `[]` steps into the items of a list. None for a key that recipes do not have."""
    found: Any = Recipe
    for part in key.split("."):
        name = part.removesuffix("[]")
        section = next((t for t in alternatives(found) if name in getattr(t, "model_fields", {})), None)
        if section is None:
            return None
        found = section.model_fields[name].annotation
        if part.endswith("[]"):
            found = next((get_args(t)[0] for t in alternatives(found) if get_origin(t) is list), None)
    return found


def key_problems(cell: str) -> list[str]:
    """What is wrong with what a table cell names: `a.b`, `a.b: value | value`, a key beside the one before it, --option."""
    problems, before = [], ""
    for code in re.findall(r"`([^`]+)`", cell.replace("\\|", "|")):
        if code.startswith("--"):
            parse(["train-and-eval", "quickstart", *code.split()])
            continue
        name, _, values = code.partition(": ")
        near = [name, f"{before.rpartition('.')[0]}.{name}", f"{before}[].{name}"]
        before = next((key for key in near if type_of(key) is not None), "")
        if not before:
            problems.append(f"{name} is no key of a recipe")
            continue
        for value in map(yaml.safe_load, values.split(" | ") if values else ()):
            try:
                make_hook(value) if before == "hooks" else TypeAdapter(type_of(before)).validate_python(value)
            except ValueError:
                problems.append(f"{before} does not take {value!r}")
    return problems


def test_every_key_that_the_table_of_conflicts_names_exists():
    text = CONFLICTS.read_text(encoding="utf-8")
    table = [line.strip("| ").replace("\\|", "\x00").split("|") for line in text.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in table[0]][4] == "key"
    cells = [row[4].replace("\x00", "\\|").strip() for row in table[1:]]
    with_keys = [cell for cell in cells if not cell.startswith("one reading")]
    assert len(with_keys) >= 20 and all("`" in cell for cell in with_keys)
    assert [problem for cell in with_keys for problem in key_problems(cell)] == []
    elsewhere = re.findall(r"`([a-z_]+\.[a-z_]+)[:`]", text)
    assert elsewhere and [key for key in elsewhere if type_of(key) is None] == []


def test_a_key_that_is_none_would_be_noticed():
    assert key_problems("`reference.policy: initial \\| previous`, `k`, `data.sources` with `use: sft`, `iterations`") == []
    assert key_problems("`reference.polcy`") == ["reference.polcy is no key of a recipe"]
    assert key_problems("`reference.policy: first`") == ["reference.policy does not take 'first'"]
    assert key_problems("`generate.arms[].temprature`, `hooks: keep_bst`") == [
        "generate.arms[].temprature is no key of a recipe",
        "hooks does not take 'keep_bst'",
    ]
    with pytest.raises(Exception, match="No such option"):
        key_problems("`--base-line offline_dpo`")
