"""uids: the 128-bit identity of a sample, as 32 hex digits and as the pair of u8 that DataComp stores."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_HEX32 = re.compile(r"[0-9a-f]{32}")

UID_DTYPE = "u8,u8"
"""DataComp's dtype of a uid list: f0 the high, f1 the low 64 bits."""


def derive_uid(url: str, caption: str | None) -> str:
    """The uid of a sample that came without one: the first 128 bits of sha256(url, NUL, caption).

    A missing caption counts as an empty one.
    """
    return hashlib.sha256(f"{url}\0{caption or ''}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_uid(text: str) -> bool:
    """Whether `text` is 32 lower-case hex digits."""
    return _HEX32.fullmatch(text) is not None


def to_pairs(uids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.void]:
    """Structured array (`u8,u8`) of a string array of uids, in its order.

    Upper-case digits are accepted. Raises ValueError naming the first row that is not 32 hex digits.
    """
    import numpy as np
    import pyarrow as pa

    if isinstance(uids, pa.ChunkedArray):
        uids = uids.combine_chunks()
    n = len(uids)
    if n == 0:
        return np.empty(0, dtype=UID_DTYPE)
    if uids.null_count:
        raise ValueError(f"row {int(np.flatnonzero(np.asarray(uids.is_null()))[0])} has no uid")
    fixed = _characters(uids, n)
    nibbles = _NIBBLES()[fixed]
    if (nibbles > 15).any():
        row = int(np.flatnonzero((nibbles > 15).any(axis=1))[0])
        raise ValueError(f"row {row}: {uids[row].as_py()!r} is not 32 hex digits")
    octets = (nibbles[:, 0::2] << 4) | nibbles[:, 1::2]
    words = octets.view(">u8").astype("<u8")
    out = np.empty(n, dtype=UID_DTYPE)
    out["f0"], out["f1"] = words[:, 0], words[:, 1]
    return out


def _characters(uids: pa.Array, n: int) -> npt.NDArray[np.uint8]:
    """n x 32 characters, read from the buffers: pyarrow's ways to numpy import pandas, half a second."""
    import numpy as np
    import pyarrow as pa

    plain = uids.cast(pa.large_string())
    _, offsets, data = plain.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[plain.offset : plain.offset + n + 1]
    wrong = np.flatnonzero(np.diff(ends) != 32)
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: {uids[int(wrong[0])].as_py()!r} is not 32 hex digits")
    return np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]].reshape(n, 32)


def _NIBBLES() -> npt.NDArray[np.uint8]:  # noqa: N802 - a table, built where numpy is wanted
    import numpy as np

    table = np.full(256, 255, dtype=np.uint8)
    for digit, character in enumerate("0123456789abcdef"):
        table[ord(character)] = table[ord(character.upper())] = digit
    return table


def to_hex(pairs: npt.NDArray[np.void]) -> list[str]:
    """The 32 hex digits of each pair, in order."""
    return [f"{int(high):016x}{int(low):016x}" for high, low in zip(pairs["f0"], pairs["f1"], strict=True)]


def sort_order(pairs: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """The stable order that sorts the pairs (f0, then f1), without numpy's slow structured compare."""
    import numpy as np

    order = np.argsort(pairs["f0"], kind="stable")
    high = pairs["f0"][order]
    tied = np.flatnonzero(high[1:] == high[:-1])
    if len(tied):  # equal high halves are rare unless uids repeat: sort those runs alone
        rows = np.unique(np.concatenate([tied, tied + 1]))
        runs = order[rows]
        order[rows] = runs[np.lexsort((runs, pairs["f1"][runs], pairs["f0"][runs]))]
    return order


def find(ordered: npt.NDArray[np.void], wanted: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """The first position of each wanted pair in a sorted list of pairs, -1 where it is not in it."""
    import numpy as np

    found = np.full(len(wanted), -1, dtype=np.int64)
    at = np.searchsorted(ordered["f0"], wanted["f0"], side="left")
    left = np.arange(len(wanted))
    while True:  # walk over the few that share their high half
        inside = at < len(ordered)
        left, at = left[inside], at[inside]
        same = ordered["f0"][at] == wanted["f0"][left]
        hit = same & (ordered["f1"][at] == wanted["f1"][left])
        found[left[hit]] = at[hit]
        on = same & ~hit
        if not on.any():
            return found
        left, at = left[on], at[on] + 1
