"""One shard of a download: rows of a list become a tar, its table, ledger, statistics and index.

The forms are img2dataset's, so that what reads its output reads ours; the order is the list's, and nothing in
tar and table depends on the clock or on which answer came first.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from curate.disk import disk, make_folder
from curate.errors import ERROR_CODES, PartError
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.shards import TarWriter, write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.fetch.crawl import Outcome
    from curate.fetch.rows import Rows
    from curate.receipts import Output

RESIZE_CODES = frozenset(
    {"not_an_image", "bad_image", "too_many_pixels", "too_small", "bad_aspect", "encode_failed"}
)
"""What img2dataset calls failed_to_resize; every other code is its failed_to_download."""

TABLE = (
    ("uid", "string"),
    ("url", "string"),
    ("caption", "string"),
    ("key", "string"),
    ("status", "string"),
    ("error_message", "string"),
    ("width", "int32"),
    ("height", "int32"),
    ("original_width", "int32"),
    ("original_height", "int32"),
    ("exif", "string"),
    ("sha256", "string"),
    ("error_code", "string"),
    ("stored_sha256", "string"),
    ("stored_bytes", "int64"),
    ("final_url", "string"),
    ("content_type", "string"),
    ("original_bytes", "int64"),
)
"""Columns of a shard's table and their Arrow types; the list's own columns follow."""

LEDGER = (
    ("key", "string"),
    ("error_code", "string"),
    ("tries", "int16"),
    ("seconds", "float32"),
    ("http_status", "int16"),
    ("address", "string"),
    ("headers", "string"),
)
"""Columns of a shard's ledger: what varies from run to run; `headers` is a JSON object."""

_OWN = ("uid", "url", "caption", "list_error")
_IN_JSON = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "exif")
_TICK_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """What the shards of one download share; `verify_column` holds the hashes of `images.verify_hash`."""

    images: ImageSettings
    limits: FetchLimits
    key_digits: int
    connections: int
    threads: int
    verify_column: str | None = None


def download_part(output: Output, tick: Tick, rows: Rows, number: int, job: Job) -> Mapping[str, int]:
    """Fetch one shard's rows and write its five files; counts samples, ok, failed, bytes, and each code."""
    from curate.fetch.rows import read_rows

    began = time.time()
    _allow_many_sockets()
    table = read_rows(rows)
    shard = f"{number:08d}"
    keys = [f"{shard}{row:0{job.key_digits}d}" for row in range(len(table))]
    with disk(output.folder / f"{shard}.tar"), _spool(output) as spool:
        outcomes = _outcomes(table, spool, job, tick)
        records = [_record(*row) for row in zip(keys, table.select(_OWN).to_pylist(), outcomes, strict=True)]
        tar = _write_tar(output, shard, spool, records, table, outcomes, job)
    write_table(output, f"{shard}.parquet", _table(records, table, job))
    write_table(output, f"{shard}.index.parquet", tar.index())
    write_table(output, f"{shard}_ledger.parquet", _ledger(records, outcomes), varies=True)
    counts = Counter(record["error_code"] or "success" for record in records)
    stats = _stats(records, counts, began)
    output.write(f"{shard}_stats.json", json.dumps(stats, indent=4).encode(), varies=True)
    ok = counts.pop("success", 0)
    if ok != len(tar.keys):
        raise PartError(f"download {shard}", f"{ok:,} samples succeeded and {len(tar.keys):,} are in the tar")
    return {
        "samples": len(records),
        "ok": ok,
        "failed": len(records) - ok,
        "received_bytes": sum(o.received or 0 for o in outcomes),
        "stored_bytes": sum(o.length for o in outcomes),
        **{f"code:{code}": count for code, count in sorted(counts.items())},
    }


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one: kept connections need descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _spool(output: Output) -> BinaryIO:
    """A nameless file on the pool's disk, gone with the process whatever ends it."""
    make_folder(output.folder)
    return tempfile.TemporaryFile(dir=output.folder)


def _outcomes(table: pa.Table, spool: BinaryIO, job: Job, tick: Tick) -> list[Outcome]:
    """The outcome of every row, those that the list spoils included."""
    from curate.fetch.crawl import Effort, Outcome, Target, crawl
    from curate.fetch.http import Fetched
    from curate.fetch.images import use_one_thread

    use_one_thread()
    urls, spoiled = table["url"].to_pylist(), table["list_error"].to_pylist()
    hashes = table[job.verify_column].to_pylist() if job.verify_column else [None] * len(table)
    fates = {
        row: Outcome(Fetched(urls[row] or ""), error_code=code, error_message=ERROR_CODES[code])
        for row, code in enumerate(spoiled)
        if code
    }
    tick(len(fates), len(fates))
    targets = {
        row: Target(url, None if expected is None else str(expected))
        for row, (url, expected) in enumerate(zip(urls, hashes, strict=True))
        if row not in fates
    }
    with _throttled(tick) as done:
        fates |= crawl(
            targets,
            spool,
            images=job.images,
            limits=job.limits,
            effort=Effort(job.connections, job.threads),
            done=done,
        )
    spool.flush()
    return [fates[row] for row in range(len(table))]


