"""`avsseg weights ...`: published weights, from their addresses to files that the other commands take."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avsseg.errors import AvssegError, UsageError, WeightsError, printable

if TYPE_CHECKING:
    from avsseg.weights.catalogue import CatalogueEntry
    from avsseg.weights.download import Progress

LINE_INTERVAL_S = 5.0
MIB = 1 << 20

app = typer.Typer(no_args_is_help=True)  # its help is the docstring below, which `help` here would hide


@app.callback()
def _weights() -> None:
    """List, download, verify and convert weights.

    Published files are kept in the folder weights under AVSSEG_HOME if that is set, else under XDG_CACHE_HOME/avsseg,
    else under ~/.cache/avsseg. `avsseg info` shows where.

    With AVSSEG_OFFLINE=1 no command downloads anything: what is missing is an error that says which address to fetch
    elsewhere and where to put the file.
    """


@app.command("list")
def list_weights(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of lines.")] = False,
) -> None:
    """Show the models that come with avsseg and the published weights it knows, and which are here."""
    rows = [*_shipped_rows(), *_published_rows()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    lines = [
        (str(r["name"]), str(r["state"]), _size(r), str(r["licence"]), f"{r['purpose']}{_unsupported(r)}") for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())


@app.command("download")
def download_weights(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names that `list` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All published weights that this version can use.")] = False,
) -> None:
    """Fetch published weights into the cache; a download that broke off goes on. Prints the path of each file."""
    from avsseg.weights.cache import obtain
    from avsseg.weights.catalogue import CATALOGUE, catalogue_entry
    from avsseg.weights.registry import shipped_weights

    if bool(names) == everything:
        raise UsageError("give the names of weights, or --all. avsseg weights list shows them")
    shipped = shipped_weights()
    wanted = names or [name for name, entry in CATALOGUE.items() if entry.supported]
    entries = {name: None if name in shipped else catalogue_entry(name) for name in wanted}
    failed = 0
    for name, entry in entries.items():
        try:
            if entry is None:
                path = shipped[name].path
            else:
                with _progress(entry.name) as progress:
                    path = obtain(entry, progress=progress, on_wait=_note_wait)
        except AvssegError as error:
            if len(entries) == 1:
                raise
            _note(f"avsseg: error: {error}")
            failed += 1
            continue
        typer.echo(str(path))
    if failed:
        raise typer.Exit(AvssegError.exit_code)


@app.command("verify")
def verify_weights(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all that are here.")] = None,
) -> None:
    """Compare files with their sha256. Exit code 1 if one differs or is damaged, or one that was named is missing.

    A file whose sha256 is not known yet, as after copying it here by hand, must be whole; then it is recorded.
    """
    from avsseg.weights.cache import cached_file, cached_size, verify
    from avsseg.weights.catalogue import CATALOGUE, catalogue_entry
    from avsseg.weights.download import sha256_of
    from avsseg.weights.registry import shipped_weights

    shipped = shipped_weights()
    bad = 0
    for name in names or [*shipped, *(n for n, entry in CATALOGUE.items() if cached_size(entry) is not None)]:
        if name in shipped:
            digest, path = sha256_of(shipped[name].path), shipped[name].path
            verdict = "ok" if digest == shipped[name].sha256 else "differs"
            expected, fault, cure = shipped[name].sha256, "", "Reinstall avsseg"
        else:
            entry = catalogue_entry(name)
            path, check = cached_file(entry), verify(entry)
            verdict, digest, expected, fault = check.verdict, check.sha256, check.expected, check.fault
            cure = f"Remove the file, then run: avsseg weights download {name}"
        if verdict == "missing":
            bad += 1
            _note(f"avsseg: error: {name}: not in the cache. Run: avsseg weights download {name}")
            continue
        if verdict == "differs":
            fault = f"sha256 is {digest[:12]}…, expected {expected[:12]}…"
        typer.echo(f"{name}  {verdict}  {digest}  {path}")
        if fault:
            bad += 1
            _note(f"avsseg: error: {printable(path)}: {fault}. {cure}")
    if bad:
        raise typer.Exit(AvssegError.exit_code)


@app.command("path")
def path_of_weights(name: Annotated[str, typer.Argument(help="A name that `list` shows.")]) -> None:
    """Print where weights are; an error if they are not here."""
    from avsseg.weights.cache import cached_size, obtain
    from avsseg.weights.catalogue import catalogue_entry
    from avsseg.weights.registry import shipped_weights

    shipped = shipped_weights()
    if name not in shipped and cached_size(catalogue_entry(name)) is None:
        raise WeightsError(f"{name}: not in the cache. Run: avsseg weights download {name}")
    typer.echo(str(shipped[name].path if name in shipped else obtain(catalogue_entry(name), offline=True)))


@app.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .safetensors file; only tensors are read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="KIND",
            help="avs-mamba, pvt_v2_b0 to pvt_v2_b5, resnet50 (also in a DETR or torchvision detector), "
            "efficientnet_lite0 to _lite2, a VMamba or Vim as `list` names it, vggish or yamnet. Default: what the "
            "names in the file say.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT.")] = False,
) -> None:
    """Turn the authors' AVS-Mamba into a model for --model, or an official backbone or VGGish into safetensors."""
    if target.exists() and not overwrite:
        raise UsageError(f"{printable(target)}: exists already. Choose another name, or --overwrite")
    from avsseg.weights.conversion import convert_file

    found = convert_file(source, target, kind)
    _note(f"{printable(source)}: {found}")
    typer.echo(str(target))


