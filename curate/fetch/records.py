"""Records of text lists (CSV, TSV, JSONL, JSON, TXT), one at a time, each with the byte where it begins.

Bytes that are not UTF-8 are carried as lone surrogates, so that they spoil their own cell and nothing else; a
line that is not in its format is a record without columns, and still a row.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from curate.errors import InputError

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "txt",
}
MARK_EVERY = 10_000
"""Rows between two remembered byte positions."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_MAX_FIELD = 1 << 24
_MAX_JSON = 1 << 30
_PROBE = 100
_STAND_INS = {"\0": "\ufdd0", "\r": "\ufdd1"}
"""Noncharacters in the place of what csv.reader does not take inside a cell."""

Record = dict[str, Any]
"""Column to value; empty for a line that is not in its format."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a text list found: rows, a byte position for every MARK_EVERY rows, columns.

    `columns` maps names to Arrow types: bool, int64, double or string.
    """

    rows: int
    marks: tuple[int, ...]
    columns: dict[str, str]


def is_packed(path: Path) -> bool:
    """Whether a file is gzipped, told by its content."""
    with path.open("rb") as probe:
        return probe.read(2) == b"\x1f\x8b"


def format_of(path: Path) -> str | None:
    """The list format that a file's name says, with or without .gz; None for other files."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def scan(path: Path, form: str) -> Scan:
    """One pass over a text list, in bounded memory. Raises InputError where it is not what its name says."""
    rows, marks, links = 0, [], 0
    kinds: dict[str, str] = {}
    for position, record in _records(path, form, 0, None):
        if rows % MARK_EVERY == 0:
            marks.append(position)
        rows += 1
        if rows <= _PROBE:
            links += "://" in str(record.get("url"))
        for name, value in record.items():
            if kinds.get(name) != "string":
                kinds[name] = _widened(kinds.get(name, ""), value, form)
    if rows and form == "txt" and not links:
        raise InputError(str(path), "has no URL in its first lines", hint="a .txt list has one URL a line")
    if rows and not kinds:
        raise InputError(str(path), f"is not {form.upper()} (no line could be read)")
    return Scan(rows, tuple(marks), {name: kind or "string" for name, kind in kinds.items()})


def read(path: Path, form: str, position: int, skip: int, count: int, header: Sequence[str]) -> Iterator[Record]:
    """`count` records after the first `skip` from byte `position`, where a record begins, one at a time.

    `header` names the columns of a delimited file whose first line lies before `position`.
    """
    found = _records(path, form, position, header)
    return (record for _, record in islice(found, skip, skip + count))


def _records(path: Path, form: str, position: int, header: Sequence[str] | None) -> Iterator[tuple[int, Record]]:
    where = str(path)
    try:
        with gzip.open(path) if is_packed(path) else path.open("rb") as stream:
            _refuse_binary(where, form, stream.peek(1024)[:1024])
            if form != "json":  # whose positions are numbers of rows
                stream.seek(position)
            lines = _Lines(stream, position)
            if form in _DELIMITERS:
                yield from _delimited(where, lines, _DELIMITERS[form], header if position else None)
            elif form == "jsonl":
                yield from _json_lines(where, lines)
            elif form == "json":
                yield from enumerate(_json_array(where, stream, position))
            else:
                yield from _text_lines(lines)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(where, f"cannot be read to its end ({error})") from error


def _refuse_binary(where: str, form: str, start: bytes) -> None:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(where, "is UTF-16 text", hint="convert it to UTF-8, for instance with iconv")
    # one NUL may stand in a caption; many, or Parquet's magic, are no text
    if start[:4] == b"PAR1" or start.count(0) > len(start) // 10:
        raise InputError(where, f"is not {form.upper()} (its first bytes are {start[:8]!r})")


class _Lines:
    """The lines of a stream as text; `position` is the byte, after decompression, where the next begins."""

    def __init__(self, stream: Any, position: int) -> None:
        self.stream, self.position = stream, position

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        if not self.position:
            self.position, line = len(line), line.removeprefix(b"\xef\xbb\xbf")
        else:
            self.position += len(line)
        return str(line, "utf-8", "surrogateescape")


def _delimited(
    where: str, lines: _Lines, delimiter: str, header: Sequence[str] | None
) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(_MAX_FIELD)
    rows = csv.reader(map(_stood_in, lines), delimiter=delimiter, strict=True)
    try:
        if header is None:
            header = [name.strip() for name in next(rows, [])]
            if len(set(header)) < len(header):
                raise InputError(where, f"names a column twice (found: {', '.join(header)[:300]})")
        position = lines.position
        for row in rows:
            if len(row) == len(header):
                yield position, {name: _restored(cell) for name, cell in zip(header, row, strict=True)}
            elif row:
                yield position, {}
            position = lines.position
    except csv.Error as error:
        raise InputError(
            where,
            f"breaks the rules of quoting near byte {lines.position:,} ({error})",
            hint='a quote inside a quoted cell is written twice (""); or make it JSONL or Parquet',
        ) from None


def _stood_in(line: str) -> str:
    if "\0" in line:
        line = line.replace("\0", _STAND_INS["\0"])
    if "\r" in line:
        body = line.removesuffix("\n").removesuffix("\r")
        line = body.replace("\r", _STAND_INS["\r"]) + line[len(body) :]
    return line


def _restored(cell: str) -> str:
    if not cell.isascii():
        for meant, stand_in in _STAND_INS.items():
            cell = cell.replace(stand_in, meant)
    return cell


def _json_lines(where: str, lines: _Lines) -> Iterator[tuple[int, Record]]:
    position, first = lines.position, True
    for line in lines:
        if line.strip():
            record = _json_object(line)
            if first and not record:
                raise InputError(where, "is not JSONL (its first line is no JSON object)")
            first = False
            yield position, record
        position = lines.position


def _json_object(line: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json_array(where: str, stream: Any, start: int) -> Iterator[Record]:
    """The objects of a JSON array from the `start`-th on, or the rows of an object of columns."""
    text = stream.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        raise InputError(where, "is too large for one JSON value", hint="make it JSONL or Parquet")
    try:
        value = json.loads(text.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"is not JSON ({error})", hint="lines of JSON are .jsonl") from None
    if isinstance(value, dict) and value and all(isinstance(v, (list, dict)) for v in value.values()):
        columns = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
        if len({len(column) for column in columns}) > 1:
            raise InputError(where, "has columns of different lengths")
        value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(value, list):
        raise InputError(where, "is neither a JSON array of objects nor an object of columns")
    yield from (record if isinstance(record, dict) else {} for record in value[start:])


def _text_lines(lines: _Lines) -> Iterator[tuple[int, Record]]:
    position = lines.position
    for line in lines:
        if url := line.strip():
            yield position, {"url": url}
        position = lines.position


def _widened(seen: str, value: Any, form: str) -> str:
    """The Arrow type that holds what was `seen` ("" for nothing yet) and `value`; string holds all."""
    if value is None or (value == "" and form in _DELIMITERS):
        return seen
    kind = _text_kind(value) if form in _DELIMITERS else _json_kind(value)
    if seen in ("", kind):
        return kind
    return "double" if {seen, kind} == {"int64", "double"} else "string"


def _text_kind(text: str) -> str:
    """int64 or double for a cell that is written as such a number, else string (also for 007 and nan)."""
    digits = text.removeprefix("-")
    if digits.isdecimal() and digits.isascii() and len(digits) < 19:
        return "int64" if digits == "0" or digits[0] != "0" else "string"
    if len(text) > 40 or not digits[:1].isdigit() or (digits[:2].isdigit() and digits[0] == "0"):
        return "string"
    try:
        return "double" if math.isfinite(float(text)) and "_" not in text else "string"
    except ValueError:
        return "string"


def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(1 << 63) <= value < 1 << 63 else "string"
    return "double" if isinstance(value, float) else "string"


def as_type(value: Any, kind: str) -> Any:
    """A record's value as the Python value of an Arrow column of type `kind`."""
    if value is None or kind == "string":
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        if value == "":
            return None
        return int(value) if kind == "int64" else float(value)
    return float(value) if kind == "double" else value
