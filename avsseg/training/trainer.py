"""The training loop: AdamW, warm-up, cosine or constant rate, clipping, EMA, checkpoints, CSV and TensorBoard logs.

It knows no dataset and no loss: an objective is a module that takes a batch and returns its loss and what to log.
Under `torchrun` every process takes its own batches and the gradients are averaged; all validate, and rank 0 logs and
saves.
Chance (dropped paths) is seeded by the step, so a run that goes on from a checkpoint equals one that never stopped.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from avsseg.errors import AvssegError, UsageError, printable
from avsseg.training.checkpoints import load_later, save_checkpoint
from avsseg.training.distributed import (
    Done,
    agreed,
    average_gradients,
    first_buffers,
    mean,
    means_of_all,
    rank_and_world,
    together,
)
from avsseg.training.optimizer import follow, parameter_groups, rate_factor
from avsseg.training.run_folder import BEST_STATE, LAST_STATE
from avsseg.training.run_log import RunLog
from avsseg.writers.base import output_errors

logger = logging.getLogger(__name__)

# called in every process of a run: what it returns in the first is what counts
Validation = Callable[[nn.Module], Mapping[str, float]]
Precision = Literal["fp32", "bf16", "fp16"]


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop, and its state is saved)
    """The run stopped where `request_stop` found it."""


class NonFiniteError(AvssegError):
    """A loss or a gradient that is no longer a number."""


@dataclass(frozen=True)
class TrainerSettings:
    """How a run goes. It ends after `steps` or `minutes`, whichever comes first; the learning rate follows that.

    `accumulate` batches make one step; `gradient_clip` 0 is none. `validate_steps` or `validate_minutes` lie between
    two validations, whichever comes first. `frozen` are prefixes of parameter names that stay as they are for the first
    `frozen_steps`.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 50
    final_fraction: float = 0.02
    steps: int = 10_000_000
    minutes: float = math.inf
    accumulate: int = 1
    gradient_clip: float = 1.0
    beta_2: float = 0.98
    precision: Precision = "fp32"
    ema_decay: float = 0.995
    frozen: tuple[str, ...] = ()
    frozen_steps: int = 0
    seed: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 6.0
    validate_steps: int = 10_000_000


@dataclass(frozen=True)
class Progress:
    """What a listener is told after each step."""

    step: int
    done: float
    seconds_left: float
    values: Mapping[str, float]
    validation: Mapping[str, float]


