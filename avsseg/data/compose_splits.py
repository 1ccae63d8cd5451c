"""Which split each source belongs to: as a table says, or drawn by a hash of the names."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from avsseg.data.avsbench import SplitName
from avsseg.errors import DataError, printable

Kind = Literal["scene", "cutout", "backdrop"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
TABLE_NAME = "splits.csv"
# a tenth of the groups each for validation and test, but one at least
HELD_OUT_SHARE = 0.1
FEWEST_GROUPS = 3


@dataclass(frozen=True)
class Row:
    """What a table says about one file."""

    split: SplitName
    kind: Kind = "scene"
    weight: float = 1.0


def read_table(folder: Path) -> dict[str, Row] | None:
    """Name -> row of the folder's `splits.csv`, None without one. Raises DataError naming the row that is wrong."""
    table = folder / TABLE_NAME
    if not table.is_file():
        return None
    reader = csv.DictReader(read_text(table).splitlines())
    if not {"name", "split"} <= set(reader.fieldnames or ()):
        raise DataError(f"{printable(table)}: needs the columns name and split")
    lines = list(reader)
    twice = [name for name, count in Counter(line["name"] for line in lines).items() if count > 1]
    if twice:
        raise DataError(f"{printable(table)}: names {twice[0]} twice")
    return {line["name"]: _row(table, line) for line in lines}


def _row(table: Path, line: dict[str, str]) -> Row:
    name, kind, weight = line["name"], line.get("kind") or "scene", line.get("weight") or "1"
    split: SplitName | None = next((known for known in SPLIT_NAMES if known == line["split"]), None)
    if split is None:
        raise DataError(f"{printable(table)}: split of {name} is {line['split']!r}, not train, val or test")
    known_kind = next((known for known in KINDS if known == kind), None)
    if known_kind is None:
        raise DataError(f"{printable(table)}: kind of {name} is {kind!r}, not {', '.join(KINDS)}")
    try:
        number = float(weight)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise DataError(f"{printable(table)}: weight of {name} is {weight!r}, not a number from 0 to 1")
    return Row(split, known_kind, number)


def read_text(path: Path) -> str:
    """A UTF-8 file, a byte-order mark left out. Raises DataError if it is none or cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(path)}: cannot be read as UTF-8 text ({error})") from error


def draw_splits(
    files: Sequence[tuple[Path, int]], contents: Sequence[bytes], folder: Path, *, unrelated: bool = False
) -> tuple[list[SplitName], dict[int, int]]:
    """A split for each (file under `folder`, class), and the groups of each class: a tenth each for val and test.

    Files of one folder whose names differ in a number at their end only are one group, unless they are `unrelated`,
    and so are files of equal `contents` (a digest a file). Val and test get a group at least; a class of fewer than
    three groups is trained on alone. The draw depends on the names below `folder` only, not on where it lies.
    """
    places = [path.relative_to(folder) for path, _ in files]
    groups = _joined([_recording_of(place, unrelated=unrelated) for place in places], contents)
    members: dict[int, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for group, (_, class_index) in zip(groups, files, strict=True):
        if group not in seen:
            seen.add(group)
            members[class_index].add(group)
    split_of: dict[str, SplitName] = {}
    for names in members.values():
        ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
        held_out = max(1, round(HELD_OUT_SHARE * len(ordered))) if len(ordered) >= FEWEST_GROUPS else 0
        for index, name in enumerate(ordered):
            split_of[name] = "test" if index < held_out else "val" if index < 2 * held_out else "train"
    return [split_of[group] for group in groups], {k: len(names) for k, names in members.items()}


def _joined(names: Sequence[str], contents: Sequence[bytes]) -> list[str]:
    """The group of each file: its name, or that of the group with which one of its own shares a content."""
    by_content: dict[bytes, str] = {}
    merged: dict[str, str] = {}

    def root(name: str) -> str:
        while name in merged:
            name = merged[name]
        return name

    for name, content in zip(names, contents, strict=True):
        group = root(name)
        same = root(by_content.setdefault(content, group))
        if same != group:
            merged[group] = same
    return [root(name) for name in names]


def _recording_of(place: Path, *, unrelated: bool) -> str:
    """dog/walk_012.jpg, dog/walk (12).jpg -> dog/walk, if not `unrelated`; a number alone stays what it is."""
    name = place.stem if unrelated else re.sub(r"[-_. ]*([0-9]+|\([0-9]+\))$", "", place.stem) or place.stem
    return f"{place.parent.as_posix()}/{name}"
