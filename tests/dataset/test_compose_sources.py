"""Reading pictures, masks and recordings; splits that nothing crosses."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from avsseg.data.avsbench_files import open_image
from avsseg.data.compose_sources import Sources, check_splits, decode_sound, names_in_two_splits, read_sources
from avsseg.data.compose_splits import draw_splits
from avsseg.errors import AvssegError, DataError, MediaError, UsageError
from avsseg.media.ffmpeg import find_ffmpeg

WriteSources = Callable[..., Path]


def read(folder: Path) -> Sources:
    return read_sources(folder / "images", folder / "masks", folder / "sounds")


@pytest.fixture
def small(write_sources: WriteSources, tmp_path: Path) -> Path:
    return write_sources(tmp_path / "small", {"dog": 3, "cat": 3}, {"dog": 3, "bell": 1})


def test_classes_areas_and_samples(sources: Sources) -> None:
    assert sources.classes == ("background", "dog", "cat", "bird", "cup", "bell", "siren")
    assert sources.visible == 5
    picture = next(p for p in sources.pictures if p.name == "cat_0x")
    (index, area), image_and_map = picture.areas[0], picture.read()
    assert index == 2
    assert area == pytest.approx(np.mean(np.asarray(image_and_map[1]) == 2))
    coloured = np.all(np.asarray(image_and_map[0]) == (0, 255, 0), axis=2)
    assert np.array_equal(np.asarray(image_and_map[1]) == 2, coloured)
    assert all(s.samples.shape == (32_000,) and s.samples.dtype == np.int16 for s in sources.sounds)


def test_a_folder_a_class_needs_no_list(small: Path) -> None:
    for kind in ("images", "masks"):
        for name in ("dog", "cat"):
            (small / kind / name).mkdir()
            for path in (small / kind).glob(f"{name}_*.png"):
                shutil.move(path, small / kind / name)
    (small / "masks/classes.txt").unlink()
    found = read(small)
    assert found.classes == ("background", "cat", "dog", "bell")
    assert {p.name: [k for k, _ in p.areas] for p in found.pictures}["dog/dog_0x"] == [2]


def test_mp3_ogg_and_stereo_are_read(small: Path) -> None:
    wav, program = small / "sounds/dog/0x.wav", str(find_ffmpeg().path)
    for name in ("a.mp3", "b.ogg", "c.flac"):
        target = small / "sounds/dog" / name
        subprocess.run([program, "-v", "error", "-i", wav, "-ac", "2", "-ar", "44100", target], check=True)
        samples = decode_sound(target)
        assert abs(len(samples) - 32_000) < 2000
        assert 0.15 < np.abs(samples).max() / 32768 < 0.35  # mono spread to stereo is 3 dB quieter


def test_masks_may_have_a_palette_a_bit_or_equal_channels(small: Path) -> None:
    mask = small / "masks/dog_0x.png"
    expected = read(small).pictures
    values = np.asarray(Image.open(mask))
    palette = Image.fromarray(values, "L").convert("P")
    palette.putdata(values.ravel().tolist())
    for image in (palette, Image.fromarray(values > 0), Image.fromarray(values).convert("RGB")):
        image.save(mask)
        assert read(small).pictures == expected


def test_a_mask_may_end_in_capitals(small: Path) -> None:
    expected = read(small).pictures
    mask = small / "masks/dog_0x.png"
    mask.rename(mask.with_suffix(".PNG"))
    assert [picture.name for picture in read(small).pictures] == [picture.name for picture in expected]


def test_masks_of_a_folder_a_class_are_what_they_look_like(small: Path) -> None:
    for kind in ("images", "masks"):
        (small / kind / "dog").mkdir()
        for path in (small / kind).glob("dog_*.png"):
            shutil.move(path, small / kind / "dog")
        for path in (small / kind).glob("cat_*.png"):
            path.unlink()
    (small / "masks/classes.txt").unlink(missing_ok=True)
    mask = small / "masks/dog/dog_0x.png"
    marked = np.asarray(Image.open(mask)) > 0
    white = Image.fromarray(marked.astype(np.uint8) * 255)
    white.save(mask)
    expected = read(small).pictures
    # index 0 is white, as quantize() makes it; a cutout of any colours; white beside what is transparent white
    backwards = Image.fromarray((~marked).astype(np.uint8), "P")
    backwards.putpalette([255, 255, 255, 0, 0, 0])
    cutout = Image.new("RGBA", white.size, (200, 120, 90))
    cutout.putalpha(white)
    grey = Image.merge("LA", (Image.new("L", white.size, 255), white))
    for image in (backwards, cutout, grey):
        image.save(mask)
        assert read(small).pictures == expected


def test_pictures_of_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    seen = np.asarray(open_image(tmp_path / "deep.png", "RGB"))
    assert np.array_equal(seen, np.repeat((ramp >> 8)[..., None], 3, axis=2))
    Image.fromarray(np.float32(ramp)).save(tmp_path / "real.tiff")
    with pytest.raises(DataError, match=r"real\.tiff: not an image that can be read"):
        open_image(tmp_path / "real.tiff", "RGB")


def test_a_picture_of_a_few_pixels_is_too_small(small: Path) -> None:
    for side in (1, 7):
        for kind in ("images", "masks"):
            Image.new("L", (side, side), 1).save(small / kind / f"dot.{'jpg' if kind == 'images' else 'png'}")
        with pytest.raises(DataError, match=rf"dot\.jpg: is {side}x{side}, must be"):
            read(small)


def _as_stored(shown: Image.Image, orientation: int) -> Image.Image:
    """What a camera stores that notes the orientation: undoes how viewers turn it."""
    turned: Image.Image = shown
    for method in {
        2: (Image.Transpose.FLIP_LEFT_RIGHT,), 3: (Image.Transpose.ROTATE_180,), 4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,), 6: (Image.Transpose.ROTATE_90,), 7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }[orientation]:  # fmt: skip
        turned = turned.transpose(method)
    return turned


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_are_turned_as_viewers_turn_them(small: Path, orientation: int, suffix: str) -> None:
    path = small / "images/dog_0x.png"
    shown = Image.open(path).convert("RGB")
    path.unlink()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options: dict[str, Any] = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    stored = _as_stored(shown, orientation)
    stored.save(path.with_suffix(suffix), exif=exif, **options)
    picture = next(p for p in read(small).pictures if p.name == "dog_0x")
    image, classes = picture.read()
    red = np.asarray(image).astype(int)
    coloured = (red[..., 0] - red[..., 1]) > 128
    assert image.size == classes.size == shown.size
    assert np.mean(coloured == (np.asarray(classes) == 1)) > 0.98
    backdrop, _ = replace(picture, kind="backdrop").read()
    assert np.array_equal(np.asarray(backdrop), np.asarray(image))


def test_a_mask_of_the_stored_size_keeps_the_picture_as_stored(small: Path) -> None:
    path = small / "images/dog_0x.png"
    expected = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    expected.save(path, exif=exif)
    image, classes = next(p for p in read(small).pictures if p.name == "dog_0x").read()
    assert image.size == classes.size == (80, 60)
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    Image.new("L", (70, 60)).save(small / "masks/dog_0x.png")
    with pytest.raises(DataError, match=r"masks/dog_0x\.png: is 70x60, its picture 60x80"):
        read(small)


@pytest.mark.parametrize("value", [None, 1, 0, 9])
def test_pictures_without_a_known_orientation_are_as_stored(small: Path, value: int | None) -> None:
    path = small / "images/dog_0x.png"
    expected = Image.open(path).convert("RGB")
    exif = Image.Exif()
    if value is not None:
        exif[ExifTags.Base.Orientation] = value
    expected.save(path, exif=exif)
    image, _ = next(p for p in read(small).pictures if p.name == "dog_0x").read()
    assert image.tobytes() == expected.tobytes()


def test_damaged_exif_keeps_no_picture_out(small: Path) -> None:
    path = small / "images/dog_0x.png"
    expected = Image.open(path).convert("RGB")
    expected.save(path, exif=b"Exif\x00\x00no header of any kind")
    image, _ = next(p for p in read(small).pictures if p.name == "dog_0x").read()
    assert image.tobytes() == expected.tobytes()


def test_a_table_names_splits_kinds_and_weights(small: Path) -> None:
    names = [f"{name}_{i}x" for name in ("dog", "cat") for i in range(3)]
    rows = [f"{name},val,scene," for name in names[1:]]
    (small / "images/splits.csv").write_text(
        "name,split,kind,weight\n" + "\n".join(["dog_0x,test,backdrop,0.5", *rows])
    )
    (small / "masks/dog_0x.png").unlink()
    picture = next(p for p in read(small).pictures if p.name == "dog_0x")
    assert (picture.split, picture.kind, picture.weight, picture.areas) == ("test", "backdrop", 0.5, ())
    assert not np.asarray(picture.read()[1]).any()


def test_hidden_files_and_files_beside_the_class_folders_are_left_out(small: Path) -> None:
    (small / "sounds/README").write_text("text")
    (small / "sounds/dog/.DS_Store").write_text("text")
    (small / "images/._dog_0x.png").write_text("text")
    assert len(read(small).pictures) == 6
    assert len(read(small).sounds) == 4


def test_what_is_left_out_without_being_hidden_is_warned_of(small: Path) -> None:
    before = read(small)
    assert before.warnings == ()
    (small / "masks/old").mkdir()
    for name in ("extra.png", "old/1.png", "old/2.png", "old/3.png"):
        shutil.copy(small / "masks/dog_0x.png", small / "masks" / name)
    (small / "sounds/bell/@eaDir").mkdir()
    for name in ("dog/readme.txt", "dog/cover.JPG", "bell/@eaDir/0x.wav"):
        (small / "sounds" / name).write_text("no sound")
    found = read(small)
    assert found.warnings == (
        f"masks without a picture are left out: {small}/masks/extra.png, {small}/masks/old/1.png, "
        f"{small}/masks/old/2.png and 1 more",
        f"files that are no recordings are left out: {small}/sounds/bell/@eaDir/0x.wav, {small}/sounds/dog/cover.JPG, "
        f"{small}/sounds/dog/readme.txt",
    )
    assert [p.name for p in found.pictures] == [p.name for p in before.pictures]
    assert [(s.name, s.split) for s in found.sounds] == [(s.name, s.split) for s in before.sounds]


def test_masks_that_are_missing_are_counted_before_any_picture_is_decoded(small: Path) -> None:
    for path in (small / "masks").glob("*.png"):
        path.unlink()
    (small / "images/cat_0x.png").write_text("broken")
    with pytest.raises(DataError, match=r"^6 masks are missing: \S*cat_0x\.png, \S*cat_1x\.png, \S* and 3 more\. Add"):
        read(small)


def _edit(folder: Path, change: str) -> None:
    images, masks, sounds = (folder / kind for kind in ("images", "masks", "sounds"))
    match change:
        case "no folder":
            shutil.rmtree(masks)
        case "no pictures":
            shutil.rmtree(images)
            images.mkdir()
        case "no recordings":
            shutil.rmtree(sounds)
            sounds.mkdir()
        case "no mask":
            (masks / "dog_1x.png").unlink()
        case "other size":
            Image.new("L", (60, 80)).save(masks / "dog_1x.png")
        case "broken picture":
            whole = (images / "dog_1x.png").read_bytes()
            (images / "dog_1x.png").write_bytes(whole[: len(whole) // 2])
        case "broken recording":
            (sounds / "dog/1x.wav").write_text("no sound")
        case "silent recording":
            shutil.copy(sounds / "dog/0x.wav", sounds / "dog/1x.wav")
            data = bytearray((sounds / "dog/1x.wav").read_bytes())
            data[44:] = bytes(len(data) - 44)
            (sounds / "dog/1x.wav").write_bytes(data)
        case "class beyond":
            Image.fromarray(np.full((60, 80), 3, np.uint8)).save(masks / "dog_1x.png")
        case "colours":
            Image.new("RGB", (80, 60), (255, 0, 0)).save(masks / "dog_1x.png")
        case "tiny":
            Image.new("RGB", (8, 8)).save(images / "dog_1x.png")
        case "twice":
            Image.new("RGB", (80, 60)).save(images / "dog_1x.jpg")
        case "no list":
            (masks / "classes.txt").unlink()
        case "background heard":
            shutil.copytree(sounds / "dog", sounds / "background")
        case "nothing in common":
            (sounds / "dog").rename(sounds / "wolf")
        case "table lacks":
            (images / "splits.csv").write_text("name,split\ndog_0x,train\n")
        case "table wrong":
            (images / "splits.csv").write_text("name,split\ndog_0x,trian\n")
        case "weight":
            (images / "splits.csv").write_text("name,split,weight\ndog_0x,train,nan\n")
        case "latin":
            (masks / "classes.txt").write_bytes(b"background\nh\xe9ron\n")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("no folder", DataError, r"masks: no such folder"),
        ("no pictures", UsageError, r"images: holds no pictures"),
        ("no recordings", UsageError, r"sounds: holds no recordings"),
        ("no mask", DataError, r"masks/dog_1x\.png: missing"),
        ("other size", DataError, r"masks/dog_1x\.png: is 60x80, its picture 80x60"),
        ("broken picture", DataError, r"images/dog_1x\.png: not an image"),
        ("broken recording", MediaError, r"sounds/dog/1x\.wav: no sound can be decoded"),
        ("silent recording", MediaError, r"sounds/dog/1x\.wav: is silent"),
        ("class beyond", DataError, r"masks/dog_1x\.png: has class 3, classes\.txt ends at 2"),
        ("colours", DataError, r"masks/dog_1x\.png: is a picture in colours"),
        ("tiny", DataError, r"images/dog_1x\.png: is 8x8"),
        ("twice", DataError, r"images/dog_1x: two files of this name"),
        ("no list", DataError, r"classes\.txt: missing"),
        ("background heard", DataError, r"sounds/background: background is no class"),
        ("nothing in common", UsageError, r"no class has both"),
        ("table lacks", DataError, r"splits\.csv: lists no cat_0x"),
        ("table wrong", DataError, r"split of dog_0x is 'trian'"),
        ("weight", DataError, r"weight of dog_0x is 'nan'"),
        ("latin", DataError, r"classes\.txt: cannot be read as UTF-8"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(small: Path, change: str, error: type[AvssegError], message: str) -> None:
    _edit(small, change)
    with pytest.raises(error, match=message) as caught:
        read(small)
    assert "\n" not in str(caught.value)


def _files(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
    return [(folder / name, 1) for name in names]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 2}),
        (3, {"train": 1, "val": 1, "test": 1}),
        (4, {"train": 2, "val": 1, "test": 1}),
        (30, {"train": 24, "val": 3, "test": 3}),
    ],
)
def test_splits_by_the_number_of_groups(groups: int, expected: dict[str, int]) -> None:
    names = [f"g{chr(97 + i // 26)}{chr(97 + i % 26)}_{frame}.jpg" for i in range(groups) for frame in (1, 2)]
    splits, _ = draw_splits(_files(Path("x"), names), [name.encode() for name in names], Path("x"))
    assert Counter(splits) == {split: 2 * count for split, count in expected.items()}
    assert splits[::2] == splits[1::2]
    moved, _ = draw_splits(_files(Path("elsewhere/y"), names), [name.encode() for name in names], Path("elsewhere/y"))
    assert moved == splits


def test_numbered_files_that_are_unrelated() -> None:
    names = [f"dog_{i:03}.jpg" for i in range(1, 31)]
    contents = [name.encode() for name in names]
    contents[5] = contents[4]
    splits, groups = draw_splits(_files(Path("x"), names), contents, Path("x"))
    assert (Counter(splits), groups) == ({"train": 30}, {1: 1})
    splits, groups = draw_splits(_files(Path("x"), names), contents, Path("x"), unrelated=True)
    assert groups == {1: 29}
    assert min(splits.count(split) for split in ("train", "val", "test")) > 2
    assert splits[5] == splits[4]  # equal files stay together all the same
    # nor does the way in which they are numbered matter
    bracketed = [f"dog ({i}).jpg" for i in range(1, 31)]
    assert draw_splits(_files(Path("x"), bracketed), contents, Path("x"))[1] == {1: 1}
    # names without a number at their end are drawn as ever
    plain = [f"{name[:-4]}x.jpg" for name in names]
    drawn = [draw_splits(_files(Path("x"), plain), contents, Path("x"), unrelated=either) for either in (False, True)]
    assert drawn[0] == drawn[1]


def test_equal_names_in_folders_of_other_classes_are_other_groups() -> None:
    root = Path("sounds")
    files = [(root / name / "fold" / f"{i}.wav", k) for k, name in enumerate(("dog", "cat"), 1) for i in range(10)]
    splits, _ = draw_splits(files, [str(path).encode() for path, _ in files], root)
    assert Counter(splits[:10]) == Counter(splits[10:]) == {"train": 8, "val": 1, "test": 1}


def test_equal_contents_stay_together_through_chains() -> None:
    names = [f"{letter}_1.jpg" for letter in "abcdefghijkl"] + ["a_2.jpg", "b_2.jpg", "c_2.jpg"]
    contents = [name.encode() for name in names]
    contents[-3] = contents[-2] = b"ab"
    contents[1] = contents[-1] = b"bc"
    splits, _ = draw_splits(_files(Path("x"), names), contents, Path("x"))
    assert len({splits[i] for i in (0, 1, 2, 12, 13, 14)}) == 1


def test_frames_of_one_recording_and_copies_never_cross(write_sources: WriteSources, tmp_path: Path) -> None:
    folder = write_sources(tmp_path, {"dog": 20, "cat": 20}, {"dog": 20, "cat": 20})
    for i in range(12):
        for frame in range(3):
            for kind in ("images", "masks"):
                shutil.copy(folder / kind / f"dog_{i}x.png", folder / kind / f"walk{i}x_{frame:03}.png")
            image = np.asarray(Image.open(folder / f"images/walk{i}x_{frame:03}.png")).copy()
            image[0, 0] = frame  # not the bytes of dog_
            Image.fromarray(image).save(folder / f"images/walk{i}x_{frame:03}.png")
        shutil.copy(folder / f"images/cat_{i}x.png", folder / f"images/other{i}name.png")
        shutil.copy(folder / f"masks/cat_{i}x.png", folder / f"masks/other{i}name.png")
        shutil.copy(folder / f"sounds/cat/{i}x.wav", folder / f"sounds/cat/copy{i}y.wav")
        # the same samples, not the same bytes
        wav, program = folder / f"sounds/dog/{i}x.wav", str(find_ffmpeg().path)
        subprocess.run([program, "-v", "error", "-i", wav, wav.with_name(f"again{i}y.flac")], check=True)
    found = read(folder)
    check_splits(found)
    split_of = {p.name: p.split for p in found.pictures}
    for i in range(12):
        assert len({split_of[f"walk{i}x_{frame:03}"] for frame in range(3)}) == 1
        assert split_of[f"cat_{i}x"] == split_of[f"other{i}name"]
    assert {p.split for p in found.pictures} == {s.split for s in found.sounds} == {"train", "val", "test"}


def test_a_copy_that_a_table_puts_into_another_split_is_an_error(small: Path) -> None:
    shutil.copy(small / "sounds/dog/0x.wav", small / "sounds/dog/again.wav")
    rows = ["dog/0x.wav,train", "dog/1x.wav,val", "dog/2x.wav,test", "bell/0x.wav,train", "dog/again.wav,test"]
    (small / "sounds/splits.csv").write_text("name,split\n" + "\n".join(rows))
    found = read(small)
    assert names_in_two_splits(found.sounds) == ["dog/0x.wav", "dog/again.wav"]
    with pytest.raises(DataError, match=r"dog/0x\.wav and dog/again\.wav are the same but in two splits"):
        check_splits(found)
