"""Writes a SavedModel's two files, small and by hand, so that the reader is tested without TensorFlow."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def table(entries: Mapping[bytes, bytes], interval: int = 4) -> bytes:
    """A LevelDB table of one data block, keys stored without what they share with the one before."""
    body, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(sorted(entries.items())):
        shared = 0
        if i % interval == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    out = b""

    def block(body: bytes, restarts: Sequence[int]) -> bytes:
        nonlocal out
        body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
        handle = varint(len(out)) + varint(len(body))
        out += body + b"\0" + bytes(4)
        return handle

    data = block(body, restarts)
    meta = block(b"", [0])
    index = block(varint(0) + varint(1) + varint(len(data)) + b"~" + data, [0])
    return out + (meta + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def files(
    tensors: Mapping[str, npt.NDArray[np.float32]], lists: Sequence[Sequence[bytes]], extra: Sequence[str] = ()
) -> dict[str, bytes]:
    """The members of a SavedModel with these float tensors, string lists, and keys of other types."""
    data, entries = b"", {b"": field(1, 1)}
    for key, tensor in tensors.items():
        raw = tensor.astype("<f4").tobytes()
        shape = b"".join(field(2, field(1, side)) for side in tensor.shape)
        entries[key.encode()] = field(1, 1) + field(2, shape) + field(4, len(data)) + field(5, len(raw))
        data += raw
    for key in extra:
        entries[key.encode()] = field(1, 7) + field(4, len(data)) + field(5, 0)
    nodes = field(1, field(1, b"x") + field(2, b"Placeholder"))
    for words in lists:
        tensor_proto = field(1, 7) + b"".join(field(8, word) for word in words)
        attribute = field(1, b"value") + field(2, field(8, tensor_proto))
        nodes += field(1, field(1, b"c") + field(2, b"Const") + field(5, attribute))
    return {
        "head/saved_model.pb": field(1, 1) + field(2, field(2, nodes)),
        "head/variables/variables.index": table(entries),
        "head/variables/variables.data-00000-of-00001": data,
    }


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()
