"""Download: a list of URLs and captions, or a folder of images, becomes shards.

A shard is a part: `samples_per_shard` rows. What was downloaded from, and with which settings, stands in the
pool's sources.json before the first shard does (see download_plan and sources).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import disk, receipts, runner
from curate.errors import Busy, InputError, PartError, StopError
from curate.pool.layout import DOWNLOAD_STAGE, Layout
from curate.progress import plural
from curate.progress import size as bytes_text
from curate.stages import drawn, metadata, sources
from curate.stages.download_part import LANES, VERSION, Job, download_part, shares
from curate.stages.download_plan import (
    Plan,
    Work,
    check_folder,
    check_foreign,
    check_part,
    has_metadata,
    open_given,
    plan,
)
from curate.stages.download_settings import DownloadSettings
from curate.stages.retry import ATTEMPT
from curate.stages.sources import Entry

if TYPE_CHECKING:
    from curate.fetch.lists import SourceList

__all__ = [
    "DownloadSettings",
    "Plan",
    "check_space",
    "check_takes_metadata",
    "download",
    "has_source",
    "keep_metadata",
    "plan",
    "seconds_for",
    "space_needed",
]

SAMPLES_A_SECOND = 200
"""What one core fetches, resizes to 512 pixels and writes; photos of a few hundred pixels, measured."""

SAMPLE_BYTES = 35_000
"""What DataComp's pools take a row at 512 pixels, rows that could not be had included."""
WHOLE_BYTES = 150_000
"""What to expect of a row whose image is kept at its size."""
KNOWN_FROM = 1_000
"""Samples from which on a pool's own shards say what a sample takes."""
MARGIN = 1.05

log = logging.getLogger("curate.download")


def download(made: Plan, *, workers: int, connections: int | None = None, **options: Any) -> runner.Summary:
    """Every shard of the plan, with `workers` decode processes (0: in this one); `options` are the runner's.

    `connections` is how many fetches there are at once, over all processes (None: as many as make it faster).
    A shard whose list is not there any more is left for another time, with a warning. Counts: samples, ok,
    failed; `code:<error code>` for each cause; received_bytes and stored_bytes.
    """
    from curate.fetch import crawl

    layout = made.layout
    if made.settings.fetcher == "img2dataset":
        _check_img2dataset(made)
    if not made.settings.blur and any(work.entry.columns["boxes"] for work in made.works):
        log.warning("%s: faces stay as they are (--no-blur-faces)", layout.shards)
    disk.make_folder(layout.root)
    with disk.lock(layout.sources.with_suffix(".lock"), wait=True):
        _remember(made)
    lacking = {task.part for task in _pending(made)}
    fetchers, effort = shares(workers, len(lacking), made.settings.limits, connections)
    tasks = [task for work in made.works for task in _with_rows(made, work, lacking, effort)]
    try:
        summary = runner.run(
            DOWNLOAD_STAGE, VERSION, tasks, workers=fetchers, lanes=LANES, keep_outdated=True, **options
        )
    finally:
        crawl.close()  # where this process did the work itself
    _check_still_there(made)
    _say_if_hopeless(summary, layout)
    return summary


def keep_metadata(
    root: Path, source: Path, settings: DownloadSettings, *, limit: int | None = None, sample: float | None = None
) -> int:
    """Make a list, or what `limit` and `sample` leave of it, the metadata of the pool at `root`; its rows.

    So it can be filtered before anything is fetched. Raises InputError for a wrong list, and for a pool that has
    other samples already.
    """
    layout = Layout(root, root)
    check_takes_metadata(root)
    check_part(limit, sample)
    listed = open_given(source, settings)
    if listed.root is not None:
        raise InputError(str(source), "holds images, and no list", hint="leave out --metadata-only")
    return metadata.write(layout, listed, limit=limit, sample=sample)


def check_takes_metadata(root: Path) -> None:
    """Raise InputError for a pool whose samples are those of its shards: metadata would change what they are."""
    layout = Layout(root, root)
    check_folder(root)
    if has_metadata(layout):
        return
    if layout.sources.is_file():
        raise InputError(
            str(root), "was downloaded from already, and its samples are its shards'", hint="another --pool"
        )
    check_foreign(layout)


def has_source(root: Path) -> bool:
    """Whether the pool at `root` says by itself what it is downloaded from: metadata, or an earlier list."""
    layout = Layout(root, root)
    return layout.sources.is_file() or has_metadata(layout)


def seconds_for(rows: int, workers: int) -> float:
    """About how long `rows` take where the network is no limit."""
    return rows / (SAMPLES_A_SECOND * max(1, workers))


