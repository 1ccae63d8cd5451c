"""`avsseg info`: what this installation is made of and what it lacks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Annotated

import typer

import avsseg
from avsseg.errors import AvssegError, printable

PACKAGES = (
    "torch",
    "numpy",
    "pillow",
    "pycocotools",
    "safetensors",
    "ffmpeg-python",
    "imageio-ffmpeg",
    "typer",
    "rich",
)
OPTIONAL_PACKAGES = ("triton", "mamba-ssm", "causal-conv1d", "ray", "matplotlib", "tensorboard")


def info(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Show versions, ffmpeg, device, scan back end, weights and their cache, and what is missing for each."""
    facts = {
        "avsseg": avsseg.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "optional": ", ".join(f"{name} {_version(name)}" for name in OPTIONAL_PACKAGES),
        "ffmpeg": _ffmpeg(),
        "device": _device(),
        "cuda": _cuda(),
        "scan back end": _scan(),
        **_weights(),
        "weights cache": _weights_cache(),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    width = max(map(len, facts)) + 2
    for name, text in facts.items():
        typer.echo(f"{name:<{width}}{text}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _ffmpeg() -> str:
    from avsseg.media.ffmpeg import find_ffmpeg

    try:
        found = find_ffmpeg()
    except AvssegError as error:
        return f"missing: {error}"
    version = ".".join(map(str, found.version)) if any(found.version) else "of a development branch"
    return f"{version} at {printable(found.path)} (from {found.source})"


def _device() -> str:
    import torch

    from avsseg.pipeline.device import resolve_device

    device = resolve_device("auto")
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return "mps"
    return f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _cuda() -> str:
    import torch

    from avsseg.cli.cuda import driver_cuda_version, gpu_capability, missing_for_cuda
    from avsseg.pipeline.device import cuda_fault

    fault = cuda_fault()
    if not fault:
        return f"{torch.version.cuda}, {torch.cuda.device_count()} device(s)"
    steps = missing_for_cuda(
        str(torch.__version__),
        torch.version.cuda,
        driver_cuda_version(),
        capability=gpu_capability(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    return ". ".join([f"not usable: {fault}", *steps])


def _scan() -> str:
    from avsseg.ops import cpu
    from avsseg.ops.selective_scan import automatic_backend, available_backends
    from avsseg.pipeline.device import resolve_device

    device = resolve_device("auto")
    chosen, reasons = automatic_backend(device), available_backends()
    detail = ""
    if not reasons["cpp"]:
        try:
            detail = f" with {cpu.capability()} instructions"
        except AvssegError as error:
            return f"none: cpp cannot be used: {error}"
    usable = [name for name, reason in reasons.items() if not reason]
    others = [f"{name} cannot be used: {reason}" for name, reason in reasons.items() if reason]
    place = {"cpu": "the CPU", "cuda": "CUDA"}.get(device.type, device.type)
    why = _why(chosen, place, reasons)
    return "; ".join(
        [f"{chosen} on {place}{detail if chosen == 'cpp' else ''}, {why} (usable: {', '.join(usable)})", *others]
    )


def _why(chosen: str, place: str, reasons: dict[str, str]) -> str:
    if chosen != "torch":
        return f"the fastest on {place}"
    faster = {"the CPU": "cpp", "CUDA": "triton"}.get(place)
    if faster is None:
        return f"the only one on {place}"
    if reasons[faster]:
        return f"because {faster} cannot be used"
    return f"because PyTorch is set to be deterministic and {faster} is not"


def _weights() -> dict[str, str]:
    from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights

    try:
        shipped = shipped_weights()
    except AvssegError as error:
        return {"weights": f"unusable: {error}"}
    facts = {
        f"weights {name}": f"{printable(weights.path)} sha256 {weights.sha256}" for name, weights in shipped.items()
    }
    cards = {weights.path.with_name("MODEL_CARD.md") for weights in shipped.values()}
    if found := [printable(card) for card in sorted(cards) if card.is_file()]:
        facts["model card"] = ", ".join(found)
    if DEFAULT_MODEL not in shipped:
        facts[f"weights {DEFAULT_MODEL}"] = "missing: run needs --model FILE or --allow-untrained"
    return facts


def _weights_cache() -> str:
    from avsseg.weights.cache import weights_dir

    try:
        folder = weights_dir()
    except AvssegError as error:
        return f"unusable: {error}"
    if os.path.isfile(folder.parent):
        return f"unusable: {printable(folder.parent)} is a file. Set AVSSEG_HOME to a folder"
    try:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    except OSError as error:
        return f"{printable(folder)} cannot be read: {error.strerror}"
    state = f"{len(sizes)} file(s), {sum(sizes) / 2**20:.1f} MiB" if sizes else "empty"
    return f"{printable(folder)}, {state}; AVSSEG_HOME or XDG_CACHE_HOME moves it"
