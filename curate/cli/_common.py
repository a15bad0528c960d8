"""What the commands share: options, the default pool, results as tables or JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate import devices
from curate.errors import InputError

if TYPE_CHECKING:
    from curate.pool import Pool
    from curate.pool.layout import Layout

SHORT_HELP = {"help_option_names": ["-h", "--help"]}
"""The settings of a group of commands."""

PoolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pool",
        metavar="DIR",
        help="The pool's folder.  [default: $CURATE_POOL, else ./pool]",
        show_default=False,
    ),
]
PoolsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pool",
        metavar="[NAME=]DIR",
        help="The pool's folder; repeat for several at once.  [default: $CURATE_POOL, else ./pool]",
        show_default=False,
    ),
]


def _folder(given: str) -> Path:
    """The folder that an option names: an empty one would be the folder that the command runs in."""
    if not given:
        raise InputError("--work", "names no folder (found '')", hint="--work . is this folder")
    return Path(given)


WorkOption = Annotated[
    Path | None,
    typer.Option(
        "--work",
        parser=_folder,
        metavar="DIR",
        help="Write here instead of into the pool (for one that is read-only).",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Worker processes; 0 works in this one.  [default: one a core]"),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
AssetOption = Annotated[
    list[str] | None,
    typer.Option("--asset", help="NAME=FILE: take this file for an asset (`curate assets`); repeat for more."),
]
StaleOption = Annotated[bool, typer.Option("--allow-stale", help="Take a selection of an older state of the pool.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Start long work without asking.")]


def pool_path(given: Sequence[str | Path] | None) -> Path:
    """The pool's folder: the flag, else `$CURATE_POOL`, else ./pool. Raises InputError for more than one."""
    if given and len(given) > 1:
        found = ", ".join(map(str, given))
        hint = f"--pool {given[0]}; several at once are for curate filter, subset, selection and explain"
        raise InputError("--pool", f"this command takes one pool (found {len(given)}: {found})", hint=hint)
    if given and not str(given[0]):  # as a path it would be the folder that the command runs in
        raise InputError("--pool", "names no folder (found '')", hint="--pool . is this folder")
    return Path(given[0] if given else os.environ.get("CURATE_POOL") or "pool").expanduser()


def open_pool(given: Sequence[str | Path] | None, work: Path | None = None) -> Pool:
    """The pool that a command works on."""
    from curate.pool import open_pool as opened

    return opened(pool_path(given), _work(work))


def open_pools(given: Sequence[str | Path] | None, work: Path | None = None) -> Pool:
    """The pool that a command works on, or the union of several."""
    from curate.pool.joint import open_pools as opened

    return opened(given or [pool_path(None)], _work(work))


def _work(given: Path | None) -> Path | None:
    set_ = os.environ.get("CURATE_WORK")
    there = given or (Path(set_) if set_ else None)
    return there.expanduser() if there else None


def take_assets(given: list[str] | None) -> None:
    """Have the rules of this command read the files that `--asset` names.

    Raises InputError for a name that no asset has, or a file that cannot be read.
    """
    from curate import assets

    named: dict[str, list[Path]] = {}
    for text in given or []:
        name, _, file = text.partition("=")
        if not (name and file):
            raise InputError("--asset", f"wants NAME=FILE (found {text!r})", hint="--asset centroids=mine.npy")
        named.setdefault(name, []).append(Path(file))
    assets.give(named)


def name_unread_assets() -> None:
    """Warn of files that `--asset` named and no rule asked for."""
    from curate import assets

    for name in assets.not_asked_for():
        logging.getLogger(__name__).warning("--asset %s: no rule of this command reads it", name)


class _LogFile(logging.FileHandler):
    """Made with the first record, folder and all: a command that is refused leaves nothing."""

    def _open(self) -> TextIOWrapper:
        from curate.disk import make_folder

        make_folder(Path(self.baseFilename).parent)
        return super()._open()


def keep_log(layout: Layout, command: str) -> None:
    """Have the records of a writing command kept in the pool's `logs/` too, one file a run, with times."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{command}-{os.getpid()}.log"
    handler = _LogFile(layout.logs / name, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def codes(counts: Mapping[str, int]) -> dict[str, int]:
    """The error codes that a stage counted, most first."""
    found = {name.removeprefix("code:"): n for name, n in counts.items() if name.startswith("code:")}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def meaning(code: str) -> str:
    """What an error code means, in a few words."""
    from curate.errors import ERROR_CODES

    return ERROR_CODES.get(code, "the server answered with this status")


MOST_A_CORE = 16
"""Worker processes; more are a slip of the finger, and would bring the machine down."""


def workers(given: int | None) -> int:
    """The number of worker processes: the flag, else `$CURATE_WORKERS`, else one a core."""
    what, count = "--workers", given
    if count is None:
        set_ = os.environ.get("CURATE_WORKERS")
        if set_ is None:
            return devices.cores()
        if not set_.isdigit():
            raise InputError("$CURATE_WORKERS", f"must be a whole number (found {set_!r})")
        what, count = "$CURATE_WORKERS", int(set_)
    if count > (most := max(64, MOST_A_CORE * devices.cores())):
        raise InputError(what, f"is more than {most:,}, which is what this machine may bear (found {count:,})")
    return count


def show(text: str) -> None:
    """One piece of the result, on stdout."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")


def printable(line: str) -> str:
    """The line with what a terminal would act upon replaced: names come from files, and files from anywhere."""
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)


def say(text: str) -> None:
    """Something beside the result, on stderr."""
    sys.stderr.write(printable(text) + "\n")


def show_json(value: Any) -> None:
    """The result as JSON, on stdout."""
    text = json.dumps({"format": 1, **value}, indent=1, ensure_ascii=False, default=str)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def table(rows: Sequence[Sequence[Any]], *, right: Sequence[int] = (), indent: str = "") -> str:
    """Rows of cells as aligned columns; those in `right` are set to the right, integers with separators."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        (
            indent
            + "  ".join(
                c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in cells
    )


def confirm(what: str, *, yes: bool, hint: str) -> None:
    """Ask before long work: `--yes` answers, a terminal is asked, elsewhere it is refused (exit 2)."""
    sys.stderr.write(what + "\n")
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError("not started", "this wants a yes, and there is no terminal to ask at", hint=hint)
    if not typer.confirm("Go on?", err=True):
        raise InputError("not started", "the answer was no", hint=hint)
