"""The page of an evaluation: what it shows, that it needs nothing else, and what a browser makes of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avsseg.cli.evaluate import print_tables
from avsseg.evaluation.evaluate import Evaluation, EvaluationSettings
from avsseg.evaluation.report import choose_clips, write_report
from avsseg.evaluation.strips import outlined
from avsseg.weights.store import LoadedModel

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_report_is_one_self_contained_page(scenes: Path, listener: LoadedModel, tmp_path: Path) -> None:
    evaluation = Evaluation(listener, EvaluationSettings(scenes, negatives=("silence",), workers=0))
    result = evaluation.run()
    page = write_report(tmp_path / "report", evaluation, result).read_text()
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    assert "://" not in page
    assert page.count("<figure>") == len({c["index"] for c in result["per_clip"] if not math.isnan(c["M_J"])})
    for name in ("Best", "Median", "Worst", "sound replaced by"):
        assert name in page
    assert f"{result['M_J']:.4f}" in page


def test_clips_of_a_report_are_the_best_the_middle_and_the_worst() -> None:
    clips = [{"M_J": value / 10, "index": value} for value in (3, 9, 1, 7, 5, 0, 8, 2, 6)]
    clips.append({"M_J": math.nan, "index": 99})
    chosen = choose_clips(clips, 2)
    assert [c["index"] for c in chosen["Best"]] == [9, 8]
    assert [c["index"] for c in chosen["Worst"]] == [1, 0]
    assert [c["index"] for c in chosen["Median"]] == [6, 5]
    for count in range(1, 4):
        few = choose_clips(clips[:count], 4)
        listed = [c["index"] for group in few.values() for c in group]
        assert len(listed) == len(set(listed)) == count
    two = choose_clips(clips[:2], 4)
    assert [[c["index"] for c in two[name]] for name in ("Best", "Median", "Worst")] == [[9], [], [3]]


@pytest.mark.parametrize("protocol", ["strict", "avsbench"])
def test_table_and_page_say_what_the_figures_are_over(
    scenes: Path, listener: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    settings = EvaluationSettings(scenes, protocol=protocol, batch=2, workers=0, size=32)  # type: ignore[arg-type]
    evaluation = Evaluation(listener, settings)
    result = evaluation.run()
    print_tables(result)
    page = write_report(tmp_path, evaluation, result).read_text()
    for shown in (capsys.readouterr().out, page):
        assert "listener on ms3 test" in shown
        assert "3 clips, protocol " + protocol in shown
        assert "input 32 px" in shown
        assert f"truth at {'its own size' if protocol == 'strict' else '32 px'}" in shown
        assert ("2 clip(s) a batch" in shown) == (protocol == "avsbench")
        assert ("each part as if its clips were all, 2 a batch" in shown) == (protocol == "avsbench")
        assert ("M_J and M_F are over the frames with truth" in shown) == (protocol == "strict")
        assert ("M_J is over all frames, M_F over those with truth" in shown) == (protocol == "avsbench")
        rows = [re.findall(r"[\w.-]+", re.sub("<[^>]*>", " ", row)) for row in re.split("\n|</tr>", shown)]
        for count, part in result["per_sources"].items():
            figures = [f"{part['M_J']:.4f}", f"{part['M_F']:.4f}", str(part["frames_with_truth"]), str(part["frames"])]
            assert [count, *figures] in rows


def test_swaps_that_are_not_sure_to_be_wrong_are_told_of(
    scenes: Path, listener: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    (folder / "Multi-sources" / "clips.json").unlink()
    evaluation = Evaluation(listener, EvaluationSettings(folder, negatives=("swap",), workers=0))
    result = evaluation.run()
    told = "3 of 3 clips got a sound that may belong to something in their picture"
    for unsure in (3, 0):
        result["negatives"]["swap"]["clips_without_fitting_partner"] = unsure
        print_tables(result)
        page = write_report(tmp_path / "report", evaluation, result).read_text()
        for shown in (capsys.readouterr().out, page):
            assert (told in shown) == (unsure > 0)
            assert ("got a sound" in shown) == (unsure > 0)


@pytest.mark.parametrize("shade", [(60, 200, 90), (0, 0, 0), (255, 255, 255), (128, 128, 128)])
def test_a_mask_is_seen_on_a_thing_of_any_colour(shade: tuple[int, int, int]) -> None:
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:] = 1
    drawn = np.asarray(outlined(Image.new("RGB", (32, 32), shade), labels, (60, 200, 90)))
    assert drawn[16, 8].tolist() == [0, 0, 0]
    assert drawn[16, 7].tolist() == [255, 255, 255]
    assert drawn[2, 2].tolist() == list(shade)
    # no line where the mask ends with the picture
    assert (drawn[16, 20:] == drawn[16, 20]).all()
    assert np.array_equal(outlined(Image.new("RGB", (32, 32), shade), 0 * labels, None), np.full((32, 32, 3), shade))


def seen_by_browser(page: Path, scratch: Path) -> dict[str, Any]:
    """What a headless Chromium makes of a page: its pictures' widths, what it fetched and what it complained of."""
    assert BROWSER is not None
    scratch.mkdir()
    frame = scratch / "frame.html"
    frame.write_text(
        f"""<iframe src="{page.as_uri()}" width="1200" height="800"></iframe><pre></pre><script>
        onload = () => {{
            const inside = document.querySelector("iframe");
            const said = {{
                title: inside.contentDocument.title,
                widths: Array.from(inside.contentDocument.images, (image) => image.naturalWidth),
                tables: inside.contentDocument.querySelectorAll("table").length,
                overflow: inside.contentDocument.documentElement.scrollWidth,
                fetched: inside.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
            }};
            document.querySelector("pre").textContent = JSON.stringify(said);
        }};</script>"""
    )
    outcome = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={scratch / 'profile'}",
            "--virtual-time-budget=5000", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = re.search("<pre>(.+?)</pre>", outcome.stdout)
    assert said, outcome.stderr
    complaints = [line for line in outcome.stderr.splitlines() if "CONSOLE" in line]
    seen: dict[str, Any] = json.loads(said.group(1))
    return {**seen, "complaints": complaints}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_a_browser_shows_the_page_and_asks_for_nothing_else(
    scenes: Path, listener: LoadedModel, tmp_path: Path
) -> None:
    evaluation = Evaluation(listener, EvaluationSettings(scenes, negatives=("silence",), workers=0))
    result = evaluation.run()
    page = write_report(tmp_path / "report", evaluation, result)
    seen = seen_by_browser(page, tmp_path / "first")
    assert seen["title"] == "listener on ms3 test"
    assert seen["tables"] == 4
    assert len(seen["widths"]) == page.read_text().count("<figure>") > 0
    assert min(seen["widths"]) > 600
    assert seen["overflow"] <= 1200
    assert (seen["fetched"], seen["complaints"]) == ([], [])
    # and the browser would have told
    broken = tmp_path / "broken.html"
    text = page.read_text().replace("data:image/png;base64,", "data:image/png;base64,x", 1)
    broken.write_text(text + '<img src="http://127.0.0.1:9/picture.png"><script>console.error("wrong")</script>')
    seen = seen_by_browser(broken, tmp_path / "second")
    assert seen["widths"][0] == 0
    assert seen["fetched"] == ["http://127.0.0.1:9/picture.png"]
    assert any("wrong" in line for line in seen["complaints"])
