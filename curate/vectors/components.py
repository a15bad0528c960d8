"""Connected components over pairs of rows, in whole-array steps and without recursion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def components(n: int, i: npt.NDArray[np.integer], j: npt.NDArray[np.integer]) -> Int64:
    """For each of `n` rows the smallest row that the pairs (i, j) connect it with; a row alone is its own."""
    labels = np.arange(n, dtype=np.int64)
    forest(labels, i, j)
    return labels


def forest(labels: Int64, i: npt.NDArray[np.integer], j: npt.NDArray[np.integer]) -> Int64:
    """Join the pairs (i, j) into `labels`, in place; which pairs did it, ascending.

    `labels` maps each row to its component's smallest row. The pairs returned are a forest: as few as connect
    the same rows. Every component that has a lower neighbour is hung under the lowest one, all at once, then
    paths are flattened; each two rounds at least halve the components that still have an open pair.
    """
    open_pairs = np.arange(len(i), dtype=np.int64)
    used: list[Int64] = []
    while True:
        a, b = labels[i[open_pairs]], labels[j[open_pairs]]
        apart = a != b
        if not apart.any():
            return np.sort(np.concatenate(used)) if used else open_pairs[:0]
        open_pairs, a, b = open_pairs[apart], a[apart], b[apart]
        low, high = np.minimum(a, b), np.maximum(a, b)
        np.minimum.at(labels, high, low)
        hung = np.flatnonzero(labels[high] == low)
        _, first = np.unique(high[hung], return_index=True)
        used.append(open_pairs[hung[first]])
        while not np.array_equal(flat := labels[labels], labels):
            labels[:] = flat