class Trainer:
    """One run in one folder: `train.csv`, `val.csv`, `last.pt` and `best.pt` (best by `score` of the validation).

    Under `torchrun` the caller initialises the process group first and gives every process the same parameters.
    """

    def __init__(
        self,
        objective: nn.Module,
        folder: Path,
        settings: TrainerSettings,
        *,
        learning_rate_scales: Mapping[str, float] | None = None,
        listener: Callable[[Progress], None] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.objective = objective
        self.average = copy.deepcopy(objective).eval().requires_grad_(False)
        self.folder = folder
        self.settings = settings
        groups = parameter_groups(objective, settings.learning_rate, settings.weight_decay, learning_rate_scales)
        self.base_rates: list[float] = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, settings.beta_2), fused=True)
        self.device_type = next(objective.parameters()).device.type
        self.scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16" and self.device_type == "cuda")
        self.step = 0
        self.elapsed_s = 0.0
        self.best_score = -math.inf
        self.rank, self.world = rank_and_world()
        self.distributed = self.world > 1
        self.leads = self.rank == 0
        self.listener = listener
        self.failed_together = False  # what `train` raised, it raised in all processes
        self._stop = False
        self.validated: dict[str, float] = {}
        self._validated_at = (0, 0.0)  # step and seconds of the last validation
        self._run: str | None = uuid.uuid4().hex
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(folder, tensorboard=tensorboard and self.leads)

    @property
    def progress(self) -> float:
        """0..1: how much of the run is done, by steps or by minutes."""
        return max(self.step / self.settings.steps, self.elapsed_s / 60 / self.settings.minutes)

    def request_stop(self) -> None:
        """Ends the run after the step in work, its state saved; from a signal handler, say. `train` then raises."""
        self._stop = True

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called, maybe too late for this run."""
        return self._stop

    def restore(self) -> bool:
        """Goes on from `last.pt` if there is one; whether there was. Raises AvssegError if it is of another model.

        Raises UsageError if it is of another number of processes, whose batches would be others.
        A run that was killed between writing `best.pt` and `last.pt` goes on from `best.pt`.
        """
        path = self.folder / LAST_STATE
        if not path.exists():
            return False
        path, state = load_later(path, self.folder / BEST_STATE)
        processes = state.get("processes", self.world)
        if processes != self.world:
            how = f"with torchrun --nproc-per-node {processes}" if processes > 1 else "without torchrun"
            raise UsageError(
                f"{printable(path)}: the processes of the run were {processes} and are {self.world} now, which would "
                f"make it another one. Resume it {how}"
            )
        try:
            self.objective.load_state_dict(state["objective"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.elapsed_s, self.best_score = state["step"], state["elapsed_s"], state["best_score"]
            self._validated_at = tuple(state.get("validated_at", (self.step, self.elapsed_s)))
            self._run = state.get("run")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            # below PyTorch's heading, which says nothing, its list may be of hundreds of names
            reason = textwrap.shorten(str(error).split(":\n", 1)[-1], 160, placeholder=" ...")
            raise AvssegError(f"{printable(path)}: is of another model ({reason}). Choose another folder") from error
        if self.leads:
            self.log.forget_after(self.step, self._validated_at[0])
        return True

    def save(self, name: str) -> None:
        """Writes the whole state to `name` in the run's folder."""
        state = {
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best_score": self.best_score,
            "validated_at": list(self._validated_at),
            "run": self._run,
            "processes": self.world,
        }
        save_checkpoint(self.folder / name, state)

    def train(self, batches: Iterable[Any], validate: Validation | None = None, *, until: float = 1.0) -> None:
        """Runs until `progress` reaches `until`.

        Raises NonFiniteError, naming the batch, when the loss is no longer finite, what `batches` raises, OutputError
        when the disk refuses, and Interrupted after `request_stop`. What keeps one process from its part of a step
        ends all of them: the others raise OtherProcessError.
        """
        settings = self.settings
        saved = self.elapsed_s
        logged: dict[str, list[float]] = {}
        self._set_modes()
        clock = time.monotonic()
        source = iter(batches)
        if validate and self._validated_at[0] < self.step and (self._due() or self.progress >= 1):
            self._validate(validate)  # a stop kept it from being done: later ones are to come when they would have
        while self.progress < until:
            group, waited = self._together(lambda: self._next_batches(source))
            if not group:
                return
            self._set_learning_rate()
            if self.step == settings.frozen_steps:
                self._set_modes()
            values = means_of_all(self._update(group))
            self.step += 1
            now = time.monotonic()
            values["wait_share"] = waited / max(now - clock, 1e-9)
            # a request that comes to one process from here on counts at the next step, in all of them
            (self.elapsed_s, stop), clock = agreed(self.elapsed_s + now - clock, self._stop), now
            for name, value in values.items():
                logged.setdefault(name, []).append(value)
            finished = self.progress >= until
            if self.step % settings.log_every == 0:
                means = {name: mean(v) for name, v in logged.items()}
                self._lead(functools.partial(self.log.add, "train", self.step, self.elapsed_s, means))
                logged = {}
            if self.leads and self.listener:
                self.listener(self._report(values))
                stop = stop or (self._stop and not self.distributed)
            if validate and (finished or (self._due() and not stop)):
                self._validate(validate)
                saved = self.elapsed_s
            elif finished or stop or self.elapsed_s - saved > settings.checkpoint_minutes * 60:
                self._lead(lambda: self.save(LAST_STATE))
                saved = self.elapsed_s
            if stop and not finished:
                raise Interrupted

    def _lead(self, work: Callable[[], None]) -> None:
        """Has the first process alone do what all of them came to; where it raises AvssegError, all do."""
        self._together(lambda: work() if self.leads else None)

    def _set_modes(self) -> None:
        """What is frozen keeps its statistics of batches, too."""
        self.objective.train()
        if self.step < self.settings.frozen_steps:
            for name, module in self.objective.named_modules():
                if f"{name}.".startswith(self.settings.frozen) and isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _due(self) -> bool:
        step, elapsed_s = self._validated_at
        settings = self.settings
        return (
            self.elapsed_s - elapsed_s > settings.validate_minutes * 60 or self.step - step >= settings.validate_steps
        )

    def _next_batches(self, source: Iterator[Any]) -> tuple[list[Any], float]:
        """The batches of one step, and the seconds that they were waited for."""
        began = time.monotonic()
        group = []
        for _ in range(self.settings.accumulate):
            try:
                group.append(next(source))
            except StopIteration:
                break
        return group, time.monotonic() - began

    def _update(self, group: list[Any]) -> dict[str, float]:
        settings = self.settings
        totals = self._together(lambda: self._gradients(group))
        # before the scaler sees them: for what overflows in frozen layers it would skip every step
        if self.step < settings.frozen_steps:
            for name, parameter in self.objective.named_parameters():
                if name.startswith(settings.frozen):
                    parameter.grad = None
        # averaged first: what overflows in one process must make all of them skip the step
        average_gradients(self.objective.parameters())
        self.scaler.unscale_(self.optimizer)
        limit = settings.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), limit)
        # a scaler skips the step and halves its scale: below 1 that is no overflow of fp16 any more
        if not torch.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() >= 1):
            self.failed_together = self.distributed
            raise NonFiniteError(
                f"{printable(self.folder)}: the gradient is {norm.item()} at step {self.step}{_names(group)}. Look at "
                "the data, or lower the learning rate"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        follow(self.average, self.objective, decay=settings.ema_decay, step=self.step)
        return {**{name: mean(values) for name, values in totals.items()}, "gradient_norm": float(norm)}

    def _together(self, work: Callable[[], Done]) -> Done:
        """What `work` returns; if it raises AvssegError in one process, all of them raise."""
        try:
            return together(work, printable(self.folder))
        except AvssegError:
            self.failed_together = self.distributed
            raise

    def _gradients(self, group: list[Any]) -> dict[str, list[float]]:
        """Leaves the gradients of a step's batches; what they logged."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step * 64 + self.rank)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, list[float]] = {}
        failure: NonFiniteError | None = None
        for batch in group:
            with self._autocast():
                loss, logged = self.objective(batch)
            if failure or not torch.isfinite(loss):
                # raised in the end: losses may exchange what they weigh, as often in every process
                failure = failure or NonFiniteError(
                    f"{printable(self.folder)}: the loss is {loss.item()} at step {self.step}{_names([batch])}. Look "
                    "at the data, or lower the learning rate"
                )
                continue
            self.scaler.scale(loss / len(group)).backward()
            for name, value in {"loss": loss.item(), **logged}.items():
                totals.setdefault(name, []).append(value)
        if failure:
            raise failure
        return totals

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        precision = self.settings.precision
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, torch.bfloat16 if precision == "bf16" else torch.float16)

    def _set_learning_rate(self) -> None:
        settings = self.settings
        final = settings.final_fraction if settings.schedule == "cosine" else 1.0
        factor = rate_factor(self.step, self.progress, warmup_steps=settings.warmup_steps, final_fraction=final)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def _validate(self, validate: Validation) -> None:
        # whoever stops a validation of many minutes at once loses it alone; and a `best.pt` alone would be no run to
        # go on with
        self._lead(lambda: self.save(LAST_STATE))
        first_buffers(self.average)  # statistics of batches: those of the first process are saved
        try:
            scores = dict(validate(self.average))
        except AvssegError:
            self.failed_together = self.distributed
            raise
        self._validated_at = (self.step, self.elapsed_s)
        self._lead(lambda: self._keep(scores))

    def _keep(self, scores: dict[str, float]) -> None:
        """Logs a validation and saves the state, as the best one too if it is."""
        if math.isnan(scores["score"]) and not self.validated:
            logger.warning(
                "%s: the validation has no score, as where no frame of the val split has truth, so the last state "
                "counts as the best",
                printable(self.folder),
            )
        self.validated = scores
        self.log.add("val", self.step, self.elapsed_s, scores)
        logger.info("step %d: %s", self.step, {name: round(value, 4) for name, value in scores.items()})
        if scores["score"] > self.best_score:
            self.best_score = scores["score"]
            # in this order: a score in `last.pt` whose model was never written would keep out all that are worse
            self.save(BEST_STATE)
        self.save(LAST_STATE)

    def _report(self, values: Mapping[str, float]) -> Progress:
        done = self.progress
        left = self.elapsed_s / done * (1 - done) if done > 0 else math.inf
        return Progress(self.step, done, left, values, self.validated)


def _names(group: list[Any]) -> str:
    """(clips A, B) for batches that name their clips."""
    names = [name for batch in group if isinstance(batch, Mapping) for name in batch.get("name", ())]
    return f" (clips {', '.join(printable(str(name)) for name in names)})" if names else ""
