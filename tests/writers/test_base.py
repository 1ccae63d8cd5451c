from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avsseg.errors import OutputError
from avsseg.pipeline.journal import output_size
from avsseg.writers import base
from avsseg.writers.base import PartialOutput, blocking, fsync, is_mask_folder, remove_leftovers

OLD_LISTING = json.dumps({"settings": {}, "masks": [{"file_name": "00007.png"}]})

# builds a result at the path in its argument and is killed with the old one moved away, as in the middle of `commit`
KILLED = """
import os, signal, sys
from pathlib import Path
from avsseg.writers.base import PartialOutput
target = Path(sys.argv[1])
output = PartialOutput(target, folder=True)
(output.path / "00000.png").touch()
if target.exists():
    os.replace(target, output.path.parent / "old")
os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_under_its_name_only_when_committed(tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.json"
    output = PartialOutput(target)
    output.path.write_text("whole")
    assert not target.exists()
    output.commit()
    assert target.read_text() == "whole"
    assert contents(tmp_path) == ["new", "new/result.json"]


def test_a_hidden_folder_that_stays_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and FUSE keep a file that is removed while it is open, and with it the folder."""
    remove = shutil.rmtree

    def with_open_files_kept(folder: Path, *, ignore_errors: bool = False) -> None:
        if not output._lock.closed:
            (folder / "lock").rename(folder / ".nfs0001")
        (folder / ".nfs0001").exists() or remove(folder)
        if folder.exists() and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(base.shutil, "rmtree", with_open_files_kept)
    target = tmp_path / "result.json"
    output = PartialOutput(target)
    output.path.write_text("whole")
    output.commit()
    assert contents(tmp_path) == ["result.json"]
    # and whatever else keeps it there
    monkeypatch.setattr(base.shutil, "rmtree", lambda _, ignore_errors=False: None)
    output = PartialOutput(target)
    output.path.write_text("again")
    output.commit()
    assert target.read_text() == "again"


def test_discarding_leaves_an_earlier_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("earlier")
    output = PartialOutput(target)
    output.path.write_text("half")
    output.discard()
    assert target.read_text() == "earlier"
    assert contents(tmp_path) == ["result.json"]


def test_a_folder_replaces_an_earlier_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "masks"
    target.mkdir()
    (target / "masks.json").write_text(OLD_LISTING)
    (target / "00007.png").write_text("of an earlier, longer run")
    output = PartialOutput(target, folder=True)
    (output.path / "masks.json").write_text("[]")
    output.commit()
    assert contents(tmp_path) == ["masks", "masks/masks.json"]
    assert (target / "masks.json").read_text() == "[]"


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "masks"
    target.mkdir()
    output = PartialOutput(target, folder=True)
    (output.path / "masks.json").write_text("[]")
    output.commit()
    assert contents(tmp_path) == ["masks", "masks/masks.json"]


@pytest.mark.parametrize("folder", [False, True])
def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, folder: bool) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "result")])
    (left,) = contents(tmp_path)[:1]
    assert left.startswith(".result.")
    output = PartialOutput(tmp_path / "result", folder=folder)
    if not folder:
        output.path.touch()
    output.commit()
    assert contents(tmp_path) == ["result"]


def test_a_result_that_a_killed_run_had_moved_away_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "masks"
    target.mkdir()
    (target / "masks.json").write_text(OLD_LISTING)
    subprocess.run([sys.executable, "-c", KILLED, str(target)])
    assert not target.exists()
    PartialOutput(target, folder=True).discard()
    assert contents(tmp_path) == ["masks", "masks/masks.json"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_others_own_is_never_removed(tmp_path: Path, folder: bool) -> None:
    for name in ("result.partial", ".result.partial", ".result.abcdefgh.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "video.mp4").touch()
    (tmp_path / ".result.linklink.partial").symlink_to(tmp_path / "result.partial")
    before = contents(tmp_path)
    PartialOutput(tmp_path / "result", folder=folder).discard()
    assert contents(tmp_path) == before


def test_two_runs_on_one_target_do_not_mix(tmp_path: Path) -> None:
    first = PartialOutput(tmp_path / "result")
    second = PartialOutput(tmp_path / "result")
    first.path.write_text("first")
    second.path.write_text("second")
    second.commit()
    assert (tmp_path / "result").read_text() == "second"
    first.commit()
    assert (tmp_path / "result").read_text() == "first"
    assert contents(tmp_path) == ["result"]


def test_an_interrupt_in_the_middle_of_a_replacement_keeps_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "masks"
    target.mkdir()
    (target / "masks.json").write_text(OLD_LISTING)
    output = PartialOutput(target, folder=True)
    replace = os.replace

    def interrupted(source: Path, destination: Path) -> None:
        if source == output.path:
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        output.commit()
    output.discard()
    assert contents(tmp_path) == ["masks", "masks/masks.json"]


@pytest.mark.parametrize(
    ("listing", "others"),
    [
        ("{}", []),
        ("no JSON", []),
        ('{"info": {}, "images": []}', ["holiday.jpg"]),
        (OLD_LISTING, ["00007.png", "00008.png"]),
        ('{"settings": {}, "masks": [{"file_name": "holiday.jpg"}]}', ["holiday.jpg"]),
    ],
)
def test_a_folder_is_not_ours_because_of_one_file_name(tmp_path: Path, listing: str, others: list[str]) -> None:
    (tmp_path / "masks.json").write_text(listing)
    for name in others:
        (tmp_path / name).touch()
    assert not is_mask_folder(tmp_path)
    assert "holds files that avsseg did not write" in blocking(tmp_path, folder=True)


def test_a_folder_of_nothing_but_listed_masks_is_ours(tmp_path: Path) -> None:
    (tmp_path / "masks.json").write_text(OLD_LISTING)
    (tmp_path / "00007.png").touch()
    assert is_mask_folder(tmp_path)
    assert blocking(tmp_path, folder=True) == ""


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="holds files that avsseg did not write"):
        PartialOutput(tmp_path, folder=True)
    assert contents(tmp_path) == ["holiday.jpg"]


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "a folder of this name is in the way" in blocking(tmp_path, folder=False)
    assert "a file of this name is in the way" in blocking(tmp_path / "file", folder=True)
    assert blocking(tmp_path / "file", folder=False) == ""
    assert blocking(tmp_path / "new", folder=True) == ""


def test_an_impossible_folder_is_an_output_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"result\.json: cannot be written") as caught:
        PartialOutput(tmp_path / "file" / "result.json")
    assert "\n" not in str(caught.value)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    output = PartialOutput(link, folder=True)
    (output.path / "00000.png").touch()
    output.commit()
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["00000.png"]


