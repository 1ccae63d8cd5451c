"""The stage that teaches the encoders alone: its crops, its losses, its runs."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avsseg.data.augment import Augmentation
from avsseg.data.avsbench import AvsBenchClips
from avsseg.errors import DataError, UsageError, WeightsError
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.model.config import preset
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.clips import ClipBatch, ClipOrder, batch_tensor, clip_batches
from avsseg.training.encoders import (
    CROPS,
    SHIFT,
    Change,
    EncoderObjective,
    encoder_batches,
    encoder_validation,
    sounding_crops,
    sounding_frames,
)
from avsseg.training.run import TrainingRun
from avsseg.training.settings import TrainingSettings
from avsseg.training.start import build_model
from avsseg.training.trainer import Interrupted, Progress
from avsseg.weights.store import load_model


def a_frame() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of 64 x 80 with a bright, oblong thing; the centre of what is marked is row 24, column 34."""
    frames = torch.randint(0, 90, (1, 64, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    marked = torch.zeros(1, 64, 80, dtype=torch.bool)
    marked[0, 20:28, 28:40] = True
    frames[marked] = 220
    return frames, marked


def test_crops_without_chance_are_windows_around_what_sounds() -> None:
    frames, marked = a_frame()
    crops, seen = sounding_crops(frames, marked, 32, Change())
    assert torch.equal(seen, marked[:, 8:40, 18:50])
    torch.testing.assert_close(crops, frames[:, 8:40, 18:50].float(), atol=0.02, rtol=0)


def test_truth_may_be_of_another_size_than_the_picture() -> None:
    frames, marked = a_frame()
    crops, seen = sounding_crops(frames, marked[:, ::2, ::2], 32, Change())
    assert torch.equal(seen, marked[:, 8:40, 18:50])
    torch.testing.assert_close(crops, frames[:, 8:40, 18:50].float(), atol=0.02, rtol=0)


def test_truth_stays_on_what_is_seen_through_every_change() -> None:
    torch.manual_seed(0)
    frames, marked = a_frame()
    many = frames.expand(200, -1, -1, -1), marked.expand(200, -1, -1)
    crops, seen = sounding_crops(*many, 32, Change(shift=0.25, resize=1.5, rotate=180, flip=True))
    bright = crops.mean(-1) > 155
    assert (bright & seen).sum() / (bright | seen).sum() > 0.9
    area = seen.flatten(1).sum(1).float()
    assert area.min() < 70 < 140 < area.max()  # 96 pixels, made smaller and larger by up to 1.5 squared
    middle = (seen.float().mean(0) > 0).nonzero()
    assert middle.min() <= 6  # moved about
    assert middle.max() >= 25


def drawn_crops(change: Change) -> torch.Tensor:
    """What is marked in 200 crops of the same frame, (200, 32, 32) bool."""
    torch.manual_seed(0)
    frames, marked = a_frame()
    return sounding_crops(frames.expand(200, -1, -1, -1), marked.expand(200, -1, -1), 32, change)[1]


def test_a_turn_alone_keeps_size_and_place() -> None:
    seen = drawn_crops(Change(rotate=180))
    area = seen.flatten(1).sum(1)
    assert area.min() > 80  # of 96
    assert area.max() < 112
    places = seen.nonzero()[:, 1:].float()
    torch.testing.assert_close(places.mean(0), torch.full((2,), 15.5), atol=0.1, rtol=0)
    height = seen.any(2).sum(1)
    assert height.min() <= 8
    assert height.max() >= 13  # the diagonal of 8 x 12 is 14.4


def test_a_shift_alone_moves_by_up_to_its_share_of_the_side() -> None:
    seen = drawn_crops(Change(shift=0.25))
    assert (seen.flatten(1).sum(1) == 96).all()
    moved = torch.stack([one.nonzero().float().mean(0) - 15.5 for one in seen])
    assert moved.abs().max() <= 8.5
    assert (moved.min(0).values < -6.5).all()
    assert (moved.max(0).values > 6.5).all()


def test_half_of_the_crops_are_mirrored() -> None:
    torch.manual_seed(0)
    frames, marked = a_frame()
    marked[0, 20:24, 28:34] = False  # without this corner it is another than its mirror image
    _, seen = sounding_crops(frames.expand(200, -1, -1, -1), marked.expand(200, -1, -1), 32, Change(flip=True))
    shapes = {one.numpy().tobytes() for one in seen}
    assert len(shapes) == 2
    mirrored = (seen == seen[:1]).flatten(1).all(1).float().mean()
    assert 0.35 < mirrored < 0.65


def told_apart(clips: AvsBenchClips) -> EncoderObjective:
    torch.manual_seed(0)
    model = AvsMamba(preset("avs-mamba-tiny", heard_classes=len(clips.sound_classes)))
    return EncoderObjective(model, Change(SHIFT, flip=True))


def test_frames_in_which_one_class_alone_sounds_and_is_seen_are_learned_from(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=64, augmentation=Augmentation(), list_sounds=True)
    plain = AvsBenchClips(scenes, "ms3", "train", size=64, list_sounds=True)
    wanted = [
        (example.frames[t], example.masks[t] > 0, int(example.heard[t].argmax()))
        for example in (plain[index] for index in range(len(plain)))
        for t in range(5)
        if example.heard[t].sum() == 1 and example.masks[t].any()
    ]
    sounding = sounding_frames(clips, "train")
    assert 0 < len(wanted) < 5 * len(plain)
    assert sounding.classes.tolist() == [label for _, _, label in wanted]
    assert torch.equal(sounding.frames, torch.stack([frame for frame, _, _ in wanted]))
    assert torch.equal(sounding.marked, torch.stack([mask for _, mask, _ in wanted]))


def test_without_such_a_frame_there_is_an_error(scenes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(scenes, tmp_path / "data")
    listing = data / "Multi-sources" / "clips.json"
    listed = json.loads(listing.read_text())
    for clip in listed["clips"]:
        clip["sounding"] = [[] if t else ["star 0"] for t in range(5)] if clip["split"] == "test" else [[]] * 5
    listing.write_text(json.dumps(listed))
    said = "data: in no frame of the {} split one class alone sounds and is marked.* Add such clips, or leave it out"
    with pytest.raises(DataError, match=said.format("train")):
        sounding_frames(AvsBenchClips(data, "ms3", "train", size=32, list_sounds=True), "train")
    with pytest.raises(DataError, match=said.format("val")):
        encoder_validation(AvsBenchClips(data, "ms3", "val", size=32, list_sounds=True))


def test_batches_go_on_where_they_stopped_and_differ_between_processes(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=32, augmentation=Augmentation(), seed=5, list_sounds=True)
    sounding = sounding_frames(clips, "train")

    def drawn(**where: int) -> list[ClipBatch]:
        order = ClipOrder(len(clips), 1, seed=5, **where)
        batches = encoder_batches(clip_batches(clips, order, 0), sounding, clips.augmentation, order)
        return list(itertools.islice(batches, 4 - where.get("first", 0)))

    whole, rest, other = drawn(), drawn(first=2), drawn(rank=1, world=2)
    for one, again in zip(whole[2:], rest, strict=True):
        assert one["name"] == again["name"]
        for name in ("frames", "marked", "classes", "log_mel", "heard"):
            assert torch.equal(batch_tensor(one, name), batch_tensor(again, name))
    assert batch_tensor(whole[0], "frames").shape == (CROPS, 32, 32, 3)
    assert not torch.equal(batch_tensor(whole[0], "classes"), batch_tensor(whole[1], "classes"))
    assert not torch.equal(batch_tensor(whole[0], "classes"), batch_tensor(other[0], "classes"))


def test_losses_are_of_marked_pixels_and_of_seconds_in_which_something_listed_sounds(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=64, list_sounds=True)
    objective = told_apart(clips).eval()
    order = ClipOrder(len(clips), 2, seed=0)
    batch = next(iter(encoder_batches(clip_batches(clips, order, 0), sounding_frames(clips, "train"), None, order)))
    batch.update({name: batch_tensor(batch, name)[:3].clone() for name in ("frames", "marked", "classes")})
    heard, log_mel, marked = (batch_tensor(batch, name) for name in ("heard", "log_mel", "marked"))
    heard.zero_()
    heard[0, 1, 2] = 1
    marked[1] = False
    loss, logged = objective(batch)
    assert set(logged) == {"seen", "heard", "shape"}

    told = objective.model.heard_head(objective.model.audio_encoder(log_mel[0, 1:2]))  # type: ignore[misc]
    hearing = F.binary_cross_entropy_with_logits(told, heard[0, 1:2])
    seeing, shapes = [], []
    for n in (0, 2):
        crop, seen = sounding_crops(batch_tensor(batch, "frames")[n : n + 1], marked[n : n + 1], 32, Change())
        logits = objective.class_head(objective.model.picture_feature(normalise(crop)))[0]
        share = F.avg_pool2d(seen.float(), 4)[0]
        label = batch_tensor(batch, "classes")[n]
        seeing.append(F.cross_entropy(logits[:, share > 0.5].T, label.expand(int((share > 0.5).sum()))))
        on = logits[label].sigmoid()
        dice = 1 - 2 * (on * share).sum() / (on.square().sum() + share.square().sum() + 0.002)
        shapes.append(dice + F.binary_cross_entropy(on, share))
    torch.testing.assert_close(loss, hearing + (seeing[0] + seeing[1]) / 2 + (shapes[0] + shapes[1]) / 2)
    assert logged["shape"] == pytest.approx((shapes[0] + shapes[1]).item() / 2, rel=1e-4)

    marked.zero_()
    heard.zero_()
    loss, _ = objective(batch)
    assert loss.item() == 0
    loss.backward()  # every process of a run has gradients, whatever its batch
    parts = objective.model.visual_backbone, objective.model.audio_encoder, objective.class_head
    assert all(parameter.grad is not None for part in parts for parameter in part.parameters())


def test_crops_change_in_training_alone(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=64, list_sounds=True)
    objective = told_apart(clips)
    batch = sounding_frames(clips, "train")._asdict()
    still = [objective.eval()._seen(batch)[1] for _ in range(2)]
    changed = [objective.train()._seen(batch)[1] for _ in range(2)]
    assert torch.equal(still[0], still[1])
    assert not torch.equal(changed[0], changed[1])


def test_without_augmentation_crops_do_not_change(tmp_path: Path, quick: TrainingSettings) -> None:
    run = TrainingRun(tmp_path / "run", replace(quick, stage="encoders", augment=False))
    objective = run.trainer.objective
    assert isinstance(objective, EncoderObjective)
    batch = sounding_frames(run.clips, "train")._asdict()
    still = [objective.train(training)._seen(batch)[1] for training in (False, True)]
    assert torch.equal(still[0], still[1])


def test_validation_counts_what_is_told_right(scenes: Path) -> None:
    clips = AvsBenchClips(scenes, "ms3", "train", size=64, list_sounds=True)
    objective = told_apart(clips).eval()
    alone = sounding_frames(clips, "train").classes.tolist()
    seconds = torch.cat([clips[index].heard for index in range(len(clips))])
    always = max(set(alone), key=alone.count)
    told, last = objective.model.heard_head, objective.class_head
    assert isinstance(told, torch.nn.Linear)
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    for part in (told, last):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.constant_(part.bias, -9)  # type: ignore[arg-type]
        part.bias.data[always] = 9  # type: ignore[union-attr]
    scores = encoder_validation(clips)(objective)
    listed = seconds[seconds.any(-1)]
    assert scores["seen"] == pytest.approx(alone.count(always) / len(alone))
    assert scores["heard"] == pytest.approx(float(((listed.sum(-1) == 1) & (listed[:, always] == 1)).float().mean()))
    assert scores["score"] == pytest.approx((scores["seen"] + scores["heard"]) / 2)


def test_encoders_learn_alone_and_the_masks_start_from_them(tmp_path: Path, quick: TrainingSettings) -> None:
    settings = replace(quick, stage="encoders", rotate=90, hue=180)

    def stop(progress: Progress) -> None:
        if progress.step == 1:
            run.trainer.request_stop()

    best = TrainingRun(tmp_path / "whole", settings).train()
    run = TrainingRun(tmp_path / "parts", settings, listener=stop)
    with pytest.raises(Interrupted):
        run.train()
    TrainingRun(tmp_path / "parts", settings, resume=True).train()
    for name in ("last.pt", "best.pt"):
        one, other = (load_checkpoint(tmp_path / folder / name)["objective"] for folder in ("whole", "parts"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert (tmp_path / "whole" / "curves.png").exists()
    with (tmp_path / "whole" / "val.csv").open(newline="") as file:
        assert {"seen", "heard", "score"} <= set(next(csv.reader(file)))

    with pytest.raises(WeightsError, match="marks nothing yet"):
        load_model(best)
    trained = load_model(best, allow_untrained=True)
    masks = TrainingRun(tmp_path / "masks", replace(quick, start_from=str(best), class_weight=0.5))
    assert isinstance(masks.trainer.objective.model, AvsMamba)
    start = masks.trainer.objective.model.state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in trained.model.state_dict().items())
    other = build_model(replace(quick, start_from=str(best)), heard=[*trained.heard[1:], "another"])
    assert not torch.equal(other.state_dict()["heard_head.weight"], start["heard_head.weight"])


def test_all_of_yamnet_learns_with_the_encoders_and_only_its_projection_later(
    tmp_path: Path, quick: TrainingSettings
) -> None:
    shipped = {k: v for k, v in load_model("avs-mamba-tiny").model.state_dict().items() if ".audio_encoder." in f".{k}"}
    changed: dict[str, set[str]] = {}
    for stage in ("encoders", "masks"):
        settings = replace(quick, stage=stage, epochs=1, start_from="avs-mamba-tiny", weight_decay=0.0)
        TrainingRun(tmp_path / stage, settings).train()
        state = load_checkpoint(tmp_path / stage / "last.pt")["objective"]
        moved = (name for name, tensor in shipped.items() if not torch.equal(state[f"model.{name}"], tensor))
        changed[stage] = {name.split(".")[1] for name in moved}
    assert changed == {"encoders": {"stem", "blocks", "projection"}, "masks": {"projection"}}


def test_encoders_cannot_learn_from_silence_nor_stay_random(quick: TrainingSettings) -> None:
    with pytest.raises(UsageError, match="leave out --mute"):
        replace(quick, stage="encoders", mute=True)
    with pytest.raises(UsageError, match="leave out frozen_audio"):
        replace(quick, stage="encoders", frozen_audio=True)
    with pytest.raises(UsageError, match="frozen_audio would keep random weights: give --from"):
        replace(quick, frozen_audio=True)
