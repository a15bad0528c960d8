"""Rows of a list, read again on their own: uid, url, caption, and the list's other columns in their types.

Whatever a cell holds costs at most its row: the row keeps its place and gets a `list_error`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import InputError, PartError
from curate.fetch import records
from curate.fetch.records import MARK_EVERY
from curate.uids import derive_uid, is_uid

LOCAL = ("local_file", "local_offset", "local_length")
"""Columns of a list of files on this machine: name in the folder, first byte, number of bytes."""
OWN = ("uid", "url", "caption", "list_error")
"""Columns of `read_rows` that it makes itself; the list's others follow."""
SPOILED = frozenset({"no_url", "bad_url", "bad_caption", "bad_metadata"})
"""Error codes of rows that a list spoils."""

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)


@dataclass(frozen=True)
class Columns:
    """Where a list holds what we need, and the Arrow schema of everything else (serialised).

    `error` names a column in which an earlier reading of another list left its error codes. Rows that are
    `local` stand for files: they may have no URL, and then have no uid before their bytes are read.
    """

    url: str
    caption: str | None
    uid: str | None
    others: bytes
    error: str | None = None
    local: bool = False


@dataclass(frozen=True)
class Slice:
    """`count` rows of one file: after the first `skip` from `position` (a byte; a row in Parquet)."""

    path: Path
    form: str
    bytes: int
    position: int
    skip: int
    count: int
    header: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """A range of a list's rows: small, picklable, all that `read_rows` needs.

    `duplicates` are the places, counted in this range, of rows whose URL stood earlier in the list.
    """

    slices: tuple[Slice, ...]
    columns: Columns
    duplicates: tuple[int, ...] = ()


def read_rows(rows: Rows) -> pa.Table:
    """The rows: uid, url, caption (strings, perhaps null), list_error, then the other columns.

    `list_error` is the error code of a row that the list itself spoils: no_url, bad_url, bad_caption,
    bad_metadata or duplicate_url; null for the others. A uid that the list does not give is derived. Raises
    PartError where a file is not the one that was opened.
    """
    table = pa.concat_tables(each(rows))
    if rows.duplicates:
        errors = table["list_error"].to_pylist()
        for row in rows.duplicates:
            errors[row] = errors[row] or "duplicate_url"
        place = table.column_names.index("list_error")
        table = table.set_column(place, "list_error", pa.array(errors, pa.string()))
    return table


def each(rows: Rows) -> Iterator[pa.Table]:
    """The rows of `read_rows` in tables of at most MARK_EVERY rows; repeats of URLs are not told."""
    others = pa.ipc.read_schema(pa.BufferReader(rows.columns.others))
    for piece in rows.slices:
        for raw, whole in _tables(piece, rows.columns, others):
            yield _made(raw, whole, rows.columns, others)


def texts(rows: Rows, column: str) -> Iterator[list[str | None]]:
    """One column of the list as it stands, in lists of at most MARK_EVERY texts."""
    for cells in column_of(rows, column):
        yield _texts(pa.table({column: cells}), column)


def column_of(rows: Rows, column: str) -> Iterator[pa.ChunkedArray]:
    """One column of the list as its files have it, at most MARK_EVERY cells at a time; nulls where one lacks it."""
    alone = Columns(column, None, None, pa.schema([]).serialize().to_pybytes())
    for piece in rows.slices:
        for raw, _ in _tables(piece, alone, pa.schema([])):
            yield raw[column] if column in raw.column_names else pa.chunked_array([pa.nulls(len(raw))])


def _made(raw: pa.Table, whole: Sequence[bool], columns: Columns, others: pa.Schema) -> pa.Table:
    urls: list[str | None] = []
    captions: list[str | None] = []
    errors: list[str | None] = []
    uids: list[str | None] = []
    cells = [_texts(raw, name) for name in (columns.url, columns.caption, columns.uid, columns.error)]
    for url, caption, uid, told, complete in zip(*cells, whole, strict=True):
        clean_url, clean_caption = _clean(url), _clean(caption)
        given = (_clean(uid) or "").strip().lower()
        urls.append(clean_url)
        captions.append(clean_caption if clean_caption == caption else None)
        named = url or ("a file" if columns.local else None)
        error = _error(complete, named, clean_url or named, caption, clean_caption, given)
        errors.append(error or (told if told in SPOILED else None))
        if is_uid(given):
            uids.append(given)
        else:
            unknown = columns.local and not clean_url
            uids.append(None if unknown else derive_uid(clean_url or "", captions[-1]))
    return _table((uids, urls, captions, errors), others, _others(raw, others))


def _tables(piece: Slice, columns: Columns, others: pa.Schema) -> Iterator[tuple[pa.Table, Sequence[bool]]]:
    """The slice as its file has it, some rows at a time; and whether each row is in its format."""
    where, found = str(piece.path), 0
    read = _read_parquet if piece.form == "parquet" else _read_text
    try:
        if piece.path.stat().st_size != piece.bytes:
            raise PartError(where, "is not the list it was when the command began (its size changed)")
        for raw, whole in read(piece, columns, others):
            found += len(raw)
            yield raw, whole
    except (pa.ArrowException, OSError, InputError) as error:
        what = error.what if isinstance(error, InputError) else str(error).splitlines()[0]
        raise PartError(where, f"cannot be read ({what})") from error
    if found != piece.count:
        raise PartError(where, f"has fewer rows than when the command began ({found:,} of {piece.count:,})")


