"""What a judge's tokens cost: the table `prices.yaml`, the user's own, or the recipe's word. An unknown model has no price."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core import paths
from core.errors import RecipeError

OPENAI_URL = "https://api.openai.com/v1"
TABLE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens, which is micro-dollars per token."""

    input: float
    output: float
    source: str = "the recipe"

    def micro_dollars(self, tokens_in: int, tokens_out: int) -> int:
        """Cost of one call, rounded to a micro-dollar."""
        return round(tokens_in * self.input + tokens_out * self.output)


FREE = Price(0.0, 0.0, "a server of our own")


def find_price(model: str, base_url: str, given: Mapping[str, float] | None = None, batch: bool = False) -> Price | None:
    """The price of a model at an endpoint: what is `given`, else the user's table, else the shipped one; None if unknown.

    `given` is taken as it stands; the tables' `batch` factor is applied for batch files. Raises RecipeError for a
    prices.yaml of the user's that cannot be read.
    """
    if given is not None:
        return Price(given["input"], given["output"])
    for path, name in ((paths.home() / "prices.yaml", "HARNESS_HOME/prices.yaml"), (TABLE, "evals/judges/prices.yaml")):
        row = _read(path).get(model)
        if row is None or row.get("endpoint", OPENAI_URL).rstrip("/") != base_url.rstrip("/"):
            continue
        factor = float(row.get("batch", 1.0)) if batch else 1.0
        source = f"{name}, {row.get('date', 'undated')}" + (f", batch x {factor:g}" if factor != 1 else "")
        return Price(float(row["input"]) * factor, float(row["output"]) * factor, source)
    return None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        table = yaml.safe_load(path.read_text()) or {}
        for row in table.values():
            if float(row["input"]) < 0 or float(row["output"]) < 0:
                raise ValueError("a price is negative")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{path} is not a price table ({error}); write one line a model, like `gpt-4.1: {{input: 2.0, output: 8.0}}`."
        ) from error
    return table
