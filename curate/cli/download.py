"""`curate download`: from a list of URLs and captions to shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, PoolOption, WorkersOption, YesOption
from curate.errors import InputError
from curate.fetch.settings import FetchLimits, ImageSettings

if TYPE_CHECKING:
    from curate.runner import Summary
    from curate.stages.download import Plan

_PNG_COMPRESSION = 6
_IMAGE, _LIMIT = ImageSettings(), FetchLimits()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("download")(download)


def download(
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            help="A list, or a folder of lists: Parquet, CSV, TSV, JSONL, JSON, TXT, also gzipped."
            "  [default: the pool's metadata, else DataComp's of --scale]",
        ),
    ] = None,
    url_col: Annotated[
        str | None, typer.Option("--url-col", help="The column of URLs.  [default: url, URL, ...]")
    ] = None,
    caption_col: Annotated[
        str | None, typer.Option("--caption-col", help="The column of captions.  [default: caption, text, ...]")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="DataComp's pool: small, medium, ...  [default: small]")
    ] = None,
    pool: PoolOption = None,
    samples_per_shard: Annotated[
        int, typer.Option("--samples-per-shard", help="Rows of the list a shard.")
    ] = 10_000,
    image_size: Annotated[
        int, typer.Option("--image-size", help="Pixels a side; see --resize-mode.")
    ] = _IMAGE.image_size,
    resize_mode: Annotated[
        str, typer.Option("--resize-mode", help="no, border, keep_ratio, keep_ratio_largest or center_crop.")
    ] = _IMAGE.resize_mode,
    resize_only_if_bigger: Annotated[
        bool, typer.Option(help="Leave images that are smaller already.")
    ] = _IMAGE.resize_only_if_bigger,
    upscale_interpolation: Annotated[
        str, typer.Option(help="nearest, linear, cubic, area or lanczos.")
    ] = _IMAGE.upscale_interpolation,
    downscale_interpolation: Annotated[
        str, typer.Option(help="nearest, linear, cubic, area or lanczos.")
    ] = _IMAGE.downscale_interpolation,
    encode_format: Annotated[str, typer.Option(help="jpg, png or webp.")] = _IMAGE.encode_format,
    encode_quality: Annotated[
        int | None,
        typer.Option(help="0 to 100; for png its compression, 0 to 9.  [default: 95; 6 for png]"),
    ] = None,
    skip_reencode: Annotated[
        bool, typer.Option("--skip-reencode", help="Keep the bytes of an image that needs no change.")
    ] = False,
    min_image_size: Annotated[
        int, typer.Option(help="Fail images whose shorter side has fewer pixels.")
    ] = _IMAGE.min_image_size,
    max_aspect_ratio: Annotated[
        float, typer.Option(help="Fail images that are longer than this many times their width.")
    ] = _IMAGE.max_aspect_ratio,
    max_image_area: Annotated[float, typer.Option(help="Fail images with more pixels.")] = _IMAGE.max_image_area,
    max_pixels: Annotated[int, typer.Option(help="Never decode an image with more pixels.")] = _IMAGE.max_pixels,
    compute_hash: Annotated[
        str, typer.Option(help="Hash of the downloaded bytes to store: sha256, md5, sha1 or sha512.")
    ] = _IMAGE.compute_hash,
    verify_hash: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="COLUMN HASH", help="Fail images whose hash is not the one in this column."),
    ] = None,
    allow_private_hosts: Annotated[
        bool,
        typer.Option("--allow-private-hosts", help="Fetch from private, loopback and link-local addresses too."),
    ] = False,
    obey_opt_out: Annotated[
        bool, typer.Option(help="Leave images whose server sends noai, noimageai, noindex or noimageindex.")
    ] = True,
    user_agent: Annotated[str, typer.Option(help="What we tell servers that we are.")] = _LIMIT.user_agent,
    max_bytes: Annotated[int, typer.Option(help="Fail bodies with more bytes.")] = _LIMIT.max_bytes,
    connect_seconds: Annotated[float, typer.Option(help="To resolve, connect and agree on TLS.")] = 5.0,
    idle_seconds: Annotated[float, typer.Option(help="Without a byte from the server.")] = 10.0,
    total_seconds: Annotated[float, typer.Option(help="For a URL with all redirects and retries.")] = 30.0,
    max_redirects: Annotated[int, typer.Option(help="Redirects to follow.")] = _LIMIT.max_redirects,
    retries: Annotated[
        int, typer.Option(help="Further tries after 429, 5xx, a reset or a DNS failure.")
    ] = _LIMIT.retries,
    concurrency: Annotated[int, typer.Option(min=1, help="Fetches at once, over all workers.")] = 256,
    workers: WorkersOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> int:
    """Fetch the images of a list into shards.

    The same command again goes on where it stopped; samples that cannot be had keep their row, with an error
    code. Example:

        curate download --source pairs.parquet --pool pool
    """
    from curate.stages import download as stage

    images = ImageSettings(
        image_size=image_size,
        resize_mode=resize_mode,
        resize_only_if_bigger=resize_only_if_bigger,
        upscale_interpolation=upscale_interpolation,
        downscale_interpolation=downscale_interpolation,
        encode_format=encode_format,
        encode_quality=_quality(encode_quality, encode_format),
        skip_reencode=skip_reencode,
        min_image_size=min_image_size,
        max_image_area=max_image_area,
        max_aspect_ratio=max_aspect_ratio,
        max_pixels=max_pixels,
        compute_hash=compute_hash,
        verify_hash=verify_hash[1] if verify_hash else None,
    )
    limits = FetchLimits(
        connect_seconds=connect_seconds,
        idle_seconds=idle_seconds,
        total_seconds=total_seconds,
        max_bytes=max_bytes,
        max_redirects=max_redirects,
        retries=retries,
        allow_private=allow_private_hosts,
        obey_opt_out=obey_opt_out,
        user_agent=user_agent,
    )
    column = verify_hash[0] if verify_hash else None
    settings = stage.DownloadSettings(images, limits, samples_per_shard, url_col, caption_col, column)
    root = common.pool_path(pool)
    if source is not None and scale is not None:
        raise InputError("curate download", "--source and --scale are two sources", hint="leave one of them out")
    if source is None and not stage.has_source(root):
        _fetch_datacomp(scale or "small", root, common.workers(workers), yes=yes)
    made = stage.plan(root, source.expanduser() if source else None, settings)
    common.keep_log(made.layout, "download")
    summary = stage.download(made, workers=common.workers(workers), connections=concurrency)
    _show(made, summary, as_json)
    summary.raise_failed()
    return 0


def _quality(given: int | None, encode_format: str) -> int:
    if given is not None:
        return given
    return _PNG_COMPRESSION if encode_format == "png" else _IMAGE.encode_quality


def _fetch_datacomp(scale: str, root: Path, workers: int, *, yes: bool) -> None:
    """DataComp's metadata of a scale, after a yes: what follows takes the disk and the night."""
    from curate.fetch import hub
    from curate.progress import size, span
    from curate.stages.download import seconds_for

    found = hub.hub_pool(scale)
    common.confirm(
        f"curate download --scale {scale}: {found.rows:,} rows of DataComp's pool, about {size(found.image_bytes)} "
        f"of images and {size(found.metadata_bytes)} of metadata, some {span(seconds_for(found.rows, workers))} "
        f"where the network keeps up, into {root}",
        yes=yes,
        hint=f"curate download --scale {scale} --yes, or a list of your own: --source FILE_OR_FOLDER",
    )
    hub.fetch_metadata(found, root / "metadata")


def _show(made: Plan, summary: Summary, as_json: bool) -> None:
    from curate.progress import size

    counts = summary.counts
    ordered = common.codes(counts)
    if as_json:
        common.show_json(
            {
                "pool": str(made.layout.root),
                "shards": made.shards,
                "samples": counts["samples"],
                "ok": counts["ok"],
                "failed": counts["failed"],
                "codes": ordered,
                "received_bytes": counts["received_bytes"],
                "stored_bytes": counts["stored_bytes"],
                "failed_parts": {part: str(error) for part, error in summary.failed.items()},
            }
        )
        return
    samples = max(1, counts["samples"])
    rows: list[tuple[Any, ...]] = [("downloaded", counts["ok"], f"{counts['ok'] / samples:.1%}", "")]
    rows += [(code, n, f"{n / samples:.1%}", common.meaning(code)) for code, n in ordered.items()]
    rows.append(("all samples", counts["samples"], "", ""))
    common.show(common.table(rows, right=[1, 2]))
    common.show(
        f"{summary.parts - len(summary.failed):,} shards, {size(counts['stored_bytes'])} of images "
        f"({size(counts['received_bytes'])} received), in {made.layout.shards}"
    )
