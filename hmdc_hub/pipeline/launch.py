"""Where the runs of a sweep are worked on: processes of this machine, or an array of jobs of a cluster.

A task is plain data: the recipe of a run with its directory, or with the seconds of a budget that it is to be timed
for. Its answer is plain data, too, `problem` empty where it went well: a run that fails stops no other.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hmdc_hub.errors import HmdcError, Interrupted, UsageError
from hmdc_hub.events import Event, ImageStep, Stage, StopFlag
from hmdc_hub.pipeline.device import available, pick
from hmdc_hub.processes import POLL_SECONDS, begin_worker, start_server, starting_workers, usable_cores, worker_context
from hmdc_hub.schema import Recipe
from hmdc_hub.store.rundir import RunDir
from hmdc_hub.temporary import TemporaryFolder
from hmdc_hub.text import first_line

Task = Mapping[str, Any]
Answer = dict[str, Any]
STOPPED = "the sweep was stopped; what its runs did is kept, and the same command goes on"
PROBED = 0.1  # share of the budget that a variant is timed for, at least
JOB_POLL = 2.0  # seconds between looks at the jobs of a cluster
# What a run needs, imported once for all processes.
PRELOAD = ["hmdc_hub.pipeline.api", "hmdc_hub.pipeline.job", "hmdc_hub.condenser", "hmdc_hub.evaluator.preload"]
PRELOAD += ["hmdc_hub.publish.build", "hmdc_hub.report.plots", "matplotlib.figure", "scipy.stats", "sklearn.datasets"]


def work(task: Task, device: str, stop: StopFlag) -> Answer:
    """Do a task on a device, on a CPU with one thread: the bits do not depend on how many there are at a time."""
    answer: Answer = {"problem": "", "trace": ""}
    try:
        recipe, chosen = Recipe.model_validate(task["recipe"]), pick(device)
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if chosen.type == "cpu" else threads)
        try:
            if "seconds" in task:
                return answer | timed(recipe, chosen, task["seconds"], stop)
            from hmdc_hub.pipeline import api

            api.condense(
                recipe, run_dir=task["directory"], device=chosen, evaluate=True, workers=1, progress=False, stop=stop
            )
        finally:
            torch.set_num_threads(threads)
    except Interrupted:
        raise
    except HmdcError as error:
        answer["problem"] = str(error)
    except Exception as error:  # a bug: it is shown whole, and the other runs go on
        answer |= {"problem": f"{type(error).__name__}: {first_line(error)}", "trace": traceback.format_exc()}
    return answer


def timed(recipe: Recipe, device: torch.device, seconds: float, stop: StopFlag) -> dict[str, float]:
    """Condense for a while, into a folder that goes away, and say how long the first and every other step took.

    Until one step beyond a network reset; or, once that took longer than `PROBED` of the budget, until the end of the
    period in which real batches and balance are refreshed. On a CPU processor time, elsewhere time.
    """
    from hmdc_hub.condenser import condense
    from hmdc_hub.pipeline.job import settled
    from hmdc_hub.sources import load_source

    spec, clock = recipe.condense, time.process_time if device.type == "cpu" else time.monotonic
    every = spec.networks.reset_every
    period = min(every, max(spec.cluster.every, spec.balance_every))
    few = recipe.model_copy(update={"condense": spec.model_copy(update={"resets": 2})})
    marks, own = dict[int, float](), StopFlag()
    began, bank_began = 0.0, None

    def mark(event: Event) -> None:
        nonlocal began, bank_began
        if isinstance(event, Stage) and event.name == "bank":
            bank_began = clock()
        elif isinstance(event, Stage) and event.name == "condense" and bank_began is not None:
            began += clock() - bank_began  # no part of a run's seconds either: it is trained once for many
        elif isinstance(event, ImageStep):
            marks[event.done] = clock() - began
            enough = marks[event.done] > PROBED * seconds and event.done > 1 and (event.done - 1) % period == 0
            if enough or event.done > every or stop.signal_number:
                own.signal_number = stop.signal_number or signal.SIGTERM

    few = settled(few, few)
    source = load_source(few.source)
    with TemporaryFolder() as folder:
        began = clock()
        try:
            condense(few, source, RunDir(folder), device=device, callback=mark, stop=own)
        except Interrupted:
            stop.raise_if_set(STOPPED)
    last = max(marks)
    return {"first": marks[1], "each": (marks[last] - marks[1]) / max(last - 1, 1)}


# On this machine


def places(device: str, workers: int | None) -> list[str]:
    """Name a device for each run that is worked on at a time: every GPU has one, a CPU as many as it has cores."""
    chosen = pick(device)
    if chosen.type == "cpu":
        return ["cpu"] * max(1, usable_cores() if workers is None else workers)
    gpus = [name for name in available() if name.startswith("cuda")]
    return (gpus if device in ("auto", "cuda") else [str(chosen)])[:workers]


def locally(tasks: Sequence[Task], device: str, workers: int | None, stop: StopFlag) -> Iterator[tuple[int, Answer]]:
    """Do tasks in processes of their own, and give each one's place with its answer; 0 workers: in this process.

    A process that dies is the problem of its task alone. Interrupted if a stop was asked for, once all have stopped at
    a safe place.
    """
    if not tasks:
        return
    if workers == 0:
        for place, task in enumerate(tasks):
            stop.raise_if_set(STOPPED)
            try:
                answer = work(task, device, stop)
            except Interrupted as error:
                raise Interrupted(STOPPED, signal_number=error.signal_number) from error
            yield place, answer
        return
    context, free = worker_context(PRELOAD), places(device, workers)
    start_server(context, stop, STOPPED)
    waiting, running = deque(enumerate(tasks)), dict[Connection, tuple[int, str, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and free:
                place, task = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                arguments = (theirs, json.dumps(task), free[-1])
                process = context.Process(target=_be_worker, args=arguments, daemon=True)  # type: ignore[attr-defined]
                with starting_workers():
                    process.start()
                theirs.close()
                running[ours] = place, free.pop(), process
            for end in wait(list(running), timeout=POLL_SECONDS):
                assert isinstance(end, Connection)
                place, own, process = running.pop(end)
                try:
                    answer = json.loads(end.recv_bytes())
                except EOFError:
                    process.join()
                    answer = {"problem": _death(process), "trace": ""}
                end.close()
                process.join()
                free.append(own)
                stop.raise_if_set(STOPPED)
                yield place, answer
            stop.raise_if_set(STOPPED)
    finally:
        _end([process for _, _, process in running.values()])


def _death(process: BaseProcess) -> str:
    return (
        f"its process died with status {process.exitcode}, most often because memory ran out\n"
        "Run the same command again with fewer at a time: --workers 1 (workers=1)."
    )


def _end(processes: Sequence[BaseProcess]) -> None:
    """Have processes stop at a safe place, and wait until they have; a second Ctrl-C stops them at once."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:
            process.kill()
        raise


