"""Which rows of a table the vectors of some files are closest to: worked out once, then kept in the cache.

For DataComp's image-based filter these are 1.28 million vectors against 100,000 centroids, some 2e14 operations
for a few ten thousand numbers that never change.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from curate import arrays, assets, devices, receipts
from curate.errors import CurateError, InputError
from curate.progress import progress
from curate.vectors.closest import closest

log = logging.getLogger("curate.vectors")

VERSION = 1
"""Raised when the numbers may change."""
_ROWS = 8192
_WORTH_A_GPU = 10**12
"""Multiplications that take a CPU some ten seconds."""

Int64 = npt.NDArray[np.int64]
Named = tuple[Path, str]
"""A file and its sha256."""


def reached(files: Sequence[Named], table: Named, device: str = "auto") -> Int64:
    """The rows of `table` that some vector in `files` is closest to, ascending; `auto` takes a GPU if there is one.

    A vector of zeros, which `curate embed` writes for an image that it could not, is closest to none. Kept under
    the files' sha256, so other files in their place are worked out anew. Raises InputError where a file holds no
    vectors, or ones of another width than the table's.
    """
    known = [sha256 for _, sha256 in files]
    rows = kept(known, table[1])
    if rows is None:
        rows = _work_out([path for path, _ in files], table[0], device)
        _keep(_place(known, table[1]), rows)
    return rows


def kept(files: Sequence[str], table: str) -> Int64 | None:
    """The same of files with these sha256, if it has been worked out; else None."""
    try:
        rows = np.load(_place(files, table), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.dtype == np.int64 and rows.ndim == 1 else None


def _place(files: Sequence[str], table: str) -> Path:
    made_of = receipts.digest({"version": VERSION, "table": table, "vectors": list(files)})
    return assets.cache().parent / "reached" / f"{made_of[:32]}.npy"


def _work_out(files: Sequence[Path], table: Path, device: str) -> Int64:
    rows = arrays.vectors([table])
    held = [arrays.vectors([path]) for path in files]
    for path, vectors in zip(files, held, strict=True):
        if vectors.shape[1] != rows.shape[1]:
            raise InputError(
                str(path), f"its vectors have {vectors.shape[1]:,} values, those of {table} {rows.shape[1]:,}"
            )
    total = sum(map(len, held))
    find = closest(rows, _device(total * rows.size) if device == "auto" else device)
    found = np.zeros(len(rows), np.bool_)
    log.info("%s vectors against the %s of %s, once for these files", f"{total:,}", f"{len(rows):,}", table.name)
    with progress("targets", total, unit="vectors") as shown:
        for vectors in held:
            for start in range(0, len(vectors), _ROWS):
                part = vectors[start : start + _ROWS]
                found[find(part[part.any(axis=1)])] = True
                shown.advance(len(part))
    return np.flatnonzero(found)


def _device(products: int) -> str:
    """A GPU where there is one and the work is worth the seconds that torch takes to come."""
    return devices.best() if products >= _WORTH_A_GPU else "cpu"


def _keep(path: Path, rows: Int64) -> None:
    data = io.BytesIO()
    np.save(data, rows)
    try:
        receipts.write_file(path, data.getvalue())
    except CurateError as error:
        log.warning("%s; what was worked out is not kept for the next time", error)
