from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avsseg.errors import UsageError, WeightsError
from avsseg.model.config import VISUAL_BACKBONES
from avsseg.weights.cache import (
    cache_dir,
    cached_file,
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
BODY = b"weights" * 1000
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
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "avsseg"


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
