from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from avsseg.errors import EnvironmentFault, OutputError, WeightsError
from avsseg.media.frames import sample_frames
from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import probe
from avsseg.media.windows import ClipWindow
from avsseg.pipeline import batch, scoring
from avsseg.pipeline.batch import InputResult, exit_code, run_batch
from avsseg.pipeline.journal import Journal, read_journal
from avsseg.pipeline.options import ModelOptions, OutputOptions, SegmentOptions
from avsseg.pipeline.overlap import Stopped
from avsseg.pipeline.plan import Job, Shard
from avsseg.weights import LoadedModel, load_model, save_model
from avsseg.weights.turn import SharedTurn
from avsseg.writers.coco import CocoWriter
from avsseg.writers.masks import MaskFolderWriter

# pycocotools 2.0.11 predates the copy keyword of numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

UNTRAINED = ModelOptions(allow_untrained=True, threads=1)


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.started_jobs: list[int] = []
        self.progress: list[tuple[int, int | None]] = []
        self.results: list[InputResult] = []

    def started(self, position: int, job: Job) -> None:
        self.started_jobs.append(position)

    def advanced(self, position: int, done: int, total: int | None, rate: float) -> None:
        self.progress.append((done, total))

    def finished(self, position: int, result: InputResult) -> None:
        self.results.append(result)


def run(
    jobs: Sequence[Job],
    *,
    output: OutputOptions | None = None,
    options: SegmentOptions | None = None,
    model: ModelOptions = UNTRAINED,
    reporter: Recorder | None = None,
    journal: Journal | None = None,
    workers: int = 1,
) -> list[InputResult]:
    return list(
        run_batch(
            jobs,
            segment_options=options or SegmentOptions(size=64),
            model_options=model,
            output_options=output or OutputOptions(),
            reporter=reporter or Recorder(),
            journal=journal,
            workers=workers,
        )
    )


