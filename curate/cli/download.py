"""`curate download`: from a list of URLs and captions to shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.cli import _common as common
from curate.cli import _download as parts
from curate.cli._common import JsonOption, PoolOption, YesOption
from curate.errors import InputError
from curate.fetch.settings import FetchLimits, ImageSettings

_PNG_COMPRESSION = 6
_IMAGE, _LIMIT = ImageSettings(), FetchLimits()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("download")(download)


def download(
    pool: PoolOption = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            help=(
                "A list, or a folder of lists: Parquet, CSV, TSV, JSONL, JSON, TXT, also gzipped; or a folder of "
                "images or tars.  [default: the pool's own lists or metadata, else DataComp's of --scale]"
            ),
        ),
    ] = None,
    url_col: Annotated[
        str | None, typer.Option("--url-col", help="The column of URLs.  [default: url, URL, ...]")
    ] = None,
    caption_col: Annotated[
        str | None, typer.Option("--caption-col", help="The column of captions.  [default: caption, text, ...]")
    ] = None,
    bbox_col: Annotated[
        str | None, typer.Option("--bbox-col", help="The column of faces to blur.  [default: face_bboxes]")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale", help="DataComp's pool: small, medium, large, xlarge or datacomp_1b.  [default: small]"
        ),
    ] = None,
    metadata_only: Annotated[
        bool, typer.Option("--metadata-only", help="Take the list into the pool, and fetch no image yet.")
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="DataComp's published vectors too, also onto a pool that is there.")
    ] = False,
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection", help="Fetch only what this selection kept (latest: the last one), or a uid list."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Fetch the first N rows only.", min=1)] = None,
    sample: Annotated[
        float | None, typer.Option("--sample", help="Fetch this fraction of the rows, drawn by uid.")
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Append another list after the last shard of the pool.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for what failed, and write those shards anew.")
    ] = False,
    codes: Annotated[
        str | None,
        typer.Option(
            "--codes", help="The error codes to ask again for, as dns,timeout.  [default: all that may pass]"
        ),
    ] = None,
    dedup_urls: Annotated[
        bool, typer.Option("--dedup-urls", help="Fail rows whose URL stood earlier in the list: duplicate_url.")
    ] = False,
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
        bool,
        typer.Option(
            "--resize-only-if-bigger/--no-resize-only-if-bigger", help="Leave images that are smaller already."
        ),
    ] = _IMAGE.resize_only_if_bigger,
    upscale_interpolation: Annotated[
        str, typer.Option("--upscale-interpolation", help="nearest, linear, cubic, area or lanczos.")
    ] = _IMAGE.upscale_interpolation,
    downscale_interpolation: Annotated[
        str, typer.Option("--downscale-interpolation", help="nearest, linear, cubic, area or lanczos.")
    ] = _IMAGE.downscale_interpolation,
    draft: Annotated[
        bool,
        typer.Option(
            "--draft/--no-draft", help="Decode large JPEGs at a half, a quarter or an eighth of their size."
        ),
    ] = _IMAGE.draft,
    encode_format: Annotated[str, typer.Option("--encode-format", help="jpg, png or webp.")] = _IMAGE.encode_format,
    encode_quality: Annotated[
        int | None,
        typer.Option(
            "--encode-quality", help="0 to 100; for png its compression, 0 to 9.  [default: 95; 6 for png]"
        ),
    ] = None,
    skip_reencode: Annotated[
        bool, typer.Option("--skip-reencode", help="Keep the bytes of an image that needs no change.")
    ] = False,
    blur_faces: Annotated[
        bool, typer.Option("--blur-faces/--no-blur-faces", help="Blur the boxes that the list has.")
    ] = True,
    keep_exif: Annotated[
        bool, typer.Option("--keep-exif", help="EXIF texts in the table, but for places, notes and thumbnails.")
    ] = False,
    min_image_size: Annotated[
        int, typer.Option("--min-image-size", help="Fail images whose shorter side has fewer pixels.")
    ] = _IMAGE.min_image_size,
    max_aspect_ratio: Annotated[
        float,
        typer.Option("--max-aspect-ratio", help="Fail images that are longer than this many times their width."),
    ] = _IMAGE.max_aspect_ratio,
    max_image_area: Annotated[
        float, typer.Option("--max-image-area", help="Fail images with more pixels.")
    ] = _IMAGE.max_image_area,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", help="Never decode an image with more pixels.")
    ] = _IMAGE.max_pixels,
    max_frames: Annotated[
        int, typer.Option("--max-frames", help="Fail animations with more frames; the first one is stored.")
    ] = _IMAGE.max_frames,
    compute_hash: Annotated[
        str,
        typer.Option("--compute-hash", help="Hash of the downloaded bytes to store: sha256, md5, sha1 or sha512."),
    ] = _IMAGE.compute_hash,
    verify_hash: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--verify-hash",
            help="Compare the downloaded bytes with this column.  [default: sha256, where the list has it]",
            metavar="COLUMN HASH",
        ),
    ] = None,
    on_mismatch: Annotated[
        str, typer.Option("--on-mismatch", help="What has another hash: record says so, drop fails it, or keep.")
    ] = _IMAGE.on_mismatch,
    placeholder_urls: Annotated[
        int, typer.Option("--placeholder-urls", help="Mark bytes that more URLs of a shard than this gave.", min=1)
    ] = 10,
    contact: Annotated[
        str | None, typer.Option("--contact", help="Whom hosts may write to: an address or a page.")
    ] = None,
    user_agent: Annotated[
        str, typer.Option("--user-agent", help="What we tell servers that we are.")
    ] = _LIMIT.user_agent,
    obey_opt_out: Annotated[
        bool,
        typer.Option(
            "--obey-opt-out/--no-obey-opt-out",
            help="Leave images whose server sends noai, noimageai, noindex or noimageindex.",
        ),
    ] = True,
    robots: Annotated[bool, typer.Option("--robots", help="Leave what a host's robots.txt asks to leave.")] = False,
    block_list: Annotated[
        Path | None,
        typer.Option("--block-list", help="Hashes (MD5, SHA-1, SHA-256) of images and URLs never to store."),
    ] = None,
    allow_private_hosts: Annotated[
        bool,
        typer.Option("--allow-private-hosts", help="Fetch from private, loopback and link-local addresses too."),
    ] = False,
    per_host: Annotated[
        int, typer.Option("--per-host", help="Requests that one host has at once.")
    ] = _LIMIT.per_host,
    retries: Annotated[
        int, typer.Option("--retries", help="Further tries after 429, 5xx, a reset or a DNS failure.")
    ] = _LIMIT.retries,
    max_redirects: Annotated[
        int, typer.Option("--max-redirects", help="Redirects to follow.")
    ] = _LIMIT.max_redirects,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Fail bodies with more bytes.")] = _LIMIT.max_bytes,
    min_rate: Annotated[
        int, typer.Option("--min-rate", help="Fail bodies that come slower, in bytes a second.")
    ] = _LIMIT.min_rate,
    connect_seconds: Annotated[
        float, typer.Option("--connect-seconds", help="To resolve, connect and agree on TLS.")
    ] = _LIMIT.connect_seconds,
    idle_seconds: Annotated[
        float, typer.Option("--idle-seconds", help="Without a byte from the server.")
    ] = _LIMIT.idle_seconds,
    total_seconds: Annotated[
        float, typer.Option("--total-seconds", help="For a URL with all redirects and retries.")
    ] = _LIMIT.total_seconds,
    outage_minutes: Annotated[
        float,
        typer.Option("--outage-minutes", help="Wait so long for a network that is down; 0 fails what it is asked."),
    ] = _LIMIT.outage_seconds / 60,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", help="Fetches at once.  [default: as many as make it faster]", min=1),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes that decode; 0 works in this one.  [default: one a core]", min=0),
    ] = None,
    fetcher: Annotated[
        str, typer.Option("--fetcher", help="curate, or img2dataset for its own download.")
    ] = "curate",
    space_check: Annotated[
        bool, typer.Option("--space-check/--no-space-check", help="Refuse to begin where the disk is too small.")
    ] = True,
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
        max_frames=max_frames,
        draft=draft,
        keep_exif=keep_exif,
        compute_hash=compute_hash,
        verify_hash=verify_hash[1] if verify_hash else None,
        on_mismatch=on_mismatch,
    )
    limits = FetchLimits(
        connect_seconds=connect_seconds,
        idle_seconds=idle_seconds,
        total_seconds=total_seconds,
        max_bytes=max_bytes,
        max_redirects=max_redirects,
        retries=retries,
        per_host=per_host,
        min_rate=min_rate,
        outage_seconds=60 * outage_minutes,
        allow_private=allow_private_hosts,
        obey_opt_out=obey_opt_out,
        obey_robots=robots,
        block_list=str(block_list.expanduser()) if block_list else None,
        user_agent=user_agent,
        contact=contact,
    )
    settings = stage.DownloadSettings(
        images,
        limits,
        samples_per_shard,
        url_col,
        caption_col,
        verify_column=verify_hash[0] if verify_hash else None,
        bbox_col=bbox_col,
        blur=blur_faces,
        dedup_urls=dedup_urls,
        placeholder_urls=placeholder_urls,
        fetcher=fetcher,
    )
    root = common.pool_path(pool)
    asked = {
        "--source": source,
        "--scale": scale,
        "--retry-failed": retry_failed,
        "--metadata-only": metadata_only,
        "--selection": selection,
        "--limit": limit,
        "--sample": sample,
        "--add": add,
        "--embeddings": embeddings,
        "--codes": codes,
    }
    _check_together({name for name, value in asked.items() if value not in (None, False)})
    hands = common.workers(workers)
    if retry_failed:
        return parts.retry(
            root,
            codes,
            settings,
            workers=hands,
            connections=concurrency,
            space_check=space_check,
            as_json=as_json,
        )
    if source is None and stage.has_source(root) and embeddings:
        parts.fetch_vectors(scale, root)
        return parts.show_metadata(root, as_json=True) if as_json else 0
    told = False
    selection = parts.named(root, selection)
    if source is None and (scale or not stage.has_source(root)):
        told = parts.fetch_datacomp(
            scale,
            root,
            hands or 1,
            embeddings=embeddings,
            limit=limit,
            sample=sample,
            only=metadata_only,
            yes=yes,
        )
    if metadata_only:
        if source is not None:
            stage.keep_metadata(root, source.expanduser(), settings, limit=limit, sample=sample)
        return parts.show_metadata(root, as_json=as_json)
    made = stage.plan(
        root,
        source.expanduser() if source else None,
        settings,
        add=add,
        selection=selection,
        limit=limit,
        sample=sample,
    )
    if source is None and made.new and selection is None and not told:
        parts.ask_for_rows(made, hands or 1, yes=yes)
    if space_check:
        stage.check_space(made)
    common.keep_log(made.layout, "download")
    summary = stage.download(made, workers=hands, connections=concurrency, **parts.watched())
    parts.show(made, summary, as_json=as_json)
    summary.raise_failed()
    return 0


_ALONE = {
    "--source": {"--scale", "--selection", "--embeddings"},
    "--retry-failed": {
        "--source",
        "--scale",
        "--metadata-only",
        "--selection",
        "--limit",
        "--sample",
        "--add",
        "--embeddings",
    },
    "--metadata-only": {"--selection", "--add"},
    "--selection": {"--scale", "--add"},
    "--add": {"--scale"},
}
"""What does not go together with each."""


def _check_together(given: set[str]) -> None:
    for name, others in _ALONE.items():
        if name in given and (clash := sorted(others & given)):
            what = "are two sources" if {name, clash[0]} == {"--source", "--scale"} else "do not go together"
            raise InputError("curate download", f"{name} and {clash[0]} {what}", hint="leave one of them out")
    if "--codes" in given and "--retry-failed" not in given:
        raise InputError("--codes", "says what to ask for again", hint="--retry-failed --codes dns,timeout")
    if "--add" in given and "--source" not in given:
        raise InputError("--add", "appends a list, and none is given", hint="--source FILE_OR_FOLDER --add")
    if {"--metadata-only", "--scale", "--sample"} <= given:
        raise InputError(
            "--sample", "draws rows, and DataComp's metadata comes in whole files", hint="leave out --metadata-only"
        )
    if "--metadata-only" in given and not given & {"--source", "--scale"}:
        raise InputError(
            "--metadata-only", "takes a list into the pool, and none is given", hint="--source FILE_OR_FOLDER"
        )


def _quality(given: int | None, encode_format: str) -> int:
    if given is not None:
        return given
    return _PNG_COMPRESSION if encode_format == "png" else _IMAGE.encode_quality
