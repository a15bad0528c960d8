"""`curate score`: compute the columns that a rule reads, ahead of filtering."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import AssetOption, DeviceOption, JsonOption, PoolOption, WorkersOption, WorkOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("score")(score)


def score(
    rule: Annotated[list[str], typer.Option("--rule", "-r", help="NAME or NAME:key=value; repeat for more.")],
    pool: PoolOption = None,
    work: WorkOption = None,
    asset: AssetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> int:
    """Compute the scores that rules need, and the embeddings under them. Example:

    curate score --rule watermark
    """
    from curate import recipe as recipes
    from curate.stages import filter as stage
    from curate.stages.needs import Means

    opened = common.open_pool(pool, work)
    common.take_assets(asset)
    chosen = recipes.compose(rule, [])
    common.keep_log(opened.layout, "score")
    summaries = stage.compute(opened, chosen, Means(device, common.workers(workers)))
    common.name_unread_assets()
    if as_json:
        common.show_json({"scores": [{"stage": n, **dict(s.counts), "parts": s.parts} for n, s in summaries]})
    else:
        rows: list[tuple[Any, ...]] = [("computed", "samples", "ok", "failed")]
        rows += [(n, s.counts["samples"], s.counts["ok"], s.counts["failed"]) for n, s in summaries]
        common.show(common.table(rows, right=[1, 2, 3]) if summaries else "nothing to compute")
    for _, summary in summaries:
        summary.raise_failed()
    return 0
