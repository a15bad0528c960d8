"""`curate status` and `curate verify`: what a pool holds, and whether it is whole. They write nothing."""

from __future__ import annotations

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, PoolOption, WorkersOption, WorkOption
from curate.errors import PartError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status)
    app.command("verify")(verify)


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
