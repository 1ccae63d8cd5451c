"""`avsseg data compose` as a user meets it."""

from __future__ import annotations

import json
import os
import re
import wave
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image, ImageDraw

Main = Callable[..., CompletedProcess[str]]
FEW = ("--clips", 2, "--val-clips", 1, "--test-clips", 1, "--size", 32)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """dog: 4 pictures and recordings, cat: 3 pictures and none, bell: 3 recordings; one folder a class."""
    paths = {name: tmp_path / name for name in ("images", "masks", "sounds")}
    for label, ink, count in (("dog", (255, 0, 0), 4), ("cat", (0, 255, 0), 3)):
        for i in range(count):
            image, mask = Image.new("RGB", (64, 48), (90 + 9 * i, 90, 90)), Image.new("L", (64, 48))
            for target, fill in ((image, ink), (mask, 255)):
                ImageDraw.Draw(target).ellipse((10 + 3 * i, 8, 40, 40), fill=fill)
            for kind, result in (("images", image), ("masks", mask)):
                (paths[kind] / label).mkdir(parents=True, exist_ok=True)
                result.save(paths[kind] / label / f"{i}.png")
    t = np.arange(16_000) / 16_000
    for label, count in (("dog", 4), ("bell", 3)):
        (paths["sounds"] / label).mkdir(parents=True)
        for i in range(count):
            tone = 9000 * np.sin(2 * np.pi * (300 + 100 * i + len(label)) * t)
            with wave.open(str(paths["sounds"] / label / f"{i}.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(tone.astype("<i2").tobytes())
    return paths


def arguments(folders: dict[str, Path], out: object, *more: object) -> list[object]:
    return ["data", "compose", *(part for name, path in folders.items() for part in (f"--{name}", path)), out, *more]


def test_help_teaches_the_layouts(avsseg_main: Main) -> None:
    outcome = avsseg_main("data", "compose", "--help")
    assert outcome.returncode == 0
    for word in (
        "IMAGES/NAME.jpg",
        "MASKS/classes.txt",
        "SOUNDS/CLASS/NAME.wav",
        "IMAGES/splits.csv",
        "cutout",
        "--motion",
    ):
        assert word in outcome.stdout


def test_a_dataset_of_own_classes(avsseg_main: Main, folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = avsseg_main(*arguments(folders, out, *FEW, "--several", 0, "--motion", 0.5, "--seed", 2))
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == f"{out}\n"
    for word in ("dog", "cat", "bell", "train pictures", "avsseg: warning: cat: is seen but never heard in train\n"):
        assert word in outcome.stderr
    document = json.loads((out / "Multi-sources/clips.json").read_text())
    assert document["classes"] == ["background", "cat", "dog", "bell"]
    assert document["settings"]["clips"]["motion"] == 0.5
    assert [entry["name"] for entry in document["clips"]] == [
        "train_02000000", "train_02000001", "val_02000000", "test_02000000",
    ]  # fmt: skip
    again = avsseg_main(*arguments(folders, out, *FEW))
    assert again.returncode == 2
    assert "ms3_meta_data.csv exists" in again.stderr


def test_objects_that_are_too_small_are_said_to_be_left_out(
    avsseg_main: Main, folders: dict[str, Path], tmp_path: Path
) -> None:
    for path in (folders["masks"] / "cat").iterdir():
        mask = Image.new("L", (64, 48))
        mask.paste(255, (10, 10, 15, 15))
        mask.save(path)
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *FEW))
    assert outcome.returncode == 0, outcome.stderr
    assert "warning: cat: covers 3% of none of its 1 pictures in train, so none is used there. Crop" in outcome.stderr


def test_files_that_are_not_used_are_named(avsseg_main: Main, folders: dict[str, Path], tmp_path: Path) -> None:
    left_out = folders["sounds"] / "dog" / "readme.txt"
    left_out.write_text("Terms of use")
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *FEW))
    assert outcome.returncode == 0, outcome.stderr
    assert f"avsseg: warning: files that are no recordings are left out: {left_out}\n" in outcome.stderr


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_utf8_get_into_the_listing(
    avsseg_main: Main, folders: dict[str, Path], tmp_path: Path
) -> None:
    odd = "caf\udce9"
    for kind in ("images", "masks"):
        (folders[kind] / "dog" / "0.png").rename(folders[kind] / "dog" / f"{odd}.png")
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *FEW, "--clips", 6))
    assert outcome.returncode == 0, outcome.stderr
    listing = json.loads((tmp_path / "out/Multi-sources/clips.json").read_text())
    assert len(listing["clips"]) == 8


