"""What rules see of a pool: its samples as frames, a part each, with all that scores and vectors add to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from curate import devices, uids
from curate.errors import InputError, PartError
from curate.filter_api import Column, Need, Neighbours, Score, Scorer, Similarity, Vectors
from curate.pool import FAILED, Part, Pool, reading, vectors
from curate.pool.join import Join, Results
from curate.pool.names import PUBLISHED
from curate.stages import score

if TYPE_CHECKING:
    from curate.vectors.blocks import Blocks

log = logging.getLogger("curate.filter")

DEFAULT_MODEL = "ViT-L-14/openai"
SOURCES = ("column", "published", "own")

MOST_THREADS = 8
"""Parts that are worked on at once, at most: each holds some columns of its rows."""

Mask = npt.NDArray[np.bool_]
Of = TypeVar("Of")
Made = TypeVar("Made")


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


class Ahead(Generic[Of, Made]):
    """Items made in threads, those after the one that is asked for already in work; each is given out once.

    Items may be passed over. What `work` raises is raised where its item is asked for.
    """

    def __init__(self, count: int, prepare: Callable[[int], Of], work: Callable[[Of], Made]) -> None:
        self.count, self.prepare, self.work = count, prepare, work
        self.threads = min(devices.cores(), MOST_THREADS, count)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self._begun: dict[int, Future[Made]] = {}
        self._next = 0

    def __enter__(self) -> Ahead[Of, Made]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __getitem__(self, index: int) -> Made:
        if self._pool is None:
            return self.work(self.prepare(index))
        for coming in range(max(index, self._next), min(index + self.threads + 1, self.count)):
            self._begun[coming] = self._pool.submit(self.work, self.prepare(coming))
            self._next = coming + 1
        for passed in [i for i in self._begun if i < index]:
            del self._begun[passed]
        return self._begun.pop(index).result()


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
        found = np.empty(self.n, dtype=uids.UID_DTYPE)
        for index, pairs in enumerate(self.over(lambda _, part: part, self.pool.uids)):
            found[self.span(index)] = pairs
        return found

    def uids_of(self, rows: Mask) -> npt.NDArray[np.void]:
        """The uids of some rows, in the pool's order; only these are read where not all are held already."""
        if "uids" in vars(self):
            return self.uids[rows]
        held = list(self.over(lambda i, part: (part, rows[self.span(i)]), lambda one: self.pool.uids(*one)))
        return np.concatenate(held) if held else np.empty(0, dtype=uids.UID_DTYPE)

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        """All rows in uid order, rows of one uid in the pool's order."""
        return uids.sort_order(self.uids)

    def span(self, index: int) -> slice:
        """The global rows of part number `index`."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def over(self, prepare: Callable[[int, Part], Of], work: Callable[[Of], Made]) -> Iterator[Made]:
        """`work` of what `prepare` gives for every part and its number, in their order.

        `prepare` runs here; `work` runs in threads, some parts ahead, because polars, pyarrow and numpy let go of
        the interpreter.
        """
        with Ahead(len(self.parts), lambda i: prepare(i, self.parts[i]), work) as ahead:
            for index in range(len(self.parts)):
                yield ahead[index]

    def column(self, needs: Sequence[Need], value: pl.Expr) -> Iterator[pl.Series]:
        """What an expression over `needs` gives for the samples of every part, in their order."""

        def prepare(_: int, part: Part) -> tuple[Part, pl.LazyFrame]:
            return part, self.frame(needs, part)

        def work(found: tuple[Part, pl.LazyFrame]) -> pl.Series:
            part, frame = found
            with reading(frame, part):
                # with a number for each row: an expression of constants alone would be one row
                return frame.select(pl.int_range(pl.len()).alias("_row"), value.alias("value")).collect()["value"]

        return self.over(prepare, work)

    # --- one rule's view of one part ----------------------------------------------------------------------

    def frame(self, needs: Sequence[Need], part: Part) -> pl.LazyFrame:
        """What `needs` names for the samples of a part, and `uid`: NaN as null, rows in the part's order."""
        columns = [n for n in needs if isinstance(n, Column)]
        borrowed = self._borrowed(needs)
        names = [n for n in dict.fromkeys(["uid", *(c.name for c in columns)]) if n not in borrowed]
        published = [n for n in needs if isinstance(n, Similarity) and self._source(n) == "column"]
        raw = [PUBLISHED[n.model].similarity for n in published]
        base = self.pool.scan(part, [*names, *raw], optional=[c.name for c in columns if c.optional])
        if raw:  # in the file's own type: DataComp compares in that
            base = base.with_columns(_number(base, name) for name in raw).rename(
                dict.fromkeys(raw, "similarity"), strict=False
            )
        kinds = score_kinds(needs)
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

    def some_rows(self, scorer: Scorer) -> bool:
        """Whether the scorer's columns may be computed for some rows of a part only."""
        return score.of_some_rows(self.pool, scorer)

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


def _number(frame: pl.LazyFrame, name: str) -> pl.Expr:
    """A column as it is where it holds floats, else as float32; what is no number is null."""
    kind = frame.collect_schema()[name]
    return pl.col(name) if kind.is_float() else pl.col(name).cast(pl.Float32, strict=False)


def score_kinds(needs: Sequence[Need]) -> dict[str, Any]:
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
