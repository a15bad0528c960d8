"""The k-means centroid that an image belongs to, as DataComp's image-based filter reckons it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.filter_api import Batch, File, InputError, Need, Scorer, Vectors, closest, vectors_of


@dataclass(frozen=True)
class Centroid(Scorer):
    """The centroid with the largest inner product with the image's vector, by its number: the lowest of equals.

    Centroids are taken as k-means leaves them, not normalised, and the product instead of the distance that they
    were trained with: that is DataComp's rule. A vector that is not finite is compared as `torch.argmax` does it,
    by which a NaN is largest, and has `vector_is_finite` false.
    """

    name: ClassVar[str] = "centroid"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"centroid": "Int32", "vector_is_finite": "Boolean"}
    rows: ClassVar[int] = 16384
    some_rows: ClassVar[bool] = True
    gpu: ClassVar[bool] = True

    model: str
    """ARCH/PRETRAINED of the image vectors."""
    centroids: File | None
    """The centroids, rows x dim; None until it is settled."""

    def needs(self) -> list[Need]:
        return [Vectors(self.model, "image")]

    def open(self, device: str) -> Any:
        import numpy as np

        assert self.centroids is not None
        path, table = self.centroids.path, vectors_of(self.centroids)
        find = closest(table, device)

        def compute(batch: Batch) -> dict[str, Any]:
            vectors = batch.vectors[self.model, "image"]
            if vectors.shape[1] != table.shape[1]:
                raise InputError(
                    str(path),
                    f"its centroids have {table.shape[1]:,} values, vectors of {self.model} {vectors.shape[1]:,}",
                    hint="centroids go with one model: curate centroids trains them for any",
                )
            return {
                "centroid": find(vectors).astype(np.int32),
                "vector_is_finite": np.isfinite(vectors).all(axis=1),
            }

        return compute
