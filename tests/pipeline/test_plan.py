from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from avsseg.errors import UsageError
from avsseg.pipeline.options import FORMATS, Format
from avsseg.pipeline.plan import (
    FoundInput,
    Inputs,
    Job,
    Shard,
    choose_formats,
    find_inputs,
    is_finished,
    parse_shard,
    plan_outputs,
    results_folder,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """videos/{a.mp4, notes.txt, .hidden.mp4, sub/{b.MOV, deeper/c.webm}}"""
    folder = tmp_path / "videos"
    (folder / "sub" / "deeper").mkdir(parents=True)
    for name in ("a.mp4", "notes.txt", ".hidden.mp4", "sub/b.MOV", "sub/deeper/c.webm"):
        (folder / name).touch()
    return folder


def mirrored(inputs: Inputs) -> list[str]:
    return [found.mirrored.as_posix() for found in inputs.found]


def one(name: str) -> Inputs:
    return Inputs((FoundInput(Path(name), PurePath(name)),), several=False)


def test_a_folder_gives_its_videos_and_with_recursive_those_below(tree: Path) -> None:
    assert mirrored(find_inputs([str(tree)])) == ["a.mp4"]
    below = find_inputs([str(tree)], recursive=True)
    assert mirrored(below) == ["a.mp4", "sub/b.MOV", "sub/deeper/c.webm"]
    assert below.several


def test_a_file_is_taken_whatever_its_suffix_and_even_if_missing(tree: Path) -> None:
    inputs = find_inputs([str(tree / "notes.txt")])
    assert mirrored(inputs) == ["notes.txt"]
    assert not inputs.several
    assert mirrored(find_inputs([str(tree / "missing.mp4")])) == ["missing.mp4"]


def test_a_pattern_mirrors_what_lies_below_its_fixed_part(tree: Path) -> None:
    assert mirrored(find_inputs([str(tree / "**" / "*.webm")])) == ["sub/deeper/c.webm"]
    assert mirrored(find_inputs([str(tree / "su*")], recursive=True)) == ["sub/b.MOV", "sub/deeper/c.webm"]


def test_a_name_with_brackets_that_exists_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "clip[1].mp4").touch()
    assert mirrored(find_inputs([str(tmp_path / "clip[1].mp4")])) == ["clip[1].mp4"]


def test_listed_relative_paths_are_mirrored_and_others_keep_their_name() -> None:
    inputs = find_inputs(["-"], listed=["./sub/b.mov", "sub/c.mov", "/far/d.mov", "../e.mov"])
    assert mirrored(inputs) == ["sub/b.mov", "sub/c.mov", "d.mov", "e.mov"]
    assert inputs.several


