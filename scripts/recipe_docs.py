"""Writes docs/recipes.md from the recipe's types and docstrings: python scripts/recipe_docs.py"""

import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from harness.recipe import Recipe

TARGET = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"


def sections(model: type[BaseModel], path: str = "") -> typing.Iterator[tuple[str, type[BaseModel]]]:
    """(dotted path, section) of every section, depth first; lists are marked with []."""
    yield path, model
    for name, field in model.model_fields.items():
        inner, listed = section_of(field.annotation)
        if inner is not None:
            yield from sections(inner, f"{path}.{name}".lstrip(".") + ("[]" if listed else ""))


def section_of(annotation: typing.Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field holds, if any, and whether as a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for argument in typing.get_args(annotation):
        inner, _ = section_of(argument)
        if inner is not None:
            return inner, typing.get_origin(annotation) is list
    return None, False


def type_name(annotation: typing.Any) -> str:
    """A type as a reader of YAML would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " / ".join(map(str, arguments))
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " / ".join("null" if a is type(None) else type_name(a) for a in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true / false"}.get(
        annotation.__name__, annotation.__name__
    )


def default_of(field: typing.Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    if isinstance(field.default, list):
        return ", ".join(str(getattr(item, "name", item)) for item in field.default)
    return (
        "null" if field.default is None else str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    )


def render() -> str:
    """The whole page."""
    lines = [
        "# Every key of a recipe",
        "",
        "Made from `harness/recipe/` by `python scripts/recipe_docs.py`. Set any of them with `--set path.to.key=value`;",
        "items of lists by index: `--set generate.arms.0.n=8`.",
    ]
    for path, model in sections(Recipe):
        lines += ["", f"## {path or 'recipe'}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {type_name(field.annotation)} | {default_of(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render())
