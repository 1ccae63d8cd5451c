from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

SMALL = ("--models", "avs-mamba-tiny", "--frames", "2", "--repeats", "2", "--threads", "1", "--device", "cpu")


def test_a_model_is_measured_and_drawn(avsseg_main: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    plot = tmp_path / "figure.png"
    outcome = avsseg_main("bench", *SMALL, "--sizes", "32", "--rate", "4", "--json", "--plot", plot)
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    assert (document["device"], document["precision"], document["threads"], document["frames"]) == ("cpu", "fp32", 1, 2)
    (row,) = document["rows"]
    assert (row["model"], row["backbone"], row["size"]) == ("avs-mamba-tiny", "efficientnet_lite0", 32)
    assert 0 < row["backbone_parameters"] < row["parameters"]
    assert 0 < row["scan_flops"] < row["flops"]
    assert 0 < row["fastest_s"] <= row["latency_s"] <= row["slowest_s"]
    assert row["frames_per_s"] == pytest.approx(2 / row["latency_s"])
    assert row["times_playback"] == pytest.approx(row["frames_per_s"] / 4)
    assert row["error"] == ""
    if sys.platform == "linux":
        assert 4 * row["parameters"] < row["peak_bytes"] < 2**32
    said = [line for line in outcome.stderr.splitlines() if line.startswith("round")]
    assert said == [f"round {turn} of 2: avs-mamba-tiny at 32" for turn in (1, 2)]
    assert outcome.stderr.endswith(f"{plot}\n")
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_clips_of_a_batch_go_through_together(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    one, three = (
        json.loads(avsseg_main("bench", *SMALL, "--sizes", "32", "--batch", count, "--json").stdout)
        for count in ("1", "3")
    )
    assert (one["batch"], three["batch"]) == (1, 3)
    (alone,), (together,) = one["rows"], three["rows"]
    assert together["frames_per_s"] == pytest.approx(6 / together["latency_s"])
    assert together["flops"] == alone["flops"]
    assert together["peak_bytes"] > alone["peak_bytes"]


def test_scans_stand_side_by_side(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    arguments = ("bench", "--scan", "--sizes", "32", "--frames", "1", "--repeats", "1", "--device", "cpu")
    document = json.loads(avsseg_main(*arguments, "--json").stdout)
    assert document["shape"] == "B 1 K 8 L 21 D 512 N 16 R 16, float32, forward"
    rows = {row["backend"]: row for row in document["rows"]}
    assert rows["torch"]["latency_s"] > 0
    assert rows["triton"]["reason"]
    assert rows["triton"]["latency_s"] is None
    lines = avsseg_main(*arguments).stdout.splitlines()
    assert lines[0].startswith("B 1 K 8 L 21 D 512 N 16 R 16, float32, forward; cpu, ")
    assert lines[1].split()[:2] == ["scan", "ms"]
    assert any(line.split()[0] == "torch" for line in lines[2:])
    assert any(line.startswith("without triton: ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "vgg"], "'vgg' is neither a model"),
        (["--models", ","], "nothing to measure"),
        (["--sizes", "224,big"], "--sizes 224,big: must be whole numbers"),
        (["--sizes", "16"], "size is 16; it must be from 32"),
        (["--frames", "0"], "frames is 0"),
        (["--batch", "0"], "batch is 0"),
        (["--repeats", "0"], "repeats is 0"),
        (["--rate", "0"], "rate is 0"),
        (["--device", "gpu"], "--device gpu: choose"),
        (["--plot", "figure.jpg"], "--plot figure.jpg: the name must end in .png"),
        (["--plot", "figure.png", "--scan"], "--plot draws the table of models"),
        (
            ["--scan", "--precision", "bf16", "--batch", "2"],
            "--scan measures one scan in float32, no model: drop --batch, ",
        ),
    ],
)
def test_a_wrong_command_line_measures_nothing(
    avsseg_main: Callable[..., CompletedProcess[str]], arguments: list[str], said: str
) -> None:
    outcome = avsseg_main("bench", *arguments)
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith(f"avsseg: error: {said}")
    assert outcome.stderr.count("\n") == 1


def test_a_plot_without_matplotlib_is_refused_before_measuring(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = avsseg_main("bench", *SMALL, "--plot", tmp_path / "figure.png")
    assert outcome.returncode == 3
    assert outcome.stderr == ('avsseg: error: matplotlib is missing: `pip install "avsseg[train]"` lets --plot draw\n')
    assert list(tmp_path.iterdir()) == []


def test_a_plot_in_the_way_is_refused_before_measuring(
    avsseg_main: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    plot = tmp_path / "figure.png"
    plot.write_text("precious")
    outcome = avsseg_main("bench", *SMALL, "--sizes", "32", "--plot", plot)
    assert outcome.returncode == 2
    assert outcome.stderr.endswith("exists already. Choose another name, or add --overwrite\n")
    assert plot.read_text() == "precious"
    assert avsseg_main("bench", *SMALL, "--sizes", "32", "--plot", plot, "--overwrite").returncode == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert avsseg_main("bench", *SMALL, "--sizes", "32", "--plot", folder, "--overwrite").returncode == 2


def test_modules_of_the_folder_it_runs_in_are_left_alone(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not the random of Python')\n")
    monkeypatch.chdir(tmp_path)
    outcome = avsseg_main("bench", *SMALL, "--sizes", "32", "--json")
    assert json.loads(outcome.stdout)["rows"][0]["peak_bytes"] > 0
