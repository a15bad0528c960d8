"""Groups of samples that pairs hold together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]


def components(n: int, *pairs: tuple[Int64, Int64]) -> Int64:
    """For each of `n` rows the smallest row that these pairs connect it with; a row alone is its own."""
    import numpy as np

    labels = np.arange(n)
    i, j = (np.concatenate(side) for side in zip(*pairs, strict=True))
    while len(i):
        a, b = labels[i], labels[j]
        apart = a != b
        i, j = i[apart], j[apart]
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(flat := labels[labels], labels):
            labels = flat
    return labels
