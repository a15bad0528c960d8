"""`score`: the columns of a scorer, one row per sample, none dropped.

A scorer over columns or published vectors runs on the pool's parts; one over pixels or our own vectors on its
shards. Rows that lack something the scorer needs get an error code and nulls. Of a shard that was replaced, a
scorer over pixels computes only the rows whose image, columns or vectors are new.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from curate import receipts, runner
from curate.engines import local
from curate.errors import InputError, PartError
from curate.filter_api import Batch, Column, Images, Need, Scorer, Vectors, settings_of
from curate.plugins import ScorerRef, blame_part, source_of
from curate.pool import FAILED, Part, Pool, need_shards, reading, vectors
from curate.pool.join import Results
from curate.shards import write_table
from curate.stages import reuse
from curate.stages.reuse import Todo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    from PIL.Image import Image

    from curate.pixels import Decoders
    from curate.receipts import Output

log = logging.getLogger("curate.score")

STAGE, VERSION = "score", 1
_NAME = re.compile(r"\w[\w.+-]{0,99}")
SPREAD = 50_000
"""Rows from which a scorer over captions is spread over processes."""
_STORED = "stored_sha256"
_INPUTS = frozenset({"samples", "vectors"})
"""What of a part's `what` is its input; the rest is how it was computed."""


@dataclass(frozen=True)
class PairSimilarity(Scorer):
    """The image-text cosine of published vectors (float32, -1..1, higher is better)."""

    name: ClassVar[str] = "similarity"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"similarity": "Float32"}
    rows: ClassVar[int] = 8192

    model: str

    def needs(self) -> Sequence[Need]:
        """Both vectors of each sample."""
        return [Vectors(self.model, "image"), Vectors(self.model, "text")]

    def open(self, device: str) -> Callable[[Batch], Mapping[str, Any]]:
        """The row-wise dot product, summed in float32."""
        import numpy as np

        def compute(batch: Batch) -> Mapping[str, Any]:
            image, text = (batch.vectors[self.model, side] for side in ("image", "text"))
            return {"similarity": np.einsum("ij,ij->i", image, text)}

        return compute


# --- what and where ---------------------------------------------------------------------------------------


def folder_name(scorer: Scorer) -> str:
    """`<scorer>-v<N>`, and a digest of the settings where it has any."""
    if not _NAME.fullmatch(scorer.name):
        raise InputError(
            f"scorer {scorer.name}", "its name cannot be a folder's", hint="letters, digits, -, _, + and . alone"
        )
    settings = settings_of(scorer)
    return f"{scorer.name}-v{scorer.version}" + (f"-{receipts.digest(settings)[:8]}" if settings else "")


def results(pool: Pool, scorer: Scorer) -> Results:
    """Where the scorer's columns lie, whether computed yet or not."""
    return Results(pool.layout.score(folder_name(scorer)), _per(pool, scorer))


def _sources(pool: Pool, scorer: Scorer) -> list[vectors.VectorSource]:
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


def over_pixels(scorer: Scorer) -> bool:
    """Whether the scorer asks for decoded images."""
    return any(isinstance(n, Images) for n in scorer.needs())


def _per(pool: Pool, scorer: Scorer) -> str:
    per_shard = over_pixels(scorer) or any(s.per == "shard" for s in _sources(pool, scorer))
    return pool.per_shard if per_shard else "part"


def _parts(pool: Pool, per: str) -> list[Part]:
    if per == "part":
        return [p for p in pool.parts if p.name in pool.rows]
    return [Part(s.name, s.table, shard=s) for s in pool.shards]


def tasks(pool: Pool, scorer: Scorer, device: str = "auto", decoders: Decoders | None = None) -> list[runner.Task]:
    """One task a part that the scorer runs on."""
    if over_pixels(scorer):
        need_shards(pool)
    where = results(pool, scorer)
    sources = _sources(pool, scorer)
    made = []
    for part in _parts(pool, where.per):
        what = {
            "scorer": scorer.name,
            "scorer_version": scorer.version,
            "settings": settings_of(scorer),
            **source_of(scorer),
            "samples": _identity(pool, part),
            "vectors": {f"{s.model} {s.side}": _vector_identity(s, part.name) for s in sources},
        }
        job = _Job(pool.narrowed(part), part, device)
        made.append(
            runner.Task(
                part.name,
                where.folder,
                what,
                partial(_score_part, decoders=decoders) if decoders else _score_part,
                (ScorerRef.of(scorer), job),
                _expected(pool, part),
            )
        )
    return made


