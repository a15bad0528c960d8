"""The rows of one part as a scorer gets them: what it needs of each, and why some lack it.

Of a shard that was replaced, rows that were scored before from the same bytes are taken over as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curate.errors import InputError, PartError
from curate.filter_api import Batch, Column, Images, Scorer, Vectors
from curate.plugins import ScorerRef
from curate.pool import FAILED, Part, Pool, reading, vectors
from curate.stages import reuse

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    from PIL.Image import Image

    from curate.pixels import Decoders

_STORED = "stored_sha256"
NOT_ASKED = "not_asked"
"""The code of a row that was not computed because nobody asked for it."""


def over_pixels(scorer: Scorer) -> bool:
    """Whether the scorer asks for decoded images."""
    return any(isinstance(n, Images) for n in scorer.needs())


def vector_sources(pool: Pool, scorer: Scorer) -> list[vectors.VectorSource]:
    """Where the vectors lie that a scorer needs. Raises InputError for those that the pool has not."""
    found = []
    for need in scorer.needs():
        if isinstance(need, Vectors):
            source = vectors.find(pool, need.model, need.side)
            if source is None:
                raise InputError(
                    f"scorer {scorer.name}",
                    f"needs {need.side} vectors of {need.model} (found: {', '.join(pool.embedded) or 'none'})",
                    hint=f"curate embed --pool {pool.layout.root} --model {need.model}",
                )
            found.append(source)
    return found


class _Prepare:
    """A scorer's `prepare` as the decode processes get it: they load its rule file first."""

    def __init__(self, ref: ScorerRef) -> None:
        self.ref, self.scorer = ref, ref.load()
        self.__qualname__ = f"{type(self.scorer).__qualname__}.prepare"  # for messages

    def __call__(self, image: Image) -> npt.NDArray[Any]:
        return self.scorer.prepare(image)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Prepare, (self.ref,)


