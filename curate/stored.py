"""Arrays that lie in a zip as they are, mapped there: their own headers say where, the directory says how much."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_LOCAL = struct.Struct("<4s22xHH")
"""A member's own header: its mark, and the lengths of the name and of the extra fields that follow it."""
_MARK = b"PK\x03\x04"


def begin(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin in the file. Raises ValueError where the directory does not point at it."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        mark, name_length, extra_length = _LOCAL.unpack(stream.read(_LOCAL.size))
    if mark != _MARK:
        raise ValueError("the directory of the archive does not point at it")
    return int(info.header_offset) + _LOCAL.size + int(name_length) + int(extra_length)


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and type of the npy that begins here; the values come next."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def array(path: Path, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """The npy that is a member of a zip, not compressed, mapped. Raises ValueError where it is not all there."""
    start = begin(path, info)
    with path.open("rb") as stream:
        stream.seek(start)
        shape, fortran, dtype = npy_header(stream)
        values = stream.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays are not read")
    wanted = values - start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if wanted != info.file_size:
        raise ValueError(f"it is cut short: its header promises {wanted:,} bytes, and {info.file_size:,} are there")
    return np.memmap(path, dtype=dtype, mode="r", offset=values, shape=shape, order="F" if fortran else "C")
