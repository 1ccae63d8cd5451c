from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from avsseg.errors import OutputError, UsageError
from avsseg.pipeline.journal import Journal, Origin, Trace, output_size, read_journal
from avsseg.pipeline.options import ModelOptions, OutputOptions, SegmentOptions
from avsseg.pipeline.plan import Job, Shard
from avsseg.pipeline.resume import difference, identify_model, origin_of, plan_work, recipe
from avsseg.weights import load_model
from avsseg.weights.registry import DEFAULT_MODEL

ORIGIN = Origin("/videos/a.mp4", 10, 1_700_000_000_123_456_789, {"rate": 1.0, "end_s": None}, "tiny", "abc")
OTHER = replace(ORIGIN, settings={"rate": 4.0, "end_s": None})

# holds the lock of the shard in its arguments until its stdin ends
HOLDER = """
import sys
from pathlib import Path
from avsseg.pipeline.journal import Journal
from avsseg.pipeline.plan import Shard
with Journal(Path(sys.argv[1]), Shard(int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def result(folder: Path, name: str, content: str = "result") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def journal_file(folder: Path) -> Path:
    return folder / ".avsseg" / "shard-1-of-1.jsonl"


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    with Journal(tmp_path, Shard()) as journal:
        journal.append("started", ORIGIN, [tmp_path / "sub" / "a.json"])
        journal.append("done", ORIGIN, [result(tmp_path, "sub/a.json")])
        journal.append("started", OTHER, [tmp_path / "b.json", tmp_path / "c.json"])
        journal.append("dropped", OTHER, [tmp_path / "c.json"])
    assert read_journal(tmp_path) == {
        "sub/a.json": Trace(ORIGIN, size=6),
        "b.json": Trace(begun=OTHER),
        "c.json": Trace(),
    }
    line = json.loads(journal_file(tmp_path).read_text().splitlines()[1])
    assert line["outputs"] == {"sub/a.json": 6}
    assert {key: line[key] for key in ("event", "input", "size", "mtime_ns", "settings", "model", "model_sha256")} == {
        "event": "done",
        "input": "/videos/a.mp4",
        "size": 10,
        "mtime_ns": 1_700_000_000_123_456_789,
        "settings": {"rate": 1.0, "end_s": None},
        "model": "tiny",
        "model_sha256": "abc",
    }


def test_dropped_work_leaves_what_was_made_before(tmp_path: Path) -> None:
    path = result(tmp_path, "a.json")
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", ORIGIN, [path])
        journal.append("started", OTHER, [path])
        assert read_journal(tmp_path)["a.json"] == Trace(ORIGIN, 6, begun=OTHER)
        journal.append("dropped", OTHER, [path])
    assert read_journal(tmp_path)["a.json"] == Trace(ORIGIN, 6)


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    path = result(tmp_path, os.fsdecode(b"\xff\xfe\nx.json"))
    origin = replace(ORIGIN, input=os.fsdecode(b"/\xff\n.mp4"))
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", origin, [path])
    assert read_journal(tmp_path) == {path.name: Trace(origin, 6)}


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    result(tmp_path, "masks/00000.png", "12345")
    result(tmp_path, "masks/masks.json", "12")
    assert output_size(tmp_path / "masks") == 7
    assert output_size(tmp_path / "missing") == -1


def test_journals_of_shards_lie_side_by_side_and_are_merged_by_time(tmp_path: Path) -> None:
    path = result(tmp_path, "a.json")
    with Journal(tmp_path, Shard(2, 2)) as second, Journal(tmp_path, Shard(1, 2)) as first:
        second.append("done", ORIGIN, [path])
        first.append("done", OTHER, [path])
    assert sorted(os.listdir(tmp_path / ".avsseg")) == ["shard-1-of-2.jsonl", "shard-2-of-2.jsonl"]
    assert read_journal(tmp_path)["a.json"].made == OTHER


def test_a_clock_that_was_set_back_does_not_turn_the_order_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result(tmp_path, "a.json")
    clock = iter([200.0, 100.0])
    monkeypatch.setattr("time.time", lambda: next(clock))
    with Journal(tmp_path, Shard()) as journal:
        journal.append("started", ORIGIN, [path])
        journal.append("done", ORIGIN, [path])
    assert read_journal(tmp_path)["a.json"] == Trace(ORIGIN, 6)


@pytest.mark.parametrize("torn", [b'{"event": "done", "in', b"\0\0\0\0", b"x"])
def test_a_torn_last_line_does_not_count_and_goes(tmp_path: Path, torn: bytes) -> None:
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", ORIGIN, [result(tmp_path, "a.json")])
    whole = journal_file(tmp_path).read_bytes()
    journal_file(tmp_path).write_bytes(whole + torn)
    assert list(read_journal(tmp_path)) == ["a.json"]
    with Journal(tmp_path, Shard()) as journal:
        assert journal_file(tmp_path).read_bytes() == whole
        journal.append("done", ORIGIN, [result(tmp_path, "b.json")])
    assert sorted(read_journal(tmp_path)) == ["a.json", "b.json"]


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", ORIGIN, [result(tmp_path, "a.json")])
    journal_file(tmp_path).write_bytes(journal_file(tmp_path).read_bytes().rstrip(b"\n"))
    assert list(read_journal(tmp_path)) == ["a.json"]
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", ORIGIN, [result(tmp_path, "b.json")])
    assert sorted(read_journal(tmp_path)) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no JSON", "Expecting value"),
        (b"[]", "list indices"),
        (b"{}", "event is missing"),
        (b'{"event": "eaten"}', "unknown event 'eaten'"),
        (b'{"event": "done", "settings": 1}', "settings are no object"),
        (b'{"event": "done", "settings": {}, "input": "a"}', "size is missing"),
        (b'{"\xff": 1}', "codec can't decode"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", ORIGIN, [result(tmp_path, "a.json")])
    whole = journal_file(tmp_path).read_bytes()
    journal_file(tmp_path).write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(UsageError, match=r"shard-1-of-1\.jsonl, line 2: is no line of an avsseg journal") as caught:
        read_journal(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_journal_has_no_history(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "missing") == {}
    (tmp_path / ".avsseg").touch()
    assert read_journal(tmp_path) == {}


def test_a_journal_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with Journal(out, Shard()) as journal:
        journal.append("started", ORIGIN, [out / "a.json"])
        journal.append("dropped", ORIGIN, [out / "a.json"])
    assert list(tmp_path.iterdir()) == []


def test_a_result_of_an_interrupted_run_keeps_its_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, Shard()) as journal:
        journal.append("started", ORIGIN, [tmp_path / "a.json"])
        result(tmp_path, "a.json")  # and then an interrupt, before this can be noted
    assert read_journal(tmp_path) == {"a.json": Trace(begun=ORIGIN)}


def test_a_result_whose_end_could_not_be_noted_keeps_its_journal_whatever_came_after(tmp_path: Path) -> None:
    with Journal(tmp_path, Shard()) as journal:
        journal.append("started", ORIGIN, [result(tmp_path, "a.json")])
        journal.append("started", OTHER, [tmp_path / "b.json"])
    assert read_journal(tmp_path)["a.json"] == Trace(begun=ORIGIN)


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Journal(tmp_path, Shard()) as journal:
        journal.append("done", ORIGIN, [result(tmp_path, "a.json")])
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        with pytest.raises(OutputError, match=r"cannot be written: No space left on device\. Free space there"):
            journal.append("done", ORIGIN, [result(tmp_path, "b.json")])
        monkeypatch.setattr(os, "write", write)
        journal.append("done", ORIGIN, [result(tmp_path, "c.json")])
    assert sorted(read_journal(tmp_path)) == ["a.json", "c.json"]


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / ".avsseg").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path, Shard())


@pytest.mark.skipif(os.name == "nt", reason="files are not locked on Windows")
@pytest.mark.parametrize(
    ("held", "wanted", "message"),
    [
        ((1, 1), (1, 1), "another avsseg run is at work on this folder"),
        ((2, 3), (2, 3), "another avsseg run is at work on this folder"),
        ((1, 2), (2, 3), "shard-1-of-2, is at work on this folder and divides the inputs in another way"),
        ((1, 2), (1, 1), "divides the inputs in another way"),
        ((1, 2), (2, 2), ""),
    ],
)
def test_a_second_run_of_the_same_inputs_is_refused_until_the_first_ends(
    tmp_path: Path, held: tuple[int, int], wanted: tuple[int, int], message: str
) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), *map(str, held)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        if message:
            with pytest.raises(UsageError, match=message):
                Journal(tmp_path, Shard(*wanted))
        else:
            Journal(tmp_path, Shard(*wanted)).close()
        holder.kill()
    Journal(tmp_path, Shard(*wanted)).close()


# what is left to do


RECIPE = recipe(SegmentOptions(), OutputOptions(), ModelOptions())


def a_job(folder: Path) -> Job:
    video = folder / "a.mp4"
    if not video.exists():
        video.write_text("video")
    return Job(video, {"overlay": folder / "o" / "a.mp4", "coco": folder / "o" / "a.json"})


def make_all(folder: Path, job: Job) -> None:
    with Journal(folder / "o", Shard()) as journal:
        journal.append("done", origin_of(job.input, RECIPE), [result(path.parent, path.name) for path in outputs(job)])


def outputs(job: Job) -> list[Path]:
    return list(job.outputs.values())


def left(folder: Path, job: Job, segment: SegmentOptions | None = None, output: OutputOptions | None = None) -> object:
    wanted = recipe(segment or SegmentOptions(), output or OutputOptions(), ModelOptions())
    (planned,) = plan_work([job], folder / "o", read_journal(folder / "o"), wanted)
    return planned.make


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    assert left(tmp_path, job) == ("overlay", "coco")
    make_all(tmp_path, job)
    assert left(tmp_path, job) == ()
    job.outputs["coco"].unlink()
    assert left(tmp_path, job) == ("coco",)


def test_a_moved_folder_of_results_keeps_its_journal(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    make_all(tmp_path, job)
    (tmp_path / "o").rename(tmp_path / "moved")
    moved = Job(job.input, {name: tmp_path / "moved" / path.name for name, path in job.outputs.items()})
    (planned,) = plan_work([moved], tmp_path / "moved", read_journal(tmp_path / "moved"), RECIPE)
    assert planned.make == ()


def test_other_settings_are_refused_with_what_changed(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    make_all(tmp_path, job)
    with pytest.raises(UsageError) as caught:
        left(tmp_path, job, SegmentOptions(rate=4.0))
    assert str(caught.value) == (
        f"{job.outputs['overlay']}: was made with other settings (rate 1.0, now 4.0) (and 1 more result cannot be kept "
        "either). Nothing was done: --overwrite makes them again, another --out keeps them"
    )


def test_settings_that_a_format_does_not_depend_on_do_not_count(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    make_all(tmp_path, job)
    linear = OutputOptions(interpolate="linear")
    assert left(tmp_path, Job(job.input, {"coco": job.outputs["coco"]}), output=linear) == ()
    with pytest.raises(UsageError, match=r"a\.mp4: was made with other settings \(interpolate hold, now linear\)\. "):
        left(tmp_path, job, output=linear)


def test_a_changed_input_is_refused(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    make_all(tmp_path, job)
    os.utime(job.input, ns=(0, 1))
    with pytest.raises(UsageError, match="was made before its input changed"):
        left(tmp_path, job)


def test_another_input_of_the_same_name_is_refused(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    make_all(tmp_path, job)
    other = Job(result(tmp_path, "other/a.mp4"), job.outputs)
    with pytest.raises(UsageError, match=rf"was made from another input, {job.input}"):
        left(tmp_path, other)


def test_a_missing_input_is_left_to_fail(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    make_all(tmp_path, job)
    job.input.unlink()
    assert left(tmp_path, job, SegmentOptions(rate=4.0)) == ("overlay", "coco")


def test_results_without_a_journal_and_changed_ones_are_refused(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    for path in outputs(job):
        result(path.parent, path.name)
    with pytest.raises(UsageError, match=r"exists, and no journal says how it was made \(and 1 more"):
        left(tmp_path, job)
    make_all(tmp_path, job)
    job.outputs["coco"].write_text("edited by hand")
    with pytest.raises(UsageError, match=r"a\.json: was changed after it was made\. .*another --out keeps it"):
        left(tmp_path, job)


def test_what_a_killed_run_was_making_is_made_again(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    with Journal(tmp_path / "o", Shard()) as journal:
        journal.append("started", origin_of(job.input, RECIPE), outputs(job))
        result(tmp_path, "o/a.json")
    assert left(tmp_path, job) == ("overlay", "coco")
    with pytest.raises(UsageError, match=r"was in work with other settings \(rate 1.0, now 2.0\) when a run was ended"):
        left(tmp_path, job, SegmentOptions(rate=2.0))


def test_an_empty_folder_is_no_finished_folder_of_masks(tmp_path: Path) -> None:
    job = Job(a_job(tmp_path).input, {"masks": tmp_path / "o" / "a"})
    (tmp_path / "o" / "a").mkdir(parents=True)
    assert left(tmp_path, job) == ("masks",)


def test_models_differ_by_hash_and_those_without_by_name() -> None:
    assert difference(ORIGIN, replace(ORIGIN, model="renamed"), "coco") == ""
    assert difference(ORIGIN, replace(ORIGIN, model_sha256="def"), "coco") == "with another model, tiny (abc)"
    bare = replace(ORIGIN, model_sha256="")
    assert difference(bare, replace(bare, model="other"), "coco") == "with another model, tiny (untrained)"


@pytest.mark.parametrize("model", [DEFAULT_MODEL, "avs-mamba-resnet50", "file"])
def test_a_model_is_known_without_loading_it(model: str, untrained_file: Path) -> None:
    name = str(untrained_file) if model == "file" else model
    loaded = load_model(name, allow_untrained=True)
    assert identify_model(name) == (loaded.name, loaded.sha256)
    assert identify_model("missing.safetensors") == ("missing.safetensors", "")


def test_a_folder_named_like_the_model_is_not_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = identify_model(DEFAULT_MODEL)
    (tmp_path / DEFAULT_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert identify_model(DEFAULT_MODEL) == known
    assert identify_model(str(tmp_path)) == (str(tmp_path), "")