def _be_worker(end: Connection, task: str, device: str) -> None:
    """Be the process of one task; SIGTERM stops it at the next safe place."""
    stop = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number

    signal.signal(signal.SIGTERM, handle)
    begin_worker()
    try:
        answer = work(json.loads(task), device, stop)
    except Interrupted:
        return  # whoever asked for it does not wait for an answer
    end.send_bytes(json.dumps(answer).encode())


# On a cluster


def by_submitit(
    tasks: Sequence[Task], options: Mapping[str, Any], folder: Path, stop: StopFlag
) -> Iterator[tuple[int, Answer]]:
    """Do tasks as an array of SLURM jobs, through submitit, and give each one's place with its answer.

    `options` are those of submitit's `update_parameters`, and `cluster`, which names another executor than SLURM's:
    `local` or `debug`. `folder` is where it keeps its files, on a disk that the jobs see. Jobs that still wait or work
    are cancelled if a stop is asked for.
    """
    if not tasks:
        return
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--slurm needs submitit, which is not installed.", hint="pip install submitit") from error
    given = {"name": "hmdc-hub-sweep", "timeout_min": 24 * 60, **options}
    executor = submitit.AutoExecutor(folder=folder, cluster=given.pop("cluster", "slurm"))
    try:
        executor.update_parameters(**given)
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(
            f"--slurm: submitit does not take these options: {first_line(error)}",
            hint="They are those of its update_parameters, such as slurm_partition=gpu or gpus_per_node=1.",
        ) from error
    jobs = dict(enumerate(executor.map_array(in_job, [json.dumps(task) for task in tasks])))
    try:
        while jobs:
            for place in [place for place, job in jobs.items() if job.done()]:
                job = jobs.pop(place)
                try:
                    yield place, json.loads(job.result())
                except submitit.core.utils.UncompletedJobError as error:
                    said = first_line(error)
                    yield place, {"problem": f"job {job.job_id} ended without an answer: {said}", "trace": ""}
            stop.raise_if_set(STOPPED)
            if jobs:
                time.sleep(JOB_POLL)
    finally:
        for job in jobs.values():
            job.cancel()


def in_job(task: str) -> str:
    """Do a task in a job of a cluster, on the first GPU that it has or else on the CPU."""
    stop = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number

    signal.signal(signal.SIGTERM, handle)
    try:
        return json.dumps(work(json.loads(task), "auto", stop))
    except Interrupted as error:
        return json.dumps({"problem": f"stopped: {error.message}", "trace": ""})
