"""Vectors that a file holds, as .npy, .npz or .pt: told by its bytes, read without running anything in it."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import stored, torch_file
from curate.errors import InputError

_NPY, _ZIP, _PICKLE = b"\x93NUMPY", b"PK\x03\x04", b"\x80"
_BLOCK = 8192
"""Rows that are looked through at a time."""
_PREFERRED = "image_features"
"""The matrix that is taken among several: what DataComp's files of ImageNet call theirs."""

Matrix = npt.NDArray[np.float32]


def vectors(paths: Sequence[Path]) -> Matrix:
    """The matrices of these files, one below another: rows x dim, float32, read-only.

    One file's is mapped where its values lie in it as they are. Raises InputError for a file that holds no
    matrix of finite floats, or one of another width than the first.
    """
    found = [_finite(path, matrix(path)) for path in paths]
    if len(found) == 1:
        return found[0]
    width = found[0].shape[1]
    for path, one in zip(paths, found, strict=True):
        if one.shape[1] != width:
            raise InputError(str(path), f"its vectors have {one.shape[1]} values, those of {paths[0]} {width}")
    together = np.concatenate(found)
    together.flags.writeable = False
    return together


def matrix(path: Path) -> Matrix:
    """The matrix of one file: rows x dim, float32, read-only, mapped if it can be. Values are as they stand."""
    try:
        with path.open("rb") as stream:
            begin = stream.read(len(_NPY))
        array = _array(path, begin)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, struct.error) as error:
        # RuntimeError: zipfile's, for encryption and for methods that it does not know
        raise InputError(str(path), f"cannot be read ({error})", hint=_FORMS) from error
    if not _is_matrix(array.dtype, array.shape):
        raise InputError(
            str(path), f"is not a matrix of floats (found {array.dtype}, shape {array.shape})", hint=_FORMS
        )
    if 0 in array.shape:
        raise InputError(str(path), f"holds no vectors (shape {array.shape})")
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
        floats = np.ascontiguousarray(array, dtype=np.float32)
    floats = floats.view()
    floats.flags.writeable = False
    return floats


_FORMS = "vectors are a matrix of floats, rows x dim, in a .npy, .npz or .pt file"


def _is_matrix(dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    return dtype.kind == "f" and dtype.itemsize <= 8 and len(shape) == 2


def _finite(path: Path, found: Matrix) -> Matrix:
    for start in range(0, len(found), _BLOCK):
        good = np.isfinite(found[start : start + _BLOCK]).all(axis=1)
        if not good.all():
            raise InputError(str(path), f"row {start + int(np.argmin(good))} holds NaN or infinity")
    return found


def _array(path: Path, begin: bytes) -> npt.NDArray[Any]:
    if begin == _NPY:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if begin.startswith(_ZIP):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(f"/{torch_file.MEMBER}") for name in archive.namelist()):
                return _of_torch(path, archive)
            return _of_npz(path, archive)
    if begin.startswith(_PICKLE):
        raise InputError(
            str(path),
            "is a bare pickle, or saved by a torch before 1.6: neither is read, since reading would run it",
            hint="save the array alone, as numpy.save does, and give that file",
        )
    raise InputError(str(path), f"is neither .npy nor .npz nor .pt (it begins with {begin!r})", hint=_FORMS)


# --- zips -------------------------------------------------------------------------------------------------


def _of_npz(path: Path, archive: zipfile.ZipFile) -> npt.NDArray[Any]:
    infos = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
    info = infos[_chosen(path, {name: _head(archive, info) for name, info in infos.items()})]
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    return stored.array(path, info)


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of an array in an npz."""
    with archive.open(info) as stream:
        shape, _, dtype = stored.npy_header(stream)
    return dtype, shape


def _of_torch(path: Path, archive: zipfile.ZipFile) -> npt.NDArray[Any]:
    def member(name: str) -> npt.NDArray[np.uint8]:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(archive.read(info), np.uint8)
        if info.file_size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r", stored.begin(path, info), (info.file_size,))

    saved = torch_file.load(path, archive, member)
    if (alone := torch_file.array(saved)) is not None:
        return alone
    if not isinstance(saved, Mapping):
        raise InputError(str(path), f"holds neither an array nor a dictionary of arrays ({type(saved).__name__})")
    arrays = {str(k): a for k, value in saved.items() if (a := torch_file.array(value)) is not None}
    return arrays[_chosen(path, {key: (a.dtype, a.shape) for key, a in arrays.items()})]


def _chosen(path: Path, found: Mapping[str, tuple[np.dtype[Any], Sequence[int]]]) -> str:
    """The name of the matrix that is meant: the preferred, else the only one."""
    names = [name for name, (dtype, shape) in found.items() if _is_matrix(dtype, shape)]
    if _PREFERRED in names:
        return _PREFERRED
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(
            str(path), f"holds several matrices ({_listed(names)})", hint=f"save one alone, or as {_PREFERRED!r}"
        )
    raise InputError(str(path), f"holds no matrix of floats (found: {_listed(found)})", hint=_FORMS)


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (", ..." if len(ordered) > 8 else "") or "none"
