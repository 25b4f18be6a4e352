"""Mixtures: the keys of `data` in a YAML file, with a name and a description. Shipped ones by name, others by path."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from core import paths
from core.errors import RecipeError
from harness.catalogue import nearest
from harness.recipe.data import Mixture


def shipped_mixtures() -> dict[str, Path]:
    """Mixtures of the package and of HARNESS_HOME/mixtures, by name."""
    folders = [paths.home() / "mixtures", Path(str(resources.files("harness") / "mixtures"))]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def mixture_content(name_or_path: str) -> dict[str, Any]:
    """The keys of `data` that a mixture holds, not yet validated. Raises RecipeError (a ValueError) where there is none."""
    content = _read(_path(name_or_path))
    return {key: value for key, value in content.items() if key not in ("name", "description")}


def load_mixture(name_or_path: str) -> Mixture:
    """The validated mixture. Raises RecipeError with every fault in it."""
    path = _path(name_or_path)
    try:
        return Mixture.model_validate({"name": path.stem.lower(), "mixture": name_or_path} | _read(path))
    except ValidationError as error:
        faults = [
            f"  {'.'.join(map(str, fault['loc'])) or 'mixture'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        raise RecipeError(
            f"The mixture {path} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(faults)
        ) from error


def _path(name_or_path: str) -> Path:
    known = shipped_mixtures()
    path = known.get(name_or_path, Path(name_or_path).expanduser())
    if not path.is_file():
        raise RecipeError(
            f"No mixture {name_or_path!r}{nearest(name_or_path, known)}; use one of {', '.join(known)}, or a YAML file's path."
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} is not a mixture: write `sources:` with a list of {{name, use}}.")
    return content
