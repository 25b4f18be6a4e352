"""From a chat answer to a Python program. The rule decides the score, so it is named and stored with every verdict.

The same 164 answers of WizardCoder-33B-V1.1 give 131 passes by this rule (the published 79.9), 123 by a syntax-tree
sanitizer, 121 by the longest fence, 108 by the last fence.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

EXTRACTION_RULE = "defining-fence-1"
"""Name of the rule below; another rule gets another name, and so another judge."""

# An unterminated fence counts: an answer cut at the token limit may still hold the whole function.
_FENCE = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Extracted:
    """Code that defines the entry point as well as the answer allows."""

    code: str
    rule: str
    """defining_fence | first_fence | raw | continued, with `+body` when the code is the body of the prompt's function."""


def fenced_blocks(text: str) -> list[str]:
    """Contents of the Markdown fences that are Python or unlabelled, in order."""
    return _FENCE.findall(text)


def defines(code: str, entry_point: str) -> bool:
    """Whether a line of `code` begins the definition of `entry_point`, a function."""
    return re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", code, re.MULTILINE) is not None


def extract(answer: str, prompt: str, entry_point: str) -> Extracted:
    """The program part of an answer to a HumanEval prompt.

    The first fence that defines `entry_point`, else the first fence, else the whole answer. Code that does not define
    it is taken for the body that follows the prompt; code that does is put after the prompt, whose imports and helpers
    it may need.
    """
    found = extract_program(answer, [entry_point])
    if defines(found.code, entry_point):
        # The prompt ends in a docstring, which is a body: what follows at column 0 redefines the function.
        return Extracted(f"{prompt.rstrip()}\n\n{found.code}", found.rule)
    return Extracted(prompt + found.code, f"{found.rule}+body")


def extract_program(answer: str, names: Collection[str]) -> Extracted:
    """The program part of an answer that stands on its own: the first fence that defines one of the functions `names`,
    else the first fence, else the whole answer."""
    answer = answer.replace("\r", "")
    blocks = fenced_blocks(answer)
    for block in blocks:
        if any(defines(block, name) for name in names):
            return Extracted(block, "defining_fence")
    return Extracted(blocks[0], "first_fence") if blocks else Extracted(answer, "raw")


def continued(answer: str, prompt: str) -> Extracted:
    """The program of an answer that went on from a prefill ending inside a fence: prompt and answer up to the fence's end
    (lm-eval 0.4.13, tasks/humaneval/utils.py `build_predictions_instruct`)."""
    return Extracted(prompt + answer.partition("```")[0], "continued")
