"""Reads the weights out of a zipped TensorFlow SavedModel, without TensorFlow and without running any of it.

Two files matter: `variables/` is a TensorBundle (a LevelDB table that names slices of raw data files), and
`saved_model.pb` is a protocol buffer whose graph holds look-up vocabularies as constants. Everything is
bounds-checked: bytes that are not what they claim to be raise ValueError.
Formats: tensorflow/core/util/tensor_bundle and core/protobuf in TensorFlow; table_format.md in LevelDB.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MAX_MEMBER = 64 << 20
_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_DT_FLOAT, _DT_STRING = 1, 7


@dataclass(frozen=True)
class SavedModel:
    """What a SavedModel stores."""

    tensors: dict[str, npt.NDArray[np.float32]]
    """Float tensors by checkpoint key."""
    keys: tuple[str, ...]
    """All checkpoint keys, those of other types included."""
    strings: tuple[tuple[bytes, ...], ...]
    """The graph's constants that are lists of at least two strings, in graph order."""


def members(archive: bytes) -> dict[str, bytes]:
    """The files of a zip by name, none larger than 64 MiB. Raises ValueError where it is not such a zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > _MAX_MEMBER:
                raise ValueError("unpacks to more than 64 MiB")
            return {info.filename: opened.read(info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, struct.error) as error:
        raise ValueError(f"is not a readable zip ({error})") from error


def parse(files: dict[str, bytes]) -> SavedModel:
    """The SavedModel among the files of a zip, below whatever folder it has. Raises ValueError."""
    roots = [name[: -len("saved_model.pb")] for name in files if name.endswith("saved_model.pb")]
    if len(roots) != 1:
        raise ValueError(f"holds {len(roots)} files called saved_model.pb, not one")
    variables = roots[0] + "variables/variables."
    if variables + "index" not in files or variables + "data-00000-of-00001" not in files:
        raise ValueError("holds no variables/variables.index with one data file")
    entries = dict(_table(files[variables + "index"]))
    data = files[variables + "data-00000-of-00001"]
    tensors = {}
    for key, entry in entries.items():
        if key:  # the empty key is the bundle's header
            tensor = _tensor(entry, data)
            if tensor is not None:
                tensors[_text(key)] = tensor
    keys = tuple(_text(key) for key in entries)
    return SavedModel(tensors, keys, tuple(_graph_strings(files[roots[0] + "saved_model.pb"])))


# --- protocol buffers -----------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at `at`, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number runs past its end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: an int for a varint, else the bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of unknown wire type {kind}")
        if length > len(message) - at:
            raise ValueError("a field runs past its end")
        yield tag >> 3, message[at : at + length]
        at += length


def _messages(message: bytes, number: int) -> Iterator[bytes]:
    """Every value of field `number`, which holds bytes."""
    for found, value in _fields(message):
        if found == number:
            if isinstance(value, int):
                raise ValueError(f"field {number} is a number where a message belongs")
            yield value


def _number(message: bytes, number: int) -> int:
    """The last value of varint field `number`; 0 where it is absent, as the format has it."""
    last = 0
    for found, value in _fields(message):
        if found == number:
            if not isinstance(value, int):
                raise ValueError(f"field {number} is not a number")
            last = value
    return last


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError("a name is not UTF-8") from error


# --- the bundle of variables ----------------------------------------------------------------------------


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a LevelDB table, in its order."""
    if len(table) < _FOOTER or struct.unpack("<Q", table[-8:])[0] != _TABLE_MAGIC:
        raise ValueError("variables.index is not a table")
    footer = table[-_FOOTER:]
    at = 0
    for _ in range(2):  # the handle of the meta-index, of no use here
        _, at = _varint(footer, at)
    for _, handle in _block(table, footer[at:]):
        yield from _block(table, handle)


def _block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the block that a handle points to; keys are stored without the prefix they share."""
    offset, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    if offset + size + 1 > len(table) or size < 4:
        raise ValueError("a block runs past the table's end")
    if table[offset + size] != 0:
        raise ValueError("a block is compressed, which TensorFlow never writes")
    block = table[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]  # what follows are restart offsets and their count
    if end < 0:
        raise ValueError("a block has more restart points than bytes")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise ValueError("a table entry runs past its block")
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def _tensor(entry: bytes, data: bytes) -> npt.NDArray[np.float32] | None:
    """The float tensor that a BundleEntryProto names; None where it is of another type."""
    import numpy as np

    if _number(entry, 1) != _DT_FLOAT:
        return None
    shape = tuple(_number(dim, 1) for message in _messages(entry, 2) for dim in _messages(message, 2))
    offset, size = _number(entry, 4), _number(entry, 5)
    count = 1
    for side in shape:
        count *= side
    if size != 4 * count or offset + size > len(data):
        raise ValueError(f"a tensor of shape {shape} does not fit its {size} bytes of data")
    return np.frombuffer(data, "<f4", count, offset).reshape(shape).astype(np.float32)


# --- the graph's constants ------------------------------------------------------------------------------


def _graph_strings(saved_model: bytes) -> Iterator[tuple[bytes, ...]]:
    """String lists among the constants of the first graph."""
    for meta_graph in _messages(saved_model, 2):
        for graph in _messages(meta_graph, 2):
            for node in _messages(graph, 1):
                if next(_messages(node, 2), b"") == b"Const":
                    yield from _strings(node)
        return


def _strings(node: bytes) -> Iterator[tuple[bytes, ...]]:
    for attribute in _messages(node, 5):
        if next(_messages(attribute, 1), b"") != b"value":
            continue
        for value in _messages(attribute, 2):
            for tensor in _messages(value, 8):
                if _number(tensor, 1) == _DT_STRING:
                    words = tuple(_messages(tensor, 8))
                    if len(words) > 1:
                        yield words
