"""The training loop: AdamW, warm-up and cosine, clipping, EMA, checkpoints, a CSV log.

It knows no dataset and no loss: an objective is a module that takes a batch and returns its loss and what to log.
Under `torchrun` every process takes its own batches and the gradients are averaged; rank 0 logs, validates and saves.
"""

from __future__ import annotations

import copy
import csv
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from avsseg.errors import AvssegError
from avsseg.training.checkpoints import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

Validation = Callable[[nn.Module], Mapping[str, float]]
# log-decays and skips of a scan must not be pulled towards 0: there a state never forgets
NO_DECAY = ("A_logs", "Ds", "dt_projs_bias")


@dataclass(frozen=True)
class TrainerSettings:
    """How a run goes. It ends after `steps` or `minutes`, whichever comes first; the learning rate follows that."""

    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    warmup_steps: int = 50
    final_fraction: float = 0.02
    steps: int = 10_000_000
    minutes: float = math.inf
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    log_every: int = 20
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 6.0


def parameter_groups(
    module: nn.Module, learning_rate: float, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """AdamW's groups: matrices and kernels decay, everything of fewer axes and NO_DECAY does not.

    `scales` maps a prefix of parameter names to a factor on the learning rate (a pretrained encoder's, say).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY else 0.0
        scale = next((s for prefix, s in (scales or {}).items() if name.startswith(prefix)), 1.0)
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def _mean(values: list[float]) -> float:
    """The mean of what is a number: a batch without silent frames, say, has no area on silent frames."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


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
    ) -> None:
        self.objective = objective
        self.average = copy.deepcopy(objective).eval().requires_grad_(False)
        self.folder = folder
        self.settings = settings
        groups = parameter_groups(objective, settings.learning_rate, settings.weight_decay, learning_rate_scales)
        self.base_rates: list[float] = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.step = 0
        self.elapsed_s = 0.0
        self.best_score = -math.inf
        self.distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.leads = not self.distributed or torch.distributed.get_rank() == 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def progress(self) -> float:
        """0..1: how much of the run is done, by steps or by minutes."""
        return max(self.step / self.settings.steps, self.elapsed_s / 60 / self.settings.minutes)

    def restore(self) -> bool:
        """Goes on from `last.pt` if there is one; whether there was."""
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        state = load_checkpoint(path)
        self.objective.load_state_dict(state["objective"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s, self.best_score = state["step"], state["elapsed_s"], state["best_score"]
        return True

    def save(self, name: str) -> None:
        """Writes the whole state to `name` in the run's folder."""
        state = {
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best_score": self.best_score,
        }
        save_checkpoint(self.folder / name, state)

    def train(self, batches: Iterable[Any], validate: Validation | None = None, *, until: float = 1.0) -> None:
        """Runs until `progress` reaches `until`. Raises AvssegError when the loss is no longer finite."""
        settings = self.settings
        saved = validated = self.elapsed_s
        logged: dict[str, list[float]] = {}
        self.objective.train()
        clock = time.monotonic()
        for batch in batches:
            self._set_learning_rate()
            for name, value in self._update(batch).items():
                logged.setdefault(name, []).append(value)
            self.step += 1
            now = time.monotonic()
            self.elapsed_s, clock = self._agreed(self.elapsed_s + now - clock), now
            finished = self.progress >= until
            if self.leads:
                if self.step % settings.log_every == 0:
                    self._log("train.csv", {name: _mean(values) for name, values in logged.items()})
                    logged = {}
                if validate and (finished or self.elapsed_s - validated > settings.validate_minutes * 60):
                    validated = self.elapsed_s
                    self._validate(validate)
                if finished or self.elapsed_s - saved > settings.checkpoint_minutes * 60:
                    saved = self.elapsed_s
                    self.save("last.pt")
            if finished:
                return

    def _update(self, batch: Any) -> dict[str, float]:
        loss, logged = self.objective(batch)
        if not torch.isfinite(loss):
            raise AvssegError(f"{self.folder}: the loss is {loss.item()} at step {self.step}. Lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self._follow()
        return {"loss": loss.item(), "gradient_norm": float(norm), **logged}

    def _average_gradients(self) -> None:
        if not self.distributed:
            return
        gradients = [p.grad for p in self.objective.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _agreed(self, seconds: float) -> float:
        """Rank 0's clock, so that all processes have the same learning rate and end at the same step."""
        if not self.distributed:
            return seconds
        clock = torch.tensor(seconds, dtype=torch.float64)
        torch.distributed.broadcast(clock, 0)
        return float(clock)

    @torch.no_grad()
    def _follow(self) -> None:
        # the average of the first steps must not be of the random start
        decay = min(self.settings.ema_decay, (self.step + 1) / (self.step + 10))
        sources: dict[str, Tensor] = self.objective.state_dict()
        for name, tensor in self.average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(sources[name], 1 - decay)
            else:
                tensor.copy_(sources[name])

    def _set_learning_rate(self) -> None:
        settings = self.settings
        warmup = min(1.0, (self.step + 1) / settings.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        factor = warmup * (settings.final_fraction + (1 - settings.final_fraction) * cosine)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def _validate(self, validate: Validation) -> None:
        scores = validate(self.average)
        self._log("val.csv", scores)
        logger.info("step %d: %s", self.step, {name: round(value, 4) for name, value in scores.items()})
        if scores["score"] > self.best_score:
            self.best_score = scores["score"]
            self.save("best.pt")

    def _log(self, name: str, values: Mapping[str, float]) -> None:
        path = self.folder / name
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "minutes", *values])
            writer.writerow([self.step, f"{self.elapsed_s / 60:.2f}", *(f"{value:.5f}" for value in values.values())])
