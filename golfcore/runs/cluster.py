"""A sweep's runs as tasks of a Ray cluster, on one box or several that share the sweep's folder.

What schedules, counts slots and starts lost work again is Ray. A run that has finished is known by its folder and not
scheduled; one that was lost goes on from its checkpoint, under the same lock as everywhere.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.base.signals import whole
from golfcore.data.datasets import prepare_data
from golfcore.runs.folder import in_use, run_folders
from golfcore.runs.sweep import Job, Slots, time_left

LOGS = "logs"  # folder beside the runs: LABEL-sSEED.try1.log ...
RETRIES = 3  # of a run whose worker or node is lost
PATIENCE = 60.0  # seconds for the worker of a driver that has died to let go of a run
STARTS = 3  # of a node


def run_jobs(
    jobs: Sequence[Job],
    slots: Slots,
    say: Callable[[str], object],
    then: Callable[[Path], object] | None = None,
) -> None:
    """Do every job that has not finished, as many at once as the cluster has `slots` for.

    The worker then calls `then` with the folder of the run, also of one that had finished before. Joins the cluster
    that RAY_ADDRESS names or that runs on this machine, else starts one here, for this sweep. All jobs are tried; then
    UserError: Ray is not installed, or what one of them was refused for. Other errors of a worker are raised as Ray
    shows them, with their traceback.
    """
    try:
        import ray
    except ImportError:
        raise UserError("sweep --engine ray: expected Ray, found none; pip install 'golfcore[cluster]'") from None
    done = [job for job in jobs if finished(job)]
    say(f"{len(done)} of {len(jobs)} runs have finished before")
    left = [job for job in jobs if then or job not in done]
    for cfg in {job.config.data: job.config for job in left}.values():  # once, and not by all workers at once
        prepare_data(cfg, say)
    with _joined(ray, say):
        gpus = slots.gpus if slots.gpus is not None else float(bool(ray.cluster_resources().get("GPU")))
        task: Any = ray.remote(num_cpus=slots.cpus, num_gpus=gpus, max_retries=RETRIES)(work)
        alike, running = dict[str, Any](), dict[Any, Job]()
        for job in left:  # one trains; those that train alike wait for it, and take its weights
            after = alike.get(job.config.training_hash)
            running[ref := task.options(name=job.folder.name).remote(job, after, then)] = job
            alike.setdefault(job.config.training_hash, ref)
        errors = _awaited(ray, running, len(jobs), say)
    if errors:
        job, error = errors[0]
        say(f"{job.folder.name}: failed; see {job.folder.parent / LOGS}")
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, UserError) else error


def finished(job: Job) -> bool:
    """Whether the job's folder holds the results of its configuration."""
    run = RunFolder(job.folder)
    return (job.folder / RESULTS).exists() and config.of_run(run).hash == job.config.hash


def work(job: Job, after: object = None, then: Callable[[Path], object] | None = None) -> float:
    """Do a job in this worker, with what it prints in a log of this try; its seconds. `after`: what it waited for."""
    from golfcore.runs import pipeline

    began = time.monotonic()
    while in_use(job.folder) and time.monotonic() < began + PATIENCE:
        time.sleep(0.5)
    logs = job.folder.parent / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    number = 1 + len(list(logs.glob(f"{job.folder.name}.try*.log")))
    with (logs / f"{job.folder.name}.try{number}.log").open("x", buffering=1) as log, redirect_stderr(log):
        pipeline.run(job.config, job.folder, lambda text: print(text, file=log), tuple(run_folders(job.folder.parent)))
        if then:
            with redirect_stdout(log):
                then(job.folder)
    return time.monotonic() - began


def _awaited(
    ray: Any, running: Mapping[Any, Job], total: int, say: Callable[[str], object]
) -> list[tuple[Job, Exception]]:
    """Wait for all, saying where the sweep is; those that failed. Interrupted: workers stop, and keep what is saved."""
    waiting, failed, began = list(running), list[tuple[Job, Exception]](), time.monotonic()
    try:
        with whole() as asked:  # Ray's own waiting lets no handler raise
            while waiting and not asked():
                ready, waiting = ray.wait(waiting, num_returns=1, timeout=1)
                for ref in ready:
                    try:
                        told = f"done in {ray.get(ref):.0f} s"
                    except ray.exceptions.RayError as e:
                        failed.append((running[ref], e))
                        told = "failed"
                    pace = [(time.monotonic() - began) / (len(running) - len(waiting))]
                    left = f"{total - len(waiting)} of {total}{time_left(pace, len(waiting))}"
                    say(f"{running[ref].folder.name}: {told}; {left}")
    except BaseException:
        for ref in waiting:
            ray.cancel(ref)
        ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE)
        raise
    return failed


@contextmanager
def _joined(ray: Any, say: Callable[[str], object]) -> Iterator[None]:
    """A cluster for as long as it is needed; one that this process had joined before stays joined."""
    fresh = not ray.is_initialized()
    if fresh:
        _start(ray)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        has = ", ".join(f"{n:g} {kind}" for kind in ("CPU", "GPU") if (n := ray.cluster_resources().get(kind)))
        say(f"ray: {len(nodes)} node{'s' * (len(nodes) > 1)} with {has}")
        yield
    finally:
        if fresh:
            ray.shutdown()


def _start(ray: Any) -> None:
    """Ray gives its node half a minute, which a busy machine may not have: it is asked again. UserError: in vain."""
    for _ in range(STARTS):
        try:
            ray.init(log_to_driver=False, logging_level="warning", runtime_env={"env_vars": {"PYTHONPATH": _path()}})
            return
        except Exception as e:  # Ray has no kind of its own for it
            ray.shutdown()
            if "timed out during startup" not in str(e):
                raise
    raise UserError(
        f"--engine ray: expected a node that starts within Ray's half a minute, found none {STARTS} times: this "
        "machine is busy; what is done stays, the same command goes on later"
    )


def _path() -> str:
    """Where a worker finds this package: as this process does."""
    return ":".join(dict.fromkeys([str(Path(__file__).parents[2]), *filter(None, sys.path)]))
