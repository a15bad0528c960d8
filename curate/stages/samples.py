"""What rules see of a pool: its samples as frames a part, figures over all, and what is left for a sampler."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from curate import uids
from curate.errors import InputError, PartError
from curate.filter_api import Column, Need, Neighbours, Score, Similarity, Vectors, chance
from curate.pool import FAILED, Part, Pool, reading, vectors
from curate.pool.join import Join, Results
from curate.pool.names import PUBLISHED
from curate.stages import score

if TYPE_CHECKING:
    from curate.vectors.blocks import Blocks

log = logging.getLogger("curate.filter")

DEFAULT_MODEL = "ViT-L-14/openai"
SOURCES = ("column", "published", "own")

Mask = npt.NDArray[np.bool_]


class PoolFacts:
    """`filter_api.Facts` of a pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    @property
    def n(self) -> int:
        return self.pool.n

    @property
    def models(self) -> tuple[str, ...]:
        return self.pool.models

    @property
    def columns(self) -> frozenset[str]:
        return self.pool.columns | self.pool.shard_columns

    def model(self, rule: str, *, among: Sequence[str] = ()) -> str:
        found = [m for m in self.models if not among or m in among]
        if DEFAULT_MODEL in found or not found:
            return DEFAULT_MODEL
        if len(found) > 1:
            raise InputError(
                f"rule {rule}",
                f"the pool has several models ({', '.join(found)})",
                hint=f"name one: --rule {rule}:model={found[0]}",
            )
        return found[0]


def similarity_source(pool: Pool, need: Similarity) -> str | None:
    """Where the similarity of a model comes from: the source asked for, else the first that covers every part.

    None where there is none yet. A column that only some parts have is taken where nothing covers more. Raises
    InputError for a source that this pool has not.
    """
    there = [s for s in SOURCES if _has_source(pool, need.model, s)]
    if need.source is None:
        if "column" in there and not pool.covered_by(PUBLISHED[need.model].similarity):
            there = [*there[1:], "column"]
        return there[0] if there else None
    if need.source in there or need.source == "own":
        return need.source if need.source in there else None
    raise InputError(
        "source", f"the pool has no {need.source} similarity of {need.model} (found: {', '.join(there) or 'none'})"
    )


def _has_source(pool: Pool, model: str, source: str) -> bool:
    if source == "own":
        return model in pool.embedded
    if source == "published":
        return model in pool.published
    return model in PUBLISHED and PUBLISHED[model].similarity in pool.columns


