from __future__ import annotations

import numpy as np
import pytest

from avsseg.media.captions import LONGEST_SIDE, Caption, can_draw, picture_size, with_captions

TINT = (255, 64, 0, 140)


def drawn(*captions: Caption, height: int = 120, width: int = 200) -> np.ndarray:
    """Where a picture of one colour differs once captions are drawn, (H, W)."""
    picture = np.full((height, width, 4), TINT, np.uint8)
    shown = with_captions(picture, captions)
    assert (picture == TINT).all()
    assert shown.shape == picture.shape
    assert shown.dtype == np.uint8
    return (shown != TINT).any(-1)


def test_a_name_is_white_on_black_and_nothing_else_changes() -> None:
    shown = with_captions(np.full((540, 960, 4), TINT, np.uint8), [Caption("dog", 0.5, 0.5)])
    assert (shown == 255).all(-1).sum() > 20
    assert (shown == (0, 0, 0, 255)).all(-1).sum() > 20
    assert drawn(Caption("dog", 0.5, 0.5)).mean() < 0.03
    assert not drawn().any()


def test_a_name_is_centred_above_what_it_names() -> None:
    rows, columns = np.nonzero(drawn(Caption("violin", 0.6, 0.5)))
    assert rows.max() == pytest.approx(60, abs=2)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(120, abs=2)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_name_at_the_edge_is_moved_into_the_picture(x: float, y: float) -> None:
    assert drawn(Caption("trombone", x, y)).sum() == pytest.approx(drawn(Caption("trombone", 0.5, 0.5)).sum(), rel=0.1)


@pytest.mark.parametrize("y", [0.0, 0.5, 1.0])
def test_names_do_not_cover_one_another(y: float) -> None:
    names = [Caption("dog", 0.5, y), Caption("violin", 0.53, y), Caption("horse", 0.46, y + 0.02)]
    alone = sum(drawn(name).sum() for name in names)
    assert drawn(*names).sum() == pytest.approx(alone, rel=0.05)
    rows = np.nonzero(drawn(*names).any(1))[0]
    assert rows.max() - rows.min() < 60
    # side by side there is room
    first, second = Caption("dog", 0.2, y), Caption("cow", 0.8, y)
    assert (drawn(first, second) == drawn(first) | drawn(second)).all()


def test_names_without_room_for_all_stay_where_they_belong() -> None:
    names = [Caption("dog", 0.5, 0.5)] * 9
    assert drawn(*names, height=40).sum() > 1.9 * drawn(names[0], height=40).sum()


def test_a_name_longer_than_the_picture_begins_at_its_left() -> None:
    marked = drawn(Caption("a name that nobody can read here\nat all", 0.9, 0.5), width=60)
    columns = np.nonzero(marked.any(0))[0]
    assert columns.min() <= 2
    assert columns.max() >= 57
    assert marked.any(1).sum() < 14  # one line


def test_letters_follow_the_shorter_side() -> None:
    upright = drawn(Caption("saxophone", 0.5, 0.5), height=960, width=540)
    flat = drawn(Caption("saxophone", 0.5, 0.5), height=540, width=960)
    assert upright.sum() == flat.sum() > 0


def test_letters_outside_ascii_need_a_font_of_the_machine() -> None:
    assert can_draw("dog")
    assert drawn(Caption("Hündin", 0.5, 0.5)).any() == can_draw("Hündin")


def test_the_picture_has_the_shape_of_the_video_and_a_largest_side() -> None:
    assert picture_size(80, 60) == (60, 80)
    assert picture_size(1920, 1080) == (360, LONGEST_SIDE)
    assert picture_size(1080, 1920) == (LONGEST_SIDE, 360)
    assert picture_size(5000, 1) == (1, LONGEST_SIDE)