def test_all_formats_of_a_video_come_from_one_pass_and_agree(clip: Path, tmp_path: Path) -> None:
    outputs = {"overlay": tmp_path / "o.mp4", "masks": tmp_path / "o", "coco": tmp_path / "o.json"}
    recorder = Recorder()
    (result,) = run([Job(clip, outputs)], reporter=recorder)  # type: ignore[arg-type]
    assert result.status == "done"
    assert result.outputs == tuple(outputs.values())
    assert (result.masks, result.duration_s) == (3, pytest.approx(3.0, abs=0.1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "o.json", "o.mp4"]
    assert recorder.progress == [(1, 3), (2, 3), (3, 3)]
    coco = COCO(str(outputs["coco"]))
    for image in coco.loadImgs(coco.getImgIds()):
        picture = np.array(Image.open(outputs["masks"] / image["file_name"]))
        mask = np.zeros_like(picture)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask |= coco.annToMask(annotation)
        assert np.array_equal(mask * 255, picture)


def test_results_end_with_the_picture_and_not_with_the_sound(sound_outlasts: Path, tmp_path: Path) -> None:
    masks, coco = tmp_path / "o", tmp_path / "o.json"
    (result,) = run([Job(sound_outlasts, {"masks": masks, "coco": coco})])
    assert (result.masks, result.duration_s) == (2, pytest.approx(4.0, abs=0.1))
    assert "the picture ends at 1.5 s, the sound at 4.0 s" in result.warnings
    for listed in (json.loads((masks / "masks.json").read_text())["masks"], json.loads(coco.read_text())["images"]):
        assert [entry["frame_index"] for entry in listed] == [5, 14]  # at 1.5 s it is over
    assert (
        run([Job(sound_outlasts, {"csv": tmp_path / "o.csv"})], output=OutputOptions(strict=True))[0].status == "done"
    )


def test_a_file_without_the_audio_track_asked_for_does_not_stop_the_others(
    clip: Path, silent_clip: Path, tmp_path: Path
) -> None:
    jobs = [Job(path, {"coco": tmp_path / f"{path.stem}.json"}) for path in (silent_clip, clip)]
    results = run(jobs, options=SegmentOptions(size=64, audio_track=1))
    assert [result.status for result in results] == ["failed", "done"]
    assert "has no audio tracks, so there is no audio track 1" in results[0].error
    assert json.loads((tmp_path / "clip.json").read_text())["info"]["audio_track"] == 1


def test_a_bad_file_does_not_stop_the_others(clip: Path, silent_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    inputs = [clip, tmp_path / "text.mp4", tmp_path / "missing.mp4", silent_clip]
    results = run([Job(path, {"coco": tmp_path / f"{n}.json"}) for n, path in enumerate(inputs)])
    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert str(tmp_path / "text.mp4") in results[1].error
    assert "no such file" in results[2].error
    assert exit_code(results) == 1
    assert exit_code(results[:1]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "3.json", "text.mp4"]


def test_a_defect_that_one_file_brings_out_is_reported_for_that_file(
    clip: Path, silent_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = batch.probe

    def defective(path: Path) -> object:
        if path == clip:
            raise ZeroDivisionError("division\nby zero")
        return probe(path)

    monkeypatch.setattr(batch, "probe", defective)
    results = run([Job(path, {"coco": tmp_path / f"{path.stem}.json"}) for path in (clip, silent_clip)])
    assert [result.status for result in results] == ["failed", "done"]
    assert "unexpected ZeroDivisionError: division\\nby zero" in results[0].error


def test_finished_results_are_kept_and_only_missing_ones_made(clip: Path, tmp_path: Path) -> None:
    masks, coco = tmp_path / "o", tmp_path / "o.json"
    coco.write_text("kept")
    (result,) = run([Job(clip, {"masks": masks, "coco": coco})])
    assert result.status == "done"
    assert coco.read_text() == "kept"
    assert (masks / "masks.json").is_file()
    (again,) = run([Job(clip, {"masks": masks, "coco": coco})], model=ModelOptions(model="not needed"))
    assert again.status == "skipped"
    assert again.outputs == (masks, coco)


def test_overwrite_makes_results_again(clip: Path, tmp_path: Path) -> None:
    coco = tmp_path / "o.json"
    coco.write_text("old")
    (result,) = run([Job(clip, {"coco": coco})], output=OutputOptions(overwrite=True))
    assert result.status == "done"
    assert json.loads(coco.read_text())["videos"][0]["name"] == "clip.mp4"


def test_a_damaged_video_is_a_warning_or_with_strict_an_error(truncated_clip: Path, tmp_path: Path) -> None:
    coco = tmp_path / "o.json"
    (strict,) = run([Job(truncated_clip, {"coco": coco})], output=OutputOptions(strict=True))
    assert strict.status == "failed"
    assert "are missing" in strict.error
    assert list(tmp_path.iterdir()) == []
    (lenient,) = run([Job(truncated_clip, {"coco": coco})])
    assert lenient.status == "done"
    assert sum("are missing" in text for text in lenient.warnings) == 1
    assert len(json.loads(coco.read_text())["images"]) == lenient.masks


def test_results_that_cannot_be_written_fail_before_the_model_works(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recorder = Recorder()
    (result,) = run(
        [Job(clip, {"overlay": tmp_path / "o.mp4", "coco": tmp_path / "file" / "o.json"})], reporter=recorder
    )
    assert result.status == "failed"
    assert "o.json: cannot be written" in result.error
    assert recorder.progress == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("failing", "kept"), [(CocoWriter, "o"), (MaskFolderWriter, "o.json")])
def test_a_result_that_fails_leaves_those_before_and_after_it(
    failing: type, kept: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: object, picture_end: PictureEnd | None) -> list[Path]:
        raise OutputError("this cannot be written")

    monkeypatch.setattr(failing, "finish", refusing)
    (result,) = run([Job(clip, {"masks": tmp_path / "o", "coco": tmp_path / "o.json"})])
    assert (result.status, result.error) == ("failed", "this cannot be written")
    assert result.outputs == (tmp_path / kept,)
    assert [path.name for path in tmp_path.iterdir()] == [kept]


def test_what_the_overlay_could_not_keep_is_a_warning(clip: Path, tmp_path: Path) -> None:
    (result,) = run([Job(clip, {"overlay": tmp_path / "o.webm"})])
    assert any("cannot hold its aac audio" in warning for warning in result.warnings)


def test_an_untrained_model_ends_the_batch_unless_allowed(clip: Path, tmp_path: Path) -> None:
    model = ModelOptions(model="avs-mamba-resnet50")
    with pytest.raises(WeightsError, match="--allow-untrained"):
        run([Job(clip, {"coco": tmp_path / "o.json"})], model=model)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_device_ends_the_batch(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cuda:99"):
        run([Job(clip, {"coco": tmp_path / "o.json"})], model=ModelOptions(device="cuda:99", allow_untrained=True))


def test_a_part_beyond_the_end_fails_without_output(clip: Path, tmp_path: Path) -> None:
    (result,) = run([Job(clip, {"coco": tmp_path / "o.json"})], options=SegmentOptions(size=64, start_s=60))
    assert result.status == "failed"
    assert list(tmp_path.iterdir()) == []


def test_the_settings_stand_in_the_result(clip: Path, tmp_path: Path, untrained_file: Path) -> None:
    model = ModelOptions(model=str(untrained_file), allow_untrained=True, threads=1)
    options = SegmentOptions(size=64, rate=2.0, start_s=0.5, end_s=2.5)
    run([Job(clip, {"coco": tmp_path / "o.json"})], options=options, output=OutputOptions(threshold=0.3), model=model)
    info = json.loads((tmp_path / "o.json").read_text())["info"]
    expected = {"model": "untrained", "trained": False, "rate": 2.0, "size": 64, "start_s": 0.5, "end_s": 2.5}
    assert {key: info[key] for key in expected} == expected
    assert (info["threshold"], info["precision"]) == (0.3, "fp32")


def test_a_result_as_json_has_the_documented_keys() -> None:
    result = InputResult(Path("a.mp4"), "failed", error="a.mp4: no such file.", seconds=0.12345)
    assert result.as_json() == {
        "input": "a.mp4",
        "status": "failed",
        "outputs": [],
        "duration": None,
        "masks": 0,
        "seconds": 0.123,
        "warnings": [],
        "error": "a.mp4: no such file.",
    }


class NarrowMemory(torch.nn.Module):
    """A model that runs out of memory on windows of more than `most` masks."""

    def __init__(self, model: torch.nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.model, self.most, self.error = model, most, error
        self.tried: list[int] = []

    def forward(self, frames: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
        self.tried.append(frames.shape[1])
        if frames.shape[1] > self.most:
            raise self.error
        return self.model(frames, log_mel)


CPU_IS_FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
    "bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture
def narrow(untrained: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> NarrowMemory:
    model = NarrowMemory(untrained.model, 3, CPU_IS_FULL)
    loaded = replace(untrained, model=model)  # type: ignore[arg-type]
    monkeypatch.setattr("avsseg.pipeline.segment.load_for", lambda options: loaded)
    return model


@pytest.mark.parametrize("error", [CPU_IS_FULL, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_is_tried_again_with_half_the_window(
    clip: Path, tmp_path: Path, narrow: NarrowMemory, error: Exception
) -> None:
    narrow.error = error
    outputs = {"masks": tmp_path / "o" / "clip", "coco": tmp_path / "o" / "clip.json"}
    options = SegmentOptions(size=64, rate=4.0, window=8, overlap=2)
    with Journal(tmp_path / "o", Shard()) as journal:
        (result,) = run([Job(clip, outputs)], options=options, journal=journal)  # type: ignore[arg-type]
    assert (result.status, result.masks) == ("done", 12)
    assert narrow.tried[:3] == [8, 4, 2]
    assert result.warnings[-1] == "memory ran out with a window of 8 masks; made with 2"
    info = json.loads(outputs["coco"].read_text())["info"]
    assert (info["window"], info["overlap"]) == (2, 1)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [".avsseg", "clip", "clip.json"]
    made = read_journal(tmp_path / "o")["clip.json"].made
    assert made is not None
    assert made.settings["window"] == 8  # as asked for, so that the same command finds it done


def test_out_of_memory_with_one_mask_fails_that_input_alone(
    clip: Path, silent_clip: Path, tmp_path: Path, narrow: NarrowMemory
) -> None:
    narrow.most = 0
    results = run(
        [Job(path, {"coco": tmp_path / f"{path.stem}.json"}) for path in (clip, tmp_path / "no", silent_clip)]
    )
    assert [result.status for result in results] == ["failed"] * 3
    assert results[0].error == (
        f"{clip}: memory ran out, even with one mask at a time. Close other programs or give a smaller --size."
    )
    assert narrow.tried == [3, 3, 2, 1, 2, 2, 2, 1]  # windows of 10, 5, 2 and 1
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_model_are_not_tried_again(clip: Path, tmp_path: Path, narrow: NarrowMemory) -> None:
    narrow.most, narrow.error = 0, RuntimeError("shapes do not fit")
    (result,) = run([Job(clip, {"coco": tmp_path / "o.json"})])
    assert "unexpected RuntimeError: shapes do not fit" in result.error
    assert narrow.tried == [3]


def test_the_journal_notes_what_was_finished_before_a_failure(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: CocoWriter, picture_end: PictureEnd | None) -> list[Path]:
        raise OutputError("o.json: cannot be written")

    monkeypatch.setattr(CocoWriter, "finish", refusing)
    with Journal(tmp_path, Shard()) as journal:
        run([Job(clip, {"masks": tmp_path / "o", "coco": tmp_path / "o.json"})], journal=journal)
    history = read_journal(tmp_path)
    assert history["o"].made is not None
    assert history["o.json"].made is history["o.json"].begun is None


def test_an_interrupt_leaves_what_was_begun_in_the_journal(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = CocoWriter.finish

    def interrupted(self: CocoWriter, picture_end: PictureEnd | None) -> list[Path]:
        finish(self, picture_end)
        raise KeyboardInterrupt

    monkeypatch.setattr(CocoWriter, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, Shard()) as journal:
        run([Job(clip, {"coco": tmp_path / "o.json"})], journal=journal)
    assert read_journal(tmp_path)["o.json"].begun is not None


def test_an_input_that_vanishes_after_the_look_at_it_fails(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(clip.read_bytes())
    probe = batch.probe

    def vanishing(path: Path) -> object:
        info = probe(path)
        path.unlink()
        return info

    monkeypatch.setattr(batch, "probe", vanishing)
    with Journal(tmp_path / "o", Shard()) as journal:
        (result,) = run([Job(video, {"coco": tmp_path / "o" / "o.json"})], journal=journal)
    assert "clip.mp4: cannot be read any more (No such file or directory)" in result.error
    assert list(tmp_path.iterdir()) == []


def test_several_workers_make_what_one_makes(clip: Path, silent_clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    videos = [clip, broken, silent_clip, clip, clip]
    made: dict[int, list[InputResult]] = {}
    for workers in (1, 3):
        jobs = [Job(video, {"coco": tmp_path / f"{workers}-{i}.json"}) for i, video in enumerate(videos)]
        recorder = Recorder()
        made[workers] = run(jobs, reporter=recorder, workers=workers)
        assert sorted(recorder.started_jobs) == [1, 2, 3, 4, 5]
        assert len(recorder.results) == 5
    assert Counter(result.status for result in made[3]) == {"done": 4, "failed": 1}
    for i in (0, 2, 3, 4):
        assert (tmp_path / f"1-{i}.json").read_bytes() == (tmp_path / f"3-{i}.json").read_bytes()
    assert not list(tmp_path.glob(".*.partial"))


def test_windows_of_several_inputs_go_through_the_model_together(
    clip: Path, silent_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.WINDOWS_AT_ONCE, "cpu", 4)
    turns: set[SharedTurn] = set()
    passes: list[int] = []
    combined, look = SharedTurn.combined, scoring.mask_and_sound_probabilities

    def counted(self: SharedTurn, part: object, *how: Any) -> Any:
        turns.add(self)
        return combined(self, part, *how)

    def noted(model: torch.nn.Module, windows: Sequence[ClipWindow], *how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(len(windows))
        (turn,) = turns
        end = time.monotonic() + 30
        # the first pass lasts until the three others wait
        while workers > 1 and len(passes) == 1 and len(turn._waiting) < 3 and time.monotonic() < end:
            time.sleep(0.001)
        return look(model, windows, *how)

    monkeypatch.setattr(SharedTurn, "combined", counted)
    monkeypatch.setattr(scoring, "mask_and_sound_probabilities", noted)
    videos = [clip, silent_clip, clip, silent_clip]
    areas: dict[int, list[list[int]]] = {}
    for workers in (1, 4):
        turns.clear()
        passes.clear()
        jobs = [Job(video, {"coco": tmp_path / f"{workers}-{i}.json"}) for i, video in enumerate(videos)]
        results = run(jobs, model=ModelOptions(threads=1), output=OutputOptions(threshold=0.1), workers=workers)
        assert [result.status for result in results] == ["done"] * 4
        areas[workers] = [
            [annotation["area"] for annotation in json.loads(path.read_text())["annotations"]]
            for path in (job.outputs["coco"] for job in jobs)
        ]
        # the first goes alone; of the three others the two of a length go together
        assert sorted(passes) == ([1, 1, 1, 1] if workers == 1 else [1, 1, 2])
    assert areas[1][0]
    for alone, together in zip(areas[1], areas[4], strict=True):
        assert together == pytest.approx(alone, rel=0.02)


def test_a_fault_of_the_machine_ends_a_batch_of_several_workers(clip: Path, tmp_path: Path) -> None:
    jobs = [Job(clip, {"coco": tmp_path / f"{i}.json"}) for i in range(4)]
    with pytest.raises(WeightsError, match="no trained weights"):
        run(jobs, model=ModelOptions(model="avs-mamba-resnet50"), workers=2)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_several_workers_that_is_left_leaves_nothing_half_made(clip: Path, tmp_path: Path) -> None:
    jobs = [Job(clip, {"overlay": tmp_path / f"{i}.mp4", "coco": tmp_path / f"{i}.json"}) for i in range(6)]
    results = run_batch(
        jobs,
        segment_options=SegmentOptions(size=64, rate=8, window=4),
        model_options=UNTRAINED,
        output_options=OutputOptions(),
        reporter=Recorder(),
        workers=3,
    )
    first = next(results)
    results.close()
    assert first.status == "done"
    left = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in first.outputs} <= left
    assert len(left) < 12
    for path in tmp_path.iterdir():
        if path.suffix == ".json":  # a track whose ffmpeg was ended looks like that of a shorter video
            assert len(json.loads(path.read_text())["images"]) == 24
        else:
            assert probe(path).duration_s == pytest.approx(3.0, abs=0.1)


def test_work_that_is_told_to_stop_writes_no_shortened_result(clip: Path, tmp_path: Path) -> None:
    class Stopping(Recorder):
        def advanced(self, position: int, done: int, total: int | None, rate: float) -> None:
            setup.stopping.set()

    options = SegmentOptions(size=64, rate=8, window=4)
    setup = batch.Setup(options, OutputOptions(), batch.ModelSlot(UNTRAINED), Stopping(), None)
    with pytest.raises(Stopped):
        batch.attempt(1, Job(clip, {"coco": tmp_path / "o.json"}), setup)
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_has_names_unless_told_not_to(tmp_path: Path, clip: Path) -> None:
    loaded = load_model("avs-mamba-tiny")
    assert loaded.model.heard_head is not None
    with torch.no_grad():  # hears a dog all the time
        loaded.model.heard_head.weight.zero_()
        loaded.model.heard_head.bias.fill_(-9)
        loaded.model.heard_head.bias[loaded.heard.index("dog")] = 9
    hears = tmp_path / "hears.safetensors"
    save_model(hears, loaded.model, heard=loaded.heard)
    pictures = []
    for names in (True, False):
        overlay = tmp_path / f"{names}.mp4"
        output = OutputOptions(threshold=1e-6, names=names)
        (result,) = run([Job(clip, {"overlay": overlay})], output=output, model=ModelOptions(str(hears), threads=1))
        assert result.status == "done"
        with sample_frames(probe(overlay), size=64) as frames:
            pictures.append(np.stack(list(frames)).astype(int))
    assert (np.abs(pictures[0] - pictures[1]) > 100).sum() > 30
