from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avsseg.errors import EnvironmentFault
from avsseg.media.probe import probe
from avsseg.media.windows import ClipWindow, clip_windows
from avsseg.pipeline.scoring import WindowScorer, class_probabilities, memory_faults
from avsseg.weights import LoadedModel

CPU = torch.device("cpu")
SIZE = 32


class Counting(torch.nn.Module):
    """Its logits are its frames' red; notes how many windows came together, and has memory for `most` of them."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self.most = most
        self.together: list[int] = []

    def forward(self, frames: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
        self.together.append(len(frames))
        if len(frames) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return frames[:, :, :1]


def windows_of(lengths: Sequence[int]) -> Iterator[ClipWindow]:
    rng = np.random.default_rng(0)
    first = 0
    for length in lengths:
        frames = rng.integers(0, 256, (length, SIZE, SIZE, 3), np.uint8)
        times = tuple(first + k + 0.5 for k in range(length))
        yield ClipWindow(first, frames, torch.zeros(length, 1, 96, 64), times)
        first += length


def scorer(model: torch.nn.Module, at_once: int | None) -> WindowScorer:
    return WindowScorer(LoadedModel(model, "counting", "", ("a",), True), CPU, "fp32", at_once=at_once)


def expected(lengths: Sequence[int]) -> list[np.ndarray]:
    return [class_probabilities(Counting(), [window], CPU, "fp32")[0].numpy() for window in windows_of(lengths)]


@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_every_window_gets_its_own_masks_in_order(at_once: int | None) -> None:
    lengths = [4] * 8 + [2]
    found = list(scorer(Counting(), at_once).score(windows_of(lengths)))
    assert [window.first_index for window, _, _ in found] == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    for (_, probability, _), wanted in zip(found, expected(lengths), strict=True):
        np.testing.assert_array_equal(probability, wanted)


def test_the_first_window_goes_alone_and_only_equal_lengths_go_together() -> None:
    model = Counting()
    list(scorer(model, 3).score(windows_of([4] * 6 + [2])))
    assert model.together == [1, 3, 2, 1]


def test_a_processor_takes_one_window_at_a_time_as_they_come() -> None:
    asked: list[int] = []

    def windows() -> Iterator[ClipWindow]:
        for window in windows_of([2] * 3):
            asked.append(window.first_index)
            yield window

    scored = scorer(Counting(), None).score(windows())
    next(scored)
    assert asked == [0]


class Arrival:
    """Stands for a CUDA event: notes in `log` when its results are waited for."""

    def __init__(self, log: list[str], first_index: int) -> None:
        self.log = log
        self.first_index = first_index

    def synchronize(self) -> None:
        self.log.append(f"wait for {self.first_index}")


def test_on_a_gpu_the_first_window_is_handed_out_at_once_and_each_other_group_behind_the_start_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    enqueue = WindowScorer._enqueue

    def enqueued(self: WindowScorer, part: Sequence[ClipWindow]) -> object:
        log.append(f"start {len(part)} from {part[0].first_index}")
        return replace(enqueue(self, part), arrived=Arrival(log, part[0].first_index))

    monkeypatch.setattr(WindowScorer, "_enqueue", enqueued)
    found = []
    for window, _, _ in scorer(Counting(), 2).score(windows_of([1] * 6)):
        log.append(f"have {window.first_index}")
        found.append(window.first_index)
    assert found == [0, 1, 2, 3, 4, 5]
    assert log == [
        *("start 1 from 0", "wait for 0", "have 0"),
        *("start 2 from 1", "start 2 from 3", "wait for 1", "have 1", "have 2"),
        *("start 1 from 5", "wait for 3", "have 3", "have 4", "wait for 5", "have 5"),
    ]


def test_less_memory_means_fewer_windows_at_once_and_the_same_masks() -> None:
    model = Counting(most=2)
    lengths = [3] * 10
    found = list(scorer(model, 8).score(windows_of(lengths)))
    for (_, probability, _), wanted in zip(found, expected(lengths), strict=True):
        np.testing.assert_array_equal(probability, wanted)
    assert model.together == [1, 8, 4, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", True),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", True),
        ("Caught RuntimeError in DataLoader worker process 0.\nTraceback: shapes do not fit", False),
    ],
)
def test_a_fault_in_a_process_that_loads_data_is_not_lack_of_memory(message: str, told: bool) -> None:
    with (
        pytest.raises(EnvironmentFault if told else RuntimeError, match="Use --workers 0" if told else "shapes"),
        memory_faults("here", "Buy some"),
    ):
        raise RuntimeError(message)


ScoreInThreads = Callable[[LoadedModel, Sequence[Sequence[int]], "int | None"], list[list[np.ndarray]]]


@pytest.fixture
def score_in_threads(all_wait_for: Callable[..., None]) -> ScoreInThreads:
    """What each video is told, all of them at once; nobody gets the model before the first window of each waits."""

    def score(loaded: LoadedModel, videos: Sequence[Sequence[int]], at_once: int | None) -> list[list[np.ndarray]]:
        told: list[list[np.ndarray]] = [[] for _ in videos]

        def one(number: int) -> None:
            own = WindowScorer(loaded, CPU, "fp32", at_once=at_once)
            told[number] = [probability for _, probability, _ in own.score(windows_of(videos[number]))]

        all_wait_for(loaded.turn, [functools.partial(one, number) for number in range(len(videos))])
        return told

    return score


def test_windows_of_several_videos_go_together(score_in_threads: ScoreInThreads) -> None:
    model = Counting()
    videos = [[4], [4, 2], [3], [4, 4]]
    told = score_in_threads(LoadedModel(model, "counting", "", ("a",), True), videos, 3)
    for lengths, probabilities in zip(videos, told, strict=True):
        for probability, wanted in zip(probabilities, expected(lengths), strict=True):
            np.testing.assert_array_equal(probability, wanted)
    # the first windows of three of them have four masks
    assert max(model.together) == 3
    assert sum(model.together) == 6


def test_windows_of_several_videos_that_take_too_much_memory_go_alone_from_then_on(
    score_in_threads: ScoreInThreads,
) -> None:
    model = Counting(most=1)
    loaded = LoadedModel(model, "counting", "", ("a",), True)
    videos = [[2], [2], [2], [2]]
    told = score_in_threads(loaded, videos, 2)
    for lengths, probabilities in zip(videos, told, strict=True):
        for probability, wanted in zip(probabilities, expected(lengths), strict=True):
            np.testing.assert_array_equal(probability, wanted)
    assert model.together == [2, 1, 1, 1, 1]
    # the next video knows
    list(WindowScorer(loaded, CPU, "fp32", at_once=2).score(windows_of([2] * 4)))
    assert model.together[5:] == [1, 1, 1, 1]


def test_what_one_thread_learned_of_memory_no_other_forgets() -> None:
    loaded = LoadedModel(Counting(), "counting", "", ("a",), True)
    one, other = (WindowScorer(loaded, CPU, "fp32", at_once=8) for _ in range(2))
    one._spare(4)
    other._spare(8)
    assert one.at_once == other.at_once == 2


def test_on_a_processor_every_window_goes_alone(score_in_threads: ScoreInThreads) -> None:
    model = Counting()
    score_in_threads(LoadedModel(model, "counting", "", ("a",), True), [[2], [2], [2]], None)
    assert model.together == [1, 1, 1]


def test_a_single_window_that_takes_too_much_memory_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        list(scorer(Counting(most=0), 4).score(windows_of([3] * 4)))


def test_another_error_is_not_taken_for_lack_of_memory() -> None:
    class Broken(Counting):
        def forward(self, frames: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
            if len(frames) > 1:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return frames[:, :, :1]

    with pytest.raises(RuntimeError, match="shapes"):
        list(scorer(Broken(), 4).score(windows_of([3] * 4)))


def test_windows_together_get_what_the_model_gives_them_alone(clip: Path, untrained: LoadedModel) -> None:
    with clip_windows(probe(clip), size=64, window=1) as windows:
        parts = list(windows)
    together = class_probabilities(untrained.model, parts, CPU, "fp32")
    for part, probability in zip(parts, together, strict=True):
        alone = class_probabilities(untrained.model, [part], CPU, "fp32")[0]
        torch.testing.assert_close(probability, alone, rtol=1e-4, atol=1e-5)


def test_several_classes_sum_to_one(clip: Path) -> None:
    class ThreeClasses(torch.nn.Module):
        def forward(self, frames: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
            return frames * 3

    with clip_windows(probe(clip), size=64, window=3) as windows:
        probability = class_probabilities(ThreeClasses(), list(windows), CPU, "fp32")[0].numpy()
    assert probability.shape == (3, 3, 64, 64)
    assert probability.sum(axis=1) == pytest.approx(np.ones((3, 64, 64)), abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_a_processor_gives_in_the_same_order() -> None:
    lengths = [4] * 20 + [2]
    model = Counting().cuda()
    on_gpu = WindowScorer(LoadedModel(model, "counting", "", ("a",), True), torch.device("cuda"), "fp32")
    found = list(on_gpu.score(windows_of(lengths)))
    assert model.together == [1, 8, 8, 3, 1]
    for (_, probability, _), wanted in zip(found, expected(lengths), strict=True):
        np.testing.assert_allclose(probability, wanted, atol=1e-6)
