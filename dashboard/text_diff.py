"""Two texts word by word, as inert HTML: what only one of them says is marked. Pure."""

import re
from difflib import SequenceMatcher
from html import escape

from dashboard import format as f
from dashboard.markup import Markup

WORDS = 3_000
"""Of both texts together: the comparison's time grows with their product, and a page must not wait for it."""


def side_by_side(first: str, second: str) -> tuple[Markup, Markup] | None:
    """Both texts with what differs marked; None where they are too long to be compared while someone waits."""
    a, b = _words(first), _words(second)
    if len(a) + len(b) > WORDS:
        return None
    left, right = [], []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        left.append(_shown(a[a0:a1], "only" if kind != "equal" else ""))
        right.append(_shown(b[b0:b1], "only" if kind != "equal" else ""))
    return _block(left), _block(right)


def _words(text: str) -> list[str]:
    """Words, spaces and single marks, which joined are the text."""
    return re.findall(r"\w+|\s+|[^\w\s]", f.visible(text))


def _shown(words: list[str], style: str) -> str:
    text = escape("".join(words))
    return f'<span class="{style}">{text}</span>' if style and text else text


def _block(parts: list[str]) -> Markup:
    return Markup(f'<div class="h-root"><div class="answer">{"".join(parts) or "(empty)"}</div></div>')
