"""A batch on the workers of a Ray cluster, or of a Ray that is started on this machine for it.

Each worker is a process with its own model that takes one input at a time, on any machine that sees the same paths. The
journal stays with the process that runs the batch. When a worker dies, its input goes to another one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avsseg.errors import AvssegError, EnvironmentFault, UsageError, printable
from avsseg.media.ffmpeg import kill_running
from avsseg.pipeline.batch import InputResult, ModelSlot, Reporter, Setup, attempt, note_end
from avsseg.pipeline.journal import Journal, Origin
from avsseg.pipeline.options import ModelOptions, OutputOptions, SegmentOptions
from avsseg.pipeline.overlap import Stopped
from avsseg.pipeline.plan import Job, to_make
from avsseg.pipeline.resume import origin_of, recipe
from avsseg.writers.base import remove_leftovers

logger = logging.getLogger(__name__)

TRIES = 3  # of an input whose workers die: then it is the input that kills them
KNOCK_S = 10.0
GOODBYE_S = 10.0  # of workers on a busy machine; a second Ctrl-C does not wait


@dataclass(frozen=True)
class _Fault:
    """An error that ends the batch, as a worker sends it."""

    message: str
    is_usage: bool


class _Silent:
    """The reporter inside a worker: the batch's own process tells what happens."""

    def started(self, position: int, job: Job) -> None: ...

    def advanced(self, position: int, done: int, total: int | None, rate: float) -> None: ...

    def finished(self, position: int, result: InputResult) -> None: ...


class _Worker:
    """What runs in a Ray actor."""

    def __init__(self, segment: SegmentOptions, model: ModelOptions, output: OutputOptions) -> None:
        self._setup = Setup(segment, output, ModelSlot(model), _Silent(), None)

    def run(self, position: int, job: Job) -> InputResult | _Fault | None:
        """What became of one job; None when the batch was given up."""
        try:
            return attempt(position, job, self._setup)
        except AvssegError as error:
            return _Fault(str(error), isinstance(error, UsageError))
        except Stopped:
            return None

    def stop(self) -> None:
        """Gives up the job in work, which then leaves nothing half-made."""
        self._setup.stopping.set()
        kill_running()


@dataclass
class _Task:
    """A job on its way: as it was given, with absolute paths for the workers, and what the journal is told of it."""

    position: int
    job: Job
    absolute: Job
    origin: Origin
    tries: int = 0

    def outputs(self) -> list[Path]:
        return [self.job.outputs[name] for name in self.job.make or ()]

    def result(self, made: InputResult) -> InputResult:
        """The result of a worker with the paths as they were given."""
        given = {self.absolute.outputs[name]: path for name, path in self.job.outputs.items()}
        return replace(made, input=self.job.input, outputs=tuple(given[path] for path in made.outputs))


