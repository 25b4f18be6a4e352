"""Worker processes for stages whose shards do not depend on each other.

    run_workers(score_shards, (spec, folder), jobs=[0, 1, 2], layout=layout(2, 1, resources), done=print)

Worker i of n takes every n-th job from the i-th on (an engine that looks ahead would empty a common queue); what a job gives
depends on the job alone. The first worker that fails ends the others, and its error is raised here as its own. Workers die
with this process (Linux).
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import core.errors
from core.errors import HarnessError, RecipeError
from core.gpus import visible_gpus
from core.stage import die_with_parent

_EXIT_SECONDS = 60
"""For a worker that is through to end by itself, before it is ended: an engine's threads may hang at exit."""

Program = Callable[..., Iterator[Any]]
"""A module-level generator function: called with the arguments and an iterator of jobs, it yields one result a finished job."""


@dataclass(frozen=True)
class Layout:
    """Environment of each worker: the GPUs that it sees, the CPU threads that it takes."""

    environments: tuple[dict[str, str], ...]

    def __len__(self) -> int:
        return len(self.environments)

    def first(self, n: int) -> "Layout":
        return Layout(self.environments[:n])


def layout(processes: int, gpus_each: int, threads: int | None = None) -> Layout:
    """`processes` workers, worker i on visible GPUs [i * gpus_each, (i + 1) * gpus_each); without GPUs, on a share of the cores.

    Raises RecipeError when the machine has GPUs but too few.
    """
    gpus = visible_gpus()
    if gpus and len(gpus) < processes * gpus_each:
        raise RecipeError(
            f"{processes} processes with {gpus_each} GPUs each need {processes * gpus_each} GPUs, and {len(gpus)} are visible; "
            "lower processes or tensor_parallel, or widen CUDA_VISIBLE_DEVICES."
        )
    if gpus:
        shares = [gpus[i * gpus_each : (i + 1) * gpus_each] for i in range(processes)]
        return Layout(tuple({"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares))
    threads = threads or max(1, len(os.sched_getaffinity(0)) // processes)
    return Layout(({"OMP_NUM_THREADS": str(threads)},) * processes)


def run_workers(
    program: Program, arguments: tuple[Any, ...], jobs: Sequence[Any], layout: Layout, done: Callable[[Any], None]
) -> None:
    """Work off `jobs`, handing each result to `done` as it comes, in any order.

    Raises a worker's own HarnessError, or RuntimeError with the traceback of its defect.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    layout = layout.first(len(jobs))
    workers = {}
    for number, environment in enumerate(layout.environments):
        receive, send = context.Pipe(duplex=False)
        mine = list(jobs[number :: len(layout)])
        worker = context.Process(target=_work, args=(program, arguments, mine, send, environment))
        worker.start()
        send.close()  # ours: the worker's end is then the only one, and its death is an end of file
        workers[receive] = worker
    try:
        _follow(dict(workers), done)
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.join(10)
            if worker.is_alive():
                worker.kill()
                worker.join()


def _follow(workers: dict[Connection, Any], done: Callable[[Any], None]) -> None:
    """Until every worker has said that it is through."""
    while workers:
        for connection in wait(list(workers)):
            try:
                kind, content = connection.recv()
            except EOFError:
                worker = workers[connection]
                worker.join()
                cause = "most likely by the kernel for want of memory" if worker.exitcode == -9 else "see the log of this stage"
                raise HarnessError(
                    f"A worker process ended with exit code {worker.exitcode}, {cause}; lower processes, then run the same "
                    "command again: finished shards are kept."
                ) from None
            if kind == "done":
                done(content)
            elif kind == "through":
                workers.pop(connection).join(_EXIT_SECONDS)
            elif kind == "defect":
                raise RuntimeError(f"A worker process failed:\n{content}")
            else:
                raise getattr(core.errors, kind, HarnessError)(content)


def _work(
    program: Program, arguments: tuple[Any, ...], jobs: list[Any], results: Connection, environment: dict[str, str]
) -> None:
    die_with_parent()
    os.environ.update(environment)
    try:
        for result in program(*arguments, iter(jobs)):
            results.send(("done", result))
        results.send(("through", None))
    except HarnessError as error:
        results.send((type(error).__name__, str(error)))
    except BaseException:
        results.send(("defect", traceback.format_exc()))
        raise
