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
from curate.fetch.rows import SPOILED, Columns, Rows, Slice, is_text, read_rows, texts
from curate.receipts import file_sha256
from curate.uids import is_uid

__all__ = ["ListFile", "Rows", "SourceList", "open_list", "read_rows"]

log = logging.getLogger("curate.fetch")

USUAL: Mapping[str, Sequence[str]] = {"url": ("url", "URL"), "caption": ("caption", "text", "TEXT")}
"""Names tried where none is given, in order of preference; `curate.pool.names` knows more."""

BOXES = "face_bboxes"
"""DataComp's column of faces: lists of x0, y0, x1, y1."""
ERROR = "list_error"
"""The column in which lists that we made keep what was wrong with a row."""
HASH = "sha256"
"""The column that most lists which have one call the hash of the image's bytes."""

_COMPANIONS = {".npz", ".md", ".lock"}
_PROBE = 100
_JOINED = re.compile(r"[,;\t|]")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


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
    """A list of candidates that has been looked through once.

    `root` is the folder of the files that its rows stand for, if they do; `kept` is held for as long as the list
    is, such as a temporary file that it is read from.
    """

    files: tuple[ListFile, ...]
    columns: Columns
    root: Path | None = None
    kept: object = None

    @property
    def rows(self) -> int:
        """Rows of all files together."""
        return sum(f.rows for f in self.files)

    @property
    def other_columns(self) -> list[str]:
        """The columns that are kept besides uid, url and caption."""
        return list(self.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """The types of the other columns."""
        return pa.ipc.read_schema(pa.BufferReader(self.columns.others))

    @property
    def box_column(self) -> str | None:
        """The column of faces that DataComp's metadata has, where this list has it too."""
        return BOXES if BOXES in self.other_columns and _is_boxes(self.schema.field(BOXES).type) else None

    @property
    def hash_column(self) -> str | None:
        """The column of the images' sha256, where the first rows that say anything in it say 64 hex digits."""
        if HASH not in self.other_columns or not is_text(self.schema.field(HASH).type):
            return None
        said = (text for some in texts(self.part(0, MARK_EVERY), HASH) for text in some if text)
        first = [text for text, _ in zip(said, range(_PROBE), strict=False)]
        return HASH if first and all(_SHA256.fullmatch(text) for text in first) else None

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
    error = _error_column(files[0], schema)
    others = pa.schema([field for field in schema if field.name not in {url, caption, uid, error}])
    return SourceList(tuple(files), Columns(url, caption, uid, others.serialize().to_pybytes(), error))


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
    values = _first(file, "uid")
    if any(is_uid(v.lower()) for v in values):
        return "uid"
    log.warning("%s: its uid column does not hold 32 hex digits; uids are derived", file.path)
    return None


def _error_column(file: ListFile, schema: pa.Schema) -> str | None:
    """`list_error`, where it holds what an earlier reading left there and nothing else."""
    if ERROR not in file.columns or not is_text(schema.field(ERROR).type):
        return None
    return ERROR if {*_first(file, ERROR)} <= SPOILED else None


def _first(file: ListFile, column: str) -> list[str]:
    """The texts among the first cells of a column."""
    alone = Columns(column, None, None, pa.schema([]).serialize().to_pybytes())
    part = SourceList((file,), alone).part(0, _PROBE)
    return [text for some in texts(part, column) for text in some if text is not None]


def _is_boxes(kind: pa.DataType) -> bool:
    for _ in range(2):
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        kind = kind.value_type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:20])
    return shown + (", ..." if len(names) > 20 else "") if names else "none"
