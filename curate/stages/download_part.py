"""One shard of a download: rows of a list are fetched, converted and written as a shard's files."""

from __future__ import annotations

import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from curate import devices
from curate.disk import disk, make_folder
from curate.engines.local import keep_freed_memory
from curate.errors import ERROR_CODES
from curate.fetch.rows import LOCAL, OWN
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.stages.shard_files import RESIZE_CODES, Record, kept_name, write_shard
from curate.uids import derive_uid

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.fetch.crawl import Effort
    from curate.fetch.rows import Rows
    from curate.fetch.targets import Outcome, Target
    from curate.receipts import Output

VERSION = 1
"""Of a shard's form, for its receipt."""
FETCHERS = ("curate", "img2dataset")

_TICK_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """What the shards of one download share.

    `verify_column` of the list holds the hashes of `images.verify_hash`, `bbox_column` the faces to blur.
    `local_root` is the folder that the files of a local list lie in. `connections` (None: as many as make it
    faster), `processes` and `threads` are the effort of one worker process.
    """

    images: ImageSettings
    limits: FetchLimits
    key_digits: int
    connections: int | None = None
    processes: int = 0
    threads: int = 1
    body_bytes: int = 256 << 20
    verify_column: str | None = None
    bbox_column: str | None = None
    local_root: Path | None = None
    placeholder_urls: int = 10
    fetcher: str = "curate"

    @property
    def effort(self) -> Effort:
        """What the crawler may use."""
        from curate.fetch.crawl import Effort

        return Effort(self.connections, self.processes, self.threads, self.body_bytes)


DECODERS_A_FETCHER = 4
"""Decode processes that one process can keep in bodies."""
LANES = 2
"""Parts that one process works on at once: one begins while the last slow hosts of another are waited for."""
BODY_BYTES = 256 << 20
"""Of all processes together."""


