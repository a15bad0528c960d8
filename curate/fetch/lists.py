"""Lists of candidates: any file, or folder of files, of URLs and captions, looked through in bounded memory.

`open_list` makes one pass: it learns the columns, counts rows and remembers byte positions, so that the rows of
a part can be read again on their own, in another process (rows.read_rows). What is wrong with the list is an
InputError here, before anything is written; what is wrong with one row is left to that row.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import InputError, nearest, no_such
from curate.fetch import records
from curate.fetch.records import MARK_EVERY
from curate.fetch.rows import Columns, Rows, Slice, is_text, read_rows
from curate.receipts import file_sha256
from curate.uids import is_uid

__all__ = ["ListFile", "Rows", "SourceList", "open_list", "read_rows"]

log = logging.getLogger("curate.fetch")

USUAL: Mapping[str, Sequence[str]] = {"url": ("url", "URL"), "caption": ("caption", "text", "TEXT")}
"""Names tried where none is given, in order of preference; `curate.pool.names` knows more."""

_COMPANIONS = {".npz", ".md", ".lock"}
_UID_PROBE = 100
_JOINED = re.compile(r"[,;\t|]")


@dataclass(frozen=True)
class ListFile:
    """One file of a list; `marks` are the byte positions of every MARK_EVERY-th row of a text format."""

    path: Path
    form: str
    rows: int
    bytes: int
    sha256: str
    marks: tuple[int, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class SourceList:
    """A list of candidates that has been looked through once."""

    files: tuple[ListFile, ...]
    columns: Columns

    @property
    def rows(self) -> int:
        """Rows of all files together."""
        return sum(f.rows for f in self.files)

    @property
    def other_columns(self) -> list[str]:
        """The columns that are kept besides uid, url and caption."""
        return list(pa.ipc.read_schema(pa.BufferReader(self.columns.others)).names)

    @property
    def digest(self) -> str:
        """sha256 of the file; of several files, of their digests one after the other."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("".join(f.sha256 for f in self.files).encode()).hexdigest()

    def part(self, start: int, count: int) -> Rows:
        """Rows `start` to `start + count`, counted over all files, as far as there are any."""
        slices = []
        for file in self.files:
            if start < file.rows and count > 0:
                taken = min(count, file.rows - start)
                mark = start // MARK_EVERY
                position = file.marks[mark] if file.marks else start
                skip = start - mark * MARK_EVERY if file.marks else 0
                slices.append(Slice(file.path, file.form, file.bytes, position, skip, taken, file.columns))
                count -= taken
                start = 0
            else:
                start -= file.rows
        return Rows(tuple(slices), self.columns)


def open_list(
    source: Path,
    *,
    url_col: str | None = None,
    caption_col: str | None = None,
    usual: Mapping[str, Sequence[str]] = USUAL,
) -> SourceList:
    """The list at `source`, a file or a folder of files (taken in the order of their names).

    Without `url_col` or `caption_col` the `usual` names are tried; a list may have no caption column. Raises
    InputError for a missing column, an empty list, or a file that is not in the format of its name.
    """
    found = [_scanned(path, form) for path, form in _files(source)]
    files = [file for file, _ in found if file.rows]
    if not files:
        raise InputError(str(source), "is an empty list (0 rows)")
    schema = _common([(f.path, s) for f, s in found if f.rows])
    url = _column(source, schema, "url", url_col, usual)
    if url is None:
        hint = "--url-col NAME says which column holds the URLs"
        close = nearest("url", schema.names)
        if len(schema.names) == 1 and _JOINED.search(schema.names[0]):
            hint = "are its columns divided by another character? .csv has commas, .tsv tabs"
        elif close:
            hint = f"--url-col {close}"
        elif any("://" in name for name in schema.names):
            hint = "its first line must name the columns"
        raise InputError(str(source), f"has no url column (found: {_listed(schema.names)})", hint=hint)
    caption = _column(source, schema, "caption", caption_col, usual)
    if caption is None:
        log.warning("%s: has no caption column; captions are empty", source)
    elif caption == url:
        raise InputError(str(source), f"column {url!r} cannot be both url and caption")
    uid = _uid_column(files[0], schema)
    others = pa.schema([field for field in schema if field.name not in {url, caption, uid}])
    return SourceList(tuple(files), Columns(url, caption, uid, others.serialize().to_pybytes()))


def _files(source: Path) -> list[tuple[Path, str]]:
    if not source.exists():
        raise no_such(source, "file or folder", like=_may_be_list, hint="--source FILE_OR_FOLDER")
    known = ", ".join(records.SUFFIXES)
    if source.is_file():
        form = records.format_of(source)
        if form is None:
            raise InputError(str(source), f"is of no known list format (known: {known}, each also .gz)")
        return [(source, form)]
    found = []
    for path in sorted(source.iterdir()):
        form = records.format_of(path)
        if form and path.is_file() and not path.name.startswith("."):
            found.append((path, form))
        elif path.is_file() and path.suffix not in _COMPANIONS and not path.name.startswith("."):
            log.warning("%s: not a list, left out", path)
    if not found:
        raise InputError(str(source), f"holds no list (known: {known}, each also .gz)")
    return found


def _may_be_list(path: Path) -> bool:
    return path.is_dir() or records.format_of(path) is not None


def _scanned(path: Path, form: str) -> tuple[ListFile, pa.Schema]:
    size = path.stat().st_size
    if form == "parquet":
        try:
            with pq.ParquetFile(path) as file:
                rows, schema = file.metadata.num_rows, file.schema_arrow.remove_metadata()
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(str(path), f"is not Parquet that can be read ({reason})") from None
        marks: tuple[int, ...] = ()
    else:
        scan = records.scan(path, form) if size else records.Scan(0, (), {})
        rows, marks = scan.rows, scan.marks
        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in scan.columns.items()])
    return ListFile(path, form, rows, size, file_sha256(path), marks, tuple(schema.names)), schema


def _common(found: Sequence[tuple[Path, pa.Schema]]) -> pa.Schema:
    """One schema for all files; columns that some lack are null there."""
    schema = found[0][1]
    for path, other in found[1:]:
        try:
            schema = pa.unify_schemas([schema, other], promote_options="permissive")
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(str(path), f"has other columns than {found[0][0].name} ({reason})") from None
    return schema


def _column(
    source: Path, schema: pa.Schema, meaning: str, asked: str | None, usual: Mapping[str, Sequence[str]]
) -> str | None:
    """The column that holds `meaning`: as asked, else by its usual names."""
    if asked is None:
        return next((name for name in usual[meaning] if name in schema.names), None)
    if asked not in schema.names:
        close = nearest(asked, schema.names)
        raise InputError(
            str(source),
            f"has no column {asked!r} (found: {_listed(schema.names)})",
            hint=f"--{meaning}-col {close or 'NAME'}",
        )
    return asked


def _uid_column(file: ListFile, schema: pa.Schema) -> str | None:
    """`uid` where it holds 32 hex digits; somebody else's numbers under that name are a column like others."""
    if "uid" not in file.columns or not is_text(schema.field("uid").type):
        return None
    as_url = Columns("uid", None, None, pa.schema([]).serialize().to_pybytes())
    first = read_rows(SourceList((file,), as_url).part(0, _UID_PROBE))
    values = [v for v in first["url"].to_pylist() if v is not None]
    if any(is_uid(v.lower()) for v in values):
        return "uid"
    log.warning("%s: its uid column does not hold 32 hex digits; uids are derived", file.path)
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:20])
    return shown + (", ..." if len(names) > 20 else "") if names else "none"