def _expected(pool: Pool, part: Part) -> int:
    if part.shard is None:
        return pool.rows.get(part.name, 0)
    receipt = pool.shard_receipt(part.shard)
    return receipt.counts["samples"] if receipt else 1  # it cannot be read, and fails by name


def _identity(pool: Pool, part: Part) -> str:
    if part.shard is not None and (receipt := pool.shard_receipt(part.shard)):
        return receipt.identity
    return pool.identities.get(part.name, "")


def _vector_identity(source: vectors.VectorSource, part: str) -> str | None:
    try:
        return source.identity(part)
    except PartError:
        return None  # the part fails by name when it runs


def pending(pool: Pool, scorer: Scorer) -> Todo:
    """The parts that have no current columns of this scorer, and how many rows must be computed for them."""
    todo = runner.pending(STAGE, VERSION, tasks(pool, scorer))
    return Todo(len(todo), sum(_missing(scorer, task) for task in todo))


def _missing(scorer: Scorer, task: runner.Task) -> int:
    job = task.args[1]
    with suppress(PartError):  # it fails by name when it runs
        if over_pixels(scorer) and (before := _before(scorer, task)):
            rows = _Rows(job.pool, job.part, scorer)
            rows.keep(before)
            return int((rows.ready & (rows.kept < 0)).sum())
    return task.samples


def _before(scorer: Scorer, asked: runner.Task | Output) -> reuse.Before | None:
    """What the part has of this scorer from before its shard was replaced."""
    before = reuse.before(STAGE, VERSION, asked.part, asked.folder, asked.what, inputs=_INPUTS)
    if before is None or any(before.table.schema.get(n) != dtype(k) for n, k in scorer.columns.items()):
        return None
    return before


def trial(pool: Pool, scorer: Scorer, image: npt.NDArray[Any], rows: int) -> Batch:
    """Some of the pool's rows as the scorer will get them, but all with one `image`, to measure its speed on.

    Up to `rows`, of the first part that can be read; none where no row has all that it needs.
    """
    import numpy as np

    chosen: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for part in _parts(pool, _per(pool, scorer)):
        with suppress(PartError):
            found = _Rows(pool, part, scorer)
            chosen = np.flatnonzero(found.good)[:rows]
            if len(chosen):
                return found.batch(chosen, np.stack([image] * len(chosen)))
    return Batch([], {}, {}, np.empty(0))


def score(pool: Pool, scorer: Scorer, *, device: str = "auto", workers: int = 1) -> runner.Summary:
    """Compute the scorer's columns for every sample that lacks them."""
    pixels = over_pixels(scorer)
    where = results(pool, scorer)
    receipts.write_json(
        where.folder / "score.json",
        {
            "format": receipts.FORMAT,
            "scorer": scorer.name,
            "version": scorer.version,
            "settings": settings_of(scorer),
            "columns": dict(scorer.columns),
            "per": where.per,
        },
    )
    with _decoders(workers) if pixels else nullcontext(None) as decoders:
        todo = tasks(pool, scorer, device, decoders)
        light = not pixels and not any(isinstance(n, Vectors) for n in scorer.needs())
        spread = light and workers > 1 and len(todo) > 1 and sum(t.samples for t in todo) >= SPREAD
        return runner.run(STAGE, VERSION, todo, workers=workers if spread else 0, title=f"score {scorer.name}")


def _decoders(workers: int) -> Decoders:
    from curate.pixels import Decoders

    return Decoders(max(workers, 1))


# --- one part ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    pool: Pool
    """Narrowed to the part."""
    part: Part
    device: str


_opened: dict[tuple[bytes, str], Callable[[Batch], Mapping[str, Any]]] = {}
"""The scorers that this process has opened: weights are loaded once per worker."""


