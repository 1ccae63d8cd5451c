"""Reading clips of S4, MS3 and AVSS: shapes, time, truth, sound, augmentation, damaged files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from avsseg.data.augment import Augmentation
from avsseg.data.avsbench import AvsBenchClips, ClipExample
from avsseg.data.avsbench_files import read_sound
from avsseg.errors import DataError, UsageError
from avsseg.media.audio import log_mel, log_mel_examples

SILENCE = float(np.log(0.01))


def save_masks(folder: Path, image: Image.Image) -> None:
    for path in folder.glob("*.png"):
        image.save(path)


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_object_clips(tmp_path: Path, object_set: Callable[..., Path], subset: str) -> None:
    object_set(tmp_path, subset)
    clips = AvsBenchClips(tmp_path, subset, "test", size=16)
    assert (len(clips), clips.subset, clips.num_classes) == (1, subset, 1)
    example = clips[0]
    assert (example.name, example.category) == ("clip_test", "dog_barking" if subset == "s4" else "")
    assert (example.frames.shape, example.frames.dtype) == ((5, 16, 16, 3), torch.uint8)
    assert example.frames[:, 3, 3].tolist() == [[20 * (t + 1), 90, 90] for t in range(5)]
    assert (example.masks.shape, example.masks.dtype) == ((5, 16, 16), torch.uint8)
    expected = torch.zeros(16, 16, dtype=torch.uint8)
    expected[:, :4] = 1
    assert all(torch.equal(mask, expected) for mask in example.masks)
    assert example.annotated.tolist() == example.real.tolist() == [True] * 5
    assert (example.log_mel.shape, example.log_mel.dtype) == ((5, 1, 96, 64), torch.float32)
    assert (example.waveform.shape, example.waveform.dtype) == ((80_000,), torch.float32)


@pytest.mark.parametrize(("truth_size", "shape"), [(None, (16, 16)), (0, (8, 12)), (24, (24, 24))])
def test_truth_sizes(
    tmp_path: Path, object_set: Callable[..., Path], truth_size: int | None, shape: tuple[int, int]
) -> None:
    object_set(tmp_path, "ms3")
    example = AvsBenchClips(tmp_path, "ms3", "val", size=16, truth_size=truth_size)[0]
    assert example.frames.shape == (5, 16, 16, 3)
    assert example.masks.shape == (5, *shape)
    assert example.masks[0].float().mean() == pytest.approx(0.25)
    with pytest.raises(UsageError):
        AvsBenchClips(tmp_path, "ms3", "val", size=0)


def test_weak_supervision(tmp_path: Path, object_set: Callable[..., Path], semantic_set: Callable[..., None]) -> None:
    data = object_set(tmp_path, "s4")
    example = AvsBenchClips(tmp_path, "s4", "train", size=8)[0]
    assert example.annotated.tolist() == [True, False, False, False, False]
    assert example.masks[0].any()
    assert not example.masks[1:].any()
    # more masks than the benchmark gives are not used
    place = data / "gt_masks/train/dog_barking/clip_train"
    for k in range(2, 6):
        (place / f"clip_train_{k}.png").write_bytes((place / "clip_train_1.png").read_bytes())
    assert AvsBenchClips(tmp_path, "s4", "train", size=8)[0].annotated.sum() == 1


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.array([[0, 1], [0, 1]], np.uint8)),
        Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)),
        Image.fromarray(np.array([[0, 9], [0, 9]], np.uint8)),
        Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)).convert("1"),
        Image.fromarray(np.array([[[0, 0, 0], [0, 0, 7]]] * 2, np.uint8)),
        Image.fromarray(np.array([[[0, 0, 0, 255], [7, 0, 0, 255]]] * 2, np.uint8)),
        Image.fromarray(np.array([[[0, 255], [7, 255]]] * 2, np.uint8)),
        Image.fromarray(np.array([[[255, 255, 255, 0], [255, 255, 255, 1]]] * 2, np.uint8)),
        Image.fromarray(np.array([[[255, 0], [255, 255]]] * 2, np.uint8)),
        Image.fromarray(np.array([[0, 3], [0, 3]], np.uint8)).convert("P"),
    ],
    ids=["L 1", "L 255", "L 9", "1", "RGB", "RGBA", "LA", "cut-out RGBA", "cut-out LA", "P"],
)
def test_mask_encodings(tmp_path: Path, object_set: Callable[..., Path], image: Image.Image) -> None:
    data = object_set(tmp_path, "ms3")
    save_masks(data / "gt_masks/val/clip_val", image)
    example = AvsBenchClips(tmp_path, "ms3", "val", size=8, truth_size=0)[0]
    assert example.masks[3].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("labels", ["labels_semantic", "labels_rgb", "processed_labels_semantic"])
def test_semantic_clips_are_padded_to_ten(tmp_path: Path, semantic_set: Callable[..., None], labels: str) -> None:
    semantic_set(tmp_path, labels=(labels,))
    clips = AvsBenchClips(tmp_path, "avss", "train", size=16)
    assert clips.num_classes == 71
    weak, several, v2 = clips
    for example in (weak, several, v2):
        assert example.frames.shape == (10, 16, 16, 3)
        assert example.masks.shape == (10, 16, 16)
        assert example.log_mel.shape == (10, 1, 96, 64)
        assert example.waveform.shape == (160_000,)
        assert example.masks[example.annotated][:, :, :4].eq(70).all()
        assert not example.masks[example.annotated][:, :, 4:].any()
        assert not example.masks[~example.annotated].any()
        assert not example.frames[~example.real].any()
        assert (example.log_mel[~example.real] - SILENCE).abs().max() < 1e-5 if not example.real.all() else True
        assert example.log_mel[example.real].amax((1, 2, 3)).min() > 0
    assert weak.annotated.tolist() == [True] + [False] * 9
    assert several.annotated.tolist() == several.real.tolist() == weak.real.tolist() == [True] * 5 + [False] * 5
    assert v2.annotated.all()
    assert v2.real.all()
    assert v2.frames[9, 3, 3, 0] == pytest.approx(200, abs=4)


def test_palette_index_maps_count_by_index(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path)
    indices = Image.fromarray(np.array([[0, 37]], np.uint8)).convert("P")
    indices.frombytes(bytes([0, 37]))
    indices.putpalette([200] * 768)
    save_masks(tmp_path / "v1m/v1m_train/labels_semantic", indices)
    example = AvsBenchClips(tmp_path, "avss", "train", size=8, truth_size=0)[1]
    assert example.masks[:5].tolist() == [[[0, 37]]] * 5


@pytest.mark.parametrize(
    ("labels", "image", "message"),
    [
        ("labels_semantic", Image.new("L", (4, 4), 71), "has class 71, AVSS's classes end at 70"),
        ("labels_semantic", Image.new("RGB", (4, 4)), "is of mode RGB"),
        ("labels_rgb", Image.new("RGB", (4, 4), (128, 3, 0)), r"the first \(128, 3, 0\)"),
    ],
)
def test_labels_of_no_class(
    tmp_path: Path, semantic_set: Callable[..., None], labels: str, image: Image.Image, message: str
) -> None:
    semantic_set(tmp_path, labels=(labels,))
    image.save(tmp_path / f"v1m/v1m_train/{labels}/2.png")
    for path in (tmp_path / f"v1m/v1m_train/{labels}").glob("*.png"):
        if path.stem != "2":
            Image.new(image.mode if image.mode == "RGB" and labels == "labels_rgb" else "L", (4, 4)).save(path)
    with pytest.raises(DataError, match=rf"{labels}/2\.png: .*{message}"):
        AvsBenchClips(tmp_path, "avss", "train", size=8)[1]


def test_log_mels_are_cut_at_exact_seconds(
    tmp_path: Path, object_set: Callable[..., Path], sound_file: Callable[..., None]
) -> None:
    data = object_set(tmp_path, "ms3")
    wav = data / "audio_wav/val/clip_val.wav"
    sound_file(wav, 5, hertz=700)
    example = AvsBenchClips(tmp_path, "ms3", "val", size=8)[0]
    assert torch.equal(example.waveform, torch.from_numpy(read_sound(wav)))
    for t in range(5):
        cut = example.waveform[t * 16_000 : t * 16_000 + 15_600]
        assert torch.allclose(example.log_mel[t, 0], log_mel(cut), atol=1e-5)


@pytest.mark.parametrize("seconds", [3.0, 5.03])
def test_sounds_of_another_length(
    tmp_path: Path, object_set: Callable[..., Path], sound_file: Callable[..., None], seconds: float
) -> None:
    data = object_set(tmp_path, "ms3")
    sound_file(data / "audio_wav/val/clip_val.wav", seconds)
    example = AvsBenchClips(tmp_path, "ms3", "val", size=8)[0]
    assert example.waveform.shape == (80_000,)
    assert bool(example.waveform[64_000:].any()) == (seconds > 5)


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 2), (44_100, 1), (48_000, 2), (8_000, 1)])
def test_sounds_of_any_rate_and_channels(
    tmp_path: Path, sound_file: Callable[..., None], rate: int, channels: int
) -> None:
    path = tmp_path / "x.wav"
    sound_file(path, 2, rate=rate, channels=channels)
    waveform = read_sound(path)
    assert len(waveform) == pytest.approx(32_000, abs=40)
    # two channels at 0.8 and 0.2 have the mean of one at 0.5
    time = np.arange(8000, 24_000) / 16_000
    assert waveform[8000:24_000] == pytest.approx(0.5 * np.sin(2 * np.pi * 440 * time), abs=0.02)


@pytest.mark.parametrize("length", [3, 5, 7])
def test_a_pickle_stands_in_for_a_wav(tmp_path: Path, object_set: Callable[..., Path], length: int) -> None:
    data = object_set(tmp_path, "s4")
    (data / "audio_wav/val/dog_barking/clip_val.wav").unlink()
    path = data / "audio_log_mel/val/dog_barking/clip_val.pkl"
    path.parent.mkdir(parents=True)
    stored = torch.randn(length, 1, 96, 64, requires_grad=True)
    path.write_bytes(pickle.dumps(stored))
    loud = Augmentation(gain_db=6, noise_db=-20, mix=1)
    for augmentation in (None, loud):
        example = AvsBenchClips(tmp_path, "s4", "val", size=8, augmentation=augmentation)[0]
        assert example.log_mel.shape == (5, 1, 96, 64)
        for t in range(5):
            assert torch.equal(example.log_mel[t], stored[min(t, length - 1)])
        assert not example.log_mel.requires_grad
        assert example.waveform.shape == (0,)


def test_a_semantic_pickle_is_padded_with_silence(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path)
    clip = tmp_path / "v1m/v1m_train"
    (clip / "audio.wav").unlink()
    (clip / "audio.pkl").write_bytes(pickle.dumps(torch.zeros(5, 1, 96, 64)))
    example = AvsBenchClips(tmp_path, "avss", "train", size=8)[1]
    assert not example.log_mel[:5].any()
    assert (example.log_mel[5:] - SILENCE).abs().max() < 1e-5


def test_a_wav_that_disappears_is_named_with_a_remedy(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    clips = AvsBenchClips(tmp_path, "s4", "val", size=8)
    (data / "audio_wav/val/dog_barking/clip_val.wav").unlink()
    with pytest.raises(DataError, match=r"clip_val\.wav"):
        clips[0]
    with pytest.raises(DataError, match=r"clip_val\.wav: missing.*`avsseg data check .* --fix-audio`"):
        AvsBenchClips(tmp_path, "s4", "val", size=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual_frames/clip_val/clip_val.mp4_3.png", r"clip_val\.mp4_3\.png: not an image"),
        ("gt_masks/val/clip_val/clip_val_2.png", r"clip_val_2\.png: not an image"),
        ("audio_wav/val/clip_val.wav", r"clip_val\.wav: is cut short"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, object_set: Callable[..., Path], name: str, message: str) -> None:
    path = object_set(tmp_path, "ms3") / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=message):
        AvsBenchClips(tmp_path, "ms3", "val", size=8)[0]


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\0\0\0\0WAVEfmt "])
def test_sounds_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.wav: "):
        read_sound(path)


def test_masks_of_two_sizes(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "ms3")
    Image.new("1", (5, 5)).save(data / "gt_masks/val/clip_val/clip_val_4.png")
    with pytest.raises(DataError, match=r"clip_val_4\.png: is 5x5, the clip's first mask 12x8"):
        AvsBenchClips(tmp_path, "ms3", "val", size=8, truth_size=0)[0]


def same(first: ClipExample, second: ClipExample) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("frames", "masks", "log_mel"))


def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path, labels=("labels_rgb",))
    settings = Augmentation(gain_db=6, noise_db=-30, mix=0.5)

    def clips(seed: int = 0) -> AvsBenchClips:
        return AvsBenchClips(tmp_path, "avss", "train", size=24, augmentation=settings, seed=seed)

    first = clips()
    wanted = [first[k] for k in range(3)]
    other_order = clips()
    for k in (2, 0, 1):
        assert same(other_order[k], wanted[k])
    assert same(other_order[-1], wanted[2])
    assert not same(clips(seed=1)[0], wanted[0])
    first.set_epoch(1)
    assert not same(first[0], wanted[0])
    first.set_epoch(0)
    assert same(first[0], wanted[0])
    loaded = list(DataLoader(clips(), batch_size=1, num_workers=2))
    for k in range(3):
        assert torch.equal(loaded[k].frames[0], wanted[k].frames)
        assert torch.equal(loaded[k].log_mel[0], wanted[k].log_mel)


def test_augmented_padding_stays_black_and_silent(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path)
    settings = Augmentation(photometric=1, noise_db=-20)
    example = AvsBenchClips(tmp_path, "avss", "train", size=24, augmentation=settings)[1]
    assert not example.frames[5:].any()
    assert not example.masks[5:].any()
    assert (example.log_mel[5:] - SILENCE).abs().max() < 1e-5
    assert not example.waveform[80_000:].any()


def test_the_sound_that_is_heard_is_the_augmented_one(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    object_set(tmp_path, "ms3")
    plain = AvsBenchClips(tmp_path, "ms3", "val", size=8)[0]
    example = AvsBenchClips(tmp_path, "ms3", "val", size=8, augmentation=Augmentation(noise_db=-20))[0]
    assert not torch.equal(example.log_mel, plain.log_mel)
    assert torch.equal(example.log_mel, log_mel_examples(example.waveform, [0.0, 1.0, 2.0, 3.0, 4.0]))


def test_a_clip_whose_sounds_another_never_shows_is_found_by_the_listing(
    tmp_path: Path, object_set: Callable[..., Path]
) -> None:
    object_set(tmp_path, "ms3", splits=("train",))
    things = {
        "dog": (["dog 0", "cat 1"], ["dog 0"]),
        "cat": (["cat 0"], ["cat 0"]),
        "bird": (["bird 0", "dog 1"], ["bird 0"]),
        "mixed": (["cat 0"], ["cat 0", "bird off-screen"]),
        "mute": (["bird 0"], []),
    }
    listing = {
        "classes": ["dog", "cat", "bird"],
        "clips": [
            {"name": name, "visible": [seen] * 5, "sounding": [heard] * 5} for name, (seen, heard) in things.items()
        ],
    }
    (tmp_path / "clips.json").write_text(json.dumps(listing))
    clips = AvsBenchClips(tmp_path, "ms3", "train", size=16, list_sounds=True)
    clips.clips = [replace(clips.clips[0], name=name) for name in things]
    assert clips.sound_classes == ("bird", "cat", "dog")

    def found(index: int) -> set[str]:
        drawn = {clips.sounding_of_nothing_in(index, np.random.default_rng(seed)) for seed in range(40)}
        return {"none" if k is None else list(things)[k] for k in drawn}

    # a silent clip's sound is none, and its own a clip shows even where it comes from elsewhere
    assert [found(index) for index in range(5)] == [{"bird"}, {"dog", "bird"}, {"cat"}, {"dog", "bird"}, {"dog", "cat"}]
    unlisted = AvsBenchClips(tmp_path, "ms3", "train", size=16)
    assert unlisted.sounding_of_nothing_in(0, np.random.default_rng(0)) is None


def test_mixing_adds_another_clip_and_keeps_the_truth(
    tmp_path: Path, object_set: Callable[..., Path], sound_file: Callable[..., None]
) -> None:
    data = object_set(tmp_path, "ms3", splits=("train", "val"))
    table = tmp_path / "ms3_meta_data.csv"
    # two clips in one split, one of them silent
    table.write_text("name,split\nclip_train,train\n")
    alone = Augmentation(flip=0, resize=(1, 1), photometric=0, mix=1, mix_db=-20)
    assert AvsBenchClips(tmp_path, "ms3", "train", size=8, augmentation=alone)[0].waveform.any()
    for kind in ("gt_masks", "audio_wav"):
        for path in list((data / kind / "val").rglob("*.*")):
            target = data / kind / "train" / path.relative_to(data / kind / "val")
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    sound_file(data / "audio_wav/train/clip_val.wav", 5, hertz=0)
    table.write_text("name,split\nclip_train,train\nclip_val,train\n")
    plain = AvsBenchClips(tmp_path, "ms3", "train", size=8)
    mixed = AvsBenchClips(tmp_path, "ms3", "train", size=8, augmentation=alone)
    assert not plain[1].waveform.any()
    assert torch.allclose(mixed[1].waveform, plain[0].waveform * 0.1, atol=1e-6)
    assert torch.equal(mixed[0].waveform, plain[0].waveform)
    assert torch.equal(mixed[1].masks, plain[1].masks)
