"""Which row of a table has the largest inner product with each vector: exact, and as fast as the product itself.

Products are taken a tile at a time and reduced while the tile is in the cache. Those in float32 are good enough
for all but the rows whose two largest lie closer together than float32 can tell; these are taken again in
float64. So the answer is that of exact arithmetic whatever library, device or number of threads multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

Closest = Callable[[Array], Int64]
"""From vectors (rows x dim, float16 or float32) to the number of a row of the table for each."""

_CPU_TILE = (2048, 2048)
"""Vectors and rows of the table in a tile: 16 MiB of products, which stay in the cache."""
_GPU_TILE = (8192, 16384)
_EXACT = 1 << 25
"""Products in float64 that are held at a time."""


def closest(table: Array, device: str = "cpu") -> Closest:
    """A function from vectors to the row of `table` that has the largest inner product with each.

    Equal products: the lowest row. As `torch.argmax` has it, a product that is no number is larger than all
    numbers, so a vector with a NaN in it gets row 0. `table` (rows x dim) must be finite and have a row. One
    thread at a time may call the function.
    """
    if device == "cpu":
        return _Search(table, np, None, _CPU_TILE)
    import torch

    return _on_torch(table, torch.device(device))


def _on_torch(table: Array, device: Any, tile: tuple[int, int] = _GPU_TILE) -> Closest:
    import torch

    search = _Search(table, torch, device, tile)

    def find(vectors: Array) -> Int64:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # TF32 would be off by more than `_Search` reckons with
        try:
            with torch.inference_mode():
                return search(vectors)
        finally:
            torch.set_float32_matmul_precision(before)

    return find


class _Search:
    """The search in numpy or torch, of which it uses what the two have in common."""

    def __init__(self, table: Array, xp: ModuleType, device: Any, tile: tuple[int, int]) -> None:
        self.xp, self.device = xp, device
        self.table = self._held(table)
        self.rows, self.columns = tile[0], min(tile[1], len(table))
        longest = float((self.table * self.table).sum(1).max()) ** 0.5
        unit = len(table[0]) * 2.0**-24
        # |computed - exact| <= this * |vector|, in whatever order a product's terms are summed
        self.error = 1.001 * unit / (1 - unit) * longest
        self.tile = self._empty(self.rows, self.columns)

    def __call__(self, vectors: Array) -> Int64:
        found = np.empty(len(vectors), np.int64)
        unsure = []
        with np.errstate(all="ignore"):
            for start in range(0, len(vectors), self.rows):
                at, close = self._block(self._held(vectors[start : start + self.rows]))
                found[start : start + len(at)] = at
                unsure.append(start + np.flatnonzero(close))
            again = np.concatenate(unsure) if unsure else np.empty(0, np.int64)
            step = max(1, _EXACT // len(self.table))
            for start in range(0, len(again), step):
                rows = again[start : start + step]
                found[rows] = self._exactly(self._held(vectors[rows]))
        return found

    def _block(self, x: Any) -> tuple[Array, Array]:
        """The row for each of some vectors, and whether another one is too close to be sure."""
        xp, n = self.xp, len(x)
        every = self._numbers(n)
        best, second = self._empty(n), self._empty(n)
        best[:], second[:] = -np.inf, -np.inf
        found = self._numbers(n) * 0
        for start in range(0, len(self.table), self.columns):
            part = self.table[start : start + self.columns]
            tile = self.tile[:n, : len(part)]
            xp.matmul(x, part.T, out=tile)
            at = tile.argmax(1)
            first = tile[every, at]
            tile[every, at] = -np.inf
            next_ = tile[every, tile.argmax(1)]
            better = (first > best) | (xp.isnan(first) & ~xp.isnan(best))
            second = xp.where(better, xp.maximum(best, next_), xp.maximum(second, first))
            best = xp.where(better, first, best)
            found = xp.where(better, at + start, found)
        length = (x * x).sum(1) ** 0.5
        tiny = len(x[0]) * float(np.finfo(np.float32).tiny)
        close = (best - second <= 2 * (self.error * length + tiny)) & xp.isfinite(best) & (length > 0)
        return self._given(found), self._given(close)

    def _exactly(self, x: Any) -> Array:
        """The row for each of some vectors by products in float64."""
        xp = self.xp
        x = self._double(x)
        products = xp.empty((len(x), len(self.table)), dtype=xp.float64, **self._there)
        for start in range(0, len(self.table), self.columns):
            part = self._double(self.table[start : start + self.columns])
            products[:, start : start + len(part)] = xp.matmul(x, part.T)
        # equal rows of the table may differ by the order in which their terms were summed
        slack = self.error * 2.0**-28 * (x * x).sum(1) ** 0.5
        nearly = products >= (products.max(1) if xp is np else products.amax(1))[:, None] - slack[:, None]
        return self._given(xp.where(nearly, 1, 0).argmax(1))

    @property
    def _there(self) -> dict[str, Any]:
        return {} if self.device is None else {"device": self.device}

    def _empty(self, *shape: int) -> Any:
        return self.xp.empty(shape, dtype=self.xp.float32, **self._there)

    def _numbers(self, n: int) -> Any:
        return self.xp.arange(n, **self._there)

    def _held(self, array: Array) -> Any:
        values = np.ascontiguousarray(array, dtype=np.float32)
        return values if self.device is None else self.xp.tensor(values, device=self.device)

    def _double(self, array: Any) -> Any:
        return array.astype(np.float64) if self.device is None else array.double()

    def _given(self, array: Any) -> Array:
        return np.asarray(array if self.device is None else array.cpu().numpy())