def device_for(scorer: Scorer, device: str) -> str:
    """The device that a scorer is opened on, as torch names it; `auto` is a GPU for pixels alone."""
    if device != "auto":
        return device
    if not over_pixels(scorer):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _open(ref: ScorerRef, scorer: Scorer, device: str) -> Callable[[Batch], Mapping[str, Any]]:
    key = (ref.pickled, device)
    if key not in _opened:
        _opened.clear()
        with blame_part(scorer):
            _opened[key] = scorer.open(device_for(scorer, device))
    return _opened[key]


def _score_part(
    output: Output, tick: local.Tick, ref: ScorerRef, job: _Job, *, decoders: Decoders | None = None
) -> Mapping[str, int]:
    import polars as pl

    scorer = ref.load()
    rows = _Rows(job.pool, job.part, scorer)
    before = _before(scorer, output) if decoders is not None else None
    if before is not None and before.whole():
        rows.keep(before)
    pieces: dict[str, list[pl.Series]] = {name: [] for name in scorer.columns}
    batches = rows.with_images(decoders, job.part, scorer) if decoders is not None else rows.batches(scorer.rows)
    for at, batch in batches:
        answer: Mapping[str, Any] = {name: [] for name in scorer.columns}
        if len(batch):
            compute = _open(ref, scorer, job.device)
            with blame_part(scorer):
                answer = compute(batch)
        for name, kind in scorer.columns.items():
            pieces[name].append(_column(scorer, name, kind, answer, len(batch)))
        tick(at, 0)
    index = rows.index()
    columns = [rows.uids]
    for name, kind in scorer.columns.items():
        kept = [rows.before.table[name]] if rows.before is not None else []
        columns.append(_joined(name, kind, [*kept, *pieces[name]]).gather(index))
    columns += [rows.codes] if rows.made_of is None else [rows.codes, rows.made_of]
    table = pl.DataFrame(columns)
    write_table(output, f"{job.part.name}.parquet", table.to_arrow())
    failed = rows.codes.len() - rows.codes.null_count()
    return {"samples": len(table), "ok": len(table) - failed, "failed": failed}


def _column(scorer: Scorer, name: str, kind: str, answer: Mapping[str, Any], rows: int) -> pl.Series:
    import polars as pl

    if not isinstance(answer, Mapping):
        raise PartError(f"rule {scorer.name}", f"gave no columns ({answer!r})")
    if name not in answer:
        raise PartError(f"rule {scorer.name}", f"gave no column {name!r} (found: {', '.join(answer) or 'none'})")
    with blame_part(scorer):
        column = pl.Series(name, answer[name], dtype=dtype(kind), strict=False)
    if len(column) != rows:
        raise PartError(f"rule {scorer.name}", f"gave {len(column):,} values of {name!r} for {rows:,} rows")
    if column.null_count() > sum(v is None or v != v for v in answer[name]):
        raise PartError(f"rule {scorer.name}", f"gave values of {name!r} that are no {kind}")
    return column


def _joined(name: str, kind: str, pieces: list[pl.Series]) -> pl.Series:
    import polars as pl

    return pl.concat(pieces, rechunk=True) if pieces else pl.Series(name, [], dtype=dtype(kind))


def dtype(name: str) -> Any:
    """The polars type of a name such as `Float32` or `List(String)`."""
    import polars as pl

    outer, _, inner = name.partition("(")
    return getattr(pl, outer)(dtype(inner.rstrip(")"))) if inner else getattr(pl, outer)()


class _Prepare:
    """A scorer's `prepare` as the decode processes get it: they load its rule file first."""

    def __init__(self, ref: ScorerRef) -> None:
        self.ref, self.scorer = ref, ref.load()
        self.__qualname__ = f"{type(self.scorer).__qualname__}.prepare"  # for messages

    def __call__(self, image: Image) -> npt.NDArray[Any]:
        return self.scorer.prepare(image)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Prepare, (self.ref,)


class _Rows:
    """The rows of one part with all that a scorer needs of them."""

    def __init__(self, pool: Pool, part: Part, scorer: Scorer) -> None:
        import numpy as np
        import polars as pl

        columns = [n for n in scorer.needs() if isinstance(n, Column)]
        sources = _sources(pool, scorer)
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

        good = self.good
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
