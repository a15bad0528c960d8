"""Several pools under one recipe: what each can give to a rule, and what rules then see of all of them.

Scores, embeddings and joins are each pool's own. A rule sees the samples of all as one; of a pool that cannot
have what the rule needs the samples are unjudged, unless none has it, which is refused as for a single pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from curate import runner
from curate.errors import InputError
from curate.filter_api import Column, Images, Need, Neighbours, Score, Scorer, Similarity, Vectors
from curate.pool import Part, Pool
from curate.pool.joint import BETWEEN, SOURCE, JointPool
from curate.stages import score
from curate.stages.samples import Mask, Samples, score_kinds, similarity_source

if TYPE_CHECKING:
    from curate.stages.decisions import Decisions
    from curate.vectors.blocks import Blocks

_FROM_PIXELS = (Similarity, Vectors, Neighbours, Images)
"""Needs that a pool without images cannot meet by computing."""


@dataclass(frozen=True)
class Share:
    """One pool of those that are filtered together, or the only one."""

    source: str
    """Empty for the only one."""
    pool: Pool
    needs: Sequence[Need]
    """What it can give of what was asked."""

    @property
    def prefix(self) -> str:
        """What stands before the names of its parts among those of all."""
        return self.source + BETWEEN if self.source else ""

    @property
    def of(self) -> str:
        """For people, behind what is computed there."""
        return f" of {self.source}" if self.source else ""


def shares(pool: Pool, needs: Sequence[Need]) -> list[Share]:
    """The pools that a rule's needs are met in, each with those that it can meet."""
    if not isinstance(pool, JointPool):
        return [Share("", pool, needs)]
    wanted = [need for need in needs if not _is_source(need)]
    having = [{source for source, member in pool.members.items() if has(member, need)} for need in wanted]
    return [  # where none has it, each says so itself
        Share(
            source, member, [_seen(member, n) for n, h in zip(wanted, having, strict=True) if source in h or not h]
        )
        for source, member in pool.members.items()
    ]


def _is_source(need: Need) -> bool:
    return isinstance(need, Column) and need.name == SOURCE


def _seen(pool: Pool, need: Need) -> Need:
    """The need as this pool is asked: a column that only others have may be missing here."""
    if isinstance(need, Column) and need.name not in pool.columns | pool.shard_columns:
        return replace(need, optional=True)
    return need


def has(pool: Pool, need: Need) -> bool:
    """Whether a pool has what a rule needs, or can compute it. Columns it need not have: they are null there."""
    if isinstance(need, Similarity):
        try:
            return similarity_source(pool, need) is not None or bool(pool.shards)
        except InputError:  # another source was asked for than it has
            return False
    if isinstance(need, Vectors | Neighbours):
        return need.model in pool.published or need.model in pool.embedded or bool(pool.shards)
    if isinstance(need, Score):
        return all(has(pool, n) and not _absent(pool, n) for n in need.scorer.needs())
    return not isinstance(need, Images) or bool(pool.shards)


def _absent(pool: Pool, need: Need) -> bool:
    """Whether it is a column that a scorer must have and the pool has not."""
    return isinstance(need, Column) and not need.optional and need.name not in pool.columns | pool.shard_columns


def samples_of(pool: Pool) -> Samples:
    """What rules see of a pool, or of several."""
    return JointSamples(pool) if isinstance(pool, JointPool) else Samples(pool)