# --- space ------------------------------------------------------------------------------------------------


def space_needed(made: Plan) -> int:
    """About how many bytes the rows will take that are not here yet."""
    rows = sum(task.samples for task in _pending(made))
    return round(rows * _bytes_a_sample(made.layout, made.settings)) if rows else 0


def check_space(made: Plan) -> None:
    """Raise InputError where the disk has less room than the download is expected to need, and a margin."""
    needed = round(space_needed(made) * MARGIN)
    free = disk.free(made.layout.root)
    if needed > free:
        raise InputError(
            str(made.layout.root),
            f"the download needs about {bytes_text(needed)}, and {bytes_text(free)} are free there "
            f"({needed:,} and {free:,} bytes)",
            hint="another --pool with more room, fewer rows with --limit, or --no-space-check",
        )


def _bytes_a_sample(layout: Layout, settings: DownloadSettings) -> float:
    """What a row takes on disk: by the shards that are here, where they are enough to say."""
    made = receipts.receipts(layout.shards).values()
    samples = sum(receipt.counts.get("samples", 0) for receipt in made)
    if samples >= KNOWN_FROM:
        return sum(written.bytes for receipt in made for written in receipt.outputs.values()) / samples
    if settings.images.resize_mode == "no":
        return WHOLE_BYTES
    return SAMPLE_BYTES * (settings.images.image_size / 512) ** 2


def _check_img2dataset(made: Plan) -> None:
    """Raise InputError for what img2dataset cannot do, before the pool is promised to it."""
    from curate.fetch import img2dataset_part

    for work in made.works:
        _, algorithm = work.entry.columns["hash"] or (None, None)
        img2dataset_part.check(
            replace(made.settings.images, verify_hash=algorithm),
            made.settings.limits,
            blurs=made.settings.blur and work.entry.columns["boxes"] is not None,
            local=work.entry.kind == "folder",
        )


# --- tasks ------------------------------------------------------------------------------------------------


def _remember(made: Plan) -> None:
    """Have sources.json name what is to be downloaded; rows that were drawn are in their file before."""
    layout, new = made.layout, made.new
    now = [receipts.digest(asdict(entry)) for entry in sources.read(layout)]
    wanted = [receipts.digest(asdict(entry)) for entry in made.before]
    if new and new.source and now == wanted:
        if made.drawn is not None:
            drawn.write(layout, new.place, new.source, made.drawn, new.entry.digest)
        sources.write(layout, [*made.before, new.entry])
        return
    if new:
        wanted.append(receipts.digest(asdict(new.entry)))  # another command with the same list was faster
    if now[: len(wanted)] != wanted:
        raise Busy(str(layout.sources), "was changed by another command", hint="run the same command again")


def _check_still_there(made: Plan) -> None:
    """Raise StopError where the pool does not say any more what it was made from: shards may be gone with that."""
    entries = (*made.before, made.new.entry) if made.new else made.before
    now = sources.read(made.layout)
    if [receipts.digest(asdict(e)) for e in now[: len(entries)]] != [receipts.digest(asdict(e)) for e in entries]:
        raise StopError(
            str(made.layout.root),
            f"was taken away or replaced while it was written ({made.layout.sources.name} is not what it was)",
            hint="run the same command again: what is gone is fetched anew",
        )


def _pending(made: Plan) -> list[runner.Task]:
    """The tasks that are not done, without their rows."""
    tasks = [task for work in made.works for _, task in _tasks(made, work)]
    return runner.pending(DOWNLOAD_STAGE, VERSION, tasks)


def _tasks(made: Plan, work: Work) -> Iterator[tuple[int, runner.Task]]:
    """The shards of an entry, and the task that makes each, without its rows."""
    layout = made.layout
    for shard in work.numbers:
        first, last = work.span(shard)
        part = f"{work.entry.first_shard + shard:08d}"
        what: Mapping[str, Any] = {
            "list": work.entry.digest,
            "rows": [first, last],
            **_of_entry(made.settings, work.entry),
        }
        if layout.attempts.is_file():
            what = _as_retried(layout, part, what)
        yield shard, runner.Task(part, layout.shards, what, download_part, samples=last - first)


def _of_entry(settings: DownloadSettings, entry: Entry) -> dict[str, Any]:
    """What an entry's shards depend on besides its rows: the pool's settings, and the columns of its list."""
    column, algorithm = entry.columns["hash"] or (None, None)
    return {
        **entry.settings,
        "images": replace(settings.images, verify_hash=algorithm).as_json(),
        "url_column": entry.columns["url"],
        "caption_column": entry.columns["caption"],
        "verify_column": column,
        "bbox_column": entry.columns["boxes"] if settings.blur else None,
    }


