"""`score`: the columns of a scorer, one row per sample, none dropped.

A scorer over columns or published vectors runs on the pool's parts; one over pixels or our own vectors on its
shards. Rows that lack something the scorer needs get an error code and nulls. Of a shard that was replaced, a
scorer over pixels computes only the rows whose image, columns or vectors are new. A costly scorer over captions
or published vectors may be asked for some rows only; the others are `not_asked`, and computed when they are.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from curate import devices, receipts, runner
from curate.engines import local
from curate.errors import InputError, PartError
from curate.filter_api import Batch, Need, Scorer, Vectors, settings_of
from curate.plugins import ScorerRef, blame_part, source_of
from curate.pool import FAILED, Part, Pool, need_shards, vectors
from curate.pool.join import Results
from curate.shards import write_table
from curate.stages import reuse
from curate.stages.reuse import Todo
from curate.stages.score_rows import NOT_ASKED, Rows, over_pixels, vector_sources

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from curate.pixels import Decoders
    from curate.receipts import Output

    Mask = npt.NDArray[np.bool_]

log = logging.getLogger("curate.score")

STAGE, VERSION = "score", 1
_NAME = re.compile(r"\w[\w.+-]{0,99}")
SPREAD = 50_000
"""Rows from which a scorer over captions is spread over processes."""
_INPUTS = frozenset({"samples", "vectors"})
"""What of a part's `what` is its input; the rest is how it was computed."""
_ASKED = "asked"
"""The entry of a part's `what` that stands for the rows that were asked for; absent if all were."""


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


def _per(pool: Pool, scorer: Scorer) -> str:
    per_shard = over_pixels(scorer) or any(s.per == "shard" for s in vector_sources(pool, scorer))
    return pool.per_shard if per_shard else "part"


def of_some_rows(pool: Pool, scorer: Scorer) -> bool:
    """Whether the scorer's columns may be computed for some rows of a part only."""
    return scorer.some_rows and _per(pool, scorer) == "part"


def _parts(pool: Pool, per: str) -> list[Part]:
    if per == "part":
        return [p for p in pool.parts if p.name in pool.rows]
    return [Part(s.name, s.table, shard=s) for s in pool.shards]


def tasks(pool: Pool, scorer: Scorer, device: str = "auto", decoders: Decoders | None = None) -> list[runner.Task]:
    """One task a part that the scorer runs on."""
    if over_pixels(scorer):
        need_shards(pool)
    where = results(pool, scorer)
    sources = vector_sources(pool, scorer)
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
            rows = Rows(job.pool, job.part, scorer)
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
            found = Rows(pool, part, scorer)
            chosen = np.flatnonzero(found.good)[:rows]
            if len(chosen):
                return found.batch(chosen, np.stack([image] * len(chosen)))
    return Batch([], {}, {}, np.empty(0))


def score(pool: Pool, scorer: Scorer, *, device: str = "auto", workers: int = 1) -> runner.Summary:
    """Compute the scorer's columns for every sample that lacks them."""
    with _decoders(workers) if over_pixels(scorer) else nullcontext(None) as decoders:
        return _run(pool, scorer, tasks(pool, scorer, device, decoders), workers)


def score_some(
    pool: Pool, scorer: Scorer, rows: Mapping[str, Mask], *, device: str = "auto", workers: int = 1
) -> runner.Summary:
    """Compute the scorer's columns for those `rows` of each part that lack them; what is there stays.

    Parts of which nothing is wanted that is not there are left alone. For scorers with `some_rows` alone.
    """
    asked = (_asked(scorer, task, rows[task.part]) for task in tasks(pool, scorer, device))
    todo = [task for task in asked if task is not None]
    return _run(pool, scorer, todo, workers) if todo else runner.Summary(STAGE)


def _run(pool: Pool, scorer: Scorer, todo: list[runner.Task], workers: int) -> runner.Summary:
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
    light = not over_pixels(scorer) and not any(isinstance(n, Vectors) for n in scorer.needs())
    spread = light and workers > 1 and len(todo) > 1 and sum(t.samples for t in todo) >= SPREAD
    some = any(_ASKED in task.what for task in todo)
    return runner.run(
        STAGE, VERSION, todo, workers=workers if spread else 0, title=f"score {scorer.name}", aloud=not some
    )


def _asked(scorer: Scorer, task: runner.Task, rows: Mask) -> runner.Task | None:
    """The task for these rows and those that are there already; None where all of them are."""
    import numpy as np

    receipt = receipts.read_receipt(task.folder, task.part)
    if receipt and receipt.fingerprint == receipts.digest(task.what) and not receipt.missing(task.folder):
        return None
    if before := _partial(scorer, task):
        there = (before.table[FAILED].fill_null("") != NOT_ASKED).to_numpy()
        new, rows = int((rows & ~there).sum()), rows | there
    else:
        new = int(rows.sum())
    if not new:
        return None
    if rows.all():
        return task
    what = {**task.what, _ASKED: hashlib.sha256(np.packbits(rows).tobytes()).hexdigest()}
    ref, job = task.args
    return replace(task, what=what, args=(ref, replace(job, asked=rows)), samples=new)


def _partial(scorer: Scorer, asked: runner.Task | Output) -> reuse.Before | None:
    """What the part has of this scorer from when other rows were asked for."""
    names = frozenset({"uid", FAILED, *scorer.columns})
    before = reuse.before(
        STAGE, VERSION, asked.part, asked.folder, asked.what, inputs=frozenset({_ASKED}), columns=names
    )
    if before is None or any(before.table.schema[n] != dtype(k) for n, k in scorer.columns.items()):
        return None
    return before


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
    asked: Mask | None = None
    """The rows to compute; None takes all."""


_opened: dict[tuple[bytes, str], Callable[[Batch], Mapping[str, Any]]] = {}
"""The scorers that this process has opened: weights are loaded once per worker."""


def device_for(scorer: Scorer, device: str) -> str:
    """The device that a scorer is opened on, as torch names it; `auto` is a GPU for pixels, and where it asks."""
    if device != "auto":
        return device
    return devices.best() if scorer.gpu or over_pixels(scorer) else "cpu"


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
    rows = Rows(job.pool, job.part, scorer, job.asked)
    before = _before(scorer, output) if decoders is not None else _partial(scorer, output)
    if before is not None and before.whole():
        (rows.keep if decoders is not None else rows.keep_asked)(before)
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
    unasked = int((rows.codes == NOT_ASKED).sum())
    failed = rows.codes.len() - rows.codes.null_count() - unasked
    counts = {"samples": len(table), "ok": len(table) - failed - unasked, "failed": failed}
    return counts | ({"unasked": unasked} if unasked else {})


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
    nulls = column.null_count()
    if nulls and nulls > sum(v is None or v != v for v in answer[name]):
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