@dataclass
class JointSamples(Samples):
    """All samples of several pools, those of the first before those of the second."""

    joint: JointPool = field(init=False)
    members: dict[str, Samples] = field(init=False)
    _shares: dict[tuple[int, ...], tuple[list[Need], dict[str, Share]]] = field(init=False, default_factory=dict)
    """The answers of `shares`, with the needs that their keys are the ids of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.pool, JointPool)
        self.joint = self.pool
        self.members = {source: Samples(pool) for source, pool in self.joint.members.items()}

    def span_of(self, source: str) -> slice:
        """The global rows of one pool."""
        mine = [i for i, part in enumerate(self.parts) if self.joint.homes[part.name].source == source]
        return slice(int(self.starts[mine[0]]), int(self.starts[mine[-1] + 1])) if mine else slice(0, 0)

    def _share(self, source: str, needs: Sequence[Need]) -> tuple[list[Need], list[Need]]:
        """What of the needs a pool is asked for, and what it cannot give."""
        key = tuple(map(id, needs))
        if key not in self._shares:  # every part asks, and the answer looks at all of them
            self._shares[key] = list(needs), {s.source: s for s in shares(self.joint, needs)}
        share = self._shares[key][1][source]
        gone = [n for n in needs if not _is_source(n) and _seen(share.pool, n) not in share.needs]
        return list(share.needs), gone

    def frame(self, needs: Sequence[Need], part: Part) -> pl.LazyFrame:
        """What `needs` names for the samples of a part, `uid`, and which pool they are from if it is asked for."""
        home = self.joint.homes[part.name]
        seen, gone = self._share(home.source, needs)
        frame = self.members[home.source].frame(seen, home.part)
        nulls: dict[str, Any] = {}
        for need in needs:
            if isinstance(need, Column) and need.name not in home.pool.columns | home.pool.shard_columns:
                nulls[need.name] = self.joint.null_kind(need.name)
        kinds = score_kinds(gone)
        for need in gone:
            if isinstance(need, Score):
                nulls |= {name: kinds.get(name) for name in need.scorer.columns}
            elif isinstance(need, Similarity):
                nulls["similarity"] = kinds["similarity"]
        told = [pl.lit(home.source).alias(SOURCE)] if any(map(_is_source, needs)) else []
        others = [pl.lit(None, dtype=kind).alias(name) for name, kind in nulls.items() if name != SOURCE]
        return frame.with_columns(*others, *told)

    def some_rows(self, scorer: Scorer) -> bool:
        """Whether the scorer's columns may be computed for some rows of a part only."""
        having = [s.source for s in shares(self.joint, [Score(scorer)]) if s.needs]
        return all(self.members[source].some_rows(scorer) for source in having)

    def sources(self, needs: Sequence[Need]) -> dict[str, str]:
        """Which model and source a rule's numbers come from, with the pools where these differ."""
        found: dict[str, dict[str, list[str]]] = {}
        for share in shares(self.joint, needs):
            for what, told in self.members[share.source].sources(share.needs).items():
                found.setdefault(what, {}).setdefault(told, []).append(share.source)
        whole = list(self.members)
        return {
            what: "; ".join(t if where == whole else f"{', '.join(where)}: {t}" for t, where in told.items())
            for what, told in found.items()
        }

    def codes(self, needs: Sequence[Need], part: Part) -> pl.Series:
        """Why each sample might be unjudged; `not_downloaded` where its pool has no images to compute it from."""
        home = self.joint.homes[part.name]
        seen, gone = self._share(home.source, needs)
        codes = self.members[home.source].codes(seen, home.part)
        inner = [n for g in gone for n in (g.scorer.needs() if isinstance(g, Score) else [g])]
        if any(isinstance(n, _FROM_PIXELS) for n in inner):
            return codes.replace("no_value", "not_downloaded")
        return codes

    def blocks(self, model: str, side: str, rows: npt.NDArray[np.int64]) -> tuple[Mask, Blocks]:
        """Which of the global `rows` have a vector, and a view of their vectors in that order."""
        from curate.vectors.blocks import Blocks

        ok = np.zeros(len(rows), dtype=bool)
        at = np.full(len(rows), -1, dtype=np.int64)
        arrays: list[npt.NDArray[Any]] = []
        behind = 0
        for share in shares(self.joint, [Vectors(model, side)]):
            span = self.span_of(share.source)
            mine = np.flatnonzero((rows >= span.start) & (rows < span.stop))
            if not share.needs or not len(mine):
                continue
            found, view = self.members[share.source].blocks(model, side, rows[mine] - span.start)
            if not found.any():
                continue
            if arrays and view.dim != arrays[0].shape[1]:
                what = f"its vectors of {model} have {view.dim:,} numbers, others {arrays[0].shape[1]:,}"
                raise InputError(str(share.pool.layout.root), what, hint="embed the pools with the same model")
            ok[mine] = found
            at[mine] = np.where(found, view.places + behind, -1)
            arrays += view.parts
            behind += sum(len(array) for array in view.parts)
        return ok, Blocks(arrays or [np.zeros((0, 1), dtype=np.float16)], at)


def score_some(
    pool: Pool, scorer: Scorer, rows: Mapping[str, Mask], *, device: str, workers: int
) -> dict[str, str]:
    """Compute the scorer's columns for `rows` of each part; the parts that failed, and why."""
    failed: dict[str, str] = {}
    for share in shares(pool, [Score(scorer)]):
        if share.needs:
            mine = {n.removeprefix(share.prefix): m for n, m in rows.items() if n.startswith(share.prefix)}
            done = score.score_some(share.pool, scorer, mine, device=device, workers=workers)
            failed |= what_failed(done, share.prefix)
    return failed


def tallies(decisions: Decisions) -> list[dict[str, Any]]:
    """What became of each pool's samples, in their order; empty for a single pool."""
    samples = decisions.samples
    return list(_tallies(decisions, samples)) if isinstance(samples, JointSamples) else []


def _tallies(decisions: Decisions, samples: JointSamples) -> Iterator[dict[str, Any]]:
    for source, pool in samples.joint.members.items():
        span = samples.span_of(source)
        left, unjudged = decisions.rule[span] < 0, decisions.code[span] >= 0
        n, kept = len(left), int(left.sum())
        yield {
            "source": source,
            "pool": str(pool.layout.root.resolve()),
            "samples": n,
            "kept": kept,
            "dropped": n - kept - int(unjudged.sum()),
            "unjudged": int(unjudged.sum()),
            "copies": int(decisions.copies[span].sum(dtype=np.int64)),
            "keep_rate": round(kept / n, 6) if n else 0.0,
        }


def what_failed(summary: runner.Summary, prefix: str) -> dict[str, str]:
    """The parts that failed, as all parts together call them, and why."""
    return {prefix + name: str(error) for name, error in summary.failed.items()}