def run_on_ray(
    jobs: Sequence[Job],
    *,
    segment_options: SegmentOptions,
    model_options: ModelOptions,
    output_options: OutputOptions,
    reporter: Reporter,
    journal: Journal | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> Generator[InputResult, None, None]:
    """As `run_batch`, with results as they are finished.

    Args:
        workers: None is one for each GPU of the cluster, or without any one for each machine.
        address: of a running cluster, as `ray.init` takes it; None is RAY_ADDRESS or else a new Ray on this machine.

    Raises:
        EnvironmentFault: Ray is not installed, or the cluster does not answer or has no room for a worker.
    """
    made_by = recipe(segment_options, output_options, model_options)
    here = Setup(segment_options, output_options, ModelSlot(model_options), reporter, None)
    waiting: deque[_Task] = deque()
    for position, job in enumerate(jobs, start=1):
        wanted = tuple(to_make(job, overwrite=output_options.overwrite))
        try:
            origin = origin_of(job.input, made_by)
        except (OSError, ValueError):
            wanted = ()
        if not wanted:  # it is done already, or fails without any model
            yield attempt(position, job, here)
            continue
        job = replace(job, make=wanted)
        waiting.append(_Task(position, job, _absolute(job), origin))
    if not waiting:
        return
    with _connected(address) as ray, _pool(ray, workers, (segment_options, model_options, output_options)) as pool:
        yield from _dispatch(ray, pool, waiting, reporter, journal)


def _dispatch(
    ray: Any, pool: _Pool, waiting: deque[_Task], reporter: Reporter, journal: Journal | None
) -> Iterator[InputResult]:
    running = pool.running
    while waiting or running:
        while waiting and (worker := pool.take()) is not None:
            task = waiting.popleft()
            if task.tries == 0:
                reporter.started(task.position, task.job)
                if journal is not None:
                    journal.append("started", task.origin, task.outputs())
            task.tries += 1
            running[worker.run.remote(task.position, task.absolute)] = (worker, task)
        (reference,), _ = ray.wait(list(running), num_returns=1)
        worker, task = running.pop(reference)
        try:
            outcome = ray.get(reference)
        # when a machine runs short of memory Ray kills a worker, and says so in another way
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            logger.debug("the worker of %s died", task.job.input, exc_info=True)
            pool.lose(worker)
            if task.tries < TRIES:
                waiting.appendleft(task)
                continue
            for path in task.outputs():
                with contextlib.suppress(OSError):
                    remove_leftovers(path)
            reason = f"{printable(task.job.input)}: {task.tries} workers died of it, one after another"
            hint = "Out of memory is the usual cause: give a smaller --window or --size"
            outcome = InputResult(task.absolute.input, "failed", error=f"{reason} ({_first_line(error)}). {hint}")
        else:
            pool.give(worker)
        if isinstance(outcome, _Fault):
            raise UsageError(outcome.message) if outcome.is_usage else EnvironmentFault(outcome.message)
        result = _seen_from_here(task.result(outcome))
        if journal is not None:
            note_end(journal, task.origin, task.outputs(), result.outputs)
        reporter.finished(task.position, result)
        yield result


class _Pool:
    """The workers of a cluster, and who is at work on what; one that died is replaced when it is next needed."""

    def __init__(self, actor: Any, count: int, arguments: tuple[object, ...]) -> None:
        self.running: dict[Any, tuple[Any, _Task]] = {}
        self._actor, self._arguments, self._count = actor, arguments, count
        self._idle: list[Any] = []
        self._all: list[Any] = []

    def take(self) -> Any | None:
        """An idle worker, or a new one while there is room beside those that run."""
        if self._idle:
            return self._idle.pop()
        if len(self._all) == self._count:
            return None
        self._all.append(self._actor.remote(*self._arguments))
        return self._all[-1]

    def give(self, worker: Any) -> None:
        self._idle.append(worker)

    def lose(self, worker: Any) -> None:
        self._all.remove(worker)

    def dismiss(self, ray: Any) -> None:
        """Lets those in work clean up, then ends all."""
        for worker, _ in self.running.values():
            worker.stop.remote()
        if self.running:
            ray.wait(list(self.running), num_returns=len(self.running), timeout=GOODBYE_S)
        for worker in self._all:
            ray.kill(worker)


@dataclass(frozen=True)
class WorkerShare:
    """How many workers a cluster gets, and the processors and GPUs that each of them reserves."""

    workers: int
    cpus: int
    gpus: float


def worker_share(nodes: Sequence[Mapping[str, float]], workers: int | None, *, cards: bool) -> WorkerShare:
    """A share that fits the machines as often as there are workers: one that never fits would be waited for for ever.

    nodes: the "CPU" and "GPU" of each machine. With `cards`, and GPUs in the cluster, only machines with GPUs work, and
    a GPU is shared by whole numbers of workers. Workers that find no room are not asked for.

    Raises:
        EnvironmentFault: no machine has a processor to offer.
    """
    machines = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    gpus = sum(has for processors, has in machines if processors) if cards else 0
    machines = [(processors, has) for processors, has in machines if processors and (has or not gpus)]
    if not machines:
        raise EnvironmentFault("the Ray cluster has no machine with a free processor. Start workers with --num-cpus")
    count = workers or gpus or len(machines)
    # of one GPU, or of one machine
    sharers = -(-count // (gpus or len(machines)))
    places = [(processors, (has if gpus else 1) * sharers) for processors, has in machines]
    cpus = max(1, min(processors // wanted for processors, wanted in places))
    room = sum(min(processors // cpus, wanted) if gpus else processors // cpus for processors, wanted in places)
    return WorkerShare(min(count, room), cpus, 1 / sharers if gpus else 0.0)


@contextlib.contextmanager
def _pool(ray: Any, workers: int | None, arguments: tuple[Any, ...]) -> Iterator[_Pool]:
    segment_options, model_options, output_options = arguments
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    on_cards = model_options.device == "auto" or model_options.device.startswith("cuda")
    share = worker_share(nodes, workers, cards=on_cards)
    if share.gpus and model_options.device != "auto":
        # Ray shows a worker its own card alone, as the first
        model_options = replace(model_options, device="cuda")
    if model_options.threads is None:
        model_options = replace(model_options, threads=share.cpus)
    actor = ray.remote(_Worker).options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_restarts=0,
        max_concurrency=2,  # `stop` must reach a worker that is at work
    )
    pool = _Pool(actor, share.workers, (segment_options, model_options, output_options))
    try:
        yield pool
    finally:
        pool.dismiss(ray)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected; `sys.stdout` leads elsewhere meanwhile."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a batch tells nobody that it runs
    try:
        import ray
    except ImportError as error:
        raise EnvironmentFault('the engine ray needs Ray. Run `pip install "avsseg[ray]"`') from error
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    with contextlib.ExitStack() as stack:
        # Ray prints what its daemons say, and standard output is for results
        chatter = sys.stderr if logger.isEnabledFor(logging.DEBUG) else stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(chatter))
        dashboard = False if place == "local" else None
        try:
            _knock(place)
            ray.init(place, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
            where = "on this machine" if place == "local" else f"at {printable(place)}"
            raise EnvironmentFault(f"no Ray {where}: {_first_line(error)}. Check --ray-address") from error
        stack.callback(ray.shutdown)
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts one of its own there, with another exit code
        yield ray


def _knock(place: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", place):
        socket.create_connection((found[1], int(found[2])), timeout=KNOCK_S).close()


def _absolute(job: Job) -> Job:
    """A worker stands in another folder, and decides nothing about what is to be made."""
    outputs = {name: Path(os.path.abspath(path)) for name, path in job.outputs.items()}
    return Job(Path(os.path.abspath(job.input)), outputs, job.make)


def _seen_from_here(result: InputResult) -> InputResult:
    """A result that stands on the disk of a worker alone is lost: it fails."""
    missing = [path for path in result.outputs if not os.path.lexists(path)]
    if not missing:
        return result
    reason = (
        f"{printable(result.input)}: a worker has written {printable(missing[0])}, which does not exist on this "
        "machine. Inputs and --out must lie on a disk that all machines of the cluster share"
    )
    present = tuple(path for path in result.outputs if path not in missing)
    return replace(result, status="failed", outputs=present, error=reason)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
