"""An HTML page about an evaluation: the table, and the best, median and worst clips as strips of pictures.

Everything is inside the one file: no script, no font, no address of another place.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avsseg.data.avsbench import ClipExample
from avsseg.evaluation.evaluate import THRESHOLD, Evaluation
from avsseg.model.avs_mamba import normalise
from avsseg.writers.base import output_errors, written_whole

TILE = 128
WAVE_HEIGHT = 40
TRUTH_COLOUR = (60, 200, 90)
PREDICTION_COLOUR = (255, 140, 30)
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1080px;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #d9dee5;text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}img{max-width:100%;display:block}figure{margin:1rem 0}
figcaption{color:#525c6b;font-size:.9rem}code{background:#f1f3f6;padding:.1rem .3rem;border-radius:3px}
.legend span{display:inline-block;width:.9rem;height:.9rem;margin:0 .3rem 0 1rem;vertical-align:-2px}
"""


def choose_clips(per_clip: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[Mapping[str, Any]]]:
    """The best, median and worst `count` clips by M_J, no clip twice; clips without truth are left out."""
    ranked = sorted((c for c in per_clip if not math.isnan(c["M_J"])), key=lambda c: -c["M_J"])
    count = min(count, max(1, len(ranked) // 3))
    middle = max(count, (len(ranked) - count) // 2)
    return {
        "Best": ranked[:count],
        "Median": ranked[middle : middle + count],
        "Worst": ranked[max(middle + count, len(ranked) - count) :],
    }


def write_report(folder: Path, evaluation: Evaluation, result: Mapping[str, Any], *, count: int = 4) -> Path:
    """Writes `index.html` under `folder` and returns its path. Raises OutputError."""
    parts = [
        f"<h1>{html.escape(result['model'])} on {html.escape(result['subset'])} {html.escape(result['split'])}</h1>"
    ]
    parts += [_summary(result), _tables(result)]
    if "per_clip" in result:
        parts.append(
            '<p class="legend">Rows of a strip: frames, truth'
            f"<span style='background:rgb{TRUTH_COLOUR}'></span>, prediction"
            f"<span style='background:rgb{PREDICTION_COLOUR}'></span>, waveform.</p>"
        )
        for title, clips in choose_clips(result["per_clip"], count).items():
            parts.append(f"<h2>{title}</h2>")
            parts += [_figure(evaluation, clip) for clip in clips]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>avsseg evaluation</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = folder / "index.html"
    with output_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _summary(result: Mapping[str, Any]) -> str:
    size = f"{result['truth_size']} px" if result["truth_size"] != "native" else "its own size"
    batch = f", {result['batch']} clip(s) a batch" if result["batch"] else ""
    weights = html.escape(result["sha256"][:12] or "none")
    sound = "; silence played instead of every sound" if result["mute"] else ""
    return (
        f"<p>{result['clips']} clips, protocol <code>{html.escape(result['protocol'])}</code>{batch}; input "
        f"{result['input_size']} px, truth at {size}{sound}; weights <code>{weights}</code>, "
        f"avsseg {html.escape(result['avsseg'])}.</p>"
    )


def _tables(result: Mapping[str, Any]) -> str:
    without = ("M_J_without_background", "M_F_without_background")
    names = ("M_J", "M_F", *without, "dataset_iou", "frames", "empty_frames")
    top = [(name, result[name]) for name in names if name in result]
    silent = result.get("silent_frames")
    if silent:
        top.append((f"area marked on {silent['frames']} silent frames", silent["false_positive_area"]))
    tables = [_table(("", ""), top)]
    breakdowns = (("per_category", "By category"), ("per_class", "By class"), ("per_sources", "By number of sources"))
    for key, title in breakdowns:
        if key in result:
            rows = [(name, v["M_J"], v["M_F"], v["frames"]) for name, v in result[key].items() if v["frames"]]
            tables.append(f"<h2>{title}</h2>" + _table(("", "M_J", "M_F", "frames"), rows))
    if "negatives" in result:
        rows = [
            (name, v["predicted_area"], v["share_of_own_sound"], v["frames_marked"])
            for name, v in result["negatives"].items()
        ]
        header = ("sound replaced by", "area marked", "share of own sound's", "frames with a mark")
        tables.append("<h2>Without its own sound</h2>" + _table(header, rows))
    return "".join(tables)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
    return html.escape(str(value))


def _figure(evaluation: Evaluation, clip: Mapping[str, Any]) -> str:
    example = evaluation.clips[int(clip["index"])]
    buffer = io.BytesIO()
    draw_strip(evaluation, example).save(buffer, "PNG", optimize=True)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    label = f"{clip['name']} {clip['category']}".strip()
    caption = f"{html.escape(label)}: M_J {clip['M_J']:.3f}"
    image = f'<img alt="{html.escape(label)}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def draw_strip(evaluation: Evaluation, example: ClipExample) -> Image.Image:
    """Frames, truth, prediction and waveform of one clip, a column a second."""
    model = evaluation.loaded.model
    device = next(model.parameters()).device
    with torch.inference_mode():
        log_mel = evaluation.played(example)
        logits = model(normalise(example.frames)[None].to(device), log_mel[None].to(device))[0].float().cpu()
    probability = F.interpolate(logits, size=(TILE, TILE), mode="bilinear", align_corners=False).squeeze(1).sigmoid()
    seconds = len(example.frames)
    strip = Image.new("RGB", (seconds * TILE, 3 * TILE + WAVE_HEIGHT), "white")
    for t in range(seconds):
        frame = Image.fromarray(example.frames[t].numpy()).resize((TILE, TILE), Image.Resampling.BILINEAR)
        truth = Image.fromarray((example.masks[t].numpy() > 0).astype(np.uint8)).resize((TILE, TILE))
        strip.paste(frame, (t * TILE, 0))
        known = bool(example.annotated[t])
        strip.paste(
            tinted(frame, np.asarray(truth) > 0, TRUTH_COLOUR) if known else frame.convert("L"), (t * TILE, TILE)
        )
        strip.paste(tinted(frame, probability[t].numpy() > THRESHOLD, PREDICTION_COLOUR), (t * TILE, 2 * TILE))
    _draw_waveform(strip, example.waveform.numpy(), seconds)
    return strip


def tinted(frame: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> Image.Image:
    """The frame with the mask's pixels tinted."""
    pixels = np.asarray(frame).astype(np.float32)
    pixels[mask] = 0.45 * pixels[mask] + 0.55 * np.asarray(colour, np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def _draw_waveform(strip: Image.Image, waveform: NDArray[np.float32], seconds: int) -> None:
    draw = ImageDraw.Draw(strip)
    top, width = 3 * TILE, strip.width
    middle = top + WAVE_HEIGHT // 2
    wanted = np.zeros(seconds * 16000, np.float32)
    count = min(len(wanted), len(waveform))
    wanted[:count] = waveform[:count]
    peaks = np.abs(wanted[: len(wanted) // width * width].reshape(width, -1)).max(1)
    for x, peak in enumerate(peaks):
        half = int(peak * (WAVE_HEIGHT // 2 - 2))
        draw.line((x, middle - half, x, middle + half), fill=(70, 90, 130))
    for t in range(1, seconds):
        draw.line((t * TILE, top, t * TILE, top + WAVE_HEIGHT), fill=(200, 205, 215))