def _as_retried(layout: Layout, part: str, what: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the part's receipt stands for, where that differs by attempts made since and by nothing else."""
    receipt = receipts.read_receipt(layout.shards, part)
    if receipt and ATTEMPT in receipt.what:
        before = {name: value for name, value in receipt.what.items() if name != ATTEMPT}
        if receipts.digest(before) == receipts.digest(what):
            return receipt.what
    return what


def _with_rows(made: Plan, work: Work, lacking: set[str], effort: Mapping[str, Any]) -> Iterator[runner.Task]:
    """The tasks of an entry, those to do with their rows; where these cannot be read, without those."""
    settings, found = made.settings, dict(_tasks(made, work))
    wanted = [shard for shard, task in found.items() if task.part in lacking]
    yield from (task for task in found.values() if task.part not in lacking)
    if not wanted:
        return
    try:
        source = _source(made.layout, work)
        again = _repeats(made, work, source) if settings.dedup_urls else {}
    except PartError as error:
        log.warning("%s; %s of it not here yet, and left for another time", error, plural(len(wanted), "shard"))
        return
    column, algorithm = work.entry.columns["hash"] or (None, None)
    job = Job(
        replace(settings.images, verify_hash=algorithm),
        key_digits=len(str(settings.samples_per_shard - 1)),
        verify_column=column,
        bbox_column=work.entry.columns["boxes"] if settings.blur else None,
        local_root=work.root,
        placeholder_urls=settings.placeholder_urls,
        fetcher=settings.fetcher,
        **effort,
    )
    for shard in wanted:
        task, (first, last) = found[shard], work.span(shard)
        rows = replace(source.part(first, last - first), duplicates=again.get(shard, ()))
        yield replace(task, args=(rows, int(task.part), job))


def _source(layout: Layout, work: Work) -> SourceList:
    """The list that an entry's rows are read from. Raises PartError where it is not there."""
    there = work.root if work.entry.kind == "folder" else work.source
    if there is None and not (work.entry.drawn and work.entry.kind != "folder"):
        path = sources.path_of(layout, work.entry)
        raise PartError(str(path), f"is not there as it was; give --source {path.name}, wherever it is now")
    if work.entry.drawn:
        return drawn.opened(layout, work.place, work.entry, work.root)
    assert work.source is not None
    return work.source


def _repeats(made: Plan, work: Work, source: SourceList) -> dict[int, tuple[int, ...]]:
    """The rows of each shard of an entry whose URL stood before, in it or in the entries that it continues.

    Raises PartError where one of their lists is not there.
    """
    import numpy as np

    from curate.fetch.repeats import repeats
    from curate.fetch.rows import texts

    if work.root is not None:
        return {}
    entry = work.entry
    earlier = [other for other in made.works if other.place in _before(made, work)]
    streams = [(_source(made.layout, other), other.entry) for other in earlier] + [(source, entry)]
    urls: Iterable[list[str | None]] = (
        some for of, its in streams for some in texts(of.part(its.first_row, its.rows), of.columns.url)
    )
    skipped = sum(its.rows for _, its in streams[:-1])
    found = repeats(urls, skipped + entry.rows)
    found = found[found >= skipped] - skipped
    size = work.size
    shards = found // size
    return {int(shard): tuple(int(row) for row in found[shards == shard] % size) for shard in np.unique(shards)}


def _before(made: Plan, work: Work) -> set[int]:
    """The places of the entries that an entry continues."""
    entries = {other.place: other.entry for other in made.works} | dict(enumerate(made.before))
    found, at = set(), work.entry.continues
    while at is not None:
        found.add(at)
        at = entries[at].continues
    return found


def _say_if_hopeless(summary: runner.Summary, layout: Layout) -> None:
    """A hint where nearly everything fails of one cause that is not the hosts'."""
    counts = summary.counts
    for code, hint in (
        ("dns", "is there a network, and a name server that answers?"),
        ("private_address", "hosts of a private network need --allow-private-hosts."),
    ):
        if counts[f"code:{code}"] > 0.9 * counts["samples"]:
            log.warning(
                "download: %s of %s samples failed as %s; %s What failed is tried again by: curate download "
                "--retry-failed --codes %s --pool %s",
                counts[f"code:{code}"],
                counts["samples"],
                code,
                hint,
                code,
                layout.root,
            )
