"""The lineage of a run as a row of boxes: what each checkpoint was trained from, and what its training was held to."""

from collections.abc import Sequence
from urllib.parse import quote

from dashboard import format as f
from dashboard import markup
from dashboard.markup import Markup
from db.lineage import Node

_ROLES = {
    "base": "base model",
    "sft": "SFT",
    "reward": "reward model",
    "gold_reward": "gold reward model",
    "preference": "preference model",
    "policy": "policy",
    "baseline": "offline baseline",
}


def lineage_graph(nodes: Sequence[Node]) -> Markup:
    """One column per step from the base; in a narrow window it scrolls. Names lead to the checkpoints' cards."""
    names = {node.checkpoint_id: node for node in nodes}
    columns: dict[int, list[str]] = {}
    for node in nodes:
        columns.setdefault(node.depth, []).append(_box(node, names))
    lists = "".join(f"<li><ul>{''.join(boxes)}</ul></li>" for _, boxes in sorted(columns.items()))
    label = "Lineage, from the base model on"
    return markup.root(f'<div class="h-scroll lineage" role="region" tabindex="0" aria-label="{label}"><ul>{lists}</ul></div>')


def _box(node: Node, names: dict[int, Node]) -> str:
    notes = [f"from {f.plain(role(names[node.parent]))}"] if node.parent is not None else []
    # Held to its own start is what one expects of the first iteration only.
    notes += [f"held to {f.plain(role(names[node.reference]))}"] if node.reference is not None else []
    best = Markup('<span class="chip best">best</span>') if node.best else ""
    name = f'<a href="checkpoint?fingerprint={quote(node.fingerprint)}">{markup.text(node.name)}</a>'
    small = f"<small>{markup.text('; '.join(notes))}</small>" if notes else ""
    return f"<li><small>{markup.dot(node.checkpoint_id)}{markup.text(role(node))}</small>{name}{best}{small}</li>"


def role(node: Node) -> str:
    """What a checkpoint is in its run, in words: `iteration 2`, `gold reward model`."""
    return f"iteration {node.iteration}" if node.role == "iteration" else _ROLES.get(node.role, node.role)
