"""How the uid lists that DataComp's code wrote are stored: as places in the pool's sorted uids, and a digest."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).with_name("expected.json")


def file_bytes(uids: npt.NDArray[np.void]) -> bytes:
    """The uid list as DataComp saves it."""
    out = io.BytesIO()
    np.save(out, uids)
    return out.getvalue()


def digest(uids: npt.NDArray[np.void]) -> str:
    """sha256 of the saved uid list."""
    return hashlib.sha256(file_bytes(uids)).hexdigest()


def bits(pool: npt.NDArray[np.void], kept: npt.NDArray[np.void]) -> str:
    """Which of the pool's sorted uids are kept, as hex digits of a bit each. Of equal ones the first are."""
    found = np.zeros(len(pool), bool)
    left = kept.tolist()[::-1]
    for row, uid in enumerate(pool.tolist()):
        if left and left[-1] == uid:
            found[row] = True
            left.pop()
    if left:
        raise ValueError(f"{len(left)} uids are not of the pool, or not in order")
    return np.packbits(found).tobytes().hex()


def kept(pool: npt.NDArray[np.void], name: str, part: str) -> npt.NDArray[np.void]:
    """What DataComp's code kept of a pool. Raises ValueError where the pool is another than it saw."""
    stored = load()[part]["kept"][name]
    places = np.unpackbits(np.frombuffer(bytes.fromhex(stored["kept"]), np.uint8), count=len(pool)).astype(bool)
    uids: npt.NDArray[np.void] = pool[places]
    if digest(uids) != stored["sha256"]:
        raise ValueError(f"{name}: this pool is not the one that DataComp's code was run on")
    return uids


def load() -> dict[str, Any]:
    """All that is stored."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found
