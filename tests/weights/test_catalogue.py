from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avsseg.errors import EnvironmentFault, UsageError, WeightsError
from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.vim import VIM
from avsseg.model.backbones.vmamba import VMAMBA
from avsseg.model.config import VISUAL_BACKBONES
from avsseg.weights.cache import (
    cache_dir,
    cached_file,
    cached_size,
    expected_sha256,
    find_weights,
    obtain,
    partial_size,
    verify,
    weights_dir,
)
from avsseg.weights.catalogue import CATALOGUE, CatalogueEntry, catalogue_entry
from avsseg.weights.download import Patience

QUICK = Patience(5.0, 2, 0.01)
SHAPES = json.loads((Path(__file__).parents[1] / "data" / "state_dict_shapes.json").read_text())


def saved(*, zipped: bool = True) -> bytes:
    """A state dict as torch.save writes it, 500 kB long."""
    file = io.BytesIO()
    tensors = {f"blocks.{i}.weight": torch.arange(25_000.0) + i for i in range(5)}
    torch.save({"model": tensors}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


BODY = saved()
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVSSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AVSSEG_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def entry(server: Any) -> CatalogueEntry:
    server[1].body = BODY
    return CatalogueEntry("made-up", "vggish", server[0], "MIT", "for tests")


def test_entries_are_complete_and_do_not_collide() -> None:
    assert len({entry.file_name for entry in CATALOGUE.values()}) == len(CATALOGUE)
    assert len({entry.url for entry in CATALOGUE.values()}) == len(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert entry.url.startswith("https://")
        assert "#" not in entry.url  # a fragment is never sent: VMamba's tags need %23
        assert entry.file_name.endswith(".pth")
        assert entry.licence
        assert entry.purpose
        assert entry.kind in (*VISUAL_BACKBONES, "vggish") or not entry.supported
        assert re.fullmatch(r"([0-9a-f]{8})?|[0-9a-f]{64}", entry.sha256_prefix)


def test_the_encoders_of_the_paper_are_there() -> None:
    assert {"vggish", "resnet50", "resnet50-detr", *(f"pvt_v2_b{i}" for i in range(6))} <= set(CATALOGUE)
    assert catalogue_entry("vggish").sha256_prefix == "10086976"
    assert catalogue_entry("resnet50").sha256_prefix == "19c8e357"
    assert catalogue_entry("pvt_v2_b5").sha256_prefix == ""
    with pytest.raises(UsageError, match=r"no published weights.*pvt_v2_b5"):
        catalogue_entry("pvt")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "home"
    monkeypatch.setenv("AVSSEG_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "avsseg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "avsseg"


@pytest.mark.skipif(os.name == "nt", reason="Windows takes any user's folder to lie beside one's own")
def test_a_home_directory_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSEG_HOME", "~nosuch/x")
    with pytest.raises(EnvironmentFault, match=r"^~nosuch/x: no place for weights.*Set AVSSEG_HOME to a folder$"):
        cache_dir()


def test_a_cache_that_cannot_be_read_is_named(
    entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    # root can read any folder, but none inside a file or of such a name
    for folder in (tmp_path / "file", tmp_path / ("x" * 300)):
        monkeypatch.setenv("AVSSEG_HOME", str(folder))
        for use in (cached_size, verify, obtain, expected_sha256):
            with pytest.raises(WeightsError, match=rf"cannot be read \(.*Make {folder} a folder .*set AVSSEG_HOME"):
                use(entry)


def test_short_names_of_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue_entry("vmamba-t") is CATALOGUE["vmamba-tiny-s1l8"]
    assert catalogue_entry("pvt-v2-b5") is CATALOGUE["pvt_v2_b5"]
    assert all(catalogue_entry(name) is entry for name, entry in CATALOGUE.items())
    with pytest.raises(WeightsError, match=r"vssm1_tiny_0230s_ckpt_epoch_264\.pth: not in the cache, and offline"):
        find_weights("vmamba-t", offline=True)


def count(shapes: dict[str, Any]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.slow
def test_lower_bounds_are_the_bytes_of_the_modules_and_their_classifiers() -> None:
    assert CATALOGUE["vggish"].min_bytes == 4 * count(SHAPES["vggish"])
    for kind in (*VMAMBA, *VIM):
        with torch.device("meta"):
            state = build_backbone(kind)[0].state_dict()
        ours = {n: t.shape for n, t in state.items() if not n.startswith(("outnorm", "feature_pyramid"))}
        width = VIM[kind].dim if kind in VIM else 8 * VMAMBA[kind].width
        classifier = {"weight": (1000, width), "bias": (1000,)} | ({} if kind in VIM else {"norm": (2, width)})
        assert CATALOGUE[kind].min_bytes == 4 * (count(ours) + count(classifier)), kind
    for name, embeddings in (("vim-tiny", 192), ("vim-small", 384)):
        more = CATALOGUE[f"{name}-stride8"].min_bytes - CATALOGUE[name].min_bytes
        assert more == 4 * (730 - 197) * embeddings
    for name in (name for name in CATALOGUE if name.startswith("pvt")):
        # a bound above the real size would refuse every download
        assert 0.9 * 4 * count(SHAPES[name]) < CATALOGUE[name].min_bytes < 4 * count(SHAPES[name])
    assert all(entry.min_bytes for entry in CATALOGUE.values())


def offered_whole(does: Any) -> None:
    """The file that `server` announces is the whole one again."""
    does.body, does.cuts, does.length_lie, does.tells_length = BODY, [], 0, True


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length_lie": -1000}, "is cut off: the zip directory at its end is missing"),
        ({"length_lie": 200_000 - len(BODY)}, "is cut off: the zip directory at its end is missing"),
        ({"length_lie": -1}, "is cut off: the zip directory at its end is missing"),
        ({"tells_length": False, "cuts": [200_000]}, "is cut off: the zip directory at its end is missing"),
        ({"tells_length": False, "cuts": [200_000], "etag": False}, "is cut off"),
        ({"body": saved(zipped=False), "length_lie": -1000}, "cannot be read to its end as a file of tensors"),
        ({"body": b"<!DOCTYPE html><html><title>Log in</title></html>"}, r"neither a PyTorch nor .*b'<!DOCTYPE'"),
        ({"body": b""}, r"neither a PyTorch nor .*b''"),
    ],
)
def test_a_part_that_a_server_calls_the_whole_is_refused(
    entry: CatalogueEntry, server: Any, wrong: dict[str, Any], message: str
) -> None:
    for name, value in wrong.items():
        setattr(server[1], name, value)
    with pytest.raises(WeightsError, match=message) as caught:
        obtain(entry, patience=QUICK)
    assert str(caught.value).startswith(f"{server[0]}: ")
    assert str(caught.value).endswith("It was thrown away; try again, or ask its publisher")
    assert "\n" not in str(caught.value)
    assert list(weights_dir().iterdir()) == []  # no file, no part, no digest
    offered_whole(server[1])
    assert obtain(entry, patience=QUICK).read_bytes() == BODY
    assert expected_sha256(entry) == DIGEST


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("tells_length", [True, False])
def test_whole_files_of_either_format_are_taken(
    entry: CatalogueEntry, server: Any, zipped: bool, tells_length: bool
) -> None:
    server[1].body, server[1].tells_length = saved(zipped=zipped), tells_length
    assert obtain(entry, patience=QUICK).read_bytes() == server[1].body
    assert expected_sha256(entry) == hashlib.sha256(server[1].body).hexdigest()


def test_a_file_below_its_lower_bound_is_refused(entry: CatalogueEntry, server: Any) -> None:
    larger = dataclasses.replace(entry, parameters=1 << 20)
    with pytest.raises(WeightsError, match=r"has 0\.5 MiB, a whole one at least 4\.0 MiB\. It was thrown away"):
        obtain(larger, patience=QUICK)
    assert list(weights_dir().iterdir()) == []
    obtain(dataclasses.replace(entry, parameters=len(BODY) // 4), patience=QUICK)


def test_a_damaged_part_is_fetched_again_without_a_digest(entry: CatalogueEntry, server: Any) -> None:
    server[1].cuts = [300_000]
    with pytest.raises(WeightsError, match="the connection was cut"):
        obtain(entry, patience=Patience(5.0, 1, 0.0))
    part = cached_file(entry).with_name("weights.pth.partial")
    part.write_bytes(part.read_bytes()[:-1000] + bytes(1000))
    assert obtain(entry, patience=QUICK).read_bytes() == BODY
    assert [request.get("Range") for request in server[1].requests] == [None, "bytes=300000-", None]


def test_the_digest_is_recorded_and_holds_ever_after(entry: CatalogueEntry, server: Any) -> None:
    path = obtain(entry, patience=QUICK)
    assert path == weights_dir() / "weights.pth"
    assert json.loads((weights_dir() / "checksums.json").read_text()) == {"weights.pth": {"sha256": DIGEST}}
    assert verify(entry).verdict == "ok"
    assert obtain(entry, offline=True) == path
    assert sorted(p.name for p in weights_dir().iterdir()) == ["checksums.json", "weights.pth"]
    path.write_bytes(b"damaged")
    assert verify(entry).verdict == "differs"
    with pytest.raises(WeightsError, match=r"Remove the file, then run: avsseg weights download made-up"):
        obtain(entry)
    path.unlink()
    server[1].body = b"replaced by its publisher"
    with pytest.raises(WeightsError, match=r"thrown away.*checksums\.json"):
        obtain(entry, patience=QUICK)
    assert not path.exists()
    server[1].body = BODY
    assert obtain(entry, patience=QUICK) == path


def test_a_known_prefix_is_held_against_the_first_download(entry: CatalogueEntry, server: Any) -> None:
    named = dataclasses.replace(entry, url=entry.url.replace("weights.pth", "weights-00000000.pth"))
    with pytest.raises(WeightsError, match="expected 00000000"):
        obtain(named, patience=QUICK)
    named = dataclasses.replace(entry, url=entry.url.replace("weights.pth", f"weights-{DIGEST[:8]}.pth"))
    obtain(named, patience=QUICK)
    assert expected_sha256(named) == DIGEST


def test_a_file_put_there_by_hand_is_recorded(entry: CatalogueEntry, server: Any) -> None:
    assert verify(entry).verdict == "missing"
    weights_dir().mkdir(parents=True)
    cached_file(entry).write_bytes(BODY)
    assert verify(entry).verdict == "recorded"
    assert verify(entry).verdict == "ok"
    assert obtain(entry) == cached_file(entry)
    assert server[1].requests == []


def test_a_damaged_file_put_there_by_hand_is_not_recorded(entry: CatalogueEntry) -> None:
    weights_dir().mkdir(parents=True)
    cached_file(entry).write_bytes(BODY[:-1000])
    check = verify(entry)
    assert (check.verdict, check.expected) == ("damaged", "")
    assert "is cut off" in check.fault
    with pytest.raises(WeightsError, match=r"is cut off.*Remove the file, then run: avsseg weights download made-up"):
        obtain(entry)
    assert expected_sha256(entry) == ""
    cached_file(entry).unlink()
    assert obtain(entry, patience=QUICK) == cached_file(entry)


def test_two_files_finished_at_once_are_both_recorded(
    entry: CatalogueEntry, in_threads: Callable[..., list[Any]]
) -> None:
    entries = [dataclasses.replace(entry, url=entry.url.replace("weights", f"w{i}")) for i in range(4)]
    waiting = list(entries)
    in_threads(lambda: obtain(waiting.pop(), patience=QUICK), len(entries))
    assert len(json.loads((weights_dir() / "checksums.json").read_text())) == len(entries)


def test_damaged_checksums_are_named(entry: CatalogueEntry) -> None:
    weights_dir().mkdir(parents=True)
    (weights_dir() / "checksums.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"checksums\.json: not a list of checksums"):
        obtain(entry)


def test_names_and_files(entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.pth"
    mine.touch()
    assert find_weights(mine) == mine
    with pytest.raises(WeightsError, match=r"neither a file nor published weights. Names: pvt_v2_b0"):
        find_weights("absent.pth")
    with pytest.raises(WeightsError, match=r"vggish-10086976\.pth: not in the cache, and offline"):
        find_weights("vggish", offline=True)
    monkeypatch.setitem(CATALOGUE, "made-up", entry)
    assert find_weights("made-up") == cached_file(entry)


def test_an_interrupted_download_is_seen(entry: CatalogueEntry, server: Any) -> None:
    assert partial_size(entry) == 0
    server[1].cuts = [100]
    with pytest.raises(WeightsError):
        obtain(entry, patience=Patience(5.0, 1, 0.0))
    assert partial_size(entry) == 100
