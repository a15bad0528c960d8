"""What `curate download` asks before it begins, and what it says when it has ended."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.cli import _common as common
from curate.errors import InputError, is_transient

if TYPE_CHECKING:
    from curate.fetch.hub import Fetched
    from curate.runner import Summary
    from curate.stages.download import DownloadSettings, Plan


def watched() -> dict[str, Any]:
    """The runner's options: the live picture, and a watch over parts that fall silent."""
    from curate.stages.live import Live

    return {"shown": Live, "quiet": 300.0, "dead": 1_200.0}


# --- DataComp's pools -------------------------------------------------------------------------------------


def fetch_datacomp(
    scale: str | None,
    root: Path,
    workers: int,
    *,
    embeddings: bool,
    limit: int | None,
    sample: float | None,
    only: bool,
    yes: bool,
) -> bool:
    """DataComp's metadata of a scale, after a yes: what follows takes the disk and the night.

    Returns whether that yes was given here, for the images too.
    """
    from curate.fetch import hub
    from curate.progress import size, span
    from curate.stages.download import check_takes_metadata, seconds_for

    check_takes_metadata(root)
    folder = root / "metadata"
    scale = scale or hub.begun(folder) or "small"
    found = hub.hub_pool(scale)
    first = limit if limit is None or sample is None else math.ceil(limit / sample)
    new = hub.read_record(folder) is None
    if new:
        listed = found.rows if first is None else min(first, found.rows)
        rows = listed if only or sample is None else round(listed * sample)
        parquet = max(listed / found.rows, 1 / found.files)
        metadata = parquet * (found.metadata_bytes + embeddings * found.npz_bytes)
        images = "" if only else f"about {size(rows / found.rows * found.image_bytes)} of images and "
        time = "" if only else f", some {span(seconds_for(rows, workers))} where the network keeps up"
        common.confirm(
            f"curate download --scale {scale}: {rows:,} rows of DataComp's pool, {images}{size(metadata)} of "
            f"metadata{' and vectors' if embeddings else ''}{time}, into {root}",
            yes=yes,
            hint=f"curate download --scale {scale} --yes, or a list of your own: --source FILE_OR_FOLDER",
        )
    what = "metadata and vectors" if embeddings else "metadata"
    _say_fetched(hub.fetch_metadata(found, folder, npz=embeddings, rows=first), folder, what)
    return new and not only


def ask_for_rows(made: Plan, workers: int, *, yes: bool) -> None:
    """Begin with rows of the pool's metadata only after a yes: nobody has named a list, or how many of it."""
    from curate.progress import size, span
    from curate.stages.download import seconds_for, space_needed

    rows = made.new.entry.rows if made.new else 0
    common.confirm(
        f"curate download: {rows:,} {'further ' if made.before else ''}rows of the pool's metadata, about "
        f"{size(space_needed(made))} of images, some {span(seconds_for(rows, workers))} where the network keeps "
        f"up, into {made.layout.root}",
        yes=yes,
        hint="--yes fetches them; --selection NAME what a selection kept",
    )


def named(root: Path, selection: str | None) -> str | None:
    """The name of the selection that is meant: `latest` is the one made last; a uid list's file stays as it is.

    Raises InputError for none such.
    """
    from curate.pool.layout import Layout
    from curate.selection import load
    from curate.uid_lists import is_file_name

    if selection is None or is_file_name(selection):
        return selection
    return load(Layout(root, root), None if selection == "latest" else selection).name


def fetch_vectors(scale: str | None, root: Path) -> None:
    """The published vectors of the metadata that is there."""
    from curate.fetch import hub

    fetched = hub.fetch_vectors(root / "metadata", hub.hub_pool(scale) if scale else None)
    _say_fetched(fetched, root / "metadata", "vectors")


def _say_fetched(fetched: Fetched, folder: Path, what: str) -> None:
    from curate.progress import plural, size

    if fetched.files:
        common.say(
            f"{plural(len(fetched.files), 'file')} of {what}, {size(fetched.bytes)}, of revision "
            f"{fetched.revision[:12]}, in {folder}"
        )
    for name in fetched.lacking:
        common.say(f"the hub has no {name}: those samples have no published vectors")


def show_metadata(root: Path, *, as_json: bool) -> int:
    """What the pool's samples are now, where no image was asked for."""
    pool = common.open_pool([root])
    if as_json:
        common.show_json({"pool": str(root), "samples": pool.n, "parts": len(pool.parts)})
    else:
        common.show(
            f"{pool.n:,} samples in {len(pool.parts):,} files, in {root / 'metadata'}; no image is fetched yet"
        )
    return 0


# --- results ----------------------------------------------------------------------------------------------


def retry(
    root: Path,
    codes: str | None,
    settings: DownloadSettings,
    *,
    workers: int,
    connections: int | None,
    space_check: bool,
    as_json: bool,
) -> int:
    """Another attempt at what failed."""
    from curate.stages import retry as stage

    wanted = [code.strip() for code in (codes or "").split(",") if code.strip()]
    if codes is not None and not wanted:
        raise InputError("--codes", f"names no error code (found {codes!r})", hint="--codes dns,timeout; or none")
    planned = stage.plan(root, wanted, settings)
    if space_check:
        stage.check_space(planned, workers)
    common.keep_log(planned.layout, "download")
    summary = stage.retry(planned, workers=workers, connections=connections, aloud=False, **watched())
    counts = summary.counts
    told = {
        "attempt": planned.number,
        "asked_again": counts["asked_again"],
        "mended": counts["mended"],
        "still_failed": counts["asked_again"] - counts["mended"],
    }
    if as_json:
        common.show_json(
            {"pool": str(root), **told, "parts": summary.parts, "failed_parts": _failed_parts(summary)}
        )
    elif not counts["asked_again"]:
        common.show("nothing failed that another attempt may mend" if not wanted else f"nothing failed as {codes}")
    else:
        common.show(
            f"asked again for {counts['asked_again']:,} samples: {counts['mended']:,} are stored now, "
            f"{told['still_failed']:,} failed again; {summary.parts:,} shards in {planned.layout.shards}"
        )
    if counts["asked_again"] and not counts["mended"] and counts["code:private_address"]:
        common.say(
            "hosts of a private network need --allow-private-hosts in every attempt: curate download "
            f"--retry-failed --codes private_address --allow-private-hosts --pool {shlex.quote(str(root))}"
        )
    summary.raise_failed()
    return 0


def _failed_parts(summary: Summary) -> dict[str, str]:
    return {part: str(error) for part, error in summary.failed.items()}


def show(made: Plan, summary: Summary, *, as_json: bool) -> None:
    from curate.progress import size

    counts = summary.counts
    ordered = common.codes(counts)
    if as_json:
        common.show_json(
            {
                "pool": str(made.layout.root),
                "shards": summary.parts,
                "samples": counts["samples"],
                "ok": counts["ok"],
                "failed": counts["failed"],
                "codes": ordered,
                "placeholders": counts["placeholders"],
                "received_bytes": counts["received_bytes"],
                "stored_bytes": counts["stored_bytes"],
                "failed_parts": _failed_parts(summary),
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
    again = sum(n for code, n in ordered.items() if is_transient(code))
    if again:
        pool = "" if made.layout.root == common.pool_path(None) else f" --pool {shlex.quote(str(made.layout.root))}"
        common.say(f"{again:,} of them may be had by another attempt: curate download --retry-failed{pool}")
