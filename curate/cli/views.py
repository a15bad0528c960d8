"""What a pool holds, whether it is whole, and what is known of one sample. These commands write nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, PoolOption, PoolsOption, StaleOption, WorkersOption, WorkOption
from curate.errors import PartError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status)
    app.command("verify")(verify)
    app.command("explain")(explain)


def status(
    pool: PoolOption = None,
    work: WorkOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what a pool holds: samples, images, models, scores, selections, and what is broken or foreign.

    Exits 3 where a file is missing or broken that a receipt has. Example:

        curate status --pool ./pool
    """
    from curate.progress import plural
    from curate.views import status as view

    told = view.status(common.open_pool(pool, work))
    if as_json:
        common.show_json(told)
    else:
        common.show("\n".join(view.lines(told)))
    broken = len(told["missing"]) + len(told["unreadable"])
    if broken:
        raise PartError(
            told["pool"],
            plural(broken, "broken file or part", "broken files or parts"),
            hint="curate verify reads everything again",
        )
    return 0


def verify(
    pool: PoolOption = None,
    work: WorkOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> int:
    """Read a pool's files again and compare them with their receipts; exits 3 where something is damaged.

    Files that others made have none: their structure, decoding, and tables against tars are checked. Example:

        curate verify --pool ./pool
    """
    from curate.progress import plural
    from curate.views import verify as view

    opened = common.open_pool(pool, work)
    verdict = view.verify(opened, workers=common.workers(workers))
    if as_json:
        common.show_json(verdict.as_json())
    else:
        common.show("\n".join(view.lines(verdict)))
    if verdict.grave:
        raise PartError(
            str(opened.layout.root),
            plural(len(verdict.grave), "problem"),
            hint="take away the damaged files, and run the commands again that made them: what is whole is kept",
        )
    return 0


def explain(
    uid: Annotated[str, typer.Argument(help="A sample's uid, or its first digits, six or more.")],
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection", help="Which selection, or a uid list.  [default: the latest, where there is one]"
        ),
    ] = None,
    pool: PoolsOption = None,
    work: WorkOption = None,
    allow_stale: StaleOption = False,
    as_json: JsonOption = False,
) -> int:
    """Say where a sample is, its columns and scores, and what each rule said of it, by what margin.

    Rules below the one that took it are asked too. Example:

        curate explain 00a1b2c3
    """
    from curate import selection as selections
    from curate.views import explain as view

    opened = common.open_pools(pool, work)
    some = selection is not None or (opened.layout.selections / "latest.json").is_file()
    chosen = selections.load(opened.layout, selection) if some else None
    told = view.explain(opened, uid, chosen, allow_stale=allow_stale)
    if as_json:
        common.show_json(told)
        return 0
    for piece in view.lines(told):
        common.show(piece if isinstance(piece, str) else common.table(piece, right=[2, 4]))
    return 0