class Rows:
    """The rows of one part with all that a scorer needs of them."""

    def __init__(self, pool: Pool, part: Part, scorer: Scorer, asked: npt.NDArray[np.bool_] | None = None) -> None:
        import numpy as np
        import polars as pl

        columns = [n for n in scorer.needs() if isinstance(n, Column)]
        sources = vector_sources(pool, scorer)
        names = list(dict.fromkeys(c.name for c in columns))
        read = list(dict.fromkeys(["uid", FAILED, *names, *([_STORED] if over_pixels(scorer) else [])]))
        lazy = pool.scan(part, read, optional=[FAILED, _STORED, *(c.name for c in columns if c.optional)])
        with reading(lazy, part):
            frame = lazy.collect()
        self.uids = frame["uid"].cast(pl.String)
        self.frame = frame.select(names)
        self.arrays = {(s.model, s.side): s.array(part.name) for s in sources}
        self.codes = pl.Series(FAILED, [None] * len(frame), dtype=pl.String)
        for source in sources:
            self._check(source, part)
            self._fail(source.codes(part.name))
        for column in columns:
            if not column.optional:
                absent = "no_caption" if column.name == "caption" else "no_value"
                cause = frame[FAILED].cast(pl.String).fill_null(absent)
                self._fail(pl.select(pl.when(frame[column.name].is_null()).then(cause)).to_series())
        if asked is not None:
            self._fail(pl.select(pl.when(pl.Series(~asked)).then(pl.lit(NOT_ASKED))).to_series())
        self.ready = self.good & frame[FAILED].is_null().to_numpy()
        """Rows that have everything, but their image may turn out broken."""
        self.made_of = self._digests(frame[_STORED]) if _STORED in read else None
        """Of scorers over pixels: for each row that is ready a digest of what its numbers are made of."""
        self.before: reuse.Before | None = None
        self.kept = np.full(len(frame), -1)
        """The row of `before` that each row is copied from, -1 where it is computed."""

    def _digests(self, stored: pl.Series) -> pl.Series:
        import polars as pl

        known = pl.select(pl.when(pl.Series(self.ready)).then(stored.cast(pl.String, strict=False))).to_series()
        vectors = ((row.tobytes() for row in array) for array in self.arrays.values())
        return reuse.digests(known, *(column.to_list() for column in self.frame), *vectors)

    def keep(self, before: reuse.Before) -> None:
        """Take over the rows of `before` that were made of the same."""
        assert self.made_of is not None
        self.before, self.kept = before, before.rows(self.uids, self.made_of)

    def keep_asked(self, before: reuse.Before) -> None:
        """Take over all rows of `before`, which is of the same part, that were computed there."""
        import numpy as np

        there = (before.table[FAILED].fill_null("") != NOT_ASKED).to_numpy()
        self.before, self.kept = before, np.where(there, np.arange(len(there)), -1)

    def _fail(self, codes: pl.Series) -> None:
        """Take over the codes of rows that have none yet."""
        import polars as pl

        self.codes = pl.select(pl.coalesce(self.codes, codes).alias(FAILED)).to_series()

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """The rows without a code."""
        return self.codes.is_null().to_numpy()

    def _check(self, source: vectors.VectorSource, part: Part) -> None:
        rows = len(self.arrays[source.model, source.side])
        if rows != len(self.uids):
            raise PartError(
                f"{source.model} {source.side} vectors of {part.name}",
                f"have {rows:,} rows where the part has {len(self.uids):,}",
            )

    def batches(self, rows: int) -> Iterator[tuple[int, Batch]]:
        """(rows passed, batch of those that have everything), cut at fixed rows."""
        import numpy as np

        good = self.good & (self.kept < 0)
        for start in range(0, len(good), rows):
            stop = min(start + rows, len(good))
            chosen = start + np.flatnonzero(good[start:stop])
            yield stop - start, self.batch(chosen, np.empty(0))

    def with_images(self, decoders: Decoders, part: Part, scorer: Scorer) -> Iterator[tuple[int, Batch]]:
        """As `batches`, with what `prepare` made of each image; an image that fails gives its row a code."""
        import numpy as np
        import polars as pl

        assert part.shard is not None
        good = self.good
        codes: list[str | None] = []
        prepare = _Prepare(ScorerRef.of(scorer))
        wanted = None if self.before is None else self.ready & (self.kept < 0)
        for decoded in decoders.batches(part.shard, prepare, rows=scorer.rows, wanted=wanted):
            span = np.arange(decoded.start, decoded.start + len(decoded.ok))
            codes += list(decoded.codes)
            wanted = good[span[decoded.ok]]
            yield len(span), self.batch(span[decoded.ok][wanted], decoded.images[wanted])
        if self.before is not None:
            had = self.before.table[FAILED]
            codes = [code if row < 0 else had[row] for code, row in zip(codes, self.kept.tolist(), strict=True)]
        self._fail(pl.Series(codes, dtype=pl.String))

    def batch(self, chosen: npt.NDArray[np.int64], images: Any) -> Batch:
        """The rows `chosen`, with these images."""
        import numpy as np

        part = self.frame[chosen] if self.frame.width else self.frame
        return Batch(
            self.uids.gather(chosen).to_list(),
            {name: part[name].to_list() for name in self.frame.columns},
            {key: np.asarray(a[chosen], dtype=np.float32) for key, a in self.arrays.items()},
            images,
        )

    def index(self) -> pl.Series:
        """For each row its place among the rows of `before` and those computed after them, null where it failed."""
        import numpy as np
        import polars as pl

        good, kept = self.good, self.kept >= 0
        first = 0 if self.before is None else len(self.before.table)
        place = np.where(kept, self.kept, np.maximum(first + np.cumsum(good & ~kept) - 1, 0))
        return pl.select(pl.when(pl.Series(good)).then(pl.Series(place, dtype=pl.UInt32))).to_series()
