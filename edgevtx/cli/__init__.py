"""The command line: one module a verb, imported when it is used.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 verification refused, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import click

from edgevtx import __version__, disk
from edgevtx.errors import EdgevtxError, InputError, OutputError, SourceError, VerificationError

VERBS = ("families", "export", "info", "verify", "fit", "compile", "run", "profile", "doctor", "cache")

FAILED, USAGE, REFUSED, INTERRUPTED = 1, 2, 3, 130


class StandardOutputError(OutputError):
    """What was to be printed could not be."""


class Output:
    """Standard output, text or bytes, that raises `StandardOutputError` where it takes no more, such as a full disk."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> Output:
        """The bytes below the text."""
        return Output(self._stream.buffer)

    def write(self, data: Any) -> Any:
        """Write text or bytes."""
        return self._try(self._stream.write, data)

    def flush(self) -> None:
        """Hand on what was written."""
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *data: Any) -> Any:
        try:
            return call(*data)
        except BrokenPipeError:  # who reads had enough: click leaves quietly
            raise
        except OSError as error:
            raise StandardOutputError(f"cannot write to standard output: {disk.explain(error)}") from error


class Verbs(click.Group):
    """The verbs, each in a module of its name; every error leaves as a sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"edgevtx.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()  # or a full disk is found when the interpreter ends
            return found
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"]:
                raise
            fail(*explain(error))


def explain(error: BaseException) -> tuple[str, int]:
    """An error as one sentence, and its exit code."""
    if isinstance(error, EdgevtxError):
        return str(error), exit_code(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or use a smaller model or batch", FAILED
    words = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    return f"unexpected {words}; `edgevtx --debug ...` shows where, please report it", FAILED


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong on standard error and leave with an exit code."""
    click.echo(f"edgevtx: {message}", err=True)
    raise click.exceptions.Exit(code)


def exit_code(error: EdgevtxError) -> int:
    """Which exit code an error of ours is."""
    if isinstance(error, VerificationError):
        return REFUSED
    # an option's value is usage; a camera that does not answer is not
    return USAGE if isinstance(error, InputError) and not isinstance(error, SourceError) else FAILED


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="edgevtx %(version)s")
@click.option("--debug", is_flag=True, envvar="EDGEVTX_DEBUG", help="Log what happens, and show tracebacks.")
def cli(debug: bool) -> None:
    """Take a vision transformer to a device, and prove that it still works there.

    \b
    On a workstation:  edgevtx export vit --checkpoint DIR --out vit.vtx
    On the device:     edgevtx run vit.vtx photo.jpg --out results
    """
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("edgevtx").setLevel(level)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM, by which services are stopped, end the program as Ctrl-C does: temporary folders are removed."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set from Python


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script calls it."""
    # it is None where it was closed before the start
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        with contextlib.redirect_stdout(Output(sys.stdout)), _sigterm_as_ctrl_c():
            cli.main(args=None if arguments is None else list(arguments), prog_name="edgevtx")
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else FAILED
    except StandardOutputError as error:  # of --help and --version, which are printed before any verb is invoked
        click.echo(f"edgevtx: {error}", err=True)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # already said; the interpreter would try again and complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
