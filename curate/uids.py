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

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: multiples of it lie far apart."""
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
    out = np.empty(n, dtype=UID_DTYPE)
    if n == 0:
        return out
    if uids.null_count:
        raise ValueError(f"row {int(np.flatnonzero(np.asarray(uids.is_null()))[0])} has no uid")
    words = _characters(uids, n)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        wrong = _read_digits(words[start:stop], out[start:stop])
        if wrong is not None:
            raise ValueError(f"row {start + wrong}: {uids[start + wrong].as_py()!r} is not 32 hex digits")
    return out


_BLOCK = 1 << 14
"""uids that are read at once: their words and what is made of them stay in a core's cache."""


def _characters(uids: pa.Array, n: int) -> npt.NDArray[np.uint64]:
    """The characters as n x 4 little-endian words, read from the buffers: pyarrow's ways to numpy import pandas."""
    import numpy as np
    import pyarrow as pa

    # a cast imports what pyarrow computes with, which takes longer than a small pool
    plain = uids if uids.type == pa.large_string() else uids.cast(pa.large_string())
    _, offsets, data = plain.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[plain.offset : plain.offset + n + 1]
    wrong = np.flatnonzero(np.diff(ends) != 32)
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: {uids[int(wrong[0])].as_py()!r} is not 32 hex digits")
    return np.frombuffer(data, dtype="<u8", count=4 * n, offset=int(ends[0])).reshape(n, 4)


def _read_digits(words: npt.NDArray[np.uint64], out: npt.NDArray[np.void]) -> int | None:
    """Read rows of 4 words of 8 hex digits each into `out`; the first row with anything else, or None.

    Eight characters at a time, as bytes of one number (the first is the lowest). Of `0`-`9` the low four bits are
    the digit; of `a`-`f` and `A`-`F`, which have bit 6, they are 9 less. What is read is spelled out again and
    compared, so that nothing else passes for a digit.
    """
    import numpy as np

    def every(byte: int) -> np.uint64:
        return np.uint64(byte * 0x0101010101010101)

    digits = (words & every(0x0F)) + ((words >> np.uint64(6)) & every(1)) * np.uint64(9)
    letters = ((digits + every(6)) >> np.uint64(4)) & every(1)
    spelled = digits + every(0x30) + letters * np.uint64(0x27)
    # a letter may differ in bit 5, its case; a digit is below 16
    wrong = ((words ^ spelled) & ~(letters << np.uint64(5))) | (digits & every(0xF0))
    if wrong.any():
        return int(np.flatnonzero(wrong.any(axis=1))[0])
    pairs = ((digits << np.uint64(4)) | (digits >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs | (pairs >> np.uint64(8))) & np.uint64(0x0000FFFF0000FFFF)
    # the first two digits are the lowest byte: the other way round than in a number
    halves = (fours | (fours >> np.uint64(16))).astype(np.uint32).byteswap().astype(np.uint64)
    out["f0"] = (halves[:, 0] << np.uint64(32)) | halves[:, 1]
    out["f1"] = (halves[:, 2] << np.uint64(32)) | halves[:, 3]
    return None


def to_hex(pairs: npt.NDArray[np.void]) -> list[str]:
    """The 32 hex digits of each pair, in order."""
    return [f"{int(high):016x}{int(low):016x}" for high, low in zip(pairs["f0"], pairs["f1"], strict=True)]


def sort_order(pairs: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """The stable order that sorts the pairs (f0, then f1), without numpy's slow structured compare.

    Sorts single numbers, each the high bits of f0 above its row; the few uids that share these bits are then
    put right.
    """
    import numpy as np

    n = len(pairs)
    bits = np.uint64(max(n - 1, 1).bit_length())
    packed = (pairs["f0"] >> bits) << bits
    packed |= np.arange(n, dtype=np.uint64)
    packed.sort()
    order = (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.intp)
    packed >>= bits
    tied = np.flatnonzero(packed[1:] == packed[:-1])
    if len(tied):
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


def mixed(
    high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64], *, seed: int, word: int
) -> npt.NDArray[np.uint64]:
    """64 bits for each 128, as if by chance, by splitmix64's mixing over both halves, the seed and `word`."""
    import numpy as np

    def whole(number: int) -> np.uint64:
        return np.uint64(number & 0xFFFFFFFFFFFFFFFF)

    with np.errstate(over="ignore"):
        x = high ^ (whole(seed) * np.uint64(GOLDEN))
        for then in (low, whole(word)):
            x = x + np.uint64(GOLDEN)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = (x ^ (x >> np.uint64(31))) ^ then
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return x ^ (x >> np.uint64(27))
