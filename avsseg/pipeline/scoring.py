"""Windows through the model: one after the other on a CPU, several together on a GPU, which never waits for results.

On a GPU the windows of several inputs in work at once go together, too: a short clip has too few of its own.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsseg.errors import EnvironmentFault
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.pipeline.options import Precision

if TYPE_CHECKING:
    from avsseg.media.windows import ClipWindow
    from avsseg.weights import LoadedModel

logger = logging.getLogger(__name__)

# A window is too little work for a GPU; on a CPU several at once only take more memory.
WINDOWS_AT_ONCE = {"cuda": 8}
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# the last two are cuBLAS's and cuDNN's
_MEMORY_WORDS = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")


class ScoredWindow(NamedTuple):
    """A window of T masks: probability (T, N_class, H, W), heard (T, K) that of each class of sound; K may be 0."""

    window: ClipWindow
    probability: NDArray[np.float32]
    heard: NDArray[np.float32]


class _Part(NamedTuple):
    """Windows of one video and of one length, and how exactly they are looked at."""

    windows: Sequence[ClipWindow]
    precision: Precision


@dataclass(frozen=True)
class _Scored:
    """Windows on their way: `probability` and `heard` are complete once `arrived` has happened."""

    windows: tuple[ClipWindow, ...]
    probability: Tensor
    heard: Tensor
    arrived: torch.cuda.Event | None

    def results(self) -> Iterator[ScoredWindow]:
        if self.arrived is not None:
            self.arrived.synchronize()
        yield from map(ScoredWindow, self.windows, self.probability.numpy(), self.heard.numpy())


class WindowScorer:
    """Gives windows their probabilities, in order.

    `at_once` windows of one length go through the model together, those of other threads that wait for the same model
    among them; the first of a video does not wait for its next ones and is handed out at once, so that the first mask
    is not kept waiting. When a GPU's memory runs out, half as many do from then on, those of later videos too. On a
    GPU every later group is handed out after the next one has been started, so that copying, blending and writing
    happen while it works.
    """

    def __init__(
        self, loaded: LoadedModel, device: torch.device, precision: Precision, *, at_once: int | None = None
    ) -> None:
        self.loaded = loaded
        self.device = device
        self.precision: Precision = precision
        self._wanted = at_once or WINDOWS_AT_ONCE.get(device.type, 1)

    @property
    def at_once(self) -> int:
        """How many windows go together, as far as memory allows."""
        return min(self._wanted, self.loaded.turn.most or self._wanted)

    def score(self, windows: Iterable[ClipWindow]) -> Iterator[ScoredWindow]:
        """Each window with its probabilities.

        Raises:
            torch.OutOfMemoryError, RuntimeError: a single window takes more memory than there is.
        """
        under_way: _Scored | None = None
        for number, group in enumerate(self._groups(windows)):
            for scored in self._start(group):
                if under_way is not None:
                    yield from under_way.results()
                under_way = scored
                if number == 0 or scored.arrived is None:
                    yield from scored.results()
                    under_way = None
        if under_way is not None:
            yield from under_way.results()

    def _groups(self, windows: Iterable[ClipWindow]) -> Iterator[list[ClipWindow]]:
        group: list[ClipWindow] = []
        limit = 1
        for window in windows:
            if group and len(window.frames) != len(group[0].frames):
                yield group
                group = []
            group.append(window)
            if len(group) >= limit:
                yield group
                group, limit = [], self.at_once
        if group:
            yield group

    def _start(self, group: Sequence[ClipWindow]) -> Iterator[_Scored]:
        """The group in as many parts as memory asks for."""
        position = 0
        while position < len(group):
            part = group[position : position + self.at_once]
            try:
                scored = self._enqueue(part)
            except (MemoryError, RuntimeError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self._spare(len(part))
                continue
            position += len(part)
            yield scored

    def _enqueue(self, part: Sequence[ClipWindow]) -> _Scored:
        return self.loaded.turn.combined(_Part(part, self.precision), self._pass, self._go_together)

    def _go_together(self, chosen: Sequence[_Part], other: _Part) -> bool:
        shapes = {(part.precision, part.windows[0].frames.shape) for part in (*chosen, other)}
        return len(shapes) == 1 and sum(len(part.windows) for part in (*chosen, other)) <= self.at_once

    def _pass(self, parts: Sequence[_Part]) -> list[_Scored]:
        """Each part with its share of one pass of the model over all of them."""
        windows = [window for part in parts for window in part.windows]
        try:
            probability, heard = mask_and_sound_probabilities(self.loaded.model, windows, self.device, self.precision)
        except (MemoryError, RuntimeError) as error:
            if len(parts) > 1 and is_out_of_memory(error):
                self._spare(len(windows))
            raise
        on_gpu = self.device.type == "cuda"
        fetched = _copied_behind if on_gpu else Tensor.cpu
        arrived = torch.cuda.Event() if on_gpu else None
        lengths = [len(part.windows) for part in parts]
        # each share in memory of its own: whoever keeps a mask must not keep those of other videos
        shares = zip(*(map(fetched, probability.split(lengths)), map(fetched, heard.split(lengths))), strict=True)
        scored = [_Scored(tuple(part.windows), *share, arrived) for part, share in zip(parts, shares, strict=True)]
        if arrived is not None:
            arrived.record(torch.cuda.current_stream(self.device))
        return scored

    def _spare(self, too_many: int) -> None:
        turn, fewer = self.loaded.turn, max(1, too_many // 2)
        turn.most = min(turn.most or fewer, fewer)  # another thread may know better
        logger.debug("out of memory with %d windows at once, going on with %d", too_many, turn.most)


def _copied_behind(tensor: Tensor) -> Tensor:
    """In pinned memory, so that the copy happens behind the computation instead of after a wait for it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host


