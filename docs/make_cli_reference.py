"""Writes docs/cli.md, the reference of all commands and groups of commands, from their own help texts.

python docs/make_cli_reference.py            # writes it
python docs/make_cli_reference.py --check    # exit code 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union

import typer
from typer.models import ArgumentInfo, OptionInfo

from avsseg.cli import app

TARGET = Path(__file__).parent / "cli.md"
TYPE_NAMES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def sections(group: typer.Typer, shown: Any, name: str = "avsseg") -> Iterator[str]:
    """What `group` says of itself, then its commands and the groups in it; `shown` is what typer makes of it."""
    own = group.registered_callback
    # not the function's docstring: typer may have been given another text
    yield from section(name, shown.help or "", own.callback if own is not None else None, "")
    for command in group.registered_commands:
        assert command.callback is not None
        called = command.name or command.callback.__name__.replace("_", "-")
        yield from section(f"{name} {called}", command.callback.__doc__ or "", command.callback, command.epilog or "")
    for sub in group.registered_groups:
        assert sub.typer_instance is not None
        yield from sections(sub.typer_instance, shown.commands[sub.name], f"{name} {sub.name}")


def plain(text: str) -> str:
    """Without rich's markup, and without what Markdown would take for markup."""
    text = re.sub(r"(?<!\\)\[/?[a-z ]+\]", "", text).replace("\\[", "[").replace("\\\\", "")
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "&lt;")


def values(annotation: Any, info: Any) -> str:
    """What an option takes: "" for a switch."""
    if info.metavar:
        return str(info.metavar)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "|".join(str(member.value) for member in annotation)
    if origin in (Union, types.UnionType, list, tuple):
        return next(values(part, info) for part in typing.get_args(annotation) if part is not type(None))
    return "" if annotation is bool else TYPE_NAMES[annotation]


def row(name: str, annotation: Any, info: Any, default: Any) -> str:
    takes = values(annotation, info)
    if isinstance(info, ArgumentInfo):
        shown = f"`{info.metavar or name.upper()}`"
    else:
        # beside Annotated, typer keeps the first name where the default would be
        given = (info.default, *(info.param_decls or ()))
        names = [n for n in given if isinstance(n, str)] or [f"--{name.replace('_', '-')}"]
        shown = ", ".join(f"`{n}`" for n in names) + (f" `{takes}`" if takes else "")
    said = plain(info.help or "")
    bounds = (("at least", info.min), ("at most", info.max))
    limits = [f"{words} {bound:g}" for words, bound in bounds if bound is not None]
    if limits:
        said += f" ({', '.join(limits)})"
    if default is inspect.Parameter.empty:
        said += " **Required.**"
    elif info.show_default is True and default not in (None, False):
        said += f" Default: `{default.value if isinstance(default, enum.Enum) else default}`."
    return f"| {shown.replace('|', chr(92) + '|')} | {said} |"


def section(name: str, text: str, function: Callable[..., Any] | None, examples: str) -> Iterator[str]:
    yield f"## {name}"
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield plain(paragraph)
    rows = list(options(function)) if function is not None else []
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows])
    for heading, lines in notes(examples):
        shown = [re.sub(r"\s*\[dim\](.*?)\[/dim\]", r"  # \1", line).replace("\\[", "[") for line in lines]
        if heading.startswith("Example"):
            yield "\n".join(["```sh", *shown, "```"])
        else:
            yield f"{heading}:"
            yield "\n".join(f"- {plain(line)}" for line in shown)


def options(function: Callable[..., Any]) -> Iterator[str]:
    """A row for each option and argument of a command or group."""
    # not typing.get_type_hints: on Python 3.10 it makes Optional of whatever is None by default
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        annotation, *extras = typing.get_args(parameter.annotation)
        info = next(extra for extra in extras if isinstance(extra, (OptionInfo, ArgumentInfo)))
        if not info.hidden:
            yield row(parameter.name, annotation, info, parameter.default)


def notes(epilog: str) -> Iterator[tuple[str, list[str]]]:
    """The headings below a command's options and the lines under each."""
    for part in epilog.split("[bold]")[1:]:
        heading, _, rest = part.partition("[/bold]")
        yield heading, [line for line in rest.splitlines() if line.strip()]


def reference() -> str:
    parts = ["# Commands", "Made by `docs/make_cli_reference.py` from the help texts of the commands; do not edit."]
    parts += sections(app, typer.main.get_command(app))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    made = reference()
    if not parser.parse_args().check:
        TARGET.write_text(made, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != made:
        sys.exit(f"{TARGET} is not up to date: run python docs/make_cli_reference.py")


if __name__ == "__main__":
    main()
