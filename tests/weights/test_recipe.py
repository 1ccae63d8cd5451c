"""The recipe of the default weights from the archive to a finished file, on an archive of a few pictures and sounds."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.weights.store import load_model

Script = Callable[..., Any]
COUNTS = {"train": 4, "val": 2, "test": 2}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Runs a script of weights/ in this process, with these arguments, and returns its module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "weights"))
    threads = torch.get_num_threads()

    def run(name: str, *arguments: object, **changes: object) -> Any:
        module = importlib.import_module(name)
        for constant, value in changes.items():
            monkeypatch.setattr(module, constant, value)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()
        return module

    yield run
    torch.set_num_threads(threads)


def picture_of(number: int, mask_of: int) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(number)
    picture = Image.fromarray(rng.integers(60, 180, (96, 128, 3), np.uint8))
    mask = Image.new("L", picture.size)
    left, top = (int(n) for n in rng.integers(5, 40, 2))
    for target, ink in ((picture, (200, 40, 40 * mask_of)), (mask, mask_of)):
        ImageDraw.Draw(target).ellipse((left, top, left + 60, top + 50), fill=ink)
    files = []
    for image, kind in ((picture, "JPEG"), (mask, "PNG")):
        with io.BytesIO() as buffer:
            image.save(buffer, kind)
            files.append(buffer.getvalue())
    return files[0], files[1]


def voice(path: Path, hertz: int) -> bytes:
    command = [find_ffmpeg().path, "-v", "error", "-f", "lavfi", "-i", f"sine=f={hertz}:d=2", "-c:a", "libopus", path]
    subprocess.run(command, check=True)
    return path.read_bytes()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Persons and dogs, as avset.zip has them, and a recording of too rare a class."""
    path = tmp_path / "avset.zip"
    pictures, sounds = [], []
    with zipfile.ZipFile(path, "w") as target:
        for label, name in ((1, "person"), (2, "dog")):
            for split, count in COUNTS.items():
                for number in range(count):
                    entry = {"name": f"{name}_{split}_{number}", "split": split, "kind": "human", "src": "drawn"}
                    jpeg, png = picture_of(len(pictures), label)
                    target.writestr(f"img/{entry['name']}.jpg", jpeg)
                    target.writestr(f"mask/{entry['name']}.png", png)
                    pictures.append(entry)
                    sounds.append({"name": entry["name"], "split": split, "cls": name})
        sounds.append({"name": "neigh", "split": "train", "cls": "horse"})
        for number, sound in enumerate(sounds):
            sound_file = tmp_path / f"{number}.opus"
            target.writestr(f"aud/{sound['name']}.opus", voice(sound_file, 200 + 50 * number))
        target.writestr("images.json", json.dumps(pictures))
        target.writestr("audio.json", json.dumps(sounds))
    return path


def test_from_the_archive_to_a_model_that_is_scored(
    script: Script, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder, out = tmp_path / "avset", tmp_path / "run", tmp_path / "out"
    out.mkdir()
    importlib.import_module("unpack_avset").unpack(archive, data)
    assert len(list((data / "images").glob("*.jpg"))) == len(list((data / "masks").glob("*.png"))) == 16
    assert len(list((data / "sounds").rglob("*.opus"))) == 16  # the horse's one recording is left out
    small = {
        "SIZE": 64,
        "PICTURE_PHASES": ((1.0, 64),),
        "PHASES": {name: ((0.5, 1, 32, 2), (1.0, 1, 64, 2)) for name in ("plain", "joint")},
        "ENCODER_BATCH": {"visual": 2, "audio": 4},
        "VALIDATION_CLIPS": 2,
    }
    usual = ("--folder", folder, "--data", data, "--minutes", 0.02, "--workers", 0, "--threads", 1)
    for stage in ("visual", "audio", "plain", "joint"):
        script("train_composed", stage, *usual, **small)
        assert (folder / stage / "last.pt").is_file()
    recipe = script("train_composed", "export", *usual, "--out", out, "--checkpoint", "last.pt", "--shift", 0.25)
    path = out / "avs-mamba-tiny.safetensors"
    loaded = load_model(path)
    assert loaded.input_size == 64
    assert loaded.trained
    # rendered families follow the archive's classes, and what has no picture or sound in it has no name
    assert [name for name in loaded.heard if name] == ["person", "dog"]
    assert len(loaded.heard) == loaded.config.heard_classes > 26
    state = torch.load(folder / "joint" / "last.pt", weights_only=True)
    offset = state["average"]["objective.model.agreement.offset"]
    assert loaded.model.agreement is not None
    torch.testing.assert_close(loaded.model.agreement.offset.detach(), offset + 0.25, atol=1e-3, rtol=0)
    manifest = json.loads((out / "manifest.json").read_text())["avs-mamba-tiny"]
    assert manifest["sha256"] == recipe.sha256(path) == loaded.sha256
    assert loaded.training["stage"] == "joint"
    capsys.readouterr()
    script("check_composed", path, "--data", data, "--clips", 3)
    scores = json.loads(capsys.readouterr().out)
    assert (scores["split"], scores["clips"], scores["frames"]) == ("val", 3, 15)
    assert 0 <= scores["false_positive_area"] <= 1
    script("check_rendered", path, "--seeds", 3)
    scores = json.loads(capsys.readouterr().out)
    assert scores["scenes"] == 3
    assert 0 <= scores["silent_area"] <= 1


def test_stages_go_on_where_they_stopped(script: Script, archive: Path, tmp_path: Path) -> None:
    data, folder = tmp_path / "avset", tmp_path / "run"
    importlib.import_module("unpack_avset").unpack(archive, data)
    small = {"SIZE": 32, "ENCODER_BATCH": {"visual": 2, "audio": 2}}
    steps = []
    for minutes in (0.01, 0.03):
        usual = ("--folder", folder, "--data", data, "--workers", 0, "--threads", 1, "--minutes", minutes)
        script("train_composed", "audio", *usual, **small)
        state = torch.load(folder / "audio" / "last.pt", weights_only=True)
        steps.append((state["step"], state["elapsed_s"]))
    (few, short), (more, long) = steps
    assert 0 < few < more
    assert short >= 0.6
    assert 1.8 <= long < short + 60
