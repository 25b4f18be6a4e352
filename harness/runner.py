"""Makes stages real: skips what is verified done, resumes what is not, records everything."""

import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from core import paths
from core.artifacts import Artifact, Store
from core.errors import HashMismatch, StageFailed
from core.fingerprint import checkpoint_fingerprint
from core.gpus import visible_gpus
from core.stage import Spec
from db import Registry, models
from harness import executor, record
from harness.console import Reporter
from harness.plan import VERSIONS, Node, Plan, Ref

HEARTBEAT_SECONDS = 2.0
_ENGINES = {
    "train.generate",
    "train.annotate",
    "train.reference",
    "evals.answer",
    "evals.likelihood",
    "evals.lm_eval_stage",
}
_TRAINED = {"train.sft", "train.reward", "train.preference", "train.dpo", "train.best_of_n"}


class Runner:
    """Makes the nodes of a plan real, one after the other, under one run's name. The caller holds the run's lock."""

    def __init__(self, name: str, run_id: int, registry: Registry, reporter: Reporter, seed: int, recipe_hash: str):
        self.name, self.run_id, self.seed, self.recipe_hash = name, run_id, seed, recipe_hash
        self.registry, self.reporter = registry, reporter
        self.store = Store(paths.artifacts())
        self.store.root.mkdir(parents=True, exist_ok=True)
        self.folder = paths.runs() / name
        self.artifacts: dict[str, Artifact] = {}
        self.report_to: list[str] = []
        """Trackers that follow the trainings (`train.reporting`)."""
        self._fingerprints: dict[Path, str] = {}
        self._given: dict[str, list[tuple[str, int, int]]] = {}
        """Files and checkpoints that no stage makes -> what they looked like at first."""

    def ensure(self, plan: Plan, node: Node) -> Artifact:
        """The node's artifact: the verified one that exists, or a new one."""
        inputs = {name: self._resolve(plan, ref) for name, ref in node.inputs.items()}
        artifact = self._finished(node, inputs)
        reused, made = artifact is not None, True
        if artifact is None:
            artifact, made = self._execute(node, inputs)
            for ref in node.inputs.values():
                if ref.stage is None:
                    self._require_untouched(ref.path)
        record.stage_done(self.registry, self.run_id, node, artifact, reused, made_elsewhere=not made)
        self.artifacts[node.name] = artifact
        self.reporter.done(node, artifact, reused or not made)
        self._register(plan, node, artifact, inputs)
        return artifact

    def renew(self, node: Node) -> Artifact:
        """Run a stage whose inputs are given files once more; what it had sealed is kept beside until it is sealed again."""
        sealed = self.store.path(node.stage, node.key)
        if sealed.exists():
            sealed.rename(sealed.with_name(f"{sealed.name}.superseded-{int(time.time())}"))
        inputs = {name: {"path": ref.path, "fingerprint": ref.fingerprint} for name, ref in node.inputs.items()}
        artifact, made = self._execute(node, inputs)
        record.stage_done(self.registry, self.run_id, node, artifact, reused=False, made_elsewhere=not made)
        return artifact

    def _finished(self, node: Node, inputs: dict[str, dict[str, str]]) -> Artifact | None:
        artifact = self.store.find(node.stage, node.key)
        if artifact is None:
            return None
        if artifact.manifest["inputs"] != {name: value["fingerprint"] for name, value in inputs.items()}:
            # An upstream stage was made anew with other bytes: this one no longer follows from it.
            artifact.path.rename(artifact.path.with_name(f"{artifact.path.name}.superseded-{int(time.time())}"))
            return None
        if node.registry and not self._recorded(artifact.metrics):
            return None
        return artifact

    def _recorded(self, metrics: dict[str, Any]) -> bool:
        """Whether the registry holds, complete, every answer set and evaluation that the stage reported."""
        for model, name in ((models.AnswerSet, "answer_sets"), (models.Evaluation, "evaluations")):
            keys = metrics.get(name, [])
            with self.registry.read() as session:
                query = select(func.count()).select_from(model).where(model.key.in_(keys), model.status == "complete")
                if session.scalar(query) < len(keys):
                    return False
        return True

    def _execute(self, node: Node, inputs: dict[str, dict[str, str]]) -> tuple[Artifact, bool]:
        """(the node's artifact, False where another run has made it while this one waited)."""
        safe = node.name.replace("[", "-").replace("]", "")
        for sub in ("specs", "events", "logs"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        trained = node.program in _TRAINED
        spec = Spec(
            stage=node.stage,
            version=VERSIONS[node.program],
            key=node.key,
            settings=node.settings,
            inputs=inputs,
            store=str(self.store.root),
            run=self.name,
            iteration=node.iteration,
            seed=self.seed,
            # A spec is kept on disk: a URL with a password travels in the environment instead.
            registry=self.registry.url if self.registry.url == self.registry.place else None,
            events=str(self.folder / "events" / f"{safe}.ndjson"),
            resources=node.resources | ({"report_to": self.report_to} if trained and self.report_to else {}),
        )
        path = self.folder / "specs" / f"{safe}.json"
        spec.save(path)
        self._bill_lost(node)  # of an attempt that was killed with its runner
        record.stage_row(self.registry, self.run_id, node, status="waiting")
        log = self.folder / "logs" / f"{safe}.{int(time.time())}.log"
        if trained:
            from train.optimisation import launch_command

            command, environment = launch_command(node.program, path, node.settings, node.resources)
        else:
            command, environment = executor.python_command(node.program, path)
        environment["HARNESS_DB"] = self.registry.url
        follower = _Follower(self, node, log)
        try:
            made = executor.run_process(spec, node.program, command, environment, log, follower)
        except StageFailed as error:
            self._bill_lost(node)
            record.stage_row(self.registry, self.run_id, node, status="failed", error=str(error), pid=None)
            self.reporter.failed(node, str(error))
            raise
        finally:
            follower.flush()
        artifact = self.store.find(node.stage, node.key)
        if artifact is None:
            raise StageFailed(f"{node.name} ended without sealing its artifact; its log: {log}.")
        return artifact, made

    def _bill_lost(self, node: Node) -> None:
        record.lost_attempt(self.registry, self.run_id, node, gpus_planned(node.program, node.resources))

    def _resolve(self, plan: Plan, ref: Ref) -> dict[str, str]:
        """{"path", "fingerprint"} of an input as it is on disk."""
        if ref.stage is None:
            self._require_untouched(ref.path)
            return {"path": ref.path, "fingerprint": ref.fingerprint}
        artifact = self.artifacts[ref.stage]
        path = artifact.path / ref.part if ref.part else artifact.path
        if not ref.part:
            fingerprint = artifact.fingerprint
        elif ref.part in artifact.manifest["files"]:
            fingerprint = artifact.manifest["files"][ref.part]["sha256"]
        else:
            fingerprint = self._checkpoint_fingerprint(path)
        return {"path": str(path), "fingerprint": fingerprint}

    def _require_untouched(self, path: str) -> None:
        """Raise HashMismatch where a given file or checkpoint is not what it was when this run first looked at it: what one
        stage measured and another measures next would stand under the same fingerprint."""
        if not path:  # answers without weights: imported ones, canaries
            return
        seen = self._given.setdefault(path, signature(Path(path)))
        if signature(Path(path)) != seen:
            raise HashMismatch(
                f"{path} was changed while this run was using it, so that its results would be of two checkpoints; run the same "
                "command again for the new one, and leave the folder alone meanwhile."
            )

    def _checkpoint_fingerprint(self, path: Path) -> str:
        if path not in self._fingerprints:
            self._fingerprints[path] = checkpoint_fingerprint(path)
        return self._fingerprints[path]

    def register_given(self, plan: Plan) -> None:
        """Checkpoints that the recipe names and no stage makes."""
        given = {label: plan.policies.get(label) for label in ("base", "policy", "reward", "gold_reward", "preference")}
        given |= {f"{label}_start": ref for label, ref in plan.inputs.backbones.items()}
        for label, ref in given.items():
            if ref is not None and ref.stage is None:
                provenance = {"name": f"{Path(ref.path).name}", "path": ref.path}
                record.checkpoint(self.registry, self.run_id, label, 0, ref.fingerprint, ref.path, None, None, None, provenance)

    def _register(self, plan: Plan, node: Node, artifact: Artifact, inputs: dict[str, dict[str, str]]) -> None:
        """Checkpoints and statistics that a finished stage brings."""
        if node.program == "train.pairs":
            record.preference_set(self.registry, self.run_id, node.iteration, artifact.metrics)
        if node.program not in _TRAINED | {"train.convert"}:
            return
        label = {"convert": "base"}.get(node.name, node.name if node.iteration is None else f"iter-{node.iteration}")
        resolved = self._resolve(plan, Ref(stage=node.name, part="checkpoint"))
        parent = inputs.get("policy", {}).get("fingerprint")
        reference = None
        if node.program == "train.dpo":
            cache = plan.nodes[node.inputs["reference"].stage]
            reference = self._resolve(plan, cache.inputs["reference"])["fingerprint"]
        provenance = {
            "name": f"{self.name}/{label}" if node.program != "train.convert" else f"{node.settings['package']} (converted)",
            "program": node.program,
            "settings": node.settings,
            "inputs": {name: value["fingerprint"] for name, value in inputs.items()},
            "environment": artifact.manifest["environment"],
            "recipe_hash": self.recipe_hash,
            "seconds": artifact.manifest["seconds"],
            "metrics": artifact.metrics,
        }
        record.checkpoint(
            self.registry,
            self.run_id,
            label,
            node.iteration or 0,
            resolved["fingerprint"],
            resolved["path"],
            parent,
            reference,
            node,
            provenance,
        )


def signature(path: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, time of change) of a file, or of each file in a directory; [] where there is nothing."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def gpus_planned(program: str, resources: dict[str, Any]) -> int:
    """GPUs that a stage would hold on this machine: what an attempt is billed by that left no manifest."""
    gpus = len(visible_gpus())
    if program in _TRAINED:
        return min(gpus, int(resources.get("num_processes") or 1))
    if program in _ENGINES:
        return min(gpus, int(resources.get("processes") or 1) * int(resources.get("tensor_parallel") or 1))
    return 0


class _Follower:
    """Turns a stage's events into registry rows and console output."""

    def __init__(self, runner: Runner, node: Node, log: Path):
        self.runner, self.node, self.log = runner, node, log
        self.stage_id = 0
        self._points: list[tuple[int, dict[str, float]]] = []
        self._progress: dict[str, Any] | None = None
        self._last = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "started":
            self.stage_id = record.stage_started(self.runner.registry, self.runner.run_id, self.node, event["pid"], str(self.log))
            self.runner.reporter.started(self.node)
        elif kind == "progress":
            self._progress = event
            self.runner.reporter.progress(self.node, event["done"], event["total"], event["unit"])
        elif kind == "metric":
            self._points.append((event["step"], event["values"]))
        elif kind == "message":
            self.runner.reporter.message(self.node, event["text"])
        if time.monotonic() - self._last > HEARTBEAT_SECONDS:
            self._last = time.monotonic()
            self.flush()

    def flush(self) -> None:
        """Write what has come in since the last heartbeat."""
        if not self.stage_id:  # waiting for another run's process
            record.heartbeat(self.runner.registry, self.runner.run_id, None, None)
            return
        record.heartbeat(self.runner.registry, self.runner.run_id, self.stage_id, self._progress)
        record.curve_points(self.runner.registry, self.stage_id, self._points)
        self._progress, self._points = None, []
