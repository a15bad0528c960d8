"""The vectors that can be compared: usable, each once, at unit length; and cosines that no thread can change."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from curate.vectors.blocks import BLOCK_ROWS, Blocks

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Units:
    """The distinct usable rows of a view, numbered 0..n-1 in row order.

    Left out: rows that are not `ok`, are zero, not finite, or longer than a float32 can say; and every row
    equal to an earlier one, which is in `twins` instead.
    """

    rows: Int64
    """The row in the view of each unit, ascending."""
    twins: tuple[Int64, Int64]
    """(first, other): rows of the view with equal values, each with the first of them; ascending by other."""

    def __init__(self, blocks: Blocks, ok: Bools | None = None) -> None:
        if ok is not None and ok.shape != (blocks.n,):
            raise ValueError(f"ok has shape {ok.shape} for {blocks.n} rows")
        lengths, hashes = _survey(blocks)
        usable = np.isfinite(lengths) & (lengths > 0)
        if ok is not None:
            usable &= ok
        rows = np.flatnonzero(usable)
        self.twins = _twins(blocks, rows, hashes[rows])
        usable[self.twins[1]] = False
        self.rows = np.flatnonzero(usable)
        self.n = len(self.rows)
        self.dim = blocks.dim
        self._lengths = lengths[self.rows]
        self._blocks = blocks.take(self.rows)

    def gather(self, index: Int64) -> Float32:
        """Unit vectors (float32) of these units, in this order."""
        vectors = self._blocks.gather(index)
        vectors /= self._lengths[index].astype(np.float32)[:, None]
        return vectors

    def cosines(self, i: Int64, j: Int64) -> Float32:
        """The cosine of each pair of units: summed in float64 in one fixed order, rounded to float32.

        Equal for (i, j) and (j, i), and for whatever stands beside them in the call.
        """
        out = np.empty(len(i), np.float32)
        for at in range(0, len(i), BLOCK_ROWS):
            a, b = i[at : at + BLOCK_ROWS], j[at : at + BLOCK_ROWS]
            dots = _dot(self._blocks.gather(a), self._blocks.gather(b))
            out[at : at + BLOCK_ROWS] = dots / (self._lengths[a] * self._lengths[b])
        return np.clip(out, -1.0, 1.0, out=out)


def _dot(a: Float32, b: Float32) -> Float64:
    """Row-wise dot products: exact products, summed pairwise along each row by itself."""
    return np.asarray(np.multiply(a, b, dtype=np.float64).sum(axis=1))


def _survey(blocks: Blocks) -> tuple[Float64, npt.NDArray[np.uint64]]:
    """Length of each row (infinite where float32 cannot hold it, NaN where a value is not finite) and a hash
    of its values."""
    lengths = np.empty(blocks.n, np.float64)
    hashes = np.empty(blocks.n, np.uint64)
    odd = blocks.dim % 2
    weights = np.random.default_rng(0x5EED).integers(0, 1 << 64, (blocks.dim + odd) // 2, np.uint64) | np.uint64(1)
    at = 0
    for block in blocks.iterate():
        stop = at + len(block)
        squares = _dot(block, block)
        squares[squares > float(np.finfo(np.float32).max) ** 2] = np.inf
        lengths[at:stop] = np.sqrt(squares)
        block += 0.0  # -0.0 becomes 0.0: equal values, equal bytes
        words = np.pad(block, ((0, 0), (0, odd))).view(np.uint64) if odd else block.view(np.uint64)
        words ^= words >> np.uint64(32)
        hashes[at:stop] = words @ weights
        at = stop
    return lengths, hashes


def _twins(blocks: Blocks, rows: Int64, hashes: npt.NDArray[np.uint64]) -> tuple[Int64, Int64]:
    """Among ascending `rows` the pairs (first, other) of equal values. Equal hashes are verified, so that a
    collision can hide an equality from this function but never make one."""
    order = np.argsort(hashes, kind="stable")
    same = np.zeros(len(order), np.bool_)
    same[1:] = hashes[order[1:]] == hashes[order[:-1]]
    head = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    first, other = rows[order[head[same]]], rows[order[same]]
    by_other = np.argsort(other)
    first, other = first[by_other], other[by_other]
    equal = np.empty(len(first), np.bool_)
    for at in range(0, len(first), BLOCK_ROWS):
        cut = slice(at, at + BLOCK_ROWS)
        equal[cut] = (blocks.gather(first[cut]) == blocks.gather(other[cut])).all(axis=1)
    return first[equal], other[equal]
