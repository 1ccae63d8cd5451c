"""`curves.png`: loss, score and learning over a run, drawn from its CSV logs."""

from __future__ import annotations

from pathlib import Path

from avsseg.errors import EnvironmentFault
from avsseg.training.run_folder import CURVES
from avsseg.training.run_log import whole_rows
from avsseg.writers.base import written_whole


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a log, without lines that were cut short; empty if there is none yet."""
    if not path.is_file():
        return {}
    header, rows = whole_rows(path)
    return {name: [float(row[at]) for row in rows] for at, name in enumerate(header)} if rows else {}


def draw_curves(folder: Path) -> Path:
    """Draws `curves.png` in the run's folder and returns its path. Raises EnvironmentFault without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFault('matplotlib is missing: `pip install "avsseg[train]"` draws curves.png') from error
    train, val = read_log(folder / "train.csv"), read_log(folder / "val.csv")
    panels = [
        ("loss", [("train", train, "loss")]),
        ("M_J", [("train batches", train, "M_J"), ("val", val, "M_J")]),
        ("M_F", [("val", val, "M_F")]),
    ]
    if "seen" in train and "M_J" not in train:  # of stage encoders
        panels[1:] = [(name, [("train batches", train, name), ("val", val, name)]) for name in ("seen", "heard")]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for label, log, column in lines:
            if column in log:
                axes.plot(log["step"], log[column], label=label, marker="." if log is val else None)
        axes.set_title(title)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend()
    path = folder / CURVES
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return path
