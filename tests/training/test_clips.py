"""Batches of clips: their order, what they hold, and the loss over them."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avsseg.data.augment import Augmentation
from avsseg.data.avsbench import AvsBenchClips
from avsseg.errors import UsageError
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.model.config import AvsMambaConfig
from avsseg.training.clips import (
    ClipBatch,
    ClipObjective,
    ClipOrder,
    batch_tensor,
    clip_batches,
    crops_around,
    second_batches,
    validation,
)
from avsseg.training.losses import mask_loss, semantic_loss

NARROW = AvsMambaConfig(
    backbone="pvt_v2_b0", audio_encoder="compact", dim=32, state_size=2, head_hidden=8, head_channels=(8, 4)
)


def keys(order: ClipOrder, count: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(iter(order), count))


def test_an_epoch_shows_every_clip_once() -> None:
    order = ClipOrder(6, 2, seed=3)
    first, second = keys(order, 6)[:3], keys(order, 6)[3:]
    for epoch, batches in enumerate((first, second)):
        flat = [key for batch in batches for key in batch]
        assert sorted(flat) == [(epoch, index) for index in range(6)]
    assert [i for batch in first for _, i in batch] != [i for batch in second for _, i in batch]


def test_order_goes_on_where_it_stopped() -> None:
    assert keys(ClipOrder(7, 2, seed=1, first=5), 4) == keys(ClipOrder(7, 2, seed=1), 9)[5:]


def test_two_processes_share_the_doubled_batch() -> None:
    one = keys(ClipOrder(8, 4, seed=0), 4)
    two = [keys(ClipOrder(8, 2, seed=0, rank=rank, world=2), 4) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def test_a_set_smaller_than_a_batch_still_trains() -> None:
    assert len(keys(ClipOrder(3, 8, seed=0), 2)[1]) == 3


def test_each_process_needs_a_clip() -> None:
    said = r"1 training clips for 2 processes: each needs one of its own\. Give --nproc-per-node 1 or less"
    with pytest.raises(UsageError, match=said):
        ClipOrder(1, 2, seed=0, world=2)


def test_batches_do_not_depend_on_workers(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=32, augmentation=Augmentation(), seed=5)
    found = []
    for workers in (0, 2):
        batches = clip_batches(clips, ClipOrder(len(clips), 2, seed=5), workers)
        found.append(list(itertools.islice(iter(batches), 3)))
    for alone, helped in zip(*found, strict=True):
        assert alone["name"] == helped["name"]
        assert torch.equal(alone["frames"], helped["frames"])  # type: ignore[arg-type]
        assert torch.equal(alone["log_mel"], helped["log_mel"])  # type: ignore[arg-type]


def test_loss_is_that_of_the_annotated_frames_alone(scenes: Path) -> None:
    torch.manual_seed(0)
    clips = AvsBenchClips(scenes, "ms3", "train", size=32)
    objective = ClipObjective(AvsMamba(NARROW)).eval()
    batch = next(iter(clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0)))
    batch["annotated"] = torch.tensor([[True, False, False, True, False], [False, True, False, False, False]])
    loss, logged = objective(batch)
    masks = batch["masks"]
    assert isinstance(masks, torch.Tensor)
    masks[0, 1:3] = 1 - masks[0, 1:3]
    assert torch.equal(objective(batch)[0], loss)
    masks[0, 0] = 1 - masks[0, 0]
    assert not torch.equal(objective(batch)[0], loss)
    assert set(logged) == {"M_J"}


def test_pairs_do_not_depend_on_workers_and_stay_apart_by_epoch(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=32, augmentation=Augmentation(), seed=5)
    found = []
    for workers in (0, 2):
        batches = clip_batches(clips, ClipOrder(len(clips), 2, seed=5), workers, pair=0.6)
        found.append(list(itertools.islice(iter(batches), 6)))
    for alone, helped in zip(*found, strict=True):
        assert alone["name"] == helped["name"]
        for name in ("frames", "log_mel", "masks"):
            assert torch.equal(alone[name], helped[name])  # type: ignore[arg-type]
    names = [name for batch in found[0] for name in batch["name"]]
    shared = [name.split(" + ") for name in names if " + " in name]
    assert 0 < len(shared) < len(names)
    assert all(one != other for one, other in shared)


def test_a_clip_alone_gets_the_sound_of_what_it_does_not_show(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=32, list_sounds=True)
    sounds = {index: clips[index].log_mel for index in range(len(clips))}
    by_name = {files.name: index for index, files in enumerate(clips.clips)}
    borrowed = 0
    batches = clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0, pair=1e-9)
    for batch in itertools.islice(iter(batches), 20):
        log_mel, masks, names = batch["log_mel"], batch["masks"], batch["name"]
        assert isinstance(log_mel, torch.Tensor)
        assert isinstance(masks, torch.Tensor)
        for clip, name in enumerate(names):
            own = by_name[str(name)]
            assert torch.equal(log_mel[clip, 0], sounds[own])
            assert not masks[clip, 1].any()
            lender = [index for index, sound in sounds.items() if torch.equal(log_mel[clip, 1], sound)]
            for index in lender:
                assert not clips._listing[clips.clips[index].name].heard & clips._listing[str(name)].visible
            borrowed += len(lender)
    assert borrowed


def test_loss_of_two_soundtracks_is_that_of_the_clips_one_by_one(scenes: Path) -> None:
    torch.manual_seed(0)
    clips = AvsBenchClips(scenes, "ms3", "train", size=32)
    objective = ClipObjective(AvsMamba(NARROW)).eval()
    batch = next(iter(clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0, pair=1.0)))
    frames, log_mel, masks, annotated = (batch[name] for name in ("frames", "log_mel", "masks", "annotated"))
    assert isinstance(log_mel, torch.Tensor)
    assert isinstance(masks, torch.Tensor)
    assert log_mel.shape[:2] == masks.shape[:2] == (2, 2)
    apart = [
        objective({"frames": frames, "log_mel": log_mel[:, s], "masks": masks[:, s], "annotated": annotated})[0]
        for s in range(2)
    ]
    torch.testing.assert_close(objective(batch)[0], (apart[0] + apart[1]) / 2)


@pytest.mark.parametrize("side", [32, 40])
def test_classes_of_what_sounds_are_told_where_one_alone_is_seen(scenes: Path, side: int) -> None:
    torch.manual_seed(0)
    clips = AvsBenchClips(scenes, "ms3", "train", size=side, list_sounds=True)
    classes = len(clips.sound_classes)
    assert classes > 2
    model = AvsMamba(replace(NARROW, heard_classes=classes))
    assert model.heard_head is not None
    objective = ClipObjective(model, class_weight=0.5).eval()
    batch = next(iter(clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0, pair=1.0)))
    heard, masks = batch["heard"], batch["masks"]
    assert isinstance(heard, torch.Tensor)
    assert isinstance(masks, torch.Tensor)
    assert heard.shape == (2, 2, 5, classes)
    heard.zero_()
    heard[0, 0, 1, 1] = 1  # one sounds, and is seen
    heard[0, 1, 2, :2] = 1  # two: whose the pixels are nobody says
    masks[0, 0, 1, 8:24] = 1
    masks[0, 1, 2] = 1
    loss, logged = objective(batch)
    apart = ClipObjective(model).eval()(batch)[0]
    assert loss.item() == pytest.approx(apart.item() + 0.5 * (logged["seen"] + logged["heard"]), rel=1e-5)

    with torch.no_grad():
        stages = model.stages(
            normalise(batch["frames"]),
            batch["log_mel"].flatten(0, 1),
            sounds=2,  # type: ignore[union-attr, arg-type]
        )
        pixels = objective.seen_head(stages.mask_feature[0, 1][None])[0]
        # the model pads pictures at the right and the bottom
        marked = torch.zeros(pixels.shape[-2:], dtype=torch.bool)
        marked[: side // 4, : side // 4] = masks[0, 0, 1, ::4, ::4] > 0
        seen = -pixels.log_softmax(0)[1][marked].mean()
        logits = model.heard_head(stages.embedding)
        told = [
            torch.nn.functional.binary_cross_entropy_with_logits(logits[clip, t], heard.flatten(0, 1)[clip, t])
            for clip, t in ((0, 1), (1, 2))
        ]
    assert logged["seen"] == pytest.approx(float(seen), rel=1e-4)
    assert logged["heard"] == pytest.approx(float(sum(told)) / 2, rel=1e-4)


def test_frozen_statistics_stay(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=32)
    batch = next(iter(clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0)))
    config = replace(NARROW, backbone="resnet18_slim")
    for frozen in ((), ("visual_backbone",), ("audio_encoder",), ("",)):
        objective = ClipObjective(AvsMamba(config), frozen_statistics=frozen).train()
        before = {k: v.clone() for k, v in objective.state_dict().items() if "running" in k}
        objective(batch)
        for part in ("visual_backbone", "audio_encoder"):
            own = {k: v for k, v in before.items() if part in k}
            assert own
            same = all(torch.equal(objective.state_dict()[k], v) for k, v in own.items())
            assert same == bool({part, ""} & set(frozen))


def test_muted_training_hears_nothing(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=32)
    batch = next(iter(clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0)))
    objective = ClipObjective(AvsMamba(NARROW), mute=True).eval()
    loss, _ = objective(batch)
    batch["log_mel"] = torch.randn_like(batch["log_mel"])  # type: ignore[arg-type]
    assert torch.equal(objective(batch)[0], loss)


def test_validation_scores_the_split(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "val", size=32)
    objective = ClipObjective(AvsMamba(NARROW)).eval()
    scores = validation(clips)(objective)
    example = clips[0]
    with torch.no_grad():
        logits = objective.model(normalise(example.frames)[None], example.log_mel[None])[0, :, 0]
    predicted, truth = logits > 0, example.masks > 0
    sounding = truth.flatten(1).any(1)
    iou = (predicted & truth).flatten(1).sum(1) / (predicted | truth).flatten(1).sum(1).clamp(min=1)
    assert scores["M_J"] == pytest.approx(float(iou[sounding].mean()), abs=1e-6)
    assert scores["score"] == scores["M_J"]


def test_semantic_loss_prefers_the_truth_and_skips_the_unknown() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 4, 8, 8), generator=generator).to(torch.uint8)
    right = 8.0 * torch.nn.functional.one_hot(target.long(), 3).permute(0, 1, 4, 2, 3).float()
    wrong = right.roll(1, dims=2)
    assert semantic_loss([right], target) < 0.01
    assert semantic_loss([wrong], target) > 5
    unknown = target.clone()
    unknown[..., :4] = 255
    spoilt = right.clone()
    spoilt[..., :4] = wrong[..., :4]
    assert semantic_loss([spoilt], unknown, dice_weight=0.0) < 0.01
    annotated = torch.zeros(2, 4, dtype=torch.bool)
    annotated[0, 1] = True
    mixed = wrong.clone()
    mixed[0, 1] = right[0, 1]
    assert semantic_loss([mixed], target, annotated) < 0.01


def test_binary_cross_entropy_is_that_of_each_class_against_the_rest() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 1, 3, 4, 4, generator=generator)
    target = torch.randint(0, 3, (1, 1, 4, 4), generator=generator).to(torch.uint8)
    truth = torch.stack([target == k for k in range(3)], dim=2).float()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    assert torch.allclose(semantic_loss([logits], target, binary=True, dice_weight=0.0), wanted)


def test_weights_between_0_and_1_count_frames_in_part() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(1, 2, 1, 6, 6, generator=generator), torch.rand(1, 2, 6, 6, generator=generator) > 0.5
    each = [mask_loss([logits[:, t : t + 1]], target[:, t : t + 1]) for t in range(2)]
    weighted = mask_loss([logits], target, torch.tensor([[0.25, 0.75]]))
    assert float(weighted) == pytest.approx(0.25 * float(each[0]) + 0.75 * float(each[1]), rel=1e-5)


@pytest.mark.parametrize("sounds", [1, 2])
def test_batches_of_seconds_have_each_second_of_each_clip_once(sounds: int) -> None:
    T, B = 3, 2

    def numbered(start: int) -> ClipBatch:
        # clip and second of every entry, in each field's own shape
        number = torch.arange(start, start + B)[:, None] * 10 + torch.arange(T)
        heard = number if sounds == 1 else torch.stack([number, -number], dim=1)
        return {
            "name": [f"clip {clip}" for clip in range(start, start + B)],
            "frames": number[..., None, None, None].expand(-1, -1, 4, 4, 3),
            "log_mel": heard[..., None, None, None].expand(*heard.shape, 1, 96, 64),
            "masks": heard[..., None, None].expand(*heard.shape, 4, 4),
            "annotated": torch.ones(B, T, dtype=torch.bool),
            "heard": heard[..., None].expand(*heard.shape, 5),
        }

    batches = list(itertools.islice(second_batches((numbered(start) for start in range(0, 24, B)), T), 2 * T))
    seen = []
    for batch in batches:
        frames = batch_tensor(batch, "frames")
        assert frames.shape == (B * T, 1, 4, 4, 3)
        assert batch_tensor(batch, "annotated").shape == (B * T, 1)
        numbers = frames[:, 0, 0, 0, 0]
        assert [f"clip {number // 10}" for number in numbers.tolist()] == batch["name"]
        assert len(set((numbers % 10).tolist())) == T
        for field in ("log_mel", "masks", "heard"):
            tensor = batch_tensor(batch, field)
            first = tensor if sounds == 1 else tensor[:, 0]
            assert first.shape[:2] == (B * T, 1)
            assert (first == numbers.view(-1, *[1] * (first.ndim - 1))).all()
            assert sounds == 1 or torch.equal(tensor[:, 1], -first)
        seen += numbers.tolist()
    assert sorted(seen) == [clip * 10 + second for clip in range(2 * B * T) for second in range(T)]
    late = second_batches((numbered(start) for start in range(0, 24, B)), T, first=2)
    for batch, expected in zip(itertools.islice(late, 4), batches[2:], strict=True):
        assert torch.equal(batch_tensor(batch, "masks"), batch_tensor(expected, "masks"))


def test_crops_lie_around_what_each_sound_marks() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(1, 3, 2, 128, 192, dtype=torch.uint8)
    masks[0, 0, 1, 5:9, 180:190] = 1
    masks[0, 1, 0, 60:70, 20:30] = 1
    frames = (torch.arange(128)[:, None] + torch.arange(192)).expand(1, 2, -1, -1).to(torch.uint8)[..., None]
    masks[0, 2, 1, 100:, :40] = 255  # unknown, so nothing that is marked
    places = set()
    for _ in range(20):
        pictures, seen = crops_around(frames.expand(-1, -1, -1, -1, 3), masks)
        assert pictures.shape == (1, 3, 2, 64, 96, 3)
        assert seen.shape == (1, 3, 3, 2, 64, 96)
        corner = pictures[0, :, 0, 0, 0, 0].tolist()
        # something of what sounds lies in its crop
        assert seen[0, 0, 0, 1].any()
        assert seen[0, 1, 1, 0].any()
        assert not (seen[0, :, 2] == 1).any()
        for crop in range(3):
            for sound, second, pixel in ((0, 1, 5 + 180), (1, 0, 60 + 20)):
                inside = seen[0, crop, sound, second].nonzero()
                if len(inside) == masks[0, sound, second].sum():
                    y, x = inside[0].tolist()
                    assert pictures[0, crop, second, y, x, 0] == pixel
        places.add(tuple(corner))
    assert len(places) > 15


def test_a_share_of_the_batches_of_seconds_is_seen_in_crops(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=64)
    model = AvsMamba(NARROW)
    model.rest_blocks()
    sizes: list[tuple[int, ...]] = []
    model.visual_backbone.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    objective = ClipObjective(model)
    batches = clip_batches(clips, ClipOrder(len(clips), 2, seed=0), 0, pair=0.5)
    for batch in itertools.islice(second_batches(batches, 5, crops=0.6), 5):
        loss, _ = objective(batch)
        loss.backward()
    whole, cropped = (2 * 5, 3, 64, 64), (2 * 2 * 5, 3, 32, 32)
    assert sizes == [whole, cropped, whole, cropped, cropped]


def test_only_annotated_seconds_are_taken() -> None:
    T, truth = 3, [[True, False, False], [False, True, True], [False, False, False]]
    batch: ClipBatch = {
        "name": ["a", "b", "c"],
        "frames": torch.arange(T).expand(3, -1)[..., None, None, None],
        "log_mel": torch.zeros(3, T, 1, 96, 64),
        "masks": torch.zeros(3, T, 4, 4),
        "annotated": torch.tensor(truth),
        "heard": torch.zeros(3, T, 0),
    }
    steps = list(itertools.islice(second_batches(iter([batch] * 3), T), T))
    # three batches alike: each annotated second once, and of a clip that has none the first
    taken = [
        (name, *pair)
        for step in steps
        for name, *pair in zip(
            step["name"],
            batch_tensor(step, "frames").flatten().tolist(),
            batch_tensor(step, "annotated").flatten().tolist(),
            strict=True,
        )
    ]
    wanted = [("a", 0, True), ("b", 1, True), ("b", 2, True), ("c", 0, False)]
    assert sorted(taken) == sorted(3 * wanted)
    assert [len(step["name"]) for step in steps] == [4, 4, 4]


@pytest.mark.parametrize("subset", ["s4", "avss"])
def test_seconds_of_other_subsets(subset: str) -> None:
    """One annotated second of a clip, or several classes with unknown pixels: whole, then in crops."""
    T, side, classes = 4, 64, 71 if subset == "avss" else 1
    torch.manual_seed(0)
    model = AvsMamba(replace(NARROW, num_classes=classes))
    model.rest_blocks()
    objective = ClipObjective(model)
    masks = torch.zeros(2, T, side, side, dtype=torch.uint8)
    masks[:, :, 8:30, 8:30] = classes - 1 if subset == "avss" else 1
    if subset == "avss":
        masks[:, :, 40:] = 255
    annotated = torch.ones(2, T, dtype=torch.bool) if subset == "avss" else (torch.arange(T) == 0).expand(2, -1)
    batch: ClipBatch = {
        "name": ["a", "b"],
        "frames": torch.randint(256, (2, T, side, side, 3), dtype=torch.uint8),
        "log_mel": torch.randn(2, T, 1, 96, 64),
        "masks": masks,
        "annotated": annotated,
        "heard": torch.zeros(2, T, 0),
    }
    sides = []
    model.visual_backbone.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
    for step in itertools.islice(second_batches(iter([batch] * T), T, crops=0.5), T):
        assert len(step["name"]) == (2 * T if subset == "avss" else 2)
        assert batch_tensor(step, "annotated").all()
        model.zero_grad()
        loss, logged = objective(step)
        loss.backward()
        assert math.isfinite(loss.item())
        assert 0 <= logged["M_J"] < 1
        assert model.head.classify.weight.grad is not None
        assert model.head.classify.weight.grad.any()
    assert sides == [64, 32, 64, 32]


def test_the_m_j_of_avss_is_over_known_pixels_of_annotated_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = ClipObjective(AvsMamba(replace(NARROW, num_classes=71)))
    masks = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    masks[..., :16] = 3
    said = masks.clone()
    masks[:, 0, 16:] = 255
    said[:, 0, 16:] = 9  # of pixels that nobody knows
    said[:, 2] = 7  # in a second that is not annotated
    logits = torch.nn.functional.one_hot(said.long(), 71).movedim(-1, 2).float()
    said_right = torch.nn.Parameter(torch.ones(()))  # something to take a gradient of
    monkeypatch.setattr(objective.model, "layer_logits_of", lambda *_: [logits * said_right])
    batch: ClipBatch = {
        "frames": torch.zeros(1, 3, 32, 32, 3, dtype=torch.uint8),
        "log_mel": torch.zeros(1, 3, 1, 96, 64),
        "masks": masks,
        "annotated": torch.tensor([[True, True, False]]),
        "heard": torch.zeros(1, 3, 0),
    }
    assert objective(batch)[1]["M_J"] == pytest.approx(1)
    masks[:, 1] = 5
    # of the first frame both classes, of the second three, none of which is where it should be
    assert objective(batch)[1]["M_J"] == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_a_program_that_holds_its_batches_to_the_end_ends(scenes: Path) -> None:
    program = f"""
from pathlib import Path
from avsseg.data.avsbench import AvsBenchClips
from avsseg.training.clips import ClipOrder, clip_batches

if __name__ == "__main__":
    clips = AvsBenchClips(Path({str(scenes)!r}), "ms3", "train", size=32)
    batches = clip_batches(clips, ClipOrder(len(clips), 1, seed=0, first=0, rank=0, world=1), 1)
    next(batches)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
