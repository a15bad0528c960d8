"""Files of uids: the forms that DataComp's tools take or make, read and written.

The suffix says the form, and the content must agree. A file in DataComp's own form is mapped, not read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import receipts, uids
from curate.errors import InputError, no_such
from curate.shards import readable
from curate.uids import UID_DTYPE

Pairs = npt.NDArray[np.void]

FORMS = {".npy": "npy", ".bin": "memmap", ".memmap": "memmap", ".parquet": "parquet", ".txt": "text"}
"""The form that each suffix stands for."""
_SAID = {
    "npy": "an npy file",
    "memmap": "a raw memmap of u8,u8",
    "parquet": "a Parquet file",
    "text": "text, one uid a line",
}
_HINT = "u8,u8 as .npy, without header as .bin, a Parquet column uid, or .txt with one uid a line"
BLOCK = 1 << 20
"""uids that are looked at or written at once."""
_TEXT_BLOCK = 16 << 20
_LINE = 33
"""Bytes of a uid and the end of its line."""
_ITEM = 16


def is_ordered(pairs: Pairs) -> bool:
    """Whether the pairs are in uid order; equal ones may follow each other."""
    for start in range(0, max(len(pairs) - 1, 0), BLOCK):
        block = pairs[start : start + BLOCK + 1]
        high, low = block["f0"], block["f1"]
        if ((high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))).any():
            return False
    return True


def form_of(path: Path) -> str:
    """The form that the file's suffix stands for. Raises InputError for another one."""
    form = FORMS.get(path.suffix.lower())
    if form is None:
        found = path.suffix or "no suffix"
        raise InputError(
            str(path), f"is no uid list by its name (found {found}, not {', '.join(FORMS)})", hint=_HINT
        )
    return form


# --- reading ----------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[str, Pairs]:
    """The form of a file and its uids, as pairs in the file's order.

    Raises InputError where it is no uid list, is cut short, or is empty.
    """
    if not path.is_file():
        raise no_such(path, "uid list", like=lambda p: p.suffix.lower() in FORMS, hint=_HINT)
    form = form_of(path)
    try:
        _check_looks(path, form)
        pairs = {"npy": _npy, "memmap": _memmap, "parquet": _parquet, "text": _text}[form](path)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror or error})") from error
    if not len(pairs):
        raise InputError(str(path), "holds no uid", hint="nothing would be kept")
    return form, pairs


def _check_looks(path: Path, form: str) -> None:
    """Raise InputError where the file's first bytes are those of another form than its name says."""
    with path.open("rb") as stream:
        begins = stream.read(64)
    if not begins:
        raise InputError(str(path), "is empty", hint="nothing would be kept")
    if begins.startswith(b"\x93NUMPY"):
        looks = "npy"
    elif begins.startswith(b"PAR1"):
        looks = "parquet"
    elif re.fullmatch(rb"(\xef\xbb\xbf)?[0-9A-Fa-f\s]+", begins):
        looks = "text"
    else:
        looks = "text" if form == "text" else "memmap"  # neither has a mark of its own
    if looks == form:
        return
    if looks == "memmap":
        found = f"it begins with {begins[:8]!r}"
        raise InputError(
            str(path), f"is not {_SAID[form]} ({found})", hint=f"a list without header ends in .bin; {_HINT}"
        )
    suffix = next(suffix for suffix, named in FORMS.items() if named == looks)
    raise InputError(
        str(path), f"is not {_SAID[form]}, but {_SAID[looks]} by its first bytes", hint=f"name it ...{suffix}"
    )


def _npy(path: Path) -> Pairs:
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version not in readers:
                raise ValueError(f"it is of npy version {'.'.join(map(str, version))}")
            shape, _, dtype = readers[version](stream)
        except ValueError as error:
            raise InputError(str(path), f"is not an npy file that can be read ({error})", hint=_HINT) from error
        offset = stream.tell()
    _check_dtype(path, dtype)
    if len(shape) != 1:
        raise InputError(str(path), f"has {len(shape)} dimensions, {shape}; a uid list has one", hint=_HINT)
    size, wanted = path.stat().st_size, offset + shape[0] * _ITEM
    if size != wanted:
        raise InputError(
            str(path), f"has {size:,} bytes where its header says {wanted:,}", hint="copy or make it again"
        )
    if not shape[0]:
        return np.empty(0, UID_DTYPE)
    mapped: npt.NDArray[Any] = np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)
    if all(dtype[name] == np.dtype("<u8") for name in dtype.names or ()):
        return mapped.view(UID_DTYPE)
    pairs = np.empty(shape, UID_DTYPE)
    pairs["f0"], pairs["f1"] = (mapped[name] for name in dtype.names or ())
    return pairs


