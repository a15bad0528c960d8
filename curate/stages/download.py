"""Download: a list of URLs and captions becomes shards.

A shard is a part: `samples_per_shard` rows of the list. What was downloaded from, and with which settings,
stands in the pool's sources.json before the first shard does: the same list and settings go on where they
stopped, others are refused, so that no pool is ever a mixture that nobody asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import disk, receipts, runner
from curate.errors import InputError, PartError, nearest
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.pool.layout import DOWNLOAD_STAGE, Layout, metadata_files
from curate.pool.names import ALIASES
from curate.stages.download_part import LANES, Job, download_part, shares

if TYPE_CHECKING:
    from curate.fetch.lists import SourceList

VERSION = 1
SAMPLES_A_SECOND = 200
"""What one core fetches, resizes to 512 pixels and writes; photos of a few hundred pixels, measured."""

CONNECTIONS = 256
"""Fetches at once, over all processes, unless told otherwise."""

log = logging.getLogger("curate.download")


@dataclass(frozen=True)
class DownloadSettings:
    """How a list becomes shards. `verify_column` of the list holds the hashes of `images.verify_hash`."""

    images: ImageSettings = field(default_factory=ImageSettings)
    limits: FetchLimits = field(default_factory=FetchLimits)
    samples_per_shard: int = 10_000
    url_col: str | None = None
    caption_col: str | None = None
    verify_column: str | None = None

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise InputError("--samples-per-shard", f"must be above 0 (found {self.samples_per_shard})")
        if (self.verify_column is None) != (self.images.verify_hash is None):
            raise InputError("--verify-hash", "needs a column and a hash", hint="--verify-hash sha256 sha256")

    def described(self, source: SourceList) -> dict[str, Any]:
        """The settings that decide what is stored, as JSON. Deadlines and retries do not: they may change."""
        images = {k: str(v) if isinstance(v, float) else v for k, v in asdict(self.images).items()}
        return {
            "images": images,
            "samples_per_shard": self.samples_per_shard,
            "columns": {"url": source.columns.url, "caption": source.columns.caption},
            "verify_column": self.verify_column,
            "max_bytes": self.limits.max_bytes,
            "obey_opt_out": self.limits.obey_opt_out,
        }


@dataclass(frozen=True)
class Plan:
    """A download that may begin: the list was looked through, and fits what the pool holds already."""

    layout: Layout
    source: SourceList
    settings: DownloadSettings

    @property
    def shards(self) -> int:
        """How many shards the list makes."""
        return -(-self.source.rows // self.settings.samples_per_shard)

    def entry(self) -> dict[str, Any]:
        """What sources.json says of this list."""
        described = self.settings.described(self.source)
        return {
            "files": [f.path.name for f in self.source.files],
            "digest": self.source.digest,
            "rows": self.source.rows,
            "settings": described,
            "settings_digest": receipts.digest(described),
            "first_shard": 0,
            "shards": self.shards,
        }


def plan(root: Path, source: Path | None, settings: DownloadSettings) -> Plan:
    """What `download` will do for the pool at `root`; nothing is written.

    Without `source`, the pool's own metadata is the list. Raises InputError for a list that is wrong, one that
    is not what the pool was downloaded from, or other settings than before.
    """
    from curate.fetch.lists import open_list

    layout = Layout(root, root)
    _check_folder(root)
    found = open_list(
        source or _own_metadata(layout),
        url_col=settings.url_col,
        caption_col=settings.caption_col,
        usual=ALIASES,
    )
    if settings.verify_column and settings.verify_column not in found.other_columns:
        columns = ", ".join(found.other_columns) or "none besides url and caption"
        close = nearest(settings.verify_column, found.other_columns)
        raise InputError(
            "--verify-hash",
            f"the list has no column {settings.verify_column!r} (found: {columns})",
            hint=f"did you mean {close!r}?" if close else "--verify-hash COLUMN HASH",
        )
    made = Plan(layout, found, settings)
    _check_same(made)
    return made


def download(made: Plan, *, workers: int, connections: int = CONNECTIONS) -> runner.Summary:
    """Every shard of the plan, in `workers` processes (0: in this one), with `connections` fetches at once.

    Counts: samples, ok, failed; `code:<error code>` for each cause; received_bytes and stored_bytes.
    """
    from curate.fetch import crawl

    layout, settings = made.layout, made.settings
    disk.make_folder(layout.root)
    with disk.lock(layout.sources.with_suffix(".lock"), wait=True):
        if _check_same(made) is None:
            receipts.write_json(layout.sources, {"format": receipts.FORMAT, "sources": [made.entry()]})
    fetchers, effort = shares(workers, made.shards, connections)
    job = Job(
        settings.images,
        settings.limits,
        key_digits=len(str(settings.samples_per_shard - 1)),
        verify_column=settings.verify_column,
        **effort,
    )
    tasks = [_task(made, number, job) for number in range(made.shards)]
    try:
        summary = runner.run(DOWNLOAD_STAGE, VERSION, tasks, workers=fetchers, lanes=LANES, keep_outdated=True)
    finally:
        crawl.close()  # where this process did the work itself
    _say_if_hopeless(summary, layout)
    return summary


def has_source(root: Path) -> bool:
    """Whether the pool at `root` says by itself what it is downloaded from: metadata, or an earlier list."""
    layout = Layout(root, root)
    return layout.sources.is_file() or ((root / "metadata").is_dir() and bool(metadata_files(layout)))


def seconds_for(rows: int, workers: int) -> float:
    """About how long `rows` take where the network is no limit."""
    return rows / (SAMPLES_A_SECOND * max(1, workers))


def _own_metadata(layout: Layout) -> Path:
    folder = layout.root / "metadata"
    if folder.is_dir() and metadata_files(layout):
        return folder
    if layout.sources.is_file():
        names = ", ".join(_before(layout)["files"][:5])
        raise InputError(str(layout.root), f"was downloaded from a list ({names})", hint="--source FILE_OR_FOLDER")
    raise InputError(str(layout.root), "has no metadata to download from", hint="--source FILE_OR_FOLDER")


def _check_folder(root: Path) -> None:
    there = next(p for p in (root, *root.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(str(there), "is not a folder", hint="--pool DIR, one that is there or is to be made")


def _before(layout: Layout) -> dict[str, Any]:
    """What sources.json says that this pool was downloaded from."""
    try:
        sources = receipts.read_json(layout.sources)["sources"]
        return {**sources[0]}
    except (PartError, KeyError, IndexError, TypeError) as error:
        what = error.what if isinstance(error, PartError) else "names no list"
        raise InputError(str(layout.sources), what, hint="another --pool") from None


def _check_same(made: Plan) -> Mapping[str, Any] | None:
    """The entry of sources.json that this plan goes on with, or None where there is none yet."""
    layout = made.layout
    if not layout.sources.is_file():
        foreign = [*layout.shards.glob("*.tar"), *layout.root.glob("*.tar")]
        if foreign and not (layout.shards / receipts.RECEIPTS).is_dir():
            raise InputError(
                str(layout.root), f"holds shards that others made ({foreign[0].name})", hint="another --pool"
            )
        return None
    before, now = _before(layout), made.entry()
    if before["digest"] != now["digest"]:
        raise InputError(
            str(layout.root),
            f"was downloaded from another list (its sha256 is {before['digest']}, {before['rows']:,} rows; "
            f"this one's is {now['digest']}, {now['rows']:,} rows)",
            hint="another --pool for another list",
        )
    if before["settings_digest"] != now["settings_digest"]:
        raise InputError(
            str(layout.root),
            f"was downloaded with other settings ({_differences(before['settings'], now['settings'])}; "
            f"{before['settings_digest'][:12]} then, {now['settings_digest'][:12]} now)",
            hint="the settings as they were, or another --pool",
        )
    return before


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    found = []
    for name in sorted({*before, *now}):
        then, here = before.get(name), now.get(name)
        if isinstance(then, dict) and isinstance(here, dict):
            found.append(_differences(then, here))
        elif then != here:
            found.append(f"{name.replace('_', '-')} was {then}, is {here}")
    return ", ".join(text for text in found if text)


def _task(made: Plan, number: int, job: Job) -> runner.Task:
    size = made.settings.samples_per_shard
    start = number * size
    count = min(size, made.source.rows - start)
    what = {
        "list": made.source.digest,
        "rows": [start, start + count],
        **made.settings.described(made.source),
    }
    rows = made.source.part(start, count)
    return runner.Task(f"{number:08d}", made.layout.shards, what, download_part, (rows, number, job), samples=count)


def _say_if_hopeless(summary: runner.Summary, layout: Layout) -> None:
    """A hint where nearly everything fails of one cause that is not the hosts'."""
    counts = summary.counts
    for code, hint in (
        ("dns", "is there a network, and a name server that answers?"),
        ("private_address", "hosts of a private network need --allow-private-hosts."),
    ):
        if counts[f"code:{code}"] > 0.9 * counts["samples"]:
            log.warning(
                "download: %s of %s samples failed as %s; %s What failed is not tried again: take away %s, and run "
                "this once more.",
                counts[f"code:{code}"],
                counts["samples"],
                code,
                hint,
                layout.shards,
            )
