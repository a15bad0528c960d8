"""The command line: parse, call, print. One module a group of commands; no logic.

`main` is the one catcher: what a user can cause ends in a message, a hint and an exit code; a bug keeps its
traceback.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
from typing import NoReturn

import typer

from curate.cli._common import SHORT_HELP, printable
from curate.errors import CurateError, UnknownName

_GROUPS = (
    "download",
    "embed",
    "score",
    "filter",
    "selection",
    "centroids",
    "subset",
    "views",
    "report",
    "assets",
    "demo",
)

_INTERRUPTED = 130

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

app = typer.Typer(
    name="curate",
    help="Turn a pool of image-text pairs into a training set, and say why each pair is in it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings=SHORT_HELP,
)


def _version(wanted: bool) -> None:
    if wanted:
        from curate import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn a pool of image-text pairs into a training set, and say why each pair is in it."""


for _group in _GROUPS:
    importlib.import_module(f"curate.cli.{_group}").register(app)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 a bug or stopped by the machine, 2 your input, 3 some parts
    failed, 130 interrupted."""
    code = 0
    try:
        _log_to_stderr()
        outcome = app(standalone_mode=False)
        code = outcome if isinstance(outcome, int) else 0
        if code == _INTERRUPTED:  # as typer returns it
            _interrupted()
    except CurateError as error:
        code = _say(error)
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if type(error).__module__.startswith(("typer", "click")):  # older typers raise what click defines
            code = _usage(error)
        else:
            raise
    sys.exit(code)


def program() -> NoReturn:
    """`main`, as the program `curate`: it ends without the interpreter taking everything apart.

    That takes a tenth of a second, as long as much of what is asked for. What others have asked to be done at the
    end is done; where a stream cannot be flushed, the interpreter ends as it does and says so.
    """
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            raise ended from None
        os._exit(code)


def _say(error: CurateError) -> int:
    sys.stderr.write(f"curate: {printable(str(error))}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return error.exit_code


def _usage(error: Exception) -> int:
    """What typer itself refuses: an unknown option, a missing argument. It has its own words and code."""
    if type(error).__name__ == "Abort":
        return _interrupted()
    show = getattr(error, "show", None)
    if show is not None:
        show()
    else:
        sys.stderr.write(f"curate: {error}\n")
    return int(getattr(error, "exit_code", 2))


def _interrupted() -> int:
    sys.stderr.write("\ncurate: interrupted; the same command goes on where this one stopped\n")
    return _INTERRUPTED


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    level = os.environ.get("CURATE_LOG") or "INFO"
    if level.upper() not in _LEVELS:
        raise UnknownName("$CURATE_LOG", "level", level, _LEVELS)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("curate").setLevel(level.upper())
