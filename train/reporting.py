"""Training curves in the trackers that people already watch: TensorBoard, Weights & Biases, trackio, or one of your own.

    report_to: [tensorboard]        # in a recipe

The registry has every curve whatever is named here. A tracker gets the same values under `<run>/<stage>`; one that fails is
told of once and left out: no training ends because of it. A tracker of your own is declared under the entry-point group
`harness.trackers`: a callable that takes a `Place` and returns an object with `log(step, values)` and `close()`.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core import paths
from core.errors import MissingInput
from core.fingerprint import digest
from core.stage import Stage
from train.plugins import find_plugin

PROJECT = "rlhf-harness"
GROUP = "harness.trackers"


@dataclass(frozen=True)
class Place:
    """What a tracker is told of the training that it follows."""

    run: str
    stage: str
    """Its name in the run, as its files have it: `dpo-2`, `gold_reward`."""
    key: str
    """Of the stage: the same for a training that is resumed."""
    folder: Path
    """Where it may write: HARNESS_HOME/runs/<run>/reports."""
    settings: dict[str, Any]


class Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None:
        """Values of one step, by name."""

    def close(self) -> None:
        """No more will come."""


class TensorBoard:
    """Event files under reports/tensorboard: `tensorboard --logdir HARNESS_HOME/runs`."""

    def __init__(self, place: Place):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(place.folder / "tensorboard" / place.stage))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project WANDB_PROJECT; kept on disk (`wandb sync` sends it) unless there is a key or WANDB_MODE."""

    def __init__(self, place: Place):
        import wandb

        mode = None if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY") else "offline"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=f"{place.run}/{place.stage}",
            group=place.run,
            id=digest([place.run, place.stage, place.key])[:16],
            resume="allow",
            dir=str(place.folder),
            config=place.settings,
            mode=mode,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of the project TRACKIO_PROJECT, on disk: `trackio show`."""

    def __init__(self, place: Place):
        import trackio

        self.trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=project, name=f"{place.run}/{place.stage}", resume="allow", config=place.settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.trackio.log(values, step=step)

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, Callable[[Place], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def require_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for an unknown tracker, MissingInput for one that is not installed here."""
    for name in names:
        find_plugin(name, TRACKERS, GROUP)
        found = importlib.util.find_spec(name) if name in TRACKERS else None
        # A folder ./wandb, which wandb itself leaves behind, is found as a package without a file.
        if name in TRACKERS and (found is None or found.origin is None):
            raise MissingInput(f"report_to names {name}, which is not installed: run `pip install {name}`, or take it out.")


class Trackers:
    """The trackers of one training. Only the first rank has any."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.open: dict[str, Tracker] = {}
        # Two stages may be of one program (reward and gold_reward): their event files bear their names.
        label = Path(stage.spec.events).stem if stage.spec.events else stage.spec.stage
        place = Place(stage.spec.run, label, stage.spec.key, paths.runs() / stage.spec.run / "reports", stage.settings)
        for name in stage.spec.resources.get("report_to", []) if stage.is_main else []:
            place.folder.mkdir(parents=True, exist_ok=True)
            self._try(name, lambda name=name: self.open.update({name: find_plugin(name, TRACKERS, GROUP)(place)}))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, lambda tracker=tracker: tracker.log(step, values))

    def close(self) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.close)
        self.open.clear()

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker does, the training is worth more
            self.open.pop(name, None)
            self.stage.message(f"No more is reported to {name}: {type(error).__name__}: {error}")
