"""Whether a list is an earlier one that only grew: proved from its content, never taken from its name.

A file of the earlier list is known by its sha256. The last of them may have grown: an uncompressed text file
by bytes after its last line, a Parquet file, which is rewritten as it grows, by rows after its last, for which
its content is known too: a hash of the values of its columns, whatever row groups and encodings hold them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.errors import InputError
from curate.fetch.records import is_packed

if TYPE_CHECKING:
    from curate.fetch.lists import ListFile

ROWS = 8_192
"""Rows that are hashed together, wherever row groups begin."""

_LINES = frozenset({"csv", "tsv", "jsonl", "txt"})


def described(files: Sequence[ListFile]) -> list[dict[str, Any]]:
    """What the files of a list are known by, as JSON: name, rows, bytes, sha256, and `content` where one is all.

    The content of a Parquet file that has others beside it is not looked at: such a list grows by files.
    """
    alone = len(files) == 1 and files[0].form == "parquet"
    content = content_digest(files[0].path, files[0].rows) if alone else None
    return [
        {"name": f.path.name, "rows": f.rows, "bytes": f.bytes, "sha256": f.sha256, "content": content}
        for f in files
    ]


def grew(files: Sequence[ListFile], before: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `files` hold, row for row, all that `described` says of an earlier list, and perhaps more rows."""
    if not before or len(files) < len(before):
        return False
    *whole, last = before
    if any(file.sha256 != known["sha256"] for file, known in zip(files, whole, strict=False)):
        return False
    now = files[len(whole)]
    if now.sha256 == last["sha256"]:
        return True
    if now.form == "parquet":
        if last["content"] is None or now.rows < last["rows"]:
            return False
        return bool(content_digest(now.path, last["rows"]) == last["content"])
    return now.form in _LINES and _begins_with(now.path, last["bytes"], last["sha256"])


def _begins_with(path: Path, size: int, sha256: str) -> bool:
    """Whether the first `size` bytes have this hash and end where a line does."""
    if path.stat().st_size <= size or is_packed(path):
        return False
    hashed, left, end = hashlib.sha256(), size, b""
    with path.open("rb") as stream:
        while left and (block := stream.read(min(left, 1 << 22))):
            hashed.update(block)
            left -= len(block)
            end = block[-1:]
        return hashed.hexdigest() == sha256 and (end == b"\n" or stream.read(1) in (b"\n", b"\r"))


def content_digest(path: Path, rows: int) -> str:
    """A hash of the names, the types and the first `rows` values of a Parquet file's columns."""
    try:
        with pq.ParquetFile(path) as file:
            hashed = hashlib.sha256()
            for field in file.schema_arrow:
                hashed.update(f"{field.name}\0{_kind(field.type)}\0".encode())
            for table in _recut(file, rows):
                for column in table.columns:
                    _feed(hashed, column.combine_chunks())
            return hashed.hexdigest()
    except (pa.ArrowException, OSError) as error:
        raise InputError(str(path), f"is not Parquet that can be read ({str(error).splitlines()[0]})") from None


def _recut(file: pq.ParquetFile, rows: int) -> Iterator[pa.Table]:
    """The first `rows` rows in tables of ROWS, but for the last."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in file.iter_batches(batch_size=ROWS):
        held.append(batch.slice(0, rows - size) if len(batch) > rows - size else batch)
        size += len(held[-1])
        if size >= ROWS or size >= rows:
            table = pa.Table.from_batches(held)
            while size >= ROWS:
                yield table.slice(0, ROWS)
                table, size, rows = table.slice(ROWS), size - ROWS, rows - ROWS
            if size and size >= rows:
                yield table
                return
            held = table.to_batches() if size else []
        if not rows:
            return


def _kind(kind: pa.DataType) -> str:
    """The type's name, the same for all the ways to lay out texts."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    return str(kind).replace("large_", "").replace("_view", "")


def _feed(hashed: Any, array: pa.Array) -> None:
    """Hash the values of an array, and not what happens to lie under its nulls."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        _feed(hashed, array.cast(kind.value_type))
        return
    hashed.update(len(array).to_bytes(8, "little"))
    if pa.types.is_null(kind):
        return
    if array.null_count:
        hashed.update(b"nulls")
        _feed_fixed(hashed, pc.is_null(array).cast(pa.uint8()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _feed_fixed(hashed, pc.list_value_length(array).cast(pa.int64()).fill_null(0))
        _feed(hashed, array.flatten())
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            _feed(hashed, child)
    elif pa.types.is_boolean(kind):
        _feed_fixed(hashed, array.cast(pa.uint8()).fill_null(0))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        _feed_fixed(hashed, array.fill_null(pa.scalar(0, kind)))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        _feed_octets(hashed, array.cast(pa.large_binary()))
    else:  # dates, decimals, views: few, and by their text
        hashed.update(repr([str(cell) for cell in array]).encode("utf-8", "surrogatepass"))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _feed_octets(hashed: Any, array: pa.Array) -> None:
    array = array.fill_null(b"") if array.null_count else array
    _feed_fixed(hashed, pc.binary_length(array))
    _, offsets, data = array.buffers()
    if data is None:
        return
    ends = memoryview(offsets).cast("q")
    hashed.update(memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]])


def _feed_fixed(hashed: Any, array: pa.Array) -> None:
    """Hash an array of whole bytes a value, without nulls."""
    width = array.type.bit_width // 8
    hashed.update(memoryview(array.buffers()[1])[array.offset * width : (array.offset + len(array)) * width])
