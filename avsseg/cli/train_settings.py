"""What a training is told: a preset, a file and the flags of `avsseg train`, put together. No torch."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from avsseg.errors import UsageError, printable
from avsseg.training.run_folder import SETTINGS, STAGES
from avsseg.training.settings import TrainingSettings, read_toml, training_preset, with_changes
from avsseg.training.stages import check_scene_settings

# of settings whose flag has another name
FLAGS = {
    "start_from": "--from",
    "init_visual": "--init-visual",
    "init_audio": "--init-audio",
    "learning_rate": "--learning-rate",
}
# what may change when a run goes on
CHANGEABLE = {"device", "threads", "workers", "data", "epochs", "minutes"}


def gather(
    out: Path, preset: str | None, flags: dict[str, Any], config: Path | None, *, resume: bool
) -> TrainingSettings:
    """Preset, file and flags put together; a run that is resumed brings its own. Raises UsageError."""
    return _of_a_run(out, preset, flags, config) if resume else _of_a_new_run(preset, flags, config)


def _of_a_run(out: Path, preset: str | None, flags: dict[str, Any], config: Path | None) -> TrainingSettings:
    kept = next((path for path in (out / STAGES, out / SETTINGS) if path.is_file()), None)
    if kept is None:
        raise UsageError(f"{printable(out)}: holds no run to resume (no {SETTINGS})")
    settings = with_changes(TrainingSettings(), read_toml(kept), where=printable(kept))
    sources = [name for name, given in (("--preset", preset), ("--config", config)) if given]
    changed = {name for name, value in flags.items() if getattr(settings, name) != value} - CHANGEABLE
    other = [f"{FLAGS.get(name, name)} ({getattr(settings, name)})" for name in sorted(changed)] + sources
    if other:
        named = ", ".join(other)
        raise UsageError(f"--resume goes on with the settings of the run: {named} cannot change now. Leave it out")
    if kept.name == STAGES:
        check_scene_settings(flags)
    return with_changes(settings, flags, where="command line")


def _of_a_new_run(preset: str | None, flags: dict[str, Any], config: Path | None) -> TrainingSettings:
    if config and config.name == STAGES and preset != "scenes":
        raise UsageError(
            f"{printable(config)}: is of all runs of --preset scenes. Give that, too, or the {SETTINGS} of one run"
        )
    flags, values = dict(flags), read_toml(config) if config else {}
    if preset == "scenes":
        usual = asdict(training_preset("scenes", "ms3"))
        # the file of such a run has all settings, most of which say nothing
        check_scene_settings({**{name: value for name, value in values.items() if value != usual.get(name)}, **flags})

    def source_of(name: str) -> dict[str, Any]:
        return flags if name in flags else values

    # what follows from a setting stands where that does, so that what is wrong with it is said of its source
    minutes, mute = source_of("minutes"), source_of("mute")
    if minutes.get("minutes") and "epochs" not in {*flags, *values}:
        minutes["epochs"] = 0
    # nothing is heard that masks could go by; of a file of all settings, `agreement` says nothing of --mute
    said = "agreement" in flags or (mute is values and "agreement" in values)
    if preset == "scenes" and mute.get("mute") and not said:
        mute["agreement"] = False
    chosen = str(source_of("subset").get("subset", "ms3"))
    settings = with_changes(training_preset(preset or "tiny", chosen), values, where=printable(config or ""))
    # what does not go together may come from both
    source = f"command line with {printable(config)}" if config else "command line"
    settings = with_changes(settings, flags, where=source)
    if settings.start_from and "model" in flags:
        raise UsageError("--from brings its own model: leave out --model")
    return settings


def parse_setting(text: str) -> tuple[str, Any]:
    """The name and value of ``--set NAME=VALUE``. Raises UsageError."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    known = {field.name: field.default for field in fields(TrainingSettings)}
    if not equals or name not in known:
        raise UsageError(f"--set {text}: must be NAME=VALUE, NAME one of {', '.join(known)}")
    kind: type = type(known[name])
    try:
        if kind is bool:
            return name, {"true": True, "false": False, "1": True, "0": False}[value.strip().lower()]
        return name, kind(value.strip())
    except (ValueError, KeyError) as error:
        raise UsageError(f"--set {text}: the value must be a {kind.__name__}") from error
