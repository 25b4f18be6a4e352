"""What a card says of where something comes from: recipes without this machine in them, licences of what went in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.catalogue import load_catalogue
from harness.checkpoint_folder import HUB_ID
from harness.data import is_local_rows

_OF_THIS_PLACE = {"endpoints", "base_url", "host", "path", "pid"}
"""Keys that say where, not what: addresses of judges, host names, folders."""


@dataclass(frozen=True)
class Origin:
    """A data set or model that went in."""

    name: str
    use: str
    licence: str
    source: str
    note: str = ""
    hub_id: str | None = None


def public(value: Any) -> Any:
    """A JSON value without absolute paths (their last part stays), addresses of endpoints and host names."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items() if key not in _OF_THIS_PLACE}
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~")) and "\n" not in value and len(value) < 4096):
        return Path(value).name or value
    return value


def origins(recipe: dict[str, Any]) -> list[Origin]:
    """The data sources of a recipe (as the registry holds it) with what the catalogue knows of their licences."""
    known = load_catalogue()
    found = []
    for source in (recipe.get("data") or {}).get("sources", []):
        name, use = source["name"], source.get("use", "")
        entry = known.get(name)
        if entry is not None:
            hub = entry.hub.id if entry.hub else None
            found.append(Origin(name, use, entry.licence, entry.source, entry.note, hub))
        elif is_local_rows(name):
            found.append(Origin(Path(name).name, use, "not recorded", "a local file"))
        else:
            found.append(Origin(name, use, "not recorded", "not in the catalogue"))
    return found


def base_model(recipe: dict[str, Any]) -> tuple[str, str | None]:
    """(what the base model is called, its hub id where it was named by one)."""
    source = (recipe.get("base") or {}).get("source", "")
    if HUB_ID.match(source) and not Path(source).exists():
        return source, source
    return (source if source.startswith("package:") else Path(source).name) or "not recorded", None