def shares(workers: int, parts: int, limits: FetchLimits, connections: int | None) -> tuple[int, dict[str, Any]]:
    """How many processes fetch where `workers` decode (0: all in this process), and each one's part of a `Job`.

    Processes know nothing of each other, so what a host may be asked at once is divided among them.
    """
    if workers <= 0:
        return 0, {"limits": limits, "connections": connections, "threads": devices.cores()}
    fetchers = max(1, min(workers // DECODERS_A_FETCHER, parts, limits.per_host))
    return fetchers, {
        "limits": replace(limits, per_host=limits.per_host // fetchers),
        "connections": None if connections is None else max(1, connections // fetchers),
        "processes": -(-workers // fetchers),
        "body_bytes": BODY_BYTES // fetchers,
    }


def download_part(output: Output, tick: Tick, rows: Rows, number: int, job: Job) -> Mapping[str, int]:
    """Fetch one shard's rows and write its files; counts samples, ok, failed, bytes, and each code."""
    from curate.fetch import crawl
    from curate.fetch.rows import read_rows

    allow_many_sockets()
    keep_freed_memory()
    if job.fetcher == "curate":
        crawl.prepare(job.images, job.limits, job.effort)
    table = read_rows(rows)
    began = time.time()
    shard = f"{number:08d}"
    keys = [f"{shard}{row:0{job.key_digits}d}" for row in range(len(table))]
    with disk(output.folder / f"{shard}.tar"), spool_in(output.folder) as spool:
        outcomes = fetch_rows(table, range(len(table)), spool, job, output.folder, tick)
        asked = [outcomes[row] for row in range(len(table))]
        records = [record(*r) for r in zip(keys, table.select(OWN).to_pylist(), asked, strict=True)]
        with told_as_disk(tick):
            counts = write_shard(
                output,
                shard,
                records,
                _named(kept_columns(table, asked, job.bbox_column), job.images.compute_hash),
                [ledger_row(r["key"], o) for r, o in zip(records, asked, strict=True)],
                image=lambda row: spooled(spool, asked[row]),
                compute_hash=job.images.compute_hash,
                placeholder_urls=job.placeholder_urls,
                began=began,
            )
    return {**counts, "received_bytes": received(asked)}


def allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one: kept connections need descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spool_in(folder: Path) -> BinaryIO:
    """A nameless file on the pool's disk, gone with the process whatever ends it."""
    make_folder(folder)
    return tempfile.TemporaryFile(dir=folder)


def spooled(spool: BinaryIO, outcome: Outcome) -> tuple[str, bytes]:
    """The extension and the bytes of an outcome's image."""
    assert outcome.image is not None
    spool.seek(outcome.offset)
    return outcome.image.extension, spool.read(outcome.length)


def received(outcomes: Sequence[Outcome]) -> int:
    """Bytes of bodies that came over the network, each counted once."""
    return sum(o.received or 0 for o in outcomes if not o.repeat)


def fetch_rows(
    table: pa.Table, rows: Sequence[int], spool: BinaryIO, job: Job, folder: Path, tick: Tick
) -> dict[int, Outcome]:
    """The outcome of each of these `rows` of `table`; images go to `spool`.

    Rows that the list itself spoils are not asked for.
    """
    from curate.fetch.crawl import crawl
    from curate.fetch.http import Fetched
    from curate.fetch.targets import Outcome

    urls = table["url"].to_pylist()
    spoiled = table["list_error"].to_pylist()
    boxes = _boxes(table, job)
    fates: dict[int, Outcome] = {}
    for row in rows:
        code = spoiled[row] or ("bad_metadata" if boxes[row] is None else None)
        if code:
            fates[row] = Outcome(Fetched(urls[row] or ""), error_code=code, error_message=ERROR_CODES[code])
    tick(len(fates), len(fates), Counter(f"code:{o.error_code}" for o in fates.values()))
    targets = _targets(table, [row for row in rows if row not in fates], boxes, job)
    with throttled(tick) as done:
        if job.fetcher == "img2dataset":
            from curate.fetch.img2dataset_part import fetch

            fates |= fetch(targets, spool, images=job.images, limits=job.limits, folder=folder, done=done)
        else:
            fates |= crawl(targets, spool, images=job.images, limits=job.limits, effort=job.effort, done=done)
    spool.flush()
    return fates


def _targets(table: pa.Table, rows: Sequence[int], boxes: Sequence[Any], job: Job) -> dict[int, Target]:
    from curate.fetch.local_file import LocalFile
    from curate.fetch.targets import Target

    urls = table["url"].to_pylist()
    hashes = table[job.verify_column].to_pylist() if job.verify_column else [None] * len(table)
    expected = [None if value is None else str(value) for value in hashes]
    if job.local_root is None:
        return {row: Target(urls[row], expected[row], boxes[row]) for row in rows}
    names, offsets, lengths = (table[name].to_pylist() for name in LOCAL)
    return {
        row: Target(
            urls[row] or "",
            expected[row],
            boxes[row],
            LocalFile(job.local_root / names[row], offsets[row], lengths[row]),
        )
        for row in rows
    }


def _boxes(table: pa.Table, job: Job) -> list[tuple[tuple[float, ...], ...] | None]:
    """The faces of each row; None where the list says something that is no list of boxes."""
    if not job.bbox_column:
        return [()] * len(table)
    found: list[tuple[tuple[float, ...], ...] | None] = []
    for cell in table[job.bbox_column].to_pylist():
        try:
            boxes = tuple(tuple(float(side) for side in box) for box in cell or ())
        except (TypeError, ValueError):
            found.append(None)
            continue
        found.append(boxes if all(len(box) == 4 for box in boxes) else None)
    return found


def record(key: str, row: Mapping[str, Any], outcome: Outcome) -> Record:
    """What the table says of one sample; of a blocked one, nothing that leads to it."""
    image, code = outcome.image, outcome.error_code
    hidden = code == "blocked"
    failure = "failed_to_resize" if code in RESIZE_CODES else "failed_to_download"
    uid = row["uid"]
    if uid is None:  # a file of this machine: known by what is in it
        uid = derive_uid(image.sha256 if image else f"{outcome.fetched.url}\0{key}", row["caption"])
    return {
        "uid": uid,
        "url": None if hidden else row["url"],
        "caption": None if hidden else row["caption"],
        "key": key,
        "status": failure if code else "success",
        "error_message": outcome.error_message,
        "width": image and image.width,
        "height": image and image.height,
        "original_width": image and image.original_width,
        "original_height": image and image.original_height,
        "exif": image and image.exif,
        "sha256": image and image.sha256,
        "error_code": code,
        "stored_sha256": image and image.stored_sha256,
        "stored_bytes": outcome.length if image else None,
        "final_url": outcome.fetched.final_url,
        "content_type": outcome.fetched.content_type,
        "original_bytes": outcome.received,
        "original_format": (image and image.original_format) or None,
        "original_mode": (image and image.original_mode) or None,
        "original_frames": (image and image.original_frames) or None,
        "original_orientation": (image and image.original_orientation) or None,
        "hash_ok": image and image.hash_ok,
        "digest": image and image.digest,
    }


def ledger_row(key: str, outcome: Outcome, attempt: int = 0) -> dict[str, Any]:
    """What the ledger says of one sample."""
    import json

    fetched = outcome.fetched
    return {
        "key": key,
        "error_code": outcome.error_code,
        "attempt": attempt,
        "tries": 0 if outcome.repeat else fetched.tries,
        "seconds": 0.0 if outcome.repeat else fetched.seconds,
        "http_status": fetched.http_status,
        "address": fetched.address,
        "headers": json.dumps(fetched.headers),
    }


def kept_columns(table: pa.Table, outcomes: Sequence[Outcome], bbox_column: str | None) -> pa.Table:
    """The list's own columns: boxes turned with their picture, and nothing of a blocked sample."""
    import pyarrow as pa
    import pyarrow.compute as pc

    others = table.drop_columns([name for name in OWN if name in table.column_names])
    if bbox_column in others.column_names and any(o.image and o.image.boxes for o in outcomes):
        cells = [
            [list(box) for box in o.image.boxes] if o.image and o.image.boxes else cell
            for o, cell in zip(outcomes, others[bbox_column].to_pylist(), strict=True)
        ]
        place = others.column_names.index(bbox_column)
        others = others.set_column(place, bbox_column, pa.array(cells, others.schema.field(place).type))
    blocked = pa.array([o.error_code == "blocked" for o in outcomes])
    if pc.any(blocked).as_py():
        for place, name in enumerate(others.column_names):
            nothing = pa.scalar(None, others[name].type)
            others = others.set_column(place, name, pc.if_else(blocked, nothing, others[name]))
    return others


def _named(others: pa.Table, compute_hash: str) -> pa.Table:
    return others.rename_columns([kept_name(name, compute_hash) for name in others.column_names])


class throttled:  # noqa: N801 - used as a statement
    """Passes progress on a few times a second, and the rest at the end."""

    def __init__(self, tick: Tick) -> None:
        self.tick, self.spoke = tick, time.monotonic()
        self.done = self.failed = 0
        self.news: Counter[str] = Counter()

    def __enter__(self) -> Callable[..., None]:
        return self.count

    def __exit__(self, *_: object) -> None:
        self.pass_on()

    def count(self, done: int, failed: int, news: Mapping[str, float]) -> None:
        """So many more samples have ended, so many of them failed; and what else there is to tell."""
        self.done += done
        self.failed += failed
        self.news.update(news)
        if time.monotonic() - self.spoke > _TICK_SECONDS:
            self.pass_on()

    def pass_on(self) -> None:
        """Tell what was counted since the last time; nothing is a sign of life."""
        self.tick(self.done, self.failed, dict(self.news))
        self.spoke, self.done, self.failed = time.monotonic(), 0, 0
        self.news.clear()


@contextmanager
def told_as_disk(tick: Tick) -> Iterator[None]:
    """The seconds inside are the disk's where nothing is fetched meanwhile."""
    from curate.fetch import crawl

    waited, began = crawl.idle(), time.monotonic()
    yield
    if waited and crawl.idle():
        tick(0, 0, {"seconds:disk": time.monotonic() - began})
