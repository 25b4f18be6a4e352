"""What a run shows while it goes: bars with rate and ETA on a terminal, plain lines otherwise, NDJSON with --json."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.artifacts import Artifact
    from harness.plan import Node, Plan

PLAIN_SECONDS = 30.0

# Metrics worth a place on the line that closes a stage, in this order.
_SHOWN = (
    "train_loss",
    "heldout_accuracy",
    "reward_accuracy",
    "reward_mean",
    "kl",
    "n_pairs",
    "margin_mean",
    "samples",
    "answers",
    "questions",
    "judgments",
    "tokens_per_second",
    "limit_share",
)


class Reporter:
    """Plain lines; the base of the other two."""

    def __init__(self) -> None:
        from rich.console import Console  # slow to import, and --json needs none of it

        # Nothing printed here is Rich's markup: `answer[sft]` is a stage, not a style.
        self.console = Console(stderr=False, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._last: dict[str, float] = {}

    def plan(self, plan: "Plan") -> None:
        self._total = len(plan.nodes)
        self._index = 0
        self.console.print(f"{plan.title}: {self._total} stages")

    def started(self, node: "Node") -> None:
        self.console.print(f"  {node.name} ...")

    def progress(self, node: "Node", done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now - self._last.get(node.name, 0.0) >= PLAIN_SECONDS:
            self._last[node.name] = now
            self.console.print(f"  {node.name}: {done}/{total} {unit}")

    def message(self, node: "Node", text: str) -> None:
        self.console.print(f"  {node.name}: {text}")

    def done(self, node: "Node", artifact: "Artifact", reused: bool) -> None:
        self._index += 1
        seconds = f"{artifact.manifest['seconds']:.0f} s"
        state = "kept" if reused else "done"
        shown = "  ".join(f"{k} {_short(artifact.metrics[k])}" for k in _SHOWN if artifact.metrics.get(k) is not None)
        self.console.print(f"[{self._index}/{self._total}] {node.name:<20} {state:<5} {seconds:>7}  {shown}")

    def failed(self, node: "Node", error: str) -> None:
        self.console.print(f"  {node.name}: failed")

    def decision(self, iteration: int, decision: Any) -> None:
        self.console.print(f"  hooks after iteration {iteration}: {decision.action}: {decision.reason}")

    def close(self) -> None:
        return


class BarReporter(Reporter):
    """Live bars on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bars.start()
        self._task: Any = None
        self._began = 0.0

    def started(self, node: "Node") -> None:
        self._began = time.monotonic()
        self._task = self._bars.add_task(node.name, total=None, unit="", rate="")

    def progress(self, node: "Node", done: int, total: int, unit: str) -> None:
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self._bars.update(self._task, completed=done, total=total, unit=unit, rate=f"{rate:.1f}/s")

    def done(self, node: "Node", artifact: "Artifact", reused: bool) -> None:
        self._drop()
        super().done(node, artifact, reused)

    def failed(self, node: "Node", error: str) -> None:
        self._drop()
        super().failed(node, error)

    def close(self) -> None:
        self._drop()
        self._bars.stop()

    def _drop(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


class JsonReporter(Reporter):
    """One JSON object a line on standard output."""

    def emit(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False), flush=True)

    def plan(self, plan: "Plan") -> None:
        self.emit("plan", title=plan.title, stages=[{"name": n.name, "key": n.key} for n in plan.nodes.values()])

    def started(self, node: "Node") -> None:
        self.emit("started", stage=node.name, key=node.key)

    def progress(self, node: "Node", done: int, total: int, unit: str) -> None:
        self.emit("progress", stage=node.name, done=done, total=total, unit=unit)

    def message(self, node: "Node", text: str) -> None:
        self.emit("message", stage=node.name, text=text)

    def done(self, node: "Node", artifact: "Artifact", reused: bool) -> None:
        self.emit(
            "done",
            stage=node.name,
            reused=reused,
            seconds=artifact.manifest["seconds"],
            metrics=artifact.metrics,
            artifact=str(artifact.path),
        )

    def failed(self, node: "Node", error: str) -> None:
        self.emit("failed", stage=node.name, error=error)

    def decision(self, iteration: int, decision: Any) -> None:
        self.emit("decision", iteration=iteration, action=decision.action, reason=decision.reason)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def say_notes(notes: list[str]) -> None:
    """What a user should know and nothing stops for, on standard error: `--json` keeps standard output to itself."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def make_reporter(as_json: bool) -> Reporter:
    """The reporter that fits the output: --json, a terminal, or anything else."""
    if as_json:
        return JsonReporter()
    return BarReporter() if sys.stdout.isatty() else Reporter()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
