"""Arrays of an uncompressed npz, mapped where they lie."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate.errors import PartError


def names(path: Path) -> list[str]:
    """The arrays in an npz. Raises PartError where the file is not one."""
    with _opened(path) as archive:
        return [n.removesuffix(".npy") for n in archive.namelist()]


def member(path: Path, name: str) -> npt.NDArray[Any]:
    """One array: mapped where it is stored as it is, read where it is compressed.

    Raises PartError where it is missing or cut short.
    """
    with _opened(path) as archive:
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError:
            raise PartError(str(path), f"has no array {name!r} (found: {', '.join(names(path))})") from None
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(info) as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        offset = _data_offset(path, info)
    with path.open("rb") as stream:
        stream.seek(offset)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        begin = stream.tell()
    if dtype.hasobject:
        raise PartError(str(path), f"array {name!r} holds objects, which are not read")
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=begin, shape=shape, order="F" if fortran else "C")
    except ValueError as error:
        raise PartError(str(path), f"array {name!r} is cut short ({error})") from error


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise PartError(str(path), f"is not a readable npz ({error})") from error


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        fixed = stream.read(30)
    name_length, extra_length = struct.unpack("<HH", fixed[26:30])
    return int(info.header_offset + 30 + name_length + extra_length)