def _check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless the type is two unsigned 64-bit halves, whatever their names and byte order."""
    if dtype.hasobject:
        raise InputError(
            str(path), f"holds pickled objects (dtype {dtype}), which are never loaded", hint=f"save u8,u8; {_HINT}"
        )
    halves = [dtype[name] for name in dtype.names or ()]
    if len(halves) != 2 or dtype.itemsize != _ITEM or not all(h.kind == "u" and h.itemsize == 8 for h in halves):
        raise InputError(str(path), f"has the dtype {dtype}; a uid list has u8,u8: two 64-bit halves", hint=_HINT)


def _memmap(path: Path) -> Pairs:
    size = path.stat().st_size
    if size % _ITEM:
        what = f"has {size:,} bytes, which is no multiple of {_ITEM}: no memmap of u8,u8, or one that is cut short"
        raise InputError(str(path), what, hint=_HINT)
    return np.memmap(path, UID_DTYPE, "r").view(np.ndarray)


def _parquet(path: Path) -> Pairs:
    import pyarrow.parquet as pq

    with readable(path, InputError, hint=_HINT), pq.ParquetFile(path) as file:
        columns = _parquet_columns(path, file.schema_arrow)
        pairs, filled = np.empty(file.metadata.num_rows, UID_DTYPE), 0
        for batch in file.iter_batches(BLOCK, columns=columns):
            some = pairs[filled : filled + len(batch)]
            for name, column in zip(columns, batch.columns, strict=True):
                if column.null_count:
                    at = filled + int(np.flatnonzero(np.asarray(column.is_null()))[0])
                    raise InputError(str(path), f"row {at:,} has no {name}", hint=_HINT)
            _fill(path, some, batch.columns, filled)
            filled += len(batch)
    return pairs


def _parquet_columns(path: Path, schema: Any) -> list[str]:
    """The column `uid` as text or 16 bytes, or the two columns of 64-bit halves, high first."""
    import pyarrow as pa

    if "uid" in schema.names:
        kind = schema.field("uid").type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = (pa.string(), pa.large_string(), pa.string_view())
        if kind in (*texts, pa.binary(_ITEM), pa.binary(), pa.large_binary()):
            return ["uid"]
        raise InputError(str(path), f"column uid is {kind}, neither text nor 16 bytes", hint=_HINT)
    halves = [f.name for f in schema if f.type == pa.uint64()]
    if {"f0", "f1"} <= set(halves):
        return ["f0", "f1"]
    if len(halves) == len(schema.names) == 2:
        return halves
    found = ", ".join(schema.names[:20])
    raise InputError(str(path), f"has neither a column uid nor two uint64 columns (found: {found})", hint=_HINT)


def _fill(path: Path, some: Pairs, columns: list[Any], before: int) -> None:
    import pyarrow as pa

    if len(columns) == 2:
        some["f0"], some["f1"] = (
            np.frombuffer(c.buffers()[1], np.uint64)[c.offset : c.offset + len(c)] for c in columns
        )
    elif pa.types.is_fixed_size_binary((column := _octets(columns[0])).type):
        octets = np.frombuffer(column.buffers()[1], ">u8")[2 * column.offset : 2 * (column.offset + len(column))]
        some["f0"], some["f1"] = octets[0::2], octets[1::2]
    else:
        try:
            some[:] = uids.to_pairs(column.cast(pa.large_string()))
        except ValueError as error:
            said = re.sub(r"\d+", lambda row: f"{int(row[0]) + before:,}", str(error), count=1)
            raise InputError(str(path), f"column uid: {said}", hint=_HINT) from error


def _octets(column: Any) -> Any:
    """A column of binary values as 16 bytes each, or as it is where they are of another length."""
    import pyarrow as pa

    try:
        return column.cast(pa.binary(_ITEM)) if column.type in (pa.binary(), pa.large_binary()) else column
    except pa.ArrowInvalid:
        return column


def _text(path: Path) -> Pairs:
    data: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r").view(np.ndarray)
    pairs, filled = np.empty(len(data) // (_LINE - 1), UID_DTYPE), 0
    start = 3 if data[:3].tobytes() == b"\xef\xbb\xbf" else 0
    while start < len(data):
        stop = min(start + _TEXT_BLOCK, len(data))
        if stop < len(data):  # cut after the last whole line
            ends = np.flatnonzero(data[start:stop] == ord("\n"))
            stop = start + int(ends[-1]) + 1 if len(ends) else stop
        some = _lines(path, data, start, stop)
        pairs[filled : filled + len(some)] = some
        filled += len(some)
        start = stop
    return pairs[:filled]


_SPACE = np.isin(np.arange(256), list(b" \t\r\n"))
_HEX = np.isin(np.arange(256), list(b"0123456789abcdefABCDEF"))


def _lines(path: Path, data: npt.NDArray[np.uint8], start: int, stop: int) -> Pairs:
    """The uids of the lines in data[start:stop]; blank lines and blanks around a uid do not count."""
    import pyarrow as pa

    block = data[start:stop]
    if len(block) % _LINE == 0:  # as it is written here: nothing but digits and line ends
        lines = block.reshape(-1, _LINE)
        if (lines[:, -1] == ord("\n")).all() and _HEX[lines[:, :-1]].all():
            return uids.to_pairs(_strings(np.ascontiguousarray(lines[:, :-1]), pa.large_string(), np.int64))
    space = _SPACE[block]
    edges = np.flatnonzero(np.diff(space.astype(np.int8), prepend=1, append=1))
    begins, ends = edges[0::2], edges[1::2]
    wrong = np.zeros(len(begins), bool)
    wrong |= ends - begins != _LINE - 1
    breaks = np.cumsum(block == ord("\n"))[begins]
    wrong[1:] |= breaks[1:] == breaks[:-1]  # two on one line
    bad = np.flatnonzero(~space & ~_HEX[block])
    wrong[np.searchsorted(begins, bad, side="right") - 1] = True
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        number = int((data[:start] == ord("\n")).sum() + breaks[at]) + 1
        line = block[begins[at] : begins[at] + 60].tobytes().partition(b"\n")[0].strip().decode("utf-8", "replace")
        raise InputError(
            str(path), f"line {number:,}: {line!r} is not 32 hex digits", hint="one uid a line, no header"
        )
    digits = np.ascontiguousarray(block[~space])
    return uids.to_pairs(_strings(digits.reshape(-1, _LINE - 1), pa.large_string(), np.int64))


def _strings(digits: npt.NDArray[np.uint8], kind: Any, offset: type[np.integer[Any]]) -> Any:
    """n x 32 characters as an arrow array of strings, without a copy."""
    import pyarrow as pa

    ends = np.arange(len(digits) + 1, dtype=offset) * np.array(_LINE - 1, offset)
    return pa.Array.from_buffers(kind, len(digits), [None, pa.py_buffer(ends), pa.py_buffer(digits)])


# --- writing ----------------------------------------------------------------------------------------------


def write(path: Path, pairs: Pairs) -> None:
    """Write uids, in order, in the form that the suffix stands for; whole or not at all.

    `.npy` has the bytes that DataComp's code writes; Parquet has a column `uid` of hex digits. Raises InputError
    for a list that is empty or another suffix.
    """
    form = form_of(path)
    if not len(pairs):
        raise InputError(str(path), "would hold no uid, and is not written", hint="no sample is left")
    ordered = pairs if is_ordered(pairs) else pairs[uids.sort_order(pairs)]
    receipts.write_file(path, b"".join(pieces(form, ordered)))


def pieces(form: str, pairs: Pairs) -> Iterator[Any]:
    """The bytes of a file of that form with these uids, in their order, some at a time."""
    pairs = np.ascontiguousarray(pairs)
    if form == "npy":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": pairs.dtype.descr, "fortran_order": False, "shape": pairs.shape}
        )
        yield header.getvalue()
    if form in ("npy", "memmap"):
        yield pairs.view(np.uint8).data
    elif form == "text":
        for start in range(0, len(pairs), BLOCK):
            digits = _digits(pairs[start : start + BLOCK])
            lines = np.full((len(digits), _LINE), ord("\n"), np.uint8)
            lines[:, :-1] = digits
            yield lines.data
    else:
        yield _parquet_bytes(pairs)


def _parquet_bytes(pairs: Pairs) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    schema = pa.schema([("uid", pa.string())])
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, len(pairs), BLOCK):
            column = _strings(_digits(pairs[start : start + BLOCK]), pa.string(), np.int32)
            writer.write_table(pa.table([column], schema=schema))
    return sink.getvalue()


def _digits(pairs: Pairs) -> npt.NDArray[np.uint8]:
    """The hex digits of each pair, n x 32 characters."""
    octets = np.empty((len(pairs), 2), ">u8")
    octets[:, 0], octets[:, 1] = pairs["f0"], pairs["f1"]
    words = np.frombuffer(b"".join(b"%02x" % n for n in range(256)), np.uint16)
    return words[octets.view(np.uint8)].view(np.uint8).reshape(len(pairs), _LINE - 1)
