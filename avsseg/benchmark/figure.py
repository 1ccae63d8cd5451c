"""The paper's Fig. 10 as a picture: what each backbone takes, against the resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avsseg.benchmark.models import BenchRow
from avsseg.errors import EnvironmentFault
from avsseg.writers.base import written_whole


def require_matplotlib() -> Any:
    """matplotlib's Figure class. Raises EnvironmentFault where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFault('matplotlib is missing: `pip install "avsseg[train]"` lets --plot draw') from error
    return Figure


def draw_figure(rows: Sequence[BenchRow], path: Path, title: str) -> Path:
    """Writes a PNG of four panels (parameters, GFLOP, peak memory, latency) and returns its path.

    Values that were not measured are left out. Raises OutputError, and EnvironmentFault without matplotlib.
    """
    figure = require_matplotlib()(figsize=(14, 4.2), layout="constrained")
    panels = figure.subplots(1, 4)
    names = list(dict.fromkeys(row.model for row in rows))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    counts = {row.model: row.complexity.parameters / 1e6 for row in rows if row.complexity}
    panels[0].barh(list(counts), list(counts.values()), color=[colours[name] for name in counts])
    panels[0].invert_yaxis()
    panels[0].set_xlabel("parameters (M)")
    values: list[tuple[str, Callable[[BenchRow], float | None]]] = [
        ("operations of a clip (GFLOP)", lambda row: row.complexity.flops / 1e9 if row.complexity else None),
        ("peak memory (GiB)", lambda row: row.peak_bytes / 2**30 if row.peak_bytes else None),
        ("latency of a pass (s)", lambda row: row.latency_s if row.times_s else None),
    ]
    sizes = sorted({row.size for row in rows})
    for axes, (label, value) in zip(panels[1:], values, strict=True):
        for name in names:
            points = [(row.size, value(row)) for row in sorted(rows, key=lambda row: row.size) if row.model == name]
            known = [(size, y) for size, y in points if y is not None]
            axes.plot([size for size, _ in known], [y for _, y in known], marker="o", color=colours[name], label=name)
        axes.set_xlabel("side of the input (px)")
        axes.set_ylabel(label)
        axes.set_xticks(sizes)
        axes.set_ylim(bottom=0)
    figure.suptitle(title, fontsize="medium")
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return path
