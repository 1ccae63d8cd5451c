"""What of a batch is left to do: results that the journal knows are kept, and none is replaced unasked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avsseg.errors import UsageError, printable
from avsseg.pipeline.journal import History, Origin, Trace, journal_key, output_size
from avsseg.pipeline.options import FORMATS, VIDEO_FORMATS, Format, ModelOptions, OutputOptions, SegmentOptions
from avsseg.pipeline.plan import Job
from avsseg.weights.registry import shipped_weights
from avsseg.writers.base import MASK_FOLDER_MARK

# what journals written before a setting was there mean
BEFORE: Mapping[str, object] = {"names": False}
# of settings that not all depend on, the formats that do
FORMATS_OF: Mapping[str, Sequence[Format]] = {"interpolate": VIDEO_FORMATS, "names": ("overlay",)}


@dataclass(frozen=True)
class Recipe:
    """How results are made: the settings that decide what they look like, and the model; see `Origin`."""

    settings: Mapping[str, object]
    model: str
    model_sha256: str


def recipe(segment_options: SegmentOptions, output_options: OutputOptions, model_options: ModelOptions) -> Recipe:
    """The recipe of a command line. The device is left out: a batch may go on on another machine."""
    name, sha256 = identify_model(model_options.model)
    return Recipe(settings_of(segment_options, output_options), name, sha256)


def settings_of(segment_options: SegmentOptions, output_options: OutputOptions) -> dict[str, object]:
    """The options that decide what a result looks like, as they were given: "auto" stays "auto"."""
    return {
        "rate": segment_options.rate,
        "size": segment_options.size,
        "window": segment_options.window,
        "overlap": segment_options.overlap,
        "start_s": segment_options.start_s,
        "end_s": segment_options.end_s,
        "audio_track": segment_options.audio_track,
        "precision": segment_options.precision,
        "threshold": output_options.threshold,
        "interpolate": output_options.interpolate,
        "names": output_options.names,
    }


def identify_model(model: str) -> tuple[str, str]:
    """Name and sha256 of a model as `load_model` gives them, without loading it; no hash where there are no weights.

    Raises:
        WeightsError: the manifest of the installed weights is damaged.
    """
    path = Path(model)
    if not os.path.isfile(path):  # a name; of a folder or a pipe loading says so, when a video needs it
        shipped = shipped_weights().get(model)
        return model, shipped.sha256 if shipped else ""
    try:
        return path.stem, hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # the same
        return model, ""


def origin_of(path: Path, recipe: Recipe) -> Origin:
    """The origin of results made of a video as it is now. Raises OSError, or ValueError for a NUL in the path."""
    status = os.stat(path)
    real = os.path.realpath(path)
    return Origin(real, status.st_size, status.st_mtime_ns, recipe.settings, recipe.model, recipe.model_sha256)


def plan_work(jobs: Sequence[Job], out: Path, history: History, recipe: Recipe) -> list[Job]:
    """The jobs with what is to be made of each: all that does not exist, and what a killed run was making.

    Raises:
        UsageError: a result exists that was made otherwise, or of which the journal does not know how.
    """
    planned: list[Job] = []
    obstacles: list[str] = []
    for job in jobs:
        try:
            origin = origin_of(job.input, recipe)
        except (OSError, ValueError):
            planned.append(replace(job, make=tuple(job.outputs)))  # it fails by itself, and replaces nothing
            continue
        make: list[Format] = []
        for name, path in job.outputs.items():
            if not _exists(name, path):
                make.append(name)
                continue
            trace = history.get(journal_key(out, path), Trace())
            if trace.begun is not None and not difference(trace.begun, origin, name):
                make.append(name)
            elif why := _obstacle(trace, origin, name, path):
                obstacles.append(f"{printable(path)}: {why}")
        planned.append(replace(job, make=tuple(make)))
    if obstacles:
        count = len(obstacles) - 1
        more = f" (and {count} more result{'s' if count > 1 else ''} cannot be kept either)" if count else ""
        them = "them" if count else "it"
        raise UsageError(
            f"{obstacles[0]}{more}. Nothing was done: --overwrite makes {them} again, another --out keeps {them}"
        )
    return planned


def difference(made: Origin, wanted: Origin, output_format: Format) -> str:
    """How a result of one origin differs from one of another, after "was made ..."; "" if it does not."""
    if made.input != wanted.input:
        return f"from another input, {printable(made.input)}"
    if (made.size, made.mtime_ns) != (wanted.size, wanted.mtime_ns):
        return "before its input changed"
    # models without weights have no hash: their random ones follow from the name
    if (made.model_sha256 or made.model) != (wanted.model_sha256 or wanted.model):
        return f"with another model, {printable(made.model)} ({made.model_sha256[:12] or 'untrained'})"
    was = {**BEFORE, **made.settings}
    changes = [
        f"{key} {was.get(key)}, now {wanted.settings.get(key)}"
        for key in sorted({*was, *wanted.settings})
        if was.get(key) != wanted.settings.get(key) and output_format in FORMATS_OF.get(key, FORMATS)
    ]
    return f"with other settings ({'; '.join(changes)})" if changes else ""


def _obstacle(trace: Trace, origin: Origin, output_format: Format, path: Path) -> str:
    """Why an existing result must neither be kept as the one that is wanted nor be replaced unasked; "" to keep it."""
    if trace.begun is not None:
        return f"was in work {difference(trace.begun, origin, output_format)} when a run was ended"
    if trace.made is None:
        return "exists, and no journal says how it was made"
    if why := difference(trace.made, origin, output_format):
        return f"was made {why}"
    return "" if output_size(path) == trace.size else "was changed after it was made"


def _exists(output_format: Format, path: Path) -> bool:
    return os.path.isfile(path / MASK_FOLDER_MARK if output_format == "masks" else path)
