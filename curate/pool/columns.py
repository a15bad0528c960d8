"""Other people's columns as what the machine's names for them promise, whatever types their files give them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import PartError
from curate.pool.names import PUBLISHED

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

TEXTS = frozenset({"uid", "url", "caption"})
"""Columns that are text whatever type a file gives them."""
NUMBERS = frozenset({"width", "height", "original_width", "original_height"}) | {
    names.similarity for names in PUBLISHED.values()
}
"""Columns that are numbers, of any width; of a file that has something else there nothing is judged."""
_UID_BYTES = 16


def read(path: Path, name: str, source: str, kind: pa.DataType) -> pl.Expr:
    """Column `source` of the file `path`, which is of this kind, as what the machine's `name` for it promises.

    Raises PartError where it holds something else.
    """
    import polars as pl

    if name == "uid":
        return uid(source, kind).str.to_lowercase()
    if name in TEXTS:
        return _text(source, kind)
    if name in NUMBERS and not _is_number(kind):
        what = f"column {source!r} holds {kind} where numbers are wanted"
        raise PartError(str(path), what, hint="write it again as whole numbers or floats")
    return pl.col(source).cast(pl.String) if _is_text(kind) else pl.col(source)


def uid(source: str, kind: pa.DataType) -> pl.Expr:
    """A column of uids as text, also where a file holds the 16 bytes that their digits stand for."""
    import polars as pl

    text = _text(source, kind)
    if not _is_binary(kind):
        return text
    octets = pl.col(source).bin
    return pl.when(octets.size() == _UID_BYTES).then(octets.encode("hex")).otherwise(text)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind) or kinds.is_null(kind))


def _is_text(kind: pa.DataType | None) -> bool:
    """Whether it is text, also where a file lists each word once and numbers them."""
    import pyarrow.types as kinds

    if kind is not None and kinds.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and bool(
        kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
    )


def _text(column: str, kind: pa.DataType) -> pl.Expr:
    """A column of other people's as text: what is no text, or not UTF-8, is null."""
    import polars as pl
    import pyarrow.types as kinds

    if _is_binary(kind):
        return pl.col(column).map_batches(_decoded, return_dtype=pl.String)
    if kinds.is_nested(kind):
        return pl.lit(None, dtype=pl.String)
    return pl.col(column).cast(pl.String)


def _decoded(column: pl.Series) -> pl.Series:
    import polars as pl

    def text(raw: bytes | None) -> str | None:
        try:
            return raw.decode() if raw is not None else None
        except UnicodeDecodeError:
            return None

    return pl.Series(column.name, [text(raw) for raw in column], dtype=pl.String)


def null_kind(name: str, kind: pa.DataType | None) -> pl.DataType | None:
    """The type that a column has where it is all null, if other files have it as `kind`."""
    import polars as pl
    import pyarrow as pa

    if name in TEXTS or _is_text(kind):
        return pl.String()
    if kind is None or (name in NUMBERS and not _is_number(kind)):
        return None
    return pl.DataFrame(pa.schema([(name, kind)]).empty_table()).dtypes[0]
