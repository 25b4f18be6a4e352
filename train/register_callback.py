"""A callback for any trainer of transformers or trl: every checkpoint that it saves gets a row in the registry.

    from train.register_callback import RegisterCheckpoints
    trainer = DPOTrainer(..., callbacks=[RegisterCheckpoints("my-dpo", evaluate="end", options=["--benchmarks", "human_eval"])])

It never disturbs the training: what goes wrong is logged and counted in `failures`. Only the first process registers.
Imports transformers at module level: import this module inside functions only.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from core import paths
from core.errors import RecipeError
from core.fingerprint import checkpoint_fingerprint, file_sha256
from db import Registry
from train.foreign import ADAPTER, close_run, copy_checkpoint, is_adapter, missing_parts, open_run, register, register_base
from train.merging import RANKS, base_of, local_model, merged_adapter

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
EVALUATE = ("never", "end", "every_save")
_ARGUMENTS = (
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "seed"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "bf16", "fp16", "beta", "loss_type"),
    *("max_length", "label_smoothing", "world_size"),
)
"""Arguments of a trainer that are kept with its checkpoints, where it has them."""


class RegisterCheckpoints(TrainerCallback):
    """Registers each saved checkpoint, and evaluates it where asked to.

    `name`: of the run (default: the trainer's run_name, else its output folder). `registry`: URL (default: HARNESS_DB, else
    SQLite in HARNESS_HOME). `base`: folder of what training started from (default: where the model was loaded from).
    A saved adapter is merged into it (a whole checkpoint under HARNESS_HOME/models each) and registered so.
    `evaluate`: `never`; `end`, the last checkpoint; `every_save`, each one. An evaluation is `harness eval CHECKPOINT` with
    `options`, a process of its own, one at a time, beside the training: give it another GPU through `env`
    ({"CUDA_VISIBLE_DEVICES": "1"}). The end of training waits for those still due. `every_save` keeps each checkpoint (hard
    links under HARNESS_HOME/checkpoints) from `save_total_limit`. Raises RecipeError for another `evaluate`.
    """

    def __init__(
        self,
        name: str | None = None,
        registry: str | None = None,
        base: str | Path | None = None,
        evaluate: Literal["never", "end", "every_save"] = "never",
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ):
        if evaluate not in EVALUATE:
            raise RecipeError(f"evaluate is {evaluate!r}; use one of {', '.join(EVALUATE)}.")
        self.name, self.base, self.evaluate = name, base, evaluate
        self.options, self.env = list(options), dict(env or {})
        self.url = registry
        self.failures: list[str] = []
        """One sentence for everything that went wrong."""
        self.registered: dict[int, str] = {}
        """step -> fingerprint."""
        self._registry: Registry | None = None
        self._run: int | None = None
        self._parent: str | None = None
        self._base: Path | None = None
        self._folders: dict[int, Path] = {}
        self._waiting: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._try("The training could not be registered", lambda: self._begin(args, kwargs.get("model")))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self._run is None:
            return
        folder = Path(args.output_dir).resolve() / f"checkpoint-{state.global_step}"
        self._try(f"{folder} could not be registered", lambda: self._save(folder, args, state))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._waiting or self._process:
            self._try("An evaluation could not be started", self._pump)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self._run is None:
            return
        self._try("The training could not be closed in the registry", lambda: close_run(self._registry, self._run, "done"))
        if self.evaluate == "end" and self.registered:
            self._waiting = [self._folders[max(self._folders)]]
        self._try("An evaluation could not be waited for", self._finish)
        self._registry.close()

    def _begin(self, args: Any, model: Any) -> None:
        self._registry = Registry.open(self.url)
        self.name = self.name or getattr(args, "run_name", None) or Path(args.output_dir).resolve().name
        loaded = str(self.base or getattr(getattr(model, "config", None), "_name_or_path", "") or "")
        told = {"trainer": {key: _plain(getattr(args, key)) for key in _ARGUMENTS if hasattr(args, key)}, "base": loaded}
        self._run = open_run(self._registry, self.name, told)
        self._base = local_model(loaded) if loaded else None
        if self._base:
            self._parent = register_base(self._registry, self._run, self._base)

    def _save(self, folder: Path, args: Any, state: Any) -> None:
        missing = missing_parts(folder)
        if missing:
            raise RecipeError(f"{folder} lacks {', '.join(missing)}")
        adapter = file_sha256(folder / ADAPTER[1]) if is_adapter(folder) else None
        if adapter:
            base = self._base or local_model(*base_of(folder))
            if base is None:
                raise RecipeError("it is an adapter whose base model is not on this machine; give its folder as `base`")
            folder = merged_adapter(folder, base)
        elif self.evaluate == "every_save":
            folder = self._kept(folder)
        metrics: dict[str, float] = {}
        for entry in state.log_history:  # the newest value of each
            metrics |= {key: value for key, value in entry.items() if isinstance(value, int | float) and key != "step"}
        told = {key: _plain(getattr(args, key)) for key in _ARGUMENTS if hasattr(args, key)}
        provenance = {"program": "trainer", "settings": told, "metrics": metrics, "run": self.name}
        provenance |= {"adapter_sha256": adapter} if adapter else {}
        step, name = state.global_step, f"{self.name}/step-{state.global_step}"
        fingerprint = checkpoint_fingerprint(folder)
        register(self._registry, self._run, (folder, fingerprint), name, step, self._parent, provenance)
        self.registered[step], self._folders[step] = fingerprint, folder
        logger.info("Registered %s as %s (%s).", folder, name, fingerprint[:16])
        if self.evaluate == "every_save":
            self._waiting.append(folder)
            self._pump()

    def _kept(self, folder: Path) -> Path:
        """The checkpoint's files where the trainer does not delete them."""
        kept = paths.home() / "checkpoints" / f"{self.name.replace(os.sep, '-')}-{folder.name}-{int(time.time())}"
        kept.mkdir(parents=True)
        copy_checkpoint(folder, kept)
        return kept

    def _pump(self) -> None:
        """Start the next evaluation if none is running."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            if code:
                raise RecipeError(f"harness eval ended with exit code {code}; its log: {self._log}")
        if not self._waiting:
            return
        folder = self._waiting.pop(0)
        self._log = paths.runs() / self.name / f"eval-{folder.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        found = os.environ.get("PYTHONPATH")
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{found}" if found else str(ROOT)}
        environment |= {"HARNESS_DB": self._registry.url} | self.env  # a URL may hold a password: not on the command line
        for variable in RANKS:
            environment.pop(variable, None)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness", "eval", str(folder), *self.options],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    def _finish(self) -> None:
        """Wait for the evaluations that are due; one that fails does not keep the others."""
        while self._waiting or self._process:
            if self._process:
                self._process.wait()
            self._try("An evaluation failed", self._pump)

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # the training goes on, whatever the registry, the disk or an evaluation does
            self.failures.append(f"{what}: {error}")
            logger.warning("%s: %s; the training goes on.", what, error)


def _plain(value: Any) -> Any:
    """A value of a trainer's arguments as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = getattr(value, "value", value)  # enumerations
    return value if isinstance(value, str | int | float | bool | None) else str(value)
