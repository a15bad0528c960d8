"""Rows whose URL stood before: found over a whole list, at 16 bytes a row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from curate.uids import UID_DTYPE, sort_order

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BUCKETS = 64
"""Hashes are sorted so many times one after the other, so that what the sort itself needs stays small."""


def repeats(urls: Iterable[Sequence[str | None]], rows: int) -> npt.NDArray[np.int64]:
    """The rows, ascending, whose URL (less the blanks around it) is that of an earlier row; `rows` in all.

    Rows without a URL repeat nothing.
    """
    import numpy as np

    hashes, row = np.zeros(rows, UID_DTYPE), 0
    for texts in urls:
        digests = [_digest(text) for text in texts]
        words = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        hashes["f0"][row : row + len(texts)], hashes["f1"][row : row + len(texts)] = words[:, 0], words[:, 1]
        row += len(texts)
    found = []
    for bucket in range(_BUCKETS):
        places = np.flatnonzero(hashes["f0"] >> np.uint64(58) == bucket)
        held = hashes[places]
        order = sort_order(held)
        held = held[order]
        same = (held["f0"][1:] == held["f0"][:-1]) & (held["f1"][1:] == held["f1"][:-1])
        same &= (held["f0"][1:] != 0) | (held["f1"][1:] != 0)
        found.append(places[order[1:][same]])
    return np.sort(np.concatenate(found))


def _digest(url: str | None) -> bytes:
    """128 bits that stand for a URL; zero for none."""
    stripped = url.strip() if url else ""
    if not stripped:
        return bytes(16)
    return hashlib.blake2b(stripped.encode("utf-8", "surrogatepass"), digest_size=16).digest()