def _error(
    complete: bool, url: str | None, clean_url: str | None, caption: str | None, clean: str | None, uid: str
) -> str | None:
    if not complete:
        return "bad_metadata"
    if not url or not url.strip():
        return "no_url"
    if url != clean_url:
        return "bad_url"
    if caption != clean:
        return "bad_caption"
    return "bad_metadata" if uid and not is_uid(uid) else None


def _table(own: Sequence[Sequence[str | None]], others: pa.Schema, arrays: list[Any]) -> pa.Table:
    """OWN, then the list's columns; one whose name is taken is kept as `list_<name>`."""
    names, taken = [*OWN], {*OWN, *others.names}
    for name in others.names:
        kept = name
        while kept in OWN or (kept != name and kept in taken):
            kept = f"list_{kept}"
        names.append(kept)
        taken.add(kept)
    return pa.table([*(pa.array(values, pa.string()) for values in own), *arrays], names=names)


def _read_parquet(piece: Slice, columns: Columns, others: pa.Schema) -> Iterator[tuple[pa.Table, Sequence[bool]]]:
    """The rows of a slice, from the row groups that hold them, a batch at a time."""
    wanted = {columns.url, columns.caption, columns.uid, columns.error, *others.names}
    with pq.ParquetFile(piece.path) as file:
        first = 0
        groups: list[int] = []
        start, stop = piece.position, piece.position + piece.count
        offset = 0
        for group in range(file.metadata.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if first < stop and last > start:
                if not groups:
                    offset = first
                groups.append(group)
            first = last
        names = [name for name in file.schema_arrow.names if name in wanted]
        for batch in file.iter_batches(batch_size=MARK_EVERY, row_groups=groups, columns=names):
            low, high = max(start - offset, 0), min(stop - offset, len(batch))
            if low < high:
                table = pa.Table.from_batches([batch.slice(low, high - low)]).replace_schema_metadata()
                yield table, [True] * len(table)
            offset += len(batch)
            if offset >= stop:
                break


def _read_text(piece: Slice, columns: Columns, others: pa.Schema) -> Iterator[tuple[pa.Table, Sequence[bool]]]:
    """The rows of a slice, bytes that are not UTF-8 in binary columns."""
    stream = records.read(piece.path, piece.form, piece.position, piece.skip, piece.count, piece.header)
    needed = [n for n in (columns.url, columns.caption, columns.uid, columns.error) if n]
    while found := list(islice(stream, MARK_EVERY)):
        arrays: dict[str, pa.Array] = {}
        for name in needed:
            cells = (records.as_type(record.get(name), "string") for record in found)
            arrays[name] = pa.array([None if c is None else _octets(c) for c in cells], pa.binary())
        for field in others:
            if field.name not in piece.header:
                continue
            kind = _kind(field.type)
            values = [records.as_type(record.get(field.name), kind) for record in found]
            if kind == "string":
                arrays[field.name] = pa.array([None if v is None else _octets(v) for v in values], pa.binary())
            else:
                arrays[field.name] = pa.array(values, field.type)
        yield pa.table(arrays), [bool(record) for record in found]


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") if text.isascii() or _encodes(text) else b"\xff"


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        return False
    return True


def _texts(table: pa.Table, name: str | None) -> list[str | None]:
    """The column as texts, bytes that are not UTF-8 as lone surrogates; nulls where there is none."""
    if name is None or name not in table.column_names:
        return [None] * len(table)
    column = _plain(table[name])
    if not is_text(column.type) and not _is_binary(column.type):
        column = column.cast(pa.string())
    if is_text(column.type) and _valid(column):
        values: list[str | None] = column.to_pylist()
        return values
    return [
        None if v is None else v.decode("utf-8", "surrogateescape")
        for v in column.cast(pa.large_binary()).to_pylist()
    ]


def _clean(text: str | None) -> str | None:
    """`text` with a replacement character for what was not UTF-8."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _others(raw: pa.Table, schema: pa.Schema) -> list[Any]:
    """The columns of `schema` in its types: missing ones null, texts repaired where they are not UTF-8."""
    arrays = []
    for field in schema:
        if field.name not in raw.column_names:
            arrays.append(pa.nulls(len(raw), field.type))
        elif is_text(field.type):
            texts = [_clean(t) for t in _texts(raw, field.name)]
            arrays.append(pa.array(texts, field.type))
        else:
            arrays.append(raw[field.name].cast(field.type))
    return arrays


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds strings, plain or dictionary-coded."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in _TEXT)


def _is_binary(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _BINARY)


def _kind(kind: pa.DataType) -> str:
    """The nearest of the types that text formats have."""
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int64"
    return "double" if pa.types.is_floating(kind) else "string"


def _valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowException:
        return False
    return True
