"""Results to samples: columns and vectors computed per shard, brought into the order of the pool's parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from curate import uids
from curate.errors import PartError
from curate.pool import FAILED, Part, Pool

if TYPE_CHECKING:
    from curate.pool import Shard


log = logging.getLogger("curate.pool")

HELD = 4
"""Results of all shards that are kept in memory: about what one rule reads."""


@dataclass(frozen=True)
class Results:
    """A folder with one Parquet file a part: columns and `error_code`, rows as in the part's table.

    `per` says which parts: the pool's own (`part`), or its shards (`shard`), which differ where the pool has
    metadata.
    """

    folder: Path
    per: str


class Join:
    """The rows of the shards' tables that the pool's samples stand for.

    Costs 32 bytes a sample where the pool has metadata, nothing where samples are the shards' rows.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._rows: dict[str, npt.NDArray[np.int64]] = {}
        self._held: dict[tuple[Results, tuple[str, ...]], pl.DataFrame] = {}

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.void], npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """All shards' uids in order, where each stood, and the first row of each shard."""
        held = [self._shard_uids(s) for s in self.pool.shards]
        pairs = np.concatenate(held) if held else np.empty(0, dtype=uids.UID_DTYPE)
        order = uids.sort_order(pairs)
        return pairs[order], order, np.concatenate([[0], np.cumsum([len(h) for h in held], dtype=np.int64)])

    def _shard_uids(self, shard: Shard) -> npt.NDArray[np.void]:
        try:
            return self.pool.uids(Part(shard.name, shard.table, shard=shard))
        except PartError as error:  # its samples count as not downloaded; the others go on
            log.error("%s", error)
            return np.empty(0, dtype=uids.UID_DTYPE)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first global row of each shard, and the number of all."""
        return self._sorted[2]

    def rows(self, part: Part) -> npt.NDArray[np.int64]:
        """For each sample of a metadata part the global row among all shards' rows, -1 where there is none.

        Of several shard rows with one uid the first counts.
        """
        if part.name not in self._rows:
            ordered, order, _ = self._sorted
            at = uids.find(ordered, self.pool.uids(part))
            self._rows[part.name] = np.where(at >= 0, order[np.maximum(at, 0)], -1) if len(order) else at
        return self._rows[part.name]

    def columns(self, results: Results, part: Part, names: Sequence[str]) -> pl.DataFrame:
        """The named columns of `results` and `error_code` for each sample of `part`, in its order.

        A sample without a row there has nulls and the code `not_downloaded`; one in a part that failed has
        `part_failed`.
        """
        wanted = [*names, FAILED]
        if results.per == "part" or not self.pool.joined:
            return _read(results.folder, part.name, wanted, self.pool.rows[part.name])
        whole = self._whole(results, tuple(dict.fromkeys(wanted)))
        rows = self.rows(part)
        taken = whole[np.maximum(rows, 0)] if len(whole) else whole.clear(len(rows))
        absent = pl.Series(rows < 0)
        return taken.with_columns(
            [pl.when(absent).then(None).otherwise(pl.col(n)).alias(n) for n in names]
            + [pl.when(absent).then(pl.lit("not_downloaded")).otherwise(pl.col(FAILED)).alias(FAILED)]
        )

    def _whole(self, results: Results, wanted: tuple[str, ...]) -> pl.DataFrame:
        """The columns of all shards; the last few are held, because every part of the pool asks for them."""
        if (results, wanted) not in self._held:
            held = [
                _read(results.folder, shard.name, list(wanted), int(rows))
                for shard, rows in zip(self.pool.shards, np.diff(self.starts), strict=True)
            ]
            while len(self._held) >= HELD:
                del self._held[next(iter(self._held))]
            self._held[results, wanted] = pl.concat(held, how="vertical_relaxed")
        return self._held[results, wanted]


def _read(folder: Path, part: str, names: list[str], rows: int) -> pl.DataFrame:
    path = folder / f"{part}.parquet"
    if not rows or not path.is_file():
        gone = pl.DataFrame({FAILED: pl.Series(["part_failed"] * rows, dtype=pl.String)})
        return gone.with_columns([pl.lit(None).alias(n) for n in names if n != FAILED]).select(names)
    try:
        frame = pl.scan_parquet(path, glob=False).select(names).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise PartError(str(path), f"cannot be read ({error})", hint="curate verify says more") from error
    if len(frame) != rows:
        raise PartError(
            str(path), f"has {len(frame):,} rows where the part has {rows:,}", hint="curate verify says more"
        )
    return frame.with_columns(pl.selectors.float().fill_nan(None))