def test_a_name_that_is_too_long_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        PartialOutput(tmp_path / ("x" * 300), folder=True)


@pytest.mark.parametrize("name", ["x" * 255, "\u4e2d" * 85, "y" * 238 + ".json"])
@pytest.mark.parametrize("folder", [False, True])
def test_the_longest_names_work_and_their_leftovers_go(tmp_path: Path, name: str, folder: bool) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
    assert len(contents(tmp_path)) > 0
    output = PartialOutput(tmp_path / name, folder=folder)
    if not folder:
        output.path.touch()
    output.commit()
    assert contents(tmp_path) == [name]


def test_two_long_names_with_one_beginning_do_not_clean_up_each_other(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / ("x" * 250 + "a"))])
    left = contents(tmp_path)
    PartialOutput(tmp_path / ("x" * 250 + "b")).discard()
    assert contents(tmp_path) == left


@pytest.mark.parametrize("folder", [False, True])
def test_folders_made_for_a_result_that_does_not_come_go_again(tmp_path: Path, folder: bool) -> None:
    (tmp_path / "kept").mkdir()
    output = PartialOutput(tmp_path / "kept" / "a" / "b" / "result", folder=folder)
    assert (tmp_path / "kept" / "a" / "b").is_dir()
    output.discard()
    assert contents(tmp_path) == ["kept"]


def test_folders_that_another_result_has_come_to_stay(tmp_path: Path) -> None:
    output = PartialOutput(tmp_path / "a" / "b" / "result")
    (tmp_path / "a" / "other").touch()
    output.discard()
    assert contents(tmp_path) == ["a", "a/other"]


@pytest.mark.skipif(os.name == "nt", reason="leftovers are told by POSIX locks")
def test_what_a_run_left_before_it_had_a_lock_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".masks.a1b2c3d4.partial"
    (left / "new").mkdir(parents=True)
    remove_leftovers(tmp_path / "masks")
    assert not left.exists()


@pytest.mark.skipif(os.name == "nt", reason="leftovers are told by POSIX locks")
def test_a_run_whose_folder_is_taken_for_a_leftover_before_it_is_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, taken = tmp_path / "o.json", []
    lock = base.hold_lock

    def late(folder: Path) -> object:
        if not taken:
            taken.append(folder)
            remove_leftovers(target)  # of another run, at the worst moment
        return lock(folder)

    monkeypatch.setattr(base, "hold_lock", late)
    output = PartialOutput(target)
    assert not taken[0].exists()
    output.path.write_text("whole")
    output.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["o.json"]


def test_a_folder_that_cannot_be_synced_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.fsync", refuse)
    fsync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        fsync(tmp_path / "file")


def test_files_that_come_while_a_result_is_made_stay(tmp_path: Path) -> None:
    target = tmp_path / "shots"
    target.mkdir()
    output = PartialOutput(target, folder=True)
    (output.path / "00000.png").touch()
    (target / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="shots: files came there while the result was made"):
        output.commit()
    output.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["shots"]
    assert (target / "holiday.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("name", [".DS_Store", "._00007.png", "Thumbs.db", "desktop.ini", "@eaDir"])
def test_what_file_managers_leave_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    target = tmp_path / "masks"
    target.mkdir()
    (target / "masks.json").write_text(OLD_LISTING)
    before = output_size(target)
    (target / name).write_text("of the system")
    assert is_mask_folder(target)
    assert output_size(target) == before
    assert blocking(target, folder=True) == ""
    output = PartialOutput(target, folder=True)
    (output.path / "masks.json").write_text(OLD_LISTING)
    output.commit()
    assert contents(tmp_path) == ["masks", "masks/masks.json"]