def class_probabilities(
    model: torch.nn.Module, windows: Sequence[ClipWindow], device: torch.device, precision: Precision
) -> Tensor:
    """The first of `mask_and_sound_probabilities`."""
    return mask_and_sound_probabilities(model, windows, device, precision)[0]


@torch.inference_mode()
def mask_and_sound_probabilities(
    model: torch.nn.Module, windows: Sequence[ClipWindow], device: torch.device, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Those of masks (n, T, N_class, H, W) and of sounds (n, T, K), float32 on the device, of n windows of T frames.

    Sigmoid of a single class and of sounds, softmax over several classes. K is 0 for models that tell no sounds apart.
    """
    frames = torch.from_numpy(np.stack([window.frames for window in windows]))
    log_mel = torch.stack([window.log_mel for window in windows])
    if device.type == "cuda":
        frames, log_mel = frames.pin_memory(), log_mel.pin_memory()
    pictures = normalise(frames.to(device, non_blocking=True))  # (n, T, 3, H, W)
    dtype = AUTOCAST_DTYPES.get(precision)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        sound = log_mel.to(device, non_blocking=True)
        heard: Tensor | None = None
        logits: Tensor
        if isinstance(model, AvsMamba):
            logits, heard = model.masks_and_sounds(pictures, sound)
        else:
            logits = model(pictures, sound)
    logits = logits.float()
    probability = logits.sigmoid() if logits.shape[2] == 1 else logits.softmax(dim=2)
    return probability, probability.new_zeros(*log_mel.shape[:2], 0) if heard is None else heard.float().sigmoid()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; frees what PyTorch holds in reserve on a GPU then."""
    # on a CPU, PyTorch raises a plain RuntimeError for it
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)
    ):
        return False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


@contextlib.contextmanager
def memory_faults(where: str, remedy: str) -> Iterator[None]:
    """Raises EnvironmentFault where memory runs out, here or in a process that loads data.

    Its message: `where`, what happened and the `remedy` (another one for the process).
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            what = f"memory ran out. {remedy}"
        elif "DataLoader worker (pid" in str(error):  # PyTorch raises it wherever the signal comes
            what = "a process that loads data was killed, for lack of memory most likely. Use --workers 0"
        else:
            raise
        raise EnvironmentFault(f"{where}: {what}") from error