@pytest.fixture
def cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a/{x.mp4, y.mp4, deep/z.mp4}, b/{x.mp4, deep/z.mp4}"""
    for name in ("a/x.mp4", "a/y.mp4", "a/deep/z.mp4", "b/x.mp4", "b/deep/z.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["a/x.mp4", "b/x.mp4"], ["{here}/a/x.mp4", "b/x.mp4"], ["a/x.mp4", "a/../b/x.mp4"]]
)
def test_files_of_one_name_are_mirrored_below_the_folder_that_holds_them(cameras: Path, arguments: list[str]) -> None:
    named = [argument.format(here=cameras) for argument in arguments]
    for found in (find_inputs(named), find_inputs(["-"], listed=[str(cameras / name) for name in named])):
        assert mirrored(found) == ["a/x.mp4", "b/x.mp4"]
        assert len(plan_outputs(found, cameras / "o", FORMATS)) == 2


def test_folders_with_files_of_one_name_are_mirrored_where_they_share_it(cameras: Path) -> None:
    assert mirrored(find_inputs(["a", "b"])) == ["a/x.mp4", "y.mp4", "b/x.mp4"]
    both = mirrored(find_inputs(["a", "b"], recursive=True))
    assert both == ["a/x.mp4", "y.mp4", "a/deep/z.mp4", "b/x.mp4", "b/deep/z.mp4"]
    (cameras / "b" / "deep" / "x.mp4").touch()
    assert mirrored(find_inputs(["a/x.mp4", "b/deep/x.mp4", "b/x.mp4"])) == ["a/x.mp4", "b/deep/x.mp4", "b/x.mp4"]


def test_files_of_one_name_in_one_folder_stay_refused(cameras: Path) -> None:
    (cameras / "b" / "x.mkv").touch()
    with pytest.raises(UsageError, match=r"would both write .*rename one"):
        plan_outputs(find_inputs(["a", "b"]), cameras / "o", ["coco"])
    # of those below one folder, it is said where they would be
    for name in ("a/deep/x.mp4", "a/deep/x.mkv"):
        (cameras / name).touch()
    with pytest.raises(UsageError, match=r"deep.x\.mkv and .*deep.x\.mp4 would both write .*o.deep.x\.json"):
        plan_outputs(find_inputs(["a"], recursive=True), cameras / "o", ["coco"])


@pytest.mark.parametrize("argument", ["masks", ",coco", "masks,coco"])
def test_a_format_among_the_inputs_is_a_space_too_many(cameras: Path, argument: str) -> None:
    with pytest.raises(UsageError, match=f"{argument}: no such file, but a format. Put commas and no spaces"):
        find_inputs(["a/x.mp4", argument])
    if "," not in argument:
        (cameras / argument).touch()
        assert mirrored(find_inputs([argument])) == [argument]


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="needs /dev/stdin")
def test_a_file_behind_stdin_is_taken_by_its_name(cameras: Path) -> None:
    program = "from avsseg.pipeline.plan import find_inputs; print(find_inputs(['/dev/stdin']).found[0].path)"
    with open("a/x.mp4") as video:
        done = subprocess.run([sys.executable, "-c", program], stdin=video, stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"{os.path.realpath('a/x.mp4')}\n"
    piped = subprocess.run([sys.executable, "-c", program], input="", stdout=subprocess.PIPE, text=True)
    assert piped.stdout == "/dev/stdin\n"


def test_a_video_named_twice_is_taken_once(tree: Path) -> None:
    assert mirrored(find_inputs([str(tree / "a.mp4"), str(tree), str(tree / "sub" / ".." / "a.mp4")])) == ["a.mp4"]


def test_the_output_folder_is_not_searched(tree: Path) -> None:
    inputs = find_inputs([str(tree)], recursive=True, exclude=tree / "sub")
    assert mirrored(inputs) == ["a.mp4"]


def test_a_pattern_does_not_search_the_output_folder_unless_it_lies_there(tree: Path) -> None:
    everything = mirrored(find_inputs([str(tree / "*")], recursive=True))
    outside = [name for name in everything if not name.startswith("sub/")]
    assert len(outside) < len(everything)
    assert mirrored(find_inputs([str(tree / "*")], recursive=True, exclude=tree / "sub")) == outside
    assert mirrored(find_inputs([str(tree / "**" / "*.MOV")], exclude=tree / "sub" / "deeper")) == ["sub/b.MOV"]
    assert mirrored(find_inputs([str(tree / "*")], recursive=True, exclude=tree)) == everything
    within = [str(tree / "sub" / "*")]
    assert mirrored(find_inputs(within, exclude=tree / "sub")) == mirrored(find_inputs(within))


def test_a_loop_of_links_ends(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    assert len(find_inputs([str(tree)], recursive=True).found) == 3


@pytest.mark.parametrize("pattern", ["**/*.mp4", "**", "**/**/*.mp4", "*/../**/a.mp4"])
def test_a_pattern_ends_where_links_lead_in_circles(tree: Path, pattern: str) -> None:
    for name in ("one", "two", "three"):
        (tree / name).symlink_to(tree)  # `glob` would walk 3 ** 40 paths
    assert tree / "a.mp4" in {found.path.resolve() for found in find_inputs([str(tree / pattern)]).found}


def test_a_pattern_leaves_hidden_names_out_unless_it_begins_like_them(tree: Path) -> None:
    assert mirrored(find_inputs([str(tree / "*.mp4")])) == ["a.mp4"]
    assert mirrored(find_inputs([str(tree / ".*.mp4")])) == [".hidden.mp4"]


def test_a_relative_pattern_is_mirrored_from_here(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert mirrored(find_inputs(["**/*.[mM][pPoO][4vV]"])) == ["a.mp4", "sub/b.MOV"]


def test_a_pattern_without_a_match_among_other_inputs_is_kept_to_fail(tree: Path) -> None:
    assert mirrored(find_inputs([str(tree / "*.mkv"), str(tree)])) == ["a.mp4", "*.mkv"]
    with pytest.raises(UsageError, match="no videos found"):
        find_inputs([str(tree / "*.mkv")])


def test_a_link_to_itself_is_kept_to_fail_alone(tree: Path) -> None:
    (tree / "b.mp4").symlink_to("b.mp4")
    inputs = find_inputs([str(tree), str(tree / "b.mp4")])
    assert mirrored(inputs) == ["a.mp4", "b.mp4"]
    assert len(plan_outputs(inputs, tree / "o", ["coco"])) == 2


def test_a_folder_that_cannot_be_read_is_kept_to_fail(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path) == str(tree / "sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert mirrored(find_inputs([str(tree)], recursive=True)) == ["a.mp4", "sub"]
    assert mirrored(find_inputs([str(tree / "sub")])) == ["sub"]


@pytest.mark.parametrize("out", [".", ""])
def test_one_result_needs_a_name(out: str) -> None:
    with pytest.raises(UsageError, match=r"--out \.: name the file or the folder"):
        plan_outputs(one("a.mp4"), Path(out), ["masks"])


def test_a_name_that_is_too_long_is_left_to_the_writer(tmp_path: Path) -> None:
    out = tmp_path / ("x" * 300)
    assert choose_formats("coco", out.with_suffix(".json"), several=False) == ("coco",)
    assert not is_finished("masks", out)
    assert plan_outputs(one("a.mp4"), out, ["masks"])[0].outputs == {"masks": out}


def test_a_folder_without_videos_among_other_inputs_is_kept_to_fail(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").mkdir()
    assert mirrored(find_inputs([str(tmp_path / "empty.mp4"), str(tree)])) == ["a.mp4", "empty.mp4"]


def test_finding_nothing_is_a_usage_error_that_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no videos found in {tmp_path}; -r searches"):
        find_inputs([str(tmp_path)])
    with pytest.raises(UsageError, match="the list on stdin is empty"):
        find_inputs(["-"], recursive=True)


@pytest.mark.parametrize(
    ("requested", "out", "several", "formats"),
    [
        (None, "o.mp4", False, ("overlay",)),
        (None, "o.WEBM", False, ("overlay",)),
        (None, "o.json", False, ("coco",)),
        (None, "o", False, ("masks",)),
        (None, "o.d", False, ("masks",)),
        (None, "o", True, ("masks",)),
        ("coco,overlay", "o", False, ("overlay", "coco")),
        ("coco", "o.json", False, ("coco",)),
        (None, "o.csv", False, ("csv",)),
        ("matte", "o.mp4", False, ("matte",)),
        ("cutout", "o.MOV", False, ("cutout",)),
        ("csv,matte", "o", True, ("matte", "csv")),
    ],
)
def test_formats_come_from_the_request_or_the_suffix(
    requested: str | None, out: str, several: bool, formats: tuple[str, ...]
) -> None:
    assert choose_formats(requested, Path(out), several=several) == formats


@pytest.mark.parametrize(
    ("requested", "out", "several", "message"),
    [
        ("png", "o", False, "unknown format; choose from overlay, masks, coco"),
        (",", "o", False, "unknown format"),
        ("coco", "o.mp4", False, "--format coco needs a folder"),
        ("cutout", "o.mp4", False, r"cannot hold transparency; a cutout is written as \.mov, \.webm, \.mkv"),
        ("cutout,matte", "o.mov", False, "--format matte,cutout needs a folder"),
        ("masks", "o.csv", False, "--format masks needs a folder"),
        ("overlay,masks", "o.mp4", False, "needs a folder"),
        (None, "o.mp4", True, "several inputs need a folder"),
        (None, "o.avi", False, r"no format is a \.avi file. There are overlay \(\.mp4 \.mkv \.mov \.webm\), coco"),
        ("overlay", "o.avi", False, r"no format is a \.avi file"),
        ("masks", "o.PNG", False, r"no format is a \.PNG file"),
        (None, "o.txt", True, "several inputs go into a folder"),
        (None, "-", False, "--out -: results are files"),
    ],
)
def test_a_suffix_that_contradicts_is_refused(requested: str | None, out: str, several: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_formats(requested, Path(out), several=several)


def test_a_folder_that_exists_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "o.png").mkdir()
    assert choose_formats(None, tmp_path / "o.png", several=False) == ("masks",)


def test_one_input_is_written_to_the_path_itself(tmp_path: Path) -> None:
    assert plan_outputs(one("a.mp4"), tmp_path / "o.mp4", ["overlay"]) == [
        Job(Path("a.mp4"), {"overlay": tmp_path / "o.mp4"})
    ]
    assert plan_outputs(one("a.mp4"), tmp_path / "o", ["masks"])[0].outputs == {"masks": tmp_path / "o"}


def test_several_formats_of_one_input_share_a_folder(tmp_path: Path) -> None:
    (job,) = plan_outputs(one("a.mov"), tmp_path / "o", FORMATS)
    assert {name: path.relative_to(tmp_path / "o").as_posix() for name, path in job.outputs.items()} == {
        "overlay": "a.mp4",
        "masks": "a",
        "coco": "a.json",
        "matte": "a.matte.mp4",
        "cutout": "a.cutout.mov",
        "csv": "a.csv",
    }


@pytest.mark.parametrize(("name", "out"), [("matte", "o.webm"), ("cutout", "o.mov"), ("csv", "o.csv")])
def test_a_single_result_of_an_asked_format_is_the_path_itself(tmp_path: Path, name: Format, out: str) -> None:
    (job,) = plan_outputs(one("a.mp4"), tmp_path / out, [name])
    assert job.outputs == {name: tmp_path / out}
    assert results_folder(one("a.mp4"), tmp_path / out, [name]) is None
    assert results_folder(one("a.mp4"), tmp_path / "o", [name]) == tmp_path / "o"


def test_several_inputs_are_mirrored(tree: Path, tmp_path: Path) -> None:
    jobs = plan_outputs(find_inputs([str(tree)], recursive=True), tmp_path / "o", ["coco"])
    assert [job.outputs["coco"].relative_to(tmp_path / "o").as_posix() for job in jobs] == [
        "a.json",
        "sub/b.json",
        "sub/deeper/c.json",
    ]


def in_one_folder(folder: Path) -> tuple[Inputs, Path]:
    (folder / "x.mp4").touch()
    (folder / "x.mov").touch()
    return find_inputs([str(folder)]), folder / "o"


def onto_an_input(folder: Path) -> tuple[Inputs, Path]:
    (folder / "x.mp4").touch()
    return find_inputs([str(folder)]), folder


def through_a_link(folder: Path) -> tuple[Inputs, Path]:
    (folder / "x.mp4").touch()
    os.symlink(folder / "x.mp4", folder / "other.mp4")
    return find_inputs([str(folder / "x.mp4")]), folder / "other.mp4"


def onto_a_file(folder: Path) -> tuple[Inputs, Path]:
    (folder / "x.mp4").touch()
    (folder / "o").touch()
    return find_inputs([str(folder)]), folder / "o"


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        (in_one_folder, "would both write .*or run each with an --out of its own"),
        (onto_an_input, "is an input and would be replaced"),
        (through_a_link, "is an input and would be replaced"),
        (onto_a_file, "is a file; several results need a folder"),
    ],
)
def test_results_that_would_destroy_something_are_refused(
    tmp_path: Path, situation: Callable[[Path], tuple[Inputs, Path]], message: str
) -> None:
    inputs, out = situation(tmp_path)
    with pytest.raises(UsageError, match=message):
        plan_outputs(inputs, out, ["overlay"])


def test_names_that_differ_in_case_alone_are_one_result_on_some_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Clip.mp4", "clip.mkv", "cafe\u0301.mp4", "CAF\u00c9.mkv"):
        (tmp_path / name).touch()
    inputs = find_inputs([str(tmp_path / "*lip.*")]), find_inputs([str(tmp_path / "[cC][aA]*.*")])
    if not os.path.exists(tmp_path / "CLIP.MP4"):
        assert [len(plan_outputs(found, tmp_path / "o", ["coco"])) for found in inputs] == [2, 2]
    monkeypatch.setattr("avsseg.pipeline.plan._tells_case_apart", lambda _: False)
    for found in inputs:
        with pytest.raises(UsageError, match="would both write"):
            plan_outputs(found, tmp_path / "o", ["coco"])


def test_results_beside_their_inputs_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.matte.mp4", "sub/b.mp4", "sub/b.matte.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    made = [tmp_path / "a.matte.mp4", tmp_path / "sub" / "b.matte.mp4"]
    for argument in (tmp_path, tmp_path / "**" / "*.mp4"):
        found = find_inputs([str(argument)], recursive=True, exclude=tmp_path, made=made)
        assert sorted(item.path.name for item in found.found) == ["a.mp4", "b.mp4"]
        assert len(plan_outputs(found, tmp_path, ["matte"])) == 2
    # one that is named is meant
    (named,) = find_inputs([str(made[0])], made=made).found
    assert named.path == made[0]


def test_a_folder_of_masks_must_not_hold_inputs_or_other_results(tmp_path: Path) -> None:
    (tmp_path / "videos" / "x").mkdir(parents=True)
    for name in ("x.mp4", "x/y.mp4"):
        (tmp_path / "videos" / name).touch()
    with pytest.raises(UsageError, match="lies inside the folder of masks"):
        plan_outputs(find_inputs([str(tmp_path / "videos")], recursive=True), tmp_path / "o", ["masks"])
    with pytest.raises(UsageError, match="holds files that avsseg did not write"):
        plan_outputs(one(str(tmp_path / "videos" / "x.mp4")), tmp_path / "videos", ["masks"])


def test_only_whole_results_count_as_finished(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "o.json.partial").touch()
    assert not is_finished("masks", tmp_path / "masks")
    assert not is_finished("coco", tmp_path / "o.json")
    (tmp_path / "masks" / "masks.json").touch()
    assert not is_finished("masks", tmp_path / "masks")
    (tmp_path / "masks" / "masks.json").write_text('{"settings": {}, "masks": []}')
    (tmp_path / "o.json").touch()
    assert is_finished("masks", tmp_path / "masks")
    assert is_finished("coco", tmp_path / "o.json")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_input_is_in_exactly_one_shard(count: int) -> None:
    paths = [PurePath(f"folder {n % 5}/{n}.mp4") for n in range(200)]
    shards = [parse_shard(f"{index}/{count}") for index in range(1, count + 1)]
    assert all(sum(shard.holds(path) for shard in shards) == 1 for path in paths)
    assert all(sum(shard.holds(path) for path in paths) > 100 / count for shard in shards)


def test_shards_stay_what_they_are_from_version_to_version() -> None:
    names = ["a.mp4", "sub/b.MOV", "\udc80.mp4", "\u4e2d.mp4"]
    assert [next(n for n in range(1, 6) if Shard(n, 5).holds(PurePath(name))) for name in names] == [4, 4, 1, 5]


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1/0", "1", "a/b", "-1/2", "1/2/3", "1/2000000"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write I/N with I from 1 to N"):
        parse_shard(text)


def test_a_single_result_has_no_folder_for_a_journal(tree: Path, tmp_path: Path) -> None:
    alone, several = one("a.mp4"), find_inputs([str(tree)])
    assert results_folder(alone, Path("o.mp4"), ("overlay",)) is None
    assert results_folder(alone, Path("masks"), ("masks",)) is None
    assert results_folder(alone, Path("o"), ("coco",)) == Path("o")
    assert results_folder(alone, Path("o"), ("overlay", "masks")) == Path("o")
    assert results_folder(several, Path("o"), ("masks",)) == Path("o")
