"""The `avsseg` program: one module for each command, and `main`, which turns errors into lines and exit codes."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, NoReturn

# as a shell reports a program that a signal ended: 128 + the signal
INTERRUPTED = 130
BROKEN_PIPE = 141

try:
    import typer

    import avsseg
    from avsseg.cli import bench, data, evaluate, info, run, train, visualize, weights
    from avsseg.errors import AvssegError, printable
except KeyboardInterrupt:  # they take long enough for a person to change their mind
    sys.exit(INTERRUPTED)

app = typer.Typer(
    name="avsseg",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("visualize", epilog=visualize.EXAMPLES)(visualize.visualize)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("info")(info.info)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"avsseg {avsseg.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log every step and show tracebacks.")] = False,
) -> None:
    """Find the pixels of a video that make the sound, and mark them.

    Exit codes: 0 all done; 1 some inputs failed; 2 the command line is wrong;

    3 this machine lacks something (ffmpeg, weights, a device); 129 hung up; 130 interrupted;

    141 stdout was closed; 143 terminated.
    """


def main() -> NoReturn:
    """Runs the program and exits; the one place where errors become text."""
    _install_signal_handlers()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as `>&-` does
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open to the end)
    try:
        _run()
    except KeyboardInterrupt:  # before or after typer's own care of it
        sys.exit(INTERRUPTED)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # for which typer's code is 1, as if an input had failed
            sys.exit(BROKEN_PIPE)
        try:
            sys.stdout.flush()
        except OSError as error:
            # what is still in the buffer has nowhere to go, and the interpreter would complain about it once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if stop.code == 0 and isinstance(error, BrokenPipeError):
                sys.exit(BROKEN_PIPE)
            if stop.code == 0:
                print(f"avsseg: error: standard output cannot be written: {error.strerror}", file=sys.stderr)
                sys.exit(AvssegError.exit_code)
        raise


def _run() -> NoReturn:
    debug = "--debug" in sys.argv[1:]
    if debug:
        logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("avsseg").setLevel(logging.DEBUG)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # file names are bytes: those that are not UTF-8 go out as they came in, wherever that can be written
            exact = stream is sys.stdout and stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if exact else "backslashreplace")
    try:
        app()
    except AvssegError as error:
        if debug:
            traceback.print_exc()
        print(f"avsseg: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(
            f"avsseg: unexpected {type(error).__name__}: {printable(str(error))}. --debug shows where", file=sys.stderr
        )
        sys.exit(AvssegError.exit_code)
    sys.exit(0)


def _install_signal_handlers() -> None:
    """The first SIGTERM, SIGHUP or Ctrl-C unwinds, so that nothing half-made stays; a second one ends at once."""
    unwound: list[int] = []
    # registered first, so the last to be called: taking PyTorch's modules apart afterwards may take seconds
    atexit.register(lambda: os._exit(unwound[0]) if unwound else None)

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        unwound.append(INTERRUPTED)
        raise KeyboardInterrupt

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(number, lambda *_: os._exit(128 + number))
        unwound.append(128 + number)
        raise SystemExit(128 + number)

    # a shell starts background jobs with SIGINT ignored, nohup does so with SIGHUP, and that is to stay so
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, terminate)
    signal.signal(signal.SIGTERM, terminate)
