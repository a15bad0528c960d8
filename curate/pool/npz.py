"""Arrays of an npz, each read alone: mapped where it is stored as it is, so that the others cost nothing.

DataComp's were written to a sink that cannot seek: sizes stand behind each member and in the directory at the
end, never in front, so only the directory is believed.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import stored
from curate.errors import PartError


def names(path: Path) -> list[str]:
    """The arrays in an npz. Raises PartError where the file is not one."""
    with _opened(path) as archive:
        return [n.removesuffix(".npy") for n in archive.namelist()]


def member(path: Path, name: str) -> npt.NDArray[Any]:
    """One array: mapped where it is stored as it is, read where it is compressed.

    Raises PartError where it is missing, cut short or no array.
    """
    with _opened(path) as archive:
        info = _info(archive, path, name)
        try:
            if info.compress_type == zipfile.ZIP_STORED:
                return stored.array(path, info)
            with archive.open(info) as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        # NotImplementedError, RuntimeError: zipfile's for a method that it has not, and for encryption
        except (ValueError, EOFError, OSError, struct.error, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            what = "holds objects, which are not read" if "bject" in str(error) else f"cannot be read ({error})"
            raise PartError(str(path), f"array {name!r} {what}") from error


def _info(archive: zipfile.ZipFile, path: Path, name: str) -> zipfile.ZipInfo:
    for info in archive.infolist():
        if info.filename.removesuffix(".npy") == name:
            return info
    raise PartError(str(path), f"has no array {name!r} (found: {', '.join(names(path)) or 'none'})")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PartError(str(path), f"is not a readable npz ({error})") from error
