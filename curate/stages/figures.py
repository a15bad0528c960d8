"""Figures over all of a pool's samples, for judges, and what the rules above left, for samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from curate import uids
from curate.filter_api import File, Need, chance
from curate.pool import reading
from curate.stages.samples import Mask, Samples

Ask = Callable[[Sequence[str], Mask], None]


def _nothing_to_ask(columns: Sequence[str], rows: Mask) -> None:
    """All scores are there."""


@dataclass(frozen=True)
class PoolFigures:
    """`filter_api.Figures` over the rows of a mask, for one judge; it notes what it answered."""

    samples: Samples
    needs: Sequence[Need]
    mask: Mask
    """The rows that rank."""
    n: int
    """What fractions are of."""
    notes: dict[str, Any] = field(default_factory=dict)
    ask: Ask = _nothing_to_ask
    """Has the scores of these columns computed for these rows, where they are not yet."""
    device: str = "auto"
    """Where `reached` is worked out."""

    def _values(self, value: pl.Expr) -> Any:
        """The values of the rows that rank, as the file's kind of number."""
        self.ask(value.meta.root_names(), self.mask)
        held = [
            column.to_numpy()[self.mask[self.samples.span(index)] & column.is_not_null().to_numpy()]
            for index, column in enumerate(self.samples.column(self.needs, value))
        ]
        return np.concatenate(held) if held else np.empty(0)

    def nth_largest(self, value: pl.Expr, n: int) -> float | None:
        values = self._values(value)
        if not 0 <= n < len(values):
            return None
        at = len(values) - 1 - n
        values.partition(at)
        found = float(values[at])
        self.notes["threshold"] = found
        return found

    def quantile(self, value: pl.Expr, q: float) -> float | None:
        values = self._values(value)
        found = float(np.quantile(values, q)) if len(values) else None
        self.notes[f"quantile {q}"] = found
        return found

    def mean(self, value: pl.Expr) -> float | None:
        values = self._values(value)
        found = float(np.mean(values, dtype=np.float64)) if len(values) else None
        self.notes["mean"] = found
        return found

    def reached(self, files: Sequence[File], table: File) -> npt.NDArray[np.int64]:
        from curate.vectors import reached as search

        found = search.reached([(f.path, f.sha256) for f in files], (table.path, table.sha256), self.device)
        self.notes["centroids with targets"] = len(found)
        return found

    def top(self, value: pl.Expr, n: int) -> pl.Expr:
        values = self._values(value)
        known = pl.when(value.is_not_null())
        if n >= len(values):
            return known.then(pl.lit(True))
        if n <= 0:
            return known.then(pl.lit(False))
        at = len(values) - n
        values.partition(at)
        cut = values[at]
        self.notes["threshold"] = float(cut)
        literal = pl.lit(cut.item(), dtype=pl.Series([cut]).dtype)
        wanted = n - int((values[at:] > cut).sum())
        if wanted == int((values == cut).sum()):
            return value >= literal
        pairs = self.samples.uids[self._rows_of(value == literal)]
        last = uids.to_hex(pairs[uids.sort_order(pairs)][wanted - 1 : wanted])[0]
        self.notes["ties kept up to uid"] = last
        return (value > literal) | ((value == literal) & (pl.col("uid") <= last))

    def _rows_of(self, condition: pl.Expr) -> npt.NDArray[np.int64]:
        """The global rows that rank and for which the condition is true."""
        held = [
            self.samples.starts[index]
            + np.flatnonzero(self.mask[self.samples.span(index)] & column.fill_null(False).to_numpy())
            for index, column in enumerate(self.samples.column(self.needs, condition))
        ]
        return np.concatenate(held)


class SamplesLeft:
    """`filter_api.Left`: the rows that are left, in uid order."""

    def __init__(self, samples: Samples, needs: Sequence[Need], left: Mask, pool_n: int | None = None) -> None:
        self.samples, self.needs, self._left = samples, needs, left
        self.pool_n = samples.n if pool_n is None else pool_n
        self.rows: npt.NDArray[np.int64] = samples.order[left[samples.order]].astype(np.int64)

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def uids(self) -> npt.NDArray[np.void]:
        return self.samples.uids[self.rows]

    def frame(self, *wanted: pl.Expr) -> pl.LazyFrame:
        chosen = []
        for index, part in enumerate(self.samples.parts):
            mask = self._left[self.samples.span(index)]
            frame = self.samples.frame(self.needs, part)
            with reading(frame, part):
                chosen.append((frame.select(wanted) if wanted else frame).collect().filter(pl.Series(mask)))
        whole = pl.concat(chosen, how="vertical_relaxed")
        place = np.empty(self.samples.n, dtype=np.int64)
        place[np.flatnonzero(self._left)] = np.arange(self.n)
        return whole[place[self.rows]].lazy()

    def vectors(self, model: str, side: str) -> tuple[Mask, Iterator[npt.NDArray[np.float32]]]:
        ok, blocks = self.samples.blocks(model, side, self.rows)
        return ok, blocks.iterate()

    def neighbours(
        self, model: str, threshold: float, side: str = "image", *, links: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        from curate.vectors import neighbours

        ok, blocks = self.samples.blocks(model, side, self.rows)
        return (neighbours.links if links else neighbours.pairs)(blocks, threshold, ok=ok)

    def chance(self, seed: int) -> npt.NDArray[np.float64]:
        chosen = self.samples.uids[self.rows]
        return chance(chosen["f0"], chosen["f1"], seed)