def _shipped_rows() -> list[dict[str, object]]:
    from avsseg.weights.registry import shipped_weights

    return [
        {
            "name": name,
            "state": "shipped",
            "path": str(weights.path),
            "bytes": weights.path.stat().st_size,
            "size_mib": round(weights.path.stat().st_size / MIB, 1),
            "min_size_mib": None,
            "licence": weights.licence,
            "purpose": weights.description,
            "url": None,
            "sha256": weights.sha256,
            "supported": True,
        }
        for name, weights in shipped_weights().items()
    ]


def _published_rows() -> list[dict[str, object]]:
    from avsseg.weights.cache import cached_file, cached_size, expected_sha256
    from avsseg.weights.catalogue import CATALOGUE

    rows: list[dict[str, object]] = []
    for entry in CATALOGUE.values():
        size = cached_size(entry)
        size_mib = entry.size_mib if size is None else round(size / MIB, 1)
        known = expected_sha256(entry)
        rows.append(
            {
                "name": entry.name,
                "state": _state(entry, size is not None),
                "path": None if size is None else str(cached_file(entry)),
                "bytes": size,
                "size_mib": size_mib,
                "min_size_mib": round(entry.min_bytes / MIB, 1) if size_mib is None and entry.min_bytes else None,
                "licence": entry.licence,
                "purpose": entry.purpose,
                "url": entry.url,
                "sha256": known if len(known) == 64 else None,
                "supported": entry.supported,
            }
        )
    return rows


def _state(entry: CatalogueEntry, here: bool) -> str:
    from avsseg.weights.cache import partial_size

    if here:
        return "cached"
    return "partial" if partial_size(entry) else "-"


def _size(row: dict[str, object]) -> str:
    if row["size_mib"] is not None:
        return f"{row['size_mib']:.4g} MiB"
    return "?" if row["min_size_mib"] is None else f">= {row['min_size_mib']:.4g} MiB"


def _unsupported(row: dict[str, object]) -> str:
    return "" if row["supported"] else "; not supported yet"


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _note_wait() -> None:
    _note("waiting for another download of the same file")


def find_shown(source: str | Path) -> Path:
    """`find_weights`, which shows how far a download is."""
    from avsseg.weights.cache import find_weights

    with _progress(str(source)) as progress:
        return find_weights(source, progress=progress, on_wait=_note_wait)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """A bar on a terminal, else a line every few seconds; on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(name: str) -> Callable[[int, int | None], None]:
    last = time.monotonic()

    def advanced(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_INTERVAL_S:
            last = time.monotonic()
            of_all = f" of {total / MIB:.1f}" if total is not None else ""
            _note(f"{name} {done / MIB:.1f}{of_all} MiB")

    return advanced
