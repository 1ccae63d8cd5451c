"""Two soundtracks to a clip: what is heard with which truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from avsseg.data.avsbench import ClipExample
from avsseg.data.soundtracks import NOISE_DB, SHARES, WRONG, heard_and_wrong, side_by_side
from avsseg.media.audio import SAMPLE_RATE_HZ, log_mel_examples

SECONDS = 2
STARTS = [float(t) for t in range(SECONDS)]
SILENCE = log_mel_examples(torch.zeros(0), STARTS)


def clip(name: str, value: int, frequency: float, *, size: int = 8, left: int = 1, wave: bool = True) -> ClipExample:
    """Every pixel is `value`; columns `left` to `left` + 2 are the object; the sound is a tone."""
    time = torch.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    waveform = 0.4 * torch.sin(2 * torch.pi * frequency * time)
    masks = torch.zeros(SECONDS, size, size, dtype=torch.uint8)
    masks[:, :, left : left + 3] = 1
    return ClipExample(
        name,
        "",
        torch.full((SECONDS, size, size, 3), value, dtype=torch.uint8),
        log_mel_examples(waveform, STARTS),
        masks,
        torch.tensor([True, value < 200]),
        torch.ones(SECONDS, dtype=torch.bool),
        waveform if wave else torch.zeros(0),
        torch.zeros(SECONDS, 0),
    )


def drawn(first: ClipExample, second: ClipExample, count: int = 60) -> list[ClipExample]:
    return [side_by_side(first, second, np.random.default_rng(seed)) for seed in range(count)]


def sound_of(log_mel: Tensor, first: ClipExample, second: ClipExample) -> str:
    sounds = {
        "first": first.log_mel,
        "second": second.log_mel,
        "both": log_mel_examples(first.waveform + second.waveform, STARTS),
        "nothing": SILENCE,
    }
    return next(name for name, sound in sounds.items() if torch.equal(sound, log_mel))


def wrong_sounds(one: ClipExample, absent: ClipExample | None, count: int = 200) -> dict[str, list[Tensor]]:
    """The second soundtracks of that many draws by what they are, after a look at all else."""
    found: dict[str, list[Tensor]] = {"silence": [], "absent": [], "noise": []}
    for seed in range(count):
        both = heard_and_wrong(one, absent, np.random.default_rng(seed))
        assert torch.equal(both.log_mel[0], one.log_mel)
        assert torch.equal(both.masks, torch.stack([one.masks, torch.zeros_like(one.masks)]))
        assert torch.equal(both.frames, one.frames)
        assert torch.equal(both.heard[0], one.heard)
        other = both.log_mel[1]
        is_absent = absent is not None and torch.equal(other, absent.log_mel)
        kind = "silence" if torch.equal(other, SILENCE) else "absent" if is_absent else "noise"
        assert torch.equal(both.heard[1], absent.heard if is_absent and absent else torch.zeros_like(one.heard))
        found[kind].append(other)
    return found


def test_silence_noise_and_what_is_not_there_have_no_truth() -> None:
    one = clip("a", 10, 440.0)._replace(heard=torch.tensor([[1.0, 0], [1, 0]]))
    other = clip("b", 90, 1300.0)._replace(heard=torch.tensor([[0, 1.0], [0, 1]]))
    found = wrong_sounds(one, other)
    for kind, share in WRONG.items():
        assert len(found[kind]) == pytest.approx(200 * share, abs=25)
    rng = np.random.default_rng(0)
    quiet, loud = (
        log_mel_examples(
            torch.from_numpy(rng.standard_normal(SECONDS * SAMPLE_RATE_HZ, np.float32)) * 10 ** (d / 20), STARTS
        )
        for d in NOISE_DB
    )
    levels = [float(noise.mean()) for noise in found["noise"]]
    assert float(quiet.mean()) - 0.1 < min(levels) < max(levels) < float(loud.mean()) + 0.1
    # white: no band of its own
    assert max(float(noise.mean((0, 1, 2)).diff().abs().max()) for noise in found["noise"]) < 1


def test_where_nothing_is_known_to_be_absent_there_is_silence_and_noise() -> None:
    found = wrong_sounds(clip("a", 10, 440.0), None, 60)
    assert not found["absent"]
    assert len(found["silence"]) > len(found["noise"]) > 5


def test_every_half_is_marked_when_its_clip_is_heard_and_then_alone() -> None:
    first, second = clip("a", 10, 440.0), clip("b", 90, 1300.0, left=4)
    heard: dict[str, int] = {}
    for shared in drawn(first, second):
        assert shared.log_mel.shape == (2, SECONDS, 1, 96, 64)
        assert shared.masks.shape == (2, SECONDS, 8, 8)
        of_first = shared.frames[..., 0] == 10
        assert of_first.sum() == (shared.frames[..., 0] == 90).sum() == of_first.numel() // 2
        names = [sound_of(log_mel, first, second) for log_mel in shared.log_mel]
        assert len(set(names)) == 2
        for name, masks in zip(names, shared.masks, strict=True):
            heard[name] = heard.get(name, 0) + 1
            assert bool((masks[of_first] > 0).any()) == (name in ("first", "both"))
            assert bool((masks[~of_first] > 0).any()) == (name in ("second", "both"))
    assert set(heard) == set(SHARES)
    assert min(heard["first"], heard["second"]) > heard["both"] > heard["nothing"]


def test_halves_hold_the_objects() -> None:
    first, second = clip("a", 10, 440.0), clip("b", 90, 1300.0, left=4)
    beside = [shared for shared in drawn(first, second) if len(shared.frames[0, 0, :, 0].unique()) == 2]
    above = [shared for shared in drawn(first, second) if len(shared.frames[0, :, 0, 0].unique()) == 2]
    assert len(beside) + len(above) == 60
    assert min(len(beside), len(above)) > 10
    # all three columns of the object lie in the half; of lines, all are alike, so half of each column does
    for shared in beside:
        assert all(masks.sum() in (0, SECONDS * 3 * 8, SECONDS * 6 * 8) for masks in shared.masks)
    orders = {int(shared.frames[0, 0, 0, 0]) for shared in beside} | {
        int(shared.frames[0, 0, 0, 0]) for shared in above
    }
    assert orders == {10, 90}


def test_odd_sizes_keep_their_size() -> None:
    shared = side_by_side(clip("a", 10, 440.0, size=7), clip("b", 90, 880.0, size=7), np.random.default_rng(0))
    assert shared.frames.shape == (SECONDS, 7, 7, 3)
    assert shared.masks.shape == (2, SECONDS, 7, 7)


def test_frames_are_annotated_where_both_clips_are() -> None:
    assert drawn(clip("a", 10, 440.0), clip("b", 220, 880.0), 1)[0].annotated.tolist() == [True, False]


def test_sounds_without_waveforms_are_not_mixed() -> None:
    first, second = clip("a", 10, 440.0), clip("b", 90, 1300.0, wave=False)
    own = (first.log_mel, second.log_mel, SILENCE)
    for shared in drawn(first, second):
        assert all(any(torch.equal(log_mel, sound) for sound in own) for log_mel in shared.log_mel)


def test_the_same_draw_gives_the_same_clip() -> None:
    first, second = clip("a", 10, 440.0), clip("b", 90, 1300.0)
    one, again = (side_by_side(first, second, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(one.log_mel, again.log_mel)
    assert torch.equal(one.masks, again.masks)
    assert one.name == "a + b"


@pytest.mark.parametrize("left", [0, 3, 5])
def test_a_half_is_cut_where_the_truth_is(left: int) -> None:
    shared = drawn(clip("a", 10, 440.0, left=left), clip("b", 90, 1300.0, left=left), 30)
    lengths = {int(m.sum()) for one in shared for m in one.masks if len(one.frames[0, 0, :, 0].unique()) == 2}
    assert lengths <= {0, SECONDS * 3 * 8, SECONDS * 6 * 8}


def test_the_classes_heard_follow_the_soundtracks() -> None:
    ones, twos = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[0, 1.0], [0, 1.0]])
    first, second = clip("a", 10, 440.0)._replace(heard=ones), clip("b", 90, 1300.0)._replace(heard=twos)
    classes = {"first": ones, "second": twos, "both": ones + twos, "nothing": 0 * ones}
    for shared in drawn(first, second):
        names = [sound_of(log_mel, first, second) for log_mel in shared.log_mel]
        assert torch.equal(shared.heard, torch.stack([classes[name] for name in names]))
