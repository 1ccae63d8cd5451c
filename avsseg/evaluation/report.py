"""An HTML page about an evaluation: the tables, and the best, median and worst clips as strips of pictures.

Everything is inside the one file: no script, no font, no address of another place.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avsseg.data.avss_classes import CLASS_NAMES, avss_palette
from avsseg.evaluation.evaluate import Evaluation
from avsseg.evaluation.strips import PREDICTION_COLOUR, TRUTH_COLOUR, draw_strip
from avsseg.evaluation.tables import Table, conditions, heading, tables
from avsseg.writers.base import written_whole

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1080px;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #d9dee5;text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}img{max-width:100%;display:block}figure{margin:1rem 0}
figcaption,.note{color:#525c6b;font-size:.9rem}figcaption span{white-space:nowrap}
.wide{overflow-x:auto}.note{margin:0 0 1.5rem .8rem}
i{display:inline-block;width:.9rem;height:.9rem;margin-right:.3rem;vertical-align:-2px;border:1px solid #000}
"""


def choose_clips(per_clip: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[Mapping[str, Any]]]:
    """The best, median and worst `count` clips by M_J, no clip twice; clips without truth are left out."""
    ranked = sorted((c for c in per_clip if not math.isnan(c["M_J"])), key=lambda c: -c["M_J"])
    count = min(count, max(1, len(ranked) // 3))
    best, between, worst = ranked[:count], ranked[count:-count], ranked[count:][-count:]
    middle = (len(between) - count) // 2 if len(between) > count else 0
    return {"Best": best, "Median": between[middle : middle + count], "Worst": worst}


def write_report(folder: Path, evaluation: Evaluation, result: Mapping[str, Any], *, count: int = 4) -> Path:
    """Writes `index.html` under `folder` and returns its path. Raises OutputError."""
    body = [f"<h1>{html.escape(heading(result))}</h1>", f"<p>{html.escape(conditions(result))}</p>"]
    body += [*map(_table, tables(result)), *_clips(evaluation, result, count)]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(heading(result))}</title><style>{_STYLE}</style></head><body>{''.join(body)}"
        "</body></html>\n"
    )
    path = folder / "index.html"
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in (table.title, *table.header))
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>{note}'


def _clips(evaluation: Evaluation, result: Mapping[str, Any], count: int) -> Iterator[str]:
    avss = result["subset"] == "avss"
    truth, prediction = ("", "") if avss else (_swatch(TRUTH_COLOUR), _swatch(PREDICTION_COLOUR))
    M_J = "M_J of the classes, without the background, that occur in its frames with truth"
    yield (
        f"<p>Clips by their {M_J if avss else 'M_J over frames with truth'}. Rows of a strip: frames, {truth}truth, "
        f"{prediction}prediction, waveform.</p>"
    )
    for title, clips in choose_clips(result["per_clip"], count).items():
        if clips:
            yield f"<h2>{title}</h2>"
            yield from (_figure(evaluation, clip, avss=avss) for clip in clips)


def _figure(evaluation: Evaluation, clip: Mapping[str, Any], *, avss: bool) -> str:
    strip, true, predicted = draw_strip(evaluation, evaluation.clips[int(clip["index"])])
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    label = html.escape(f"{clip['name']} {clip['category']}".strip())
    caption = f"{label}: M_J {clip['M_J']:.3f}"
    if avss:
        caption += f"; truth: {_classes(true)}; prediction: {_classes(predicted)}"
    image = f'<img alt="{label}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _classes(labels: Iterable[int]) -> str:
    palette = avss_palette()
    named = (f"<span>{_swatch(palette[label].tolist())}{CLASS_NAMES[label]}</span>" for label in labels)
    return ", ".join(named) or "nothing"


def _swatch(colour: Sequence[int]) -> str:
    red, green, blue = colour
    return f'<i style="background:rgb({red},{green},{blue})"></i>'