class _throttled:  # noqa: N801 - used as a statement
    """Passes progress on a few times a second, and the rest at the end."""

    def __init__(self, tick: Tick) -> None:
        self.tick, self.spoke = tick, time.monotonic()
        self.done = self.failed = 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self.count

    def __exit__(self, *_: object) -> None:
        if self.done:
            self.tick(self.done, self.failed)

    def count(self, done: int, failed: int) -> None:
        self.done += done
        self.failed += failed
        if time.monotonic() - self.spoke > _TICK_SECONDS:
            self.tick(self.done, self.failed)
            self.spoke, self.done, self.failed = time.monotonic(), 0, 0


def _record(key: str, row: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """One row of the table, without the list's own columns."""
    image, code = outcome.image, outcome.error_code
    failure = "failed_to_resize" if code in RESIZE_CODES else "failed_to_download"
    return {
        "uid": row["uid"],
        "url": row["url"],
        "caption": row["caption"],
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
        "digest": image and image.digest,
    }


def _write_tar(
    output: Output,
    shard: str,
    spool: BinaryIO,
    records: Sequence[Mapping[str, Any]],
    table: pa.Table,
    outcomes: Sequence[Outcome],
    job: Job,
) -> TarWriter:
    """The images and their texts, in the order of the list."""
    writer = TarWriter(output.open(f"{shard}.tar"))
    others = {name: safe_values(column) for name, column in _others(table, job).items()}
    for row, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
        if outcome.image is None:
            continue
        spool.seek(outcome.offset)
        described = {
            "url": record["url"],
            "caption": record["caption"],
            "uid": record["uid"],
            **{name: values[row] for name, values in others.items()},
            **{name: record[name] for name in _IN_JSON},
            job.images.compute_hash: record["digest"],
        }
        members = [
            (outcome.image.extension, spool.read(outcome.length)),
            ("txt", (record["caption"] or "").encode()),
            ("json", json.dumps(described, indent=4, allow_nan=False).encode()),
        ]
        writer.add(record["key"], members)
    writer.finish()
    return writer


def _table(records: Sequence[Mapping[str, Any]], table: pa.Table, job: Job) -> pa.Table:
    """All attempted rows: our columns, then the list's."""
    import pyarrow as pa

    ours = {name: pa.array([r[name] for r in records], pa.type_for_alias(kind)) for name, kind in TABLE}
    ours.setdefault(job.images.compute_hash, pa.array([r["digest"] for r in records], pa.string()))
    return pa.table({**ours, **_others(table, job)})


def _others(table: pa.Table, job: Job) -> dict[str, pa.ChunkedArray]:
    """The list's own columns; one that has the name of one of ours is kept as `list_<name>`."""
    ours = {job.images.compute_hash, *(name for name, _ in TABLE)}
    names = [name for name in table.column_names if name not in _OWN]
    return {f"list_{name}" if name in ours else name: table[name] for name in names}


def _ledger(records: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> pa.Table:
    import pyarrow as pa

    rows = [
        {
            "key": record["key"],
            "error_code": record["error_code"],
            "tries": outcome.fetched.tries,
            "seconds": outcome.fetched.seconds,
            "http_status": outcome.fetched.http_status,
            "address": outcome.fetched.address,
            "headers": json.dumps(outcome.fetched.headers),
        }
        for record, outcome in zip(records, outcomes, strict=True)
    ]
    return pa.table({n: pa.array([r[n] for r in rows], pa.type_for_alias(kind)) for n, kind in LEDGER})


def _stats(records: Sequence[Mapping[str, Any]], codes: Mapping[str, int], began: float) -> dict[str, Any]:
    """img2dataset's statistics of a shard; `status_dict` counts error codes in the place of messages."""
    states = Counter(record["status"] for record in records)
    ended = time.time()
    return {
        "count": len(records),
        "successes": states["success"],
        "failed_to_download": states["failed_to_download"],
        "failed_to_resize": states["failed_to_resize"],
        "duration": ended - began,
        "start_time": began,
        "end_time": ended,
        "status_dict": dict(codes),
    }


def safe_values(column: pa.ChunkedArray) -> list[Any]:
    """The column's cells as JSON can say them: dates in ISO form, bytes in base64, NaN as null."""
    import pyarrow as pa

    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):  # one cell is enough: bytes, nanoseconds, year 10000
        values = [_cell(cell) for cell in column]
    return [_safe(value) for value in values]


def _cell(cell: pa.Scalar) -> Any:
    import pyarrow as pa

    try:
        return cell.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        try:
            return str(cell.cast(pa.string()))
        except (ValueError, pa.ArrowException):
            return None


def _safe(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(name): _safe(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(inner) for inner in value]
    return str(value)
