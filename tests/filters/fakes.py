"""Stand-ins for what the machine answers filters, over one polars frame in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.errors import InputError
from curate.filter_api import Batch, File, Judge, chance
from curate.vectors import reached


@dataclass
class FakeFacts:
    """A pool's facts: models and columns as given, the default model as filter_api words it."""

    models: tuple[str, ...] = ()
    columns: frozenset[str] = frozenset()
    n: int = 0

    def model(self, rule: str, *, among: Sequence[str] = ()) -> str:
        here = [m for m in self.models if not among or m in among]
        if "ViT-L-14/openai" in here or not here:
            return "ViT-L-14/openai"
        if len(here) > 1:
            raise InputError(rule, f"which model? (found {', '.join(here)})")
        return here[0]


@dataclass
class FakeFigures:
    """Whole-pool figures over a frame that has `uid` and the columns asked for."""

    frame: pl.DataFrame

    @property
    def n(self) -> int:
        return len(self.frame)

    def _values(self, value: pl.Expr) -> npt.NDArray[np.float64]:
        series = self.frame.select(value.alias("v"))["v"].drop_nulls()
        return series.cast(pl.Float64).to_numpy()

    def nth_largest(self, value: pl.Expr, n: int) -> float | None:
        values = np.sort(self._values(value))[::-1]
        return float(values[n]) if n < len(values) else None

    def quantile(self, value: pl.Expr, q: float) -> float | None:
        values = self._values(value)
        return float(np.quantile(values, q)) if len(values) else None

    def mean(self, value: pl.Expr) -> float | None:
        values = self._values(value)
        return float(values.mean()) if len(values) else None

    def reached(self, files: Sequence[File], table: File) -> npt.NDArray[np.int64]:
        return reached.reached([(f.path, f.sha256) for f in files], (table.path, table.sha256))

    def top(self, value: pl.Expr, n: int) -> pl.Expr:
        table = self.frame.select("uid", value.alias("v")).drop_nulls()
        best = table.sort(["v", "uid"], descending=[True, False]).head(n)["uid"].to_list()
        return pl.when(value.is_not_null()).then(pl.col("uid").is_in(best))


@dataclass
class FakeLeft:
    """The samples left, from a frame with `uid` (sorted here) and score columns; vectors and pairs as given."""

    table: pl.DataFrame
    arrays: Mapping[tuple[str, str], npt.NDArray[np.float32]] = field(default_factory=dict)
    """(model, side) to rows x dim in uid order; a row of zeros has no vector."""
    pool_n: int = 0
    block: int = 3

    def __post_init__(self) -> None:
        self.table = self.table.sort("uid")
        self.pool_n = self.pool_n or len(self.table)

    @property
    def n(self) -> int:
        return len(self.table)

    def frame(self, *wanted: pl.Expr) -> pl.LazyFrame:
        return self.table.lazy().select(wanted) if wanted else self.table.lazy()

    def vectors(self, model: str, side: str) -> tuple[npt.NDArray[np.bool_], Iterator[npt.NDArray[np.float32]]]:
        array = self.arrays[model, side]
        blocks = (array[i : i + self.block] for i in range(0, len(array), self.block))
        return np.asarray((array != 0).any(axis=1)), blocks

    def neighbours(
        self, model: str, threshold: float, side: str = "image", *, links: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        array = self.arrays[model, side]
        cosine = array @ array.T
        first, second = np.nonzero(np.triu(cosine >= threshold, 1))
        return first, second, cosine[first, second]

    def chance(self, seed: int) -> npt.NDArray[np.float64]:
        uids = self.table["uid"].to_list()
        high = np.array([int(uid[:16], 16) for uid in uids], np.uint64)
        low = np.array([int(uid[16:], 16) for uid in uids], np.uint64)
        return chance(high, low, seed)


def batch(
    n: int,
    columns: Mapping[str, Sequence[object]] | None = None,
    vectors: Mapping[tuple[str, str], npt.NDArray[np.float32]] | None = None,
    images: Sequence[npt.NDArray[np.generic]] = (),
) -> Batch:
    """`n` rows for a scorer."""
    stacked = np.stack(list(images)) if images else np.empty(0)
    return Batch([f"{i:032x}" for i in range(n)], columns or {}, vectors or {}, stacked)


def uids(n: int, seed: int = 0) -> list[str]:
    """`n` distinct uids in no particular order."""
    rng = np.random.default_rng(seed)
    return [rng.bytes(16).hex() for _ in range(n)]


def judged(judge: Judge, frame: pl.DataFrame) -> list[str | None]:
    """What becomes of each row: "kept", the reason of its drop, or None where it is unjudged."""
    conditions = judge.keep(FakeFigures(frame))
    table = frame.select(**conditions)
    outcome: list[str | None] = []
    for row in table.iter_rows(named=True):
        false = [reason for reason, stays in row.items() if stays is False]
        outcome.append(false[0] if false else None if None in row.values() else "kept")
    return outcome
