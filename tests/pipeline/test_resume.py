from __future__ import annotations

from dataclasses import replace

import pytest

from avsseg.pipeline.journal import Origin
from avsseg.pipeline.options import FORMATS, Format, OutputOptions, SegmentOptions
from avsseg.pipeline.resume import difference, settings_of

HELD = Origin("/videos/a.mp4", 10, 1, settings_of(SegmentOptions(), OutputOptions()), "tiny", "ab" * 32)


@pytest.mark.parametrize("name", FORMATS)
def test_interpolation_makes_other_videos_and_nothing_else(name: Format) -> None:
    mixed = replace(HELD, settings=settings_of(SegmentOptions(), OutputOptions(interpolate="linear")))
    differs = difference(HELD, mixed, name)
    if name in ("overlay", "matte", "cutout"):
        assert differs == "with other settings (interpolate hold, now linear)"
    else:
        assert differs == ""


@pytest.mark.parametrize("name", FORMATS)
def test_names_make_other_overlays_and_nothing_else(name: Format) -> None:
    bare = replace(HELD, settings=settings_of(SegmentOptions(), OutputOptions(names=False)))
    differs = difference(HELD, bare, name)
    assert differs == ("with other settings (names True, now False)" if name == "overlay" else "")


def test_overlays_of_before_there_were_names_have_none() -> None:
    old = replace(HELD, settings={key: value for key, value in HELD.settings.items() if key != "names"})
    bare = replace(HELD, settings=settings_of(SegmentOptions(), OutputOptions(names=False)))
    assert difference(old, bare, "overlay") == ""
    assert difference(old, HELD, "overlay") == "with other settings (names False, now True)"
    assert difference(old, HELD, "coco") == ""


@pytest.mark.parametrize("name", FORMATS)
def test_a_threshold_makes_everything_other(name: Format) -> None:
    other = replace(HELD, settings=settings_of(SegmentOptions(), OutputOptions(threshold=0.3)))
    assert difference(HELD, other, name) == "with other settings (threshold 0.5, now 0.3)"


def test_another_audio_track_is_another_result_and_old_journals_heard_the_usual_one() -> None:
    other = replace(HELD, settings=settings_of(SegmentOptions(audio_track=2), OutputOptions()))
    assert "audio_track None, now 2" in difference(HELD, other, "coco")
    before = {name: value for name, value in HELD.settings.items() if name != "audio_track"}
    assert difference(replace(HELD, settings=before), HELD, "coco") == ""
    assert "audio_track None, now 2" in difference(replace(HELD, settings=before), other, "coco")