@dataclass
class Samples:
    """All samples of a pool as numbers only, 16 bytes each for the uid and 8 for their order.

    Row i of part p is global row `starts[p] + i`.
    """

    pool: Pool
    parts: list[Part] = field(init=False)
    starts: npt.NDArray[np.int64] = field(init=False)
    _found: dict[Similarity, str | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = [p for p in self.pool.parts if p.name in self.pool.rows]
        self.starts = np.cumsum([0, *(self.pool.rows[p.name] for p in self.parts)], dtype=np.int64)
        self.join = Join(self.pool)

    @property
    def n(self) -> int:
        """The number of samples in readable parts."""
        return int(self.starts[-1])

    @cached_property
    def uids(self) -> npt.NDArray[np.void]:
        """The uid of every sample, pairs of u8."""
        held = [self.pool.uids(p) for p in self.parts]
        return np.concatenate(held) if held else np.empty(0, dtype=uids.UID_DTYPE)

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """All rows in uid order, rows of one uid in the pool's order."""
        return uids.sort_order(self.uids)

    def span(self, index: int) -> slice:
        """The global rows of part number `index`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    # --- one rule's view of one part ----------------------------------------------------------------------

    def frame(self, needs: Sequence[Need], part: Part) -> pl.LazyFrame:
        """What `needs` names for the samples of a part, and `uid`: NaN as null, rows in the part's order."""
        columns = [n for n in needs if isinstance(n, Column)]
        borrowed = self._borrowed(needs)
        names = [n for n in dict.fromkeys(["uid", *(c.name for c in columns)]) if n not in borrowed]
        published = [n for n in needs if isinstance(n, Similarity) and self._source(n) == "column"]
        raw = [PUBLISHED[n.model].similarity for n in published]
        base = self.pool.scan(part, [*names, *raw], optional=[c.name for c in columns if c.optional])
        # float32 as published; a copy in float64 holds the same numbers
        base = base.with_columns(pl.col(raw).cast(pl.Float32)).rename(
            dict.fromkeys(raw, "similarity"), strict=False
        )
        kinds = _kinds(needs)
        beside = [
            _typed(self.join.columns(results, part, wanted).drop(FAILED), kinds).lazy()
            for results, wanted in self._results(needs)
        ]
        if borrowed:
            found = self.join.columns(self._tables, part, list(borrowed.values()))
            beside.append(found.select(pl.col(raw).alias(name) for name, raw in borrowed.items()).lazy())
        return pl.concat([base, *beside], how="horizontal") if beside else base

    def _borrowed(self, needs: Sequence[Need]) -> dict[str, str]:
        """The columns that only the shards' tables have, by the machine's name: theirs."""
        wanted = [n.name for n in needs if isinstance(n, Column) and n.name not in self.pool.columns]
        there = self.pool.shard_columns if wanted else frozenset()
        return {n: self.pool.shard_column(n) for n in wanted if n in there}

    @property
    def _tables(self) -> Results:
        return Results(self.pool.shards[0].table.parent, "shard")

    def _source(self, need: Similarity) -> str | None:
        if need not in self._found:  # every part asks, and the answer looks at all of them
            self._found[need] = similarity_source(self.pool, need)
        return self._found[need]

    def _results(self, needs: Sequence[Need]) -> Iterator[tuple[Results, list[str]]]:
        for need in needs:
            if isinstance(need, Score):
                yield score.results(self.pool, need.scorer), list(need.scorer.columns)
            elif isinstance(need, Similarity) and self._source(need) == "published":
                scorer = score.PairSimilarity(need.model)
                yield score.results(self.pool, scorer), ["similarity"]
            elif isinstance(need, Similarity) and self._source(need) == "own":
                folder = self.pool.layout.embeddings(self.pool.embedded[need.model])
                yield Results(folder, self.pool.per_shard), ["similarity"]

    def sources(self, needs: Sequence[Need]) -> dict[str, str]:
        """Which model and source a rule's numbers come from, for the funnel."""
        similar = [n for n in needs if isinstance(n, Similarity)]
        said = {"similarity of": ", ".join(f"{n.model} ({self._source(n)})" for n in similar)} if similar else {}
        inner = [n for s in needs if isinstance(s, Score) for n in s.scorer.needs()]
        models = dict.fromkeys(n.model for n in [*needs, *inner] if isinstance(n, (Vectors, Neighbours)))
        return said | ({"vectors of": ", ".join(models)} if models else {})

    def folders(self, needs: Sequence[Need]) -> list[Path]:
        """The folders of all results that `needs` read."""
        found = [results.folder for results, _ in self._results(needs)]
        found += [self._tables.folder] if self._borrowed(needs) else []
        models = [n.model for n in needs if isinstance(n, (Vectors, Neighbours))]
        slugs = [self.pool.embedded[m] for m in models if m in self.pool.embedded]
        return found + [self.pool.layout.embeddings(slug) for slug in slugs]

    def published(self, needs: Sequence[Need]) -> list[vectors.VectorSource]:
        """The published vectors that `needs` read as they are."""
        found = [vectors.find(self.pool, n.model, n.side) for n in needs if isinstance(n, (Vectors, Neighbours))]
        return [source for source in found if source is not None and source.kind == "published"]

    def codes(self, needs: Sequence[Need], part: Part) -> pl.Series:
        """Why each sample might be unjudged: the code of a score, else of its download, else `no_value`."""
        found = []
        for results, wanted in self._results(needs):
            both = wanted == ["similarity"] and results.folder.parent.name == "embeddings"
            found += self.join.columns(results, part, ["text_error_code"] if both else []).get_columns()
        found += [self._vector_codes(n, part) for n in needs if isinstance(n, (Vectors, Neighbours))]
        found += [self.join.columns(self._tables, part, [])[FAILED]] if self._borrowed(needs) else []
        found.append(self.pool.failed(part))
        return pl.select(pl.coalesce(*found, pl.lit("no_value")).alias(FAILED)).to_series()

    def _vector_codes(self, need: Vectors | Neighbours, part: Part) -> pl.Series:
        source = vectors.find(self.pool, need.model, need.side)
        assert source is not None
        if source.kind == "published":
            rows = self.pool.rows[part.name]
            try:
                checked_vectors(source, part.name, rows)
            except PartError:
                return pl.Series(["part_failed"] * rows, dtype=pl.String)
            return pl.Series([None] * rows, dtype=pl.String)
        return self.join.columns(Results(source.folder, source.per), part, [])[FAILED]

    # --- vectors ------------------------------------------------------------------------------------------

    def blocks(self, model: str, side: str, rows: npt.NDArray[np.int64]) -> tuple[Mask, Blocks]:
        """Which of the global `rows` have a vector, and a view of their vectors in that order."""
        from curate.vectors.blocks import Blocks

        source = vectors.find(self.pool, model, side)
        if source is None:
            raise InputError(
                "filter", f"the pool has no vectors of {model}", hint=f"curate embed --pool DIR --model {model}"
            )
        lengths = np.diff(self.join.starts if source.per == "shard" else self.starts)
        names = source.names if source.per == "shard" else [p.name for p in self.parts]
        held = [_vectors_of(source, name, int(n)) for name, n in zip(names, lengths, strict=True)]
        dim = next((array.shape[1] for array, _ in held if array is not None), 1)
        none = np.zeros((1, dim), dtype=np.float16)
        arrays = [
            np.broadcast_to(none, (int(rows_), dim)) if array is None else array
            for (array, _), rows_ in zip(held, lengths, strict=True)
        ]
        missing = np.concatenate(
            [np.ones(int(n), dtype=bool) if a is None else m for (a, m), n in zip(held, lengths, strict=True)]
        )
        at = rows if source.per == "part" else self._shard_rows()[rows]
        ok = (at >= 0) & ~missing[np.maximum(at, 0)]
        return ok, Blocks(arrays, np.where(ok, at, -1))

    def _shard_rows(self) -> npt.NDArray[np.int64]:
        return np.concatenate([self.join.rows(p) for p in self.parts])


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

    def _values(self, value: pl.Expr, *, ties_of: float | None = None) -> Any:
        held = []
        for index, part in enumerate(self.samples.parts):
            frame = self.samples.frame(self.needs, part)
            with reading(frame, part):
                column = frame.select(value.alias("value")).collect()["value"]
            rows = self.mask[self.samples.span(index)] & column.is_not_null().to_numpy()
            if ties_of is not None:
                rows &= (column == ties_of).fill_null(False).to_numpy()
                held.append(self.samples.starts[index] + np.flatnonzero(rows))
            else:
                held.append(column.to_numpy()[rows])
        return np.concatenate(held) if held else np.empty(0)

    def nth_largest(self, value: pl.Expr, n: int) -> float | None:
        values = self._values(value)
        if not 0 <= n < len(values):
            return None
        at = len(values) - 1 - n
        found = float(np.partition(values, at)[at])
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

    def top(self, value: pl.Expr, n: int) -> pl.Expr:
        values = self._values(value)
        known = pl.when(value.is_not_null())
        if n >= len(values):
            return known.then(pl.lit(True))
        if n <= 0:
            return known.then(pl.lit(False))
        at = len(values) - n
        cut = np.partition(values, at)[at]
        self.notes["threshold"] = float(cut)
        literal = pl.lit(cut.item(), dtype=pl.Series([cut]).dtype)
        wanted = n - int((values > cut).sum())
        tied = self._values(value, ties_of=cut.item())
        if wanted == len(tied):
            return value >= literal
        pairs = self.samples.uids[tied]
        last = uids.to_hex(pairs[uids.sort_order(pairs)][wanted - 1 : wanted])[0]
        self.notes["ties kept up to uid"] = last
        return (value > literal) | ((value == literal) & (pl.col("uid") <= last))


class SamplesLeft:
    """`filter_api.Left`: the rows that are left, in uid order."""

    def __init__(self, samples: Samples, needs: Sequence[Need], left: Mask) -> None:
        self.samples, self.needs, self._left = samples, needs, left
        self.rows: npt.NDArray[np.int64] = samples.order[left[samples.order]].astype(np.int64)

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def pool_n(self) -> int:
        return self.samples.n

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


def _kinds(needs: Sequence[Need]) -> dict[str, Any]:
    """The types of the columns that scores have, as far as their scorers name any."""
    found: dict[str, Any] = {"similarity": pl.Float32}
    for need in needs:
        if isinstance(need, Score):
            with suppress(AttributeError, TypeError):  # a type that is none: the parts have failed of it
                found |= {name: score.dtype(kind) for name, kind in need.scorer.columns.items()}
    return found


def _typed(frame: pl.DataFrame, kinds: Mapping[str, Any]) -> pl.DataFrame:
    """The frame with a type also for columns that are null because their part failed: rules count on one."""
    bare = [n for n, kind in frame.schema.items() if kind == pl.Null and n in kinds]
    return frame.with_columns([pl.col(n).cast(kinds[n]) for n in bare])


def checked_vectors(source: vectors.VectorSource, part: str, rows: int) -> tuple[npt.NDArray[Any], Mask]:
    """The vectors of one part and which rows lack one. Raises PartError where they are not one for each row."""
    array, missing = source.array(part), source.codes(part).is_not_null().to_numpy()
    if not len(array) == len(missing) == rows:
        raise PartError(
            f"{source.model} {source.side} vectors of {part}",
            f"have {len(array):,} rows where the part has {rows:,}",
            hint="curate verify says what else is wrong",
        )
    return array, missing


def _vectors_of(source: vectors.VectorSource, part: str, rows: int) -> tuple[npt.NDArray[Any] | None, Mask]:
    """The vectors of one part and which rows lack one; None for a part that failed, which others survive."""
    try:
        return checked_vectors(source, part, rows)
    except PartError as error:
        log.error("%s", error)
        return None, np.empty(0, dtype=bool)
