"""Counting by keys of which there may be very many, such as hosts.

What is counted is cut back when it gets long: of very many keys a rare one may be forgotten, those with the most
samples and the most failures are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

KEPT = 4096
"""So many keys with the most failures, and as many with the most samples, outlive a cut."""
PENDING = 200_000
"""So many rows wait to be added up: some 20 MB."""


class Tally:
    """Samples by key and label, added up in bounded memory.

    Frames of `key`, `label` and `samples` go in; a null label is a sample that did not fail. `cut` says that keys
    were let go: counts of those that came again later are too low.
    """

    def __init__(self) -> None:
        self.cut = False
        self._pending: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Count these too."""
        self._pending.append(frame.select("key", "label", "samples"))
        self._rows += len(frame)
        if self._rows > PENDING:
            self._merge()

    def _merge(self) -> pl.DataFrame:
        import polars as pl

        total = pl.concat(self._pending).group_by("key", "label").agg(pl.col("samples").sum())
        keys = _by_key(total)
        if len(keys) > 2 * KEPT and self._rows > PENDING:
            self.cut = True
            kept = [
                keys.sort(by, "key", descending=[True, False])["key"].head(KEPT) for by in ("failed", "samples")
            ]
            total = total.filter(pl.col("key").is_in(pl.concat(kept).unique().implode()))
        self._pending, self._rows = [total], len(total)
        return total

    def top(self, by: str, count: int, fewest: int = 1) -> list[dict[str, Any]]:
        """The `count` keys with the most `failed` or `samples`: both, and the most frequent label."""
        import polars as pl

        if not self._pending:
            return []
        keys = _by_key(self._merge()).filter(pl.col(by) >= fewest)
        return keys.sort(by, "samples", "key", descending=[True, False, False]).head(count).to_dicts()


def _by_key(total: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return (
        total.sort("samples", "label", descending=[True, False])
        .group_by("key")
        .agg(
            pl.col("samples").sum(),
            pl.col("samples").filter(pl.col("label").is_not_null()).sum().alias("failed"),
            pl.col("label").drop_nulls().first(),
        )
    )
