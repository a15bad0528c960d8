"""Arrow columns from and to numpy by their buffers: pyarrow's own ways import pandas first, a tenth of a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def ints(values: npt.NDArray[np.integer[Any]]) -> pa.Array:
    """int32 numbers."""
    import pyarrow as pa

    held = np.ascontiguousarray(values, dtype=np.int32)
    return pa.Array.from_buffers(pa.int32(), len(held), [None, pa.py_buffer(held)])


def longs(values: npt.NDArray[np.integer[Any]]) -> pa.Array:
    """int64 numbers."""
    import pyarrow as pa

    held = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(held), [None, pa.py_buffer(held)])


def texts(values: Sequence[str]) -> pa.Array:
    """Strings, none of them missing."""
    import pyarrow as pa

    data = [value.encode() for value in values]
    ends = np.zeros(len(data) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in data], out=ends[1:])
    return pa.Array.from_buffers(pa.string(), len(data), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(data))])


def numbers(column: pa.ChunkedArray, kind: type[np.generic]) -> npt.NDArray[Any]:
    """A column of numbers of that kind, none of them missing."""
    pieces = [
        np.frombuffer(chunk.buffers()[1], dtype=kind)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=kind)


def characters(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The bytes of all strings, and where each begins and the last ends in them."""
    _, ends, data = texts.buffers()
    offsets = np.frombuffer(ends, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data or b"", dtype=np.uint8), offsets
