"""`curate centroids`: train the centroids that image-based rules compare with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import AssetOption, DeviceOption, JsonOption, PoolOption, WorkersOption, WorkOption
from curate.errors import InputError

if TYPE_CHECKING:
    from curate.stages.centroids import Trained
    from curate.stages.needs import Work

_RECIPE = "datacomp/centroids"
"""The captions that DataComp's centroids are trained on."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("centroids")(centroids)


def centroids(
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npy file to write; a .json goes beside it.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many centroids.")] = 100_000,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="ARCH/PRETRAINED.  [default: ViT-L-14/openai, or the pool's only one]"),
    ] = None,
    sample: Annotated[int | None, typer.Option("--sample", help="Train on so many samples, at most.")] = None,
    sample_ratio: Annotated[
        float | None, typer.Option("--sample-ratio", help="Or on this share, over 0 and at most 1.")
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", "-r", help="Train on what this rule keeps; repeat for more.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help=f"Or on what this recipe keeps.  [default: {_RECIPE}]")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Train on all samples, whatever their captions.")] = False,
    iterations: Annotated[int, typer.Option("--iterations", help="Iterations of k-means.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Decides the sample and where k-means begins.")] = 0,
    pool: PoolOption = None,
    work: WorkOption = None,
    asset: AssetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> int:
    """Train k-means centroids on a pool's image vectors. Example:

    curate centroids --out mine.npy --k 1000 --sample 1000000

    Then: curate filter --rule image_based:centroids=mine.npy
    """
    from curate import recipe as recipes
    from curate.stages import centroids as stage
    from curate.stages.needs import Means

    if every and (rule or recipe):
        raise InputError("--all", "and --rule or --recipe exclude each other")
    common.take_assets(asset)
    chosen = stage.EVERY
    if not every:
        chosen = recipes.compose(rule or [], recipe or ([] if rule else [_RECIPE]))
    means = Means(device, common.workers(workers))
    request = stage.Request(out, chosen, model, k, sample, sample_ratio, iterations, seed, means)
    opened = common.open_pool(pool, work)
    common.keep_log(opened.layout, "centroids")
    trained = stage.train(opened, request, allow=_refuse)
    common.name_unread_assets()
    _show(trained, as_json)
    return 0


def _refuse(work: Work) -> None:
    raise InputError("curate centroids", f"its rules need {work.describe()} first", hint=work.command)


def _show(trained: Trained, as_json: bool) -> None:
    about = trained.about
    if as_json:
        shown = {key: value for key, value in about.items() if key != "format"}
        common.show_json({"file": str(trained.path), **shown, "reused": trained.reused})
        return
    counts = about["counts"]
    rows: list[tuple[Any, ...]] = [
        ("samples", counts["samples"]),
        ("kept by the rules", counts["kept_by_rules"]),
        ("with a vector", counts["with_vectors"]),
        ("trained on", counts["points"]),
    ]
    common.show(common.table(rows, right=[1]))
    there = " (was there)" if trained.reused else ""
    common.show(f"{about['rows']:,} centroids of {about['what']['model']} in {trained.path}{there}")
