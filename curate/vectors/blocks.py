"""Row-aligned access to vectors that lie in many files, a block at a time.

A pool's vectors are a list of parts, each a mapped array of rows x dim. A sampler sees them in another order
(its samples in uid order, some without a vector). `Blocks` joins the two: rows go by global number, row r of
part p being r + the rows of the parts before it, and an optional selection says which of them are seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate.errors import InputError

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

BLOCK_ROWS = 8192


class Blocks:
    """A view over 2-D float16 or float32 arrays of one width; only what is asked for is ever read.

    `rows` selects and orders global rows; -1 stands for a row without a vector and reads as zeros (which rows
    those are is the caller's to know). Without it all rows are seen, part after part. Values come as float32.
    """

    def __init__(self, parts: Sequence[Array], rows: npt.ArrayLike | None = None) -> None:
        if not parts:
            raise ValueError("no parts: a view needs at least one array, if only for its width")
        for k, part in enumerate(parts):
            if part.ndim != 2 or part.dtype not in (np.float16, np.float32):
                raise ValueError(f"part {k}: wants rows x dim of float16 or float32, got {part.dtype} {part.shape}")
            if part.shape[1] != parts[0].shape[1]:
                raise ValueError(f"part {k}: {part.shape[1]} wide where part 0 is {parts[0].shape[1]}")
        self.parts = tuple(parts)
        self.dim = int(parts[0].shape[1])
        self._starts: Int64 = np.concatenate(([0], np.cumsum([len(p) for p in parts]))).astype(np.int64)
        self._rows: Int64 | None = None
        if rows is not None:
            self._rows = np.asarray(rows, dtype=np.int64)
            if len(self._rows) and (self._rows.min() < -1 or self._rows.max() >= self._starts[-1]):
                raise IndexError(f"a row outside -1..{self._starts[-1] - 1}")
        self.n = len(self._rows) if self._rows is not None else int(self._starts[-1])

    @classmethod
    def open(cls, paths: Sequence[Path], rows: npt.ArrayLike | None = None) -> Blocks:
        """A view over mapped .npy files. Raises InputError where one is none, or of another form or width."""
        parts: list[Array] = []
        for path in paths:
            try:
                part = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(str(path), f"is not an array that can be mapped ({error})") from error
            if part.ndim != 2 or part.dtype not in (np.float16, np.float32):
                raise InputError(
                    str(path), f"does not hold vectors of float16 or float32 (it is {part.dtype} {part.shape})"
                )
            if parts and part.shape[1] != parts[0].shape[1]:
                raise InputError(
                    str(path), f"holds vectors {part.shape[1]} wide where {paths[0]} has {parts[0].shape[1]}"
                )
            parts.append(part)
        return cls(parts, rows)

    def __len__(self) -> int:
        return self.n

    @property
    def places(self) -> Int64:
        """For each row the global row of `parts` that it is, -1 where it has no vector."""
        return np.arange(self.n) if self._rows is None else self._rows

    def take(self, index: npt.ArrayLike) -> Blocks:
        """The view in which row i is row `index[i]` of this one (-1: a row of zeros)."""
        wanted = np.asarray(index, dtype=np.int64)
        return Blocks(self.parts, wanted if self._rows is None else _through(self._rows, wanted))

    def block(self, start: int, stop: int) -> Float32:
        """Rows start..stop-1, (stop - start) x dim."""
        if not 0 <= start <= stop <= self.n:
            raise IndexError(f"rows {start}..{stop} of {self.n}")
        if self._rows is not None:
            return self._read(self._rows[start:stop])
        out = np.empty((stop - start, self.dim), np.float32)
        at = start
        while at < stop:
            part, low, high = self._run(at, stop)
            out[at - start : at - start + high - low] = part[low:high]
            at += high - low
        return out

    def iterate(self, rows: int = BLOCK_ROWS) -> Iterator[Float32]:
        """All rows, in order, as blocks of `rows` rows (the last one shorter)."""
        for start in range(0, self.n, rows):
            yield self.block(start, min(start + rows, self.n))

    def gather(self, index: npt.ArrayLike) -> Float32:
        """The rows of `index`, in its order, repeats allowed: len(index) x dim. Each part is read once, in its
        own row order."""
        wanted = np.asarray(index, dtype=np.int64)
        return self._read(wanted if self._rows is None else self._rows[wanted])

    def _run(self, at: int, stop: int) -> tuple[Array, int, int]:
        """The part that holds global row `at`, and its rows low..high that lie before `stop`."""
        k = int(np.searchsorted(self._starts, at, side="right")) - 1
        low = at - int(self._starts[k])
        return self.parts[k], low, min(low + stop - at, len(self.parts[k]))

    def _read(self, rows: Int64) -> Float32:
        out = np.empty((len(rows), self.dim), np.float32)
        ordered = bool(np.all(rows[1:] >= rows[:-1]))
        order = None if ordered else np.argsort(rows, kind="stable")
        ascending = rows if order is None else rows[order]
        at = int(np.searchsorted(ascending, 0))
        out[slice(0, at) if order is None else order[:at]] = 0.0
        while at < len(ascending):
            k = int(np.searchsorted(self._starts, ascending[at], side="right")) - 1
            end = at + int(np.searchsorted(ascending[at:], self._starts[k + 1]))
            values = self.parts[k][ascending[at:end] - self._starts[k]]
            if order is None:
                out[at:end] = values
            else:
                out[order[at:end]] = values
            at = end
        return out


def _through(rows: Int64, index: Int64) -> Int64:
    return np.where(index < 0, -1, rows[index]) if len(rows) else index
