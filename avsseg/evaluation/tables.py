"""What a result says in words and tables, the same on a terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# keys of a result and what they are called
_WHOLE = (
    ("M_J", "M_J"),
    ("M_F", "M_F"),
    ("M_J_without_background", "M_J without background"),
    ("M_F_without_background", "M_F without background"),
    ("dataset_iou", "IoU over the whole set"),
    ("frames", "frames"),
    ("frames_with_truth", "frames with truth"),
    ("predicted_area", "area marked"),
)
_OBJECT_PARTS = (
    ("M_J", "M_J"),
    ("M_F", "M_F"),
    ("frames_with_truth", "frames with truth"),
    ("frames", "all frames"),
)
_LISTED = ("per_category", "ms3")  # known second by second
_CLASSES = (("M_J", "M_J"), ("M_F", "M_F"), ("frames", "frames"))
_CLASS_PARTS = (
    ("M_J", "M_J"),
    ("M_F", "M_F"),
    ("M_J_of_occurring", "M_J of occurring classes"),
    ("M_F_of_occurring", "M_F of occurring classes"),
    ("occurring_classes", "occurring classes"),
    ("frames", "frames"),
)


@dataclass(frozen=True)
class Table:
    """Rows of cells ready to be shown; the first cell of a row names it, `title` stands above those."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def heading(result: Mapping[str, Any]) -> str:
    """What was evaluated on what."""
    return f"{result['model']} on {result['subset']} {result['split']}"


def conditions(result: Mapping[str, Any]) -> str:
    """All that a reader needs to know to compare the scores with others."""
    size = "its own size" if result["truth_size"] == "native" else f"{result['truth_size']} px"
    parts = [f"{result['clips']} clips", f"protocol {result['protocol']}"]
    if result["batch"]:
        parts.append(f"{result['batch']} clip(s) a batch")
    parts += [f"input {result['input_size']} px", f"truth at {size}"]
    if result["subset"] == "avss" and result["protocol"] == "avsbench":
        parts.append("padding scored like frames")
    if result["mute"]:
        parts.append("silence played instead of every sound")
    return ", ".join([*parts, f"weights {result['sha256'][:12] or 'none'}", f"avsseg {result['avsseg']}"])


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """The scores of the whole split, its parts, and the replaced sounds."""
    rows = [(label, cell(result[key])) for key, label in _WHOLE if key in result]
    low, high = result["M_J_interval"]
    if not math.isnan(low):
        rows.insert(1, ("M_J, 95 % interval", f"{low:.4f} to {high:.4f}"))
    silent = result["silent_frames"]
    rows.append((f"area marked on {silent['frames']} silent frames", cell(silent["false_positive_area"])))
    note = "95 % interval: of M_J on as many clips, drawn again from these" if not math.isnan(low) else ""
    yield Table("whole split", ("value",), tuple(rows), note)
    by_sources = _CLASS_PARTS if result["subset"] == "avss" else _OBJECT_PARTS
    for key, title, columns in (
        ("per_category", "by category", _OBJECT_PARTS),
        ("per_class", "by class", _CLASSES),
        ("per_sources", "by number of sources", by_sources),
    ):
        if key in result:
            shown = {name: part for name, part in result[key].items() if part["frames"]}
            rows = [(name, *(cell(part[column]) for column, _ in columns)) for name, part in shown.items()]
            yield Table(title, tuple(label for _, label in columns), tuple(rows), _note(key, result))
    if "negatives" in result:
        yield _replaced(result["negatives"], result["clips"])


def cell(value: float | int) -> str:
    """A count as it is, a score with four digits, NaN as a dash."""
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4f}"


def _note(key: str, result: Mapping[str, Any]) -> str:
    """What the figures of a part are over."""
    if key == "per_class":
        unseen = sum(not part["frames"] for part in result[key].values())
        never = f"; {unseen} classes occur in no frame and count as 0 in M_J and M_F" if unseen else ""
        return f"frames: those in which the class is predicted or true{never}"
    notes = []
    if result["subset"] == "avss":
        notes.append("M_J and M_F are over all classes, of which those that do not occur in a part count as 0")
    else:
        if (key, result["subset"]) == _LISTED:
            notes.append("a frame counts for each class that its truth shows")
        if result["protocol"] == "strict":
            notes.append("M_J and M_F are over the frames with truth")
        else:
            notes.append(f"each part as if its clips were all, {result['batch']} a batch")
            notes.append("M_J is over all frames, M_F over those with truth")
    unknown = result["frames"] - sum(part["frames"] for part in result[key].values()) if key == "per_sources" else 0
    if unknown:
        notes.append(f"{unknown} frames of clips whose number of sources nothing tells are in no part")
    return "; ".join(notes)


def _replaced(negatives: Mapping[str, Mapping[str, Any]], clips: int) -> Table:
    columns = ("predicted_area", "share_of_own_sound", "frames_marked")
    rows = tuple((name, *(cell(row[column]) for column in columns)) for name, row in negatives.items())
    unsure = negatives.get("swap", {}).get("clips_without_fitting_partner", 0)
    note = (
        f"swap: {unsure} of {clips} clips got a sound that may belong to something in their picture" if unsure else ""
    )
    return Table("sound replaced by", ("area marked", "share of own sound's", "share of frames marked"), rows, note)
