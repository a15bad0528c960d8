"""`curate subset`: a selection made real at a scale."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, PoolsOption, StaleOption, WorkersOption, WorkOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from curate.stages.subset import Result
    from curate.stages.subsets import Results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("subset")(subset)


def subset(
    scale: Annotated[
        str, typer.Option("--scale", help="DataComp's training budget: debug, small, medium, large or xlarge.")
    ],
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection", help="Which selection, or a uid list.  [default: the latest]", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The new folder.")] = Path("subset"),
    pool: PoolsOption = None,
    work: WorkOption = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="SOURCE=W",
            help="Of several pools, how often a training draws from this one; repeat for more.  [default: 1 each]",
            show_default=False,
        ),
    ] = None,
    samples_per_shard: Annotated[
        int, typer.Option("--samples-per-shard", min=1, help="At most so many samples a shard, in even shards.")
    ] = 10_000,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Decides who is in the scale's pool, and --shuffle's order.  [default: the selection's]",
            show_default=False,
        ),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Mix the samples over all shards, by chance from --seed.")
    ] = False,
    blur_faces: Annotated[
        str | None,
        typer.Option(
            "--blur-faces",
            metavar="BOXES",
            help="Blur faces: `metadata` takes the pool's boxes (face_bboxes); or a Parquet file with uid and "
            "face_bboxes. The only step that changes pictures.",
            show_default=False,
        ),
    ] = None,
    inject_boxes: Annotated[
        str | None,
        typer.Option(
            "--inject-boxes",
            metavar="BOXES",
            help="Write the boxes into the samples' JSON as face_bboxes, for train.py --blur_field.",
            show_default=False,
        ),
    ] = None,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="Exit 3 if a selected sample has no image here.")
    ] = False,
    allow_stale: StaleOption = False,
    virtual: Annotated[
        bool, typer.Option("--virtual", help="Write no shards: an index of the pool's own, for curate.sampling.")
    ] = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write the selected samples as new shards, with uid list, training settings and a dataset card.

    The folder can be handed to DataComp's train.py and to open_clip as it is. Example:

        curate subset --scale small --out ./subset
    """
    from curate import scales
    from curate import selection as selections
    from curate.pool.joint import JointPool
    from curate.stages import subset as stage
    from curate.stages import subsets
    from curate.stages.blurring import faces

    chosen_scale = scales.scale(scale)
    asked = faces(blur_faces, inject_boxes)
    opened = common.open_pools(pool, work)
    weights = subsets.weights_of(opened, weight or [])
    chosen = selections.load(opened.layout, selection)
    common.keep_log(opened.layout, "subset")
    chance = int(chosen.raw.get("seed", 0)) if seed is None else seed
    make = partial(
        stage.subset,
        scale=chosen_scale,
        seed=chance,
        samples_per_shard=samples_per_shard,
        workers=common.workers(workers),
        shuffle=shuffle,
        faces=asked,
        virtual=virtual,
        require_all=require_all,
    )
    folder = out.expanduser()
    result: Result | Results
    if isinstance(opened, JointPool):
        result = subsets.subsets(
            opened,
            chosen,
            chosen_scale,
            folder,
            lambda one, share, there: make(one, share, out=there, allow_stale=True),
            weights=weights,
            seed=chance,
            workers=common.workers(workers),
            require_all=require_all,
            allow_stale=allow_stale,
        )
        lines = subsets_lines(result)
    else:
        result = make(opened, chosen, out=folder, allow_stale=allow_stale)
        lines = subset_lines(result)
    if as_json:
        common.show_json(result.as_json())
    else:
        common.show("\n".join(lines))
    if result.failure:
        raise result.failure
    return 0


def subset_lines(result: Result) -> list[str]:
    """What became of a selection, for people."""
    from curate import scales
    from curate.progress import size

    rows: list[tuple[Any, ...]] = [("selected", result.selected)]
    if result.outside:
        rows.append((f"outside of the pool of {result.scale.name}", result.outside))
    if result.missing:
        rows.append(("without an image here", sum(result.missing.values())))
        rows += [(f"  {cause}", count) for cause, count in result.missing.items()]
    rows.append(("kept", result.kept))
    if result.samples != result.kept:
        rows.append(("written, copies counted", result.samples))
    if result.blurred is not None:
        rows.append(("pictures with faces blurred", result.blurred))
    rows.append(("shards, shuffled" if result.shuffled else "shards", result.shards))
    if result.unmade:
        rows.append(("of these not made", result.unmade))
    lines = [f"selection {result.selection}", *common.table(rows, right=[1]).splitlines()]
    if result.unmade:
        return lines
    scale, repeats = result.scale, result.repeats
    times = scales.times(repeats)
    lines.append(
        f"\n{result.out} ({size(result.bytes)}): {scale.name} sees {scale.samples_seen:,} samples, each of these "
        f"about {times} times"
    )
    return [*lines, *_trained_by(result.commands)]


def subsets_lines(results: Results) -> list[str]:
    """What became of a selection of several pools, and what trains on it, for people."""
    from curate import scales
    from curate.progress import size

    rows: list[tuple[Any, ...]] = [("source", "selected", "missing", "kept", "written", "shards", "weight", "seen")]
    for made in results.sources:
        told, missing = made.as_json(), sum(made.missing.values())
        counts = [told[what] for what in ("kept", "samples", "shards")]
        rows.append(
            (
                made.source,
                made.selected,
                missing,
                *counts,
                f"{made.weight:g}",
                f"{scales.times(made.repeats)} times",
            )
        )
    whole, scale = results.as_json(), results.scale
    lines = [f"selection {results.selection}", *common.table(rows, right=[1, 2, 3, 4, 5, 6, 7]).splitlines()]
    if results.unmade:
        return [*lines, f"shards not made: {results.unmade:,}"]
    return [
        *lines,
        f"\n{results.out} ({size(whole['bytes'])}): {scale.name} sees {scale.samples_seen:,} samples",
        *_trained_by(results.commands),
    ]


def _trained_by(commands: Mapping[str, str]) -> list[str]:
    return [
        "\ntrain with DataComp's scripts:",
        commands["datacomp"],
        "\nor with open_clip:",
        commands["open_clip"],
    ]
