"""The arrays in a file of `torch.save`, without torch and without running what the file says.

Such a file is a zip: a pickle, and the bytes of each tensor as a member of their own. torch's own careful reader
knows only the pickles that `torch.save` writes by default, not the protocol 4 of DataComp's centroids. Here a
pickle may name the few things that arrays are put together from, and each of these names stands for a stand-in
below, which puts together a numpy array and can do nothing else. Any other name ends the reading.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from curate.errors import InputError

MEMBER = "data.pkl"
"""The member of the zip, inside its one folder, that is the pickle."""

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

_NUMBERS = re.compile(r"[fiub][1-8]")
"""numpy's codes of types that are plain numbers."""

Bytes = Callable[[str], npt.NDArray[np.uint8]]
"""The bytes of a member of the zip by its name, mapped if they can be."""


def load(path: Path, archive: zipfile.ZipFile, stored: Bytes) -> Any:
    """What was saved; `array` tells which of it are arrays.

    Raises InputError where the pickle names anything that arrays are not made of, or is damaged.
    """
    member = next(n for n in archive.namelist() if n.endswith(f"/{MEMBER}"))
    try:
        with archive.open(member) as stream:
            return _Inert(stream, path, member.removesuffix(MEMBER), stored).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(str(path), f"cannot be read ({type(error).__name__}: {error})") from error


class _Inert(pickle.Unpickler):
    """Unpickles in a world where nothing but the stand-ins exists."""

    def __init__(self, stream: IO[bytes], path: Path, folder: str, stored: Bytes) -> None:
        super().__init__(stream, encoding="latin1")
        self._path, self._folder, self._stored = path, folder, stored

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        # numpy 2 moved them
        stand_in = _STAND_INS.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if stand_in is None:
            raise InputError(
                str(self._path),
                f"names {module}.{name}, which no array is made of; nothing of it was run",
                hint="save the array alone, as numpy.save does, and give that file",
            )
        return stand_in

    def persistent_load(self, pid: Any) -> npt.NDArray[Any]:
        kind, storage, key, _location, length = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise ValueError(f"no storage: {pid!r}")
        raw = self._stored(f"{self._folder}data/{key}")
        values = raw.view("<u2" if storage.dtype == "bfloat16" else storage.dtype)[:length]
        if len(values) != length:
            raise ValueError(f"tensor {key} is cut short ({len(values)} of {length} values)")
        if storage.dtype == "bfloat16":  # the upper half of a float32
            return np.asarray((values.astype(np.uint32) << 16).view(np.float32))
        return values


class _Sealed:
    """Takes no state from a pickle."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a pickle that changes what it names")


class _Storage(_Sealed):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _StandIn(_Sealed):
    """A name in a pickle: called with the pickle's arguments, it gives data."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)


class _Dtype:
    """numpy.dtype: its code comes first, its byte order as the state."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str, *_flags: Any) -> None:
        self._code, self._order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1]

    def __call__(self) -> np.dtype[Any]:
        if not _NUMBERS.fullmatch(self._code) or self._order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of {self._code!r}")
        return np.dtype(f"{self._order}{self._code}")


class _Array:
    """numpy.ndarray as it is pickled: nothing at first, all of it as the state."""

    __slots__ = ("made",)

    def __init__(self, *_arguments: Any) -> None:
        self.made: npt.NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        self.made = _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def _from_bytes(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
    if not isinstance(raw, (bytes, bytearray)):
        raise TypeError("an array of objects")
    return np.frombuffer(raw, dtype()).reshape(shape, order=order)


def _tensor(
    storage: npt.NDArray[Any], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_rest: Any
) -> npt.NDArray[Any]:
    """A view of a storage, which lies within it and is no larger."""
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError("a tensor of no shape")
    if math.prod(shape) > len(storage):  # as it could be with steps of 0
        raise ValueError(f"a tensor {shape} of {len(storage)} values")
    steps = [step * storage.itemsize for step in strides]
    return np.ndarray(shape, storage.dtype, storage, offset * storage.itemsize, steps)  # which looks to the bounds


def _text_bytes(text: str, encoding: str) -> bytes:
    """Protocol 2 has no bytes: they are written as a text to encode."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {encoding!r}")
    return text.encode("latin1")


def _nothing(*_arguments: Any) -> None:
    """What a file may hold beside its arrays, and nobody reads."""


_MAKE: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _from_bytes,
    "numpy.core.multiarray.scalar": _nothing,
    "numpy.ndarray": _nothing,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _text_bytes,
    "collections.OrderedDict": dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda array, *_rest: array,
    "torch.Size": tuple,
    "torch.device": _nothing,
}
_STAND_INS = {name: _StandIn(make) for name, make in _MAKE.items()}


def array(saved: Any) -> npt.NDArray[Any] | None:
    """The array that something of a loaded file is, or None."""
    found = saved.made if isinstance(saved, _Array) else saved
    return found if isinstance(found, np.ndarray) else None
