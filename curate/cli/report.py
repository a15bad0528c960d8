"""`curate report`: a selection as one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, PoolOption, StaleOption, WorkOption

NOTES = 12
"""Notes that are printed at most."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    pool: PoolOption = None,
    work: WorkOption = None,
    selection: Annotated[
        str | None, typer.Option("--selection", help="The selection's name.  [default: the latest]")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page's file; outside of the pool.")] = Path("report.html"),
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Show thumbnails of samples.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which samples are shown at random.")] = 0,
    allow_stale: StaleOption = False,
    as_json: JsonOption = False,
) -> int:
    """Write one self-contained HTML page: the funnel, the scores, samples kept and dropped, and why.

    It opens without network or script. Example:

        curate report --selection clipscore-1f2e3d --out clipscore.html
    """
    from curate import selection as selections
    from curate.progress import size
    from curate.views import report as view

    opened = common.open_pool(pool, work)
    chosen = selections.load(opened.layout, selection)
    made = view.report(opened, chosen, out.expanduser(), allow_stale=allow_stale, pictures=pictures, seed=seed)
    for note in made.notes[:NOTES]:
        sys.stderr.write(f"curate report: {note}\n")
    if len(made.notes) > NOTES:
        sys.stderr.write(f"curate report: and {len(made.notes) - NOTES} more things that could not be shown\n")
    if as_json:
        common.show_json(made.as_json())
    else:
        common.show(
            f"{made.out}: selection {made.selection}, {made.kept:,} of {made.samples:,} samples kept, "
            f"{made.charts} charts, {made.examples} examples, {size(made.bytes)}"
        )
    return 0