def test_what_cannot_be_composed_is_said_in_one_line(
    avsseg_main: Main, folders: dict[str, Path], tmp_path: Path
) -> None:
    def fails(code: int, message: str, *line: object) -> None:
        outcome = avsseg_main(*line)
        assert outcome.returncode == code
        assert outcome.stdout == ""
        errors = [text for text in outcome.stderr.splitlines() if text.startswith("avsseg: error: ")]
        assert len(errors) == 1
        assert message in errors[0]
        assert not (tmp_path / "out").exists()

    out = tmp_path / "out"
    fails(2, "OUT is empty", *arguments(folders, ""))
    fails(2, "Choose another folder", *arguments(folders, folders["masks"] / "out"))
    fails(2, "no clips", *arguments(folders, out, "--clips", 0, "--val-clips", 0, "--test-clips", 0))
    fails(2, "not all 0", *arguments(folders, out, "--one", 0, "--two", 0, "--several", 0, "--none", 0))
    fails(1, "no such folder", *arguments({**folders, "sounds": tmp_path / "absent"}, out))
    for path in folders["sounds"].glob("dog/[23].wav"):
        path.unlink()
    # bell is only heard, cat only seen: dog alone is named
    few = "no class can be in val and test, which takes 3 groups each of pictures and of recordings: "
    fails(2, few + "dog has 4 of pictures and 2 of recordings. ", *arguments(folders, out, *FEW))
    fails(2, "no class can be in test, ", *arguments(folders, out, *FEW, "--val-clips", 0))
    rows = [f"{path.parent.name}/{path.name},train" for path in folders["sounds"].glob("*/*.wav")]
    (folders["sounds"] / "splits.csv").write_text("name,split\n" + "\n".join(rows))
    fails(2, "no class of the val split", *arguments(folders, out, *FEW))
    (folders["sounds"] / "splits.csv").unlink()
    (folders["masks"] / "dog/1.png").unlink()
    fails(1, "dog/1.png: missing", *arguments(folders, out, *FEW))


def test_splits_without_clips_may_be_empty(avsseg_main: Main, folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["sounds"].glob("dog/[123].wav"):
        path.unlink()
    none = ("--val-clips", 0, "--test-clips", 0)
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", "--clips", 1, "--size", 32, *none))
    assert outcome.returncode == 0, outcome.stderr
    assert "avsseg: warning: val: no class has both" in outcome.stderr
    assert "avsseg: warning: test: no class has both" in outcome.stderr


def test_numbered_names_that_leave_val_empty_are_explained(
    avsseg_main: Main, folders: dict[str, Path], tmp_path: Path
) -> None:
    for path in (*folders["images"].glob("dog/*"), *folders["masks"].glob("dog/*")):
        path.rename(path.with_stem(f"dog_{int(path.stem):03}"))
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *FEW))
    assert outcome.returncode == 2
    message = outcome.stderr.splitlines()[-1]
    assert message.startswith("avsseg: error: no class can be in val and test")
    assert "dog has 1 of pictures and 4 of recordings. " in message
    assert "differ in a number at their end only (dog_001, dog_002) are one group" in message
    assert "--unrelated" in message
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *FEW[:2], "--val-clips", 0, "--test-clips", 0))
    assert outcome.returncode == 0, outcome.stderr
    outcome = avsseg_main(*arguments(folders, tmp_path / "apart", *FEW, "--unrelated"))
    assert outcome.returncode == 0, outcome.stderr


def test_unrelated_is_said_to_be_idle_where_a_table_names_the_splits(
    avsseg_main: Main, folders: dict[str, Path], tmp_path: Path
) -> None:
    split_of = {0: "val", 1: "test"}
    rows = [
        f"{path.parent.name}/{path.name},{split_of.get(int(path.stem), 'train')}"
        for path in folders["sounds"].glob("*/*.wav")
    ]
    table = folders["sounds"] / "splits.csv"
    table.write_text("\n".join(["name,split", *rows]))
    said = f"avsseg: warning: {table} names the splits, so --unrelated says nothing there\n"
    few = ("--clips", 2, "--val-clips", 0, "--test-clips", 0, "--size", 32)
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *few, "--unrelated"))
    assert outcome.returncode == 0, outcome.stderr
    assert said in outcome.stderr
    assert outcome.stderr.count("--unrelated") == 1
    assert "--unrelated" not in avsseg_main(*arguments(folders, tmp_path / "plain", *few)).stderr


def test_the_guides_own_classes_work_as_pasted(
    avsseg_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    section = guide.split("\n## Your own classes\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    exec(script, {})
    (line,) = re.findall(r"^    avsseg (data compose .*)", section, flags=re.MULTILINE)
    outcome = avsseg_main(*line.split(), *FEW)
    assert outcome.returncode == 0, outcome.stderr
    assert "warning" not in outcome.stderr
    assert len(list((tmp_path / "my-clips").rglob("*.mp4"))) == 4


def test_a_file_in_two_splits_is_an_error(avsseg_main: Main, folders: dict[str, Path], tmp_path: Path) -> None:
    names = [f"{label}/{i}" for label, count in (("dog", 4), ("cat", 3)) for i in range(count)]
    copied = folders["images"] / "dog/3.png"
    copied.write_bytes((folders["images"] / "dog/0.png").read_bytes())
    rows = [f"{name},{('train', 'val', 'test')[i % 3] if i != 3 else 'val'}" for i, name in enumerate(names)]
    (folders["images"] / "splits.csv").write_text("name,split\n" + "\n".join(rows))
    outcome = avsseg_main(*arguments(folders, tmp_path / "out", *FEW))
    assert outcome.returncode == 1
    assert "dog/0 and dog/3 are the same but in two splits" in outcome.stderr
    assert not (tmp_path / "out").exists()
