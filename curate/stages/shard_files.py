"""The five files of one shard: tar, table, index, ledger and statistics, from what is known of each sample.

The forms are img2dataset's, so that what reads its output reads ours; the order is the list's, and nothing in
tar, table and index depends on the clock or on which answer came first.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curate.errors import PartError
from curate.shards import TarWriter, write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.receipts import Output

RESIZE_CODES = frozenset(
    {"not_an_image", "bad_image", "decoder_died", "too_many_pixels", "too_many_frames"}
    | {"too_small", "bad_aspect", "encode_failed"}
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
    ("original_format", "string"),
    ("original_mode", "string"),
    ("original_frames", "int32"),
    ("original_orientation", "int8"),
    ("hash_ok", "bool"),
    ("same_bytes", "int32"),
    ("placeholder", "bool"),
)
"""Columns of a shard's table and their Arrow types; the list's own columns follow.

`same_bytes` counts the different URLs of this part that gave the bytes of this one; above the limit that the
settings name it is taken for a `placeholder`, the picture that a host sends instead of the one that is gone.
"""

LEDGER = (
    ("key", "string"),
    ("error_code", "string"),
    ("attempt", "int16"),
    ("tries", "int16"),
    ("seconds", "float32"),
    ("http_status", "int16"),
    ("address", "string"),
    ("headers", "string"),
)
"""Columns of a shard's ledger: what varies from run to run. `attempt` is 0 but for what --retry-failed asked for
again, `tries` 0 for a row that shares the answer of an earlier one; `headers` is a JSON object."""

_IN_JSON = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "exif")

Record = dict[str, Any]
"""What the table says of one sample: the columns of TABLE, and `digest`, the hash that the settings name."""


def write_shard(
    output: Output,
    shard: str,
    records: Sequence[Record],
    others: pa.Table,
    ledger: Sequence[Mapping[str, Any]],
    *,
    image: Callable[[int], tuple[str, bytes]],
    compute_hash: str,
    placeholder_urls: int,
    began: float,
) -> dict[str, int]:
    """Write all five files; counts samples, ok, failed, bytes, and `code:<error code>` each.

    `others` are the list's own columns, each under its `kept_name`, and `ledger` the ledger's rows, both in the
    order of `records`. `image` gives the extension and bytes of a row that has one. Raises PartError where tar
    and table do not agree.
    """
    mark_same_bytes(records, placeholder_urls)
    tar = _write_tar(output, shard, records, others, image, compute_hash)
    write_table(output, f"{shard}.parquet", _table(records, others, compute_hash))
    write_table(output, f"{shard}.index.parquet", tar.index())
    write_table(output, f"{shard}_ledger.parquet", _arrow(ledger, LEDGER), varies=True)
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
        "stored_bytes": sum(r["stored_bytes"] or 0 for r in records),
        "placeholders": sum(bool(r["placeholder"]) for r in records),
        **{f"code:{code}": count for code, count in sorted(counts.items())},
    }


def mark_same_bytes(records: Sequence[Record], limit: int) -> None:
    """Fill in `same_bytes` and `placeholder`: how many URLs of this part gave the same bytes; if too many."""
    urls: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        if record["sha256"]:
            urls[record["sha256"]].add(record["url"])
    for record in records:
        same = len(urls[record["sha256"]]) if record["sha256"] else None
        record["same_bytes"] = same
        record["placeholder"] = None if same is None else same > limit


def _write_tar(
    output: Output,
    shard: str,
    records: Sequence[Record],
    others: pa.Table,
    image: Callable[[int], tuple[str, bytes]],
    compute_hash: str,
) -> TarWriter:
    """The images and their texts, in the order of the list."""
    writer = TarWriter(output.open(f"{shard}.tar"))
    cells = {name: safe_values(others[name]) for name in others.column_names}
    for row, record in enumerate(records):
        if record["error_code"]:
            continue
        described = {
            "url": record["url"],
            "caption": record["caption"],
            "uid": record["uid"],
            **{name: values[row] for name, values in cells.items()},
            **{name: record[name] for name in _IN_JSON},
            compute_hash: record["digest"],
        }
        members = [
            image(row),
            ("txt", (record["caption"] or "").encode()),
            ("json", json.dumps(described, allow_nan=False).encode()),
        ]
        writer.add(record["key"], members)
    writer.finish()
    return writer


def _table(records: Sequence[Record], others: pa.Table, compute_hash: str) -> pa.Table:
    """All attempted rows: our columns, then the list's."""
    import pyarrow as pa

    ours = {name: pa.array([r[name] for r in records], pa.type_for_alias(kind)) for name, kind in TABLE}
    ours.setdefault(compute_hash, pa.array([r["digest"] for r in records], pa.string()))
    return pa.table({**ours, **{name: others[name] for name in others.column_names}})


def _arrow(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> pa.Table:
    import pyarrow as pa

    return pa.table({n: pa.array([r[n] for r in rows], pa.type_for_alias(kind)) for n, kind in columns})


def kept_name(name: str, compute_hash: str) -> str:
    """What a list's own column is called in a shard's table: `list_<name>` where that is a name of ours.

    So is a name that only such a `list_` divides from one of ours, so that no two columns become one: a table of
    ours is a list, too.
    """
    ours, bare = our_columns(compute_hash) - _EVERY_LIST, name
    while bare not in ours:
        if not bare.startswith("list_"):
            return name
        bare = bare.removeprefix("list_")
    return f"list_{name}"


_EVERY_LIST = {"uid", "url", "caption"}
"""Columns of ours that a list's own cannot have the name of any more: its rows were read with them."""


def our_columns(compute_hash: str) -> set[str]:
    """The names of the columns that a shard's table has of us."""
    return {compute_hash, *(name for name, _ in TABLE)}


def _stats(records: Sequence[Record], codes: Mapping[str, int], began: float) -> dict[str, Any]:
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
