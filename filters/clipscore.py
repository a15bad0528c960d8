"""The CLIP score: how well the image and its caption agree, as the cosine of their embeddings."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import Facts, Figures, Judge, Need, Similarity, fraction_of, setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

_DEFAULT_TOP = 0.3
_LOG = logging.getLogger("curate.filter")


@dataclass(frozen=True)
class ClipScore(Judge):
    """Keep the samples whose image and caption agree best by a CLIP model (cosine, -1..1, higher is better).

    `top=f` keeps exactly floor(f * N) samples, ties by lowest uid; N counts samples without a score too.
    `min=c` keeps a cosine of at least c. Neither: top=0.3, the best single rule of DataComp (arXiv
    2304.14108) with ViT-L-14/openai. LAION used min=0.3 (400M) and min=0.28 (2B-en) with ViT-B-32/openai.
    `ties=datacomp` cuts as DataComp's code does: at the value of rank int(f * N) counted from 0, with all that
    equal it, so at least one more. Samples without a score rank last: if the rank falls on one of them, the cut
    is NaN there and none is kept. Its code fails at top=1, where no sample has the rank: all with a score stay.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "below_min": "the image-text similarity {value:.4f} is under {min}",
        "below_top": "the image-text similarity {value:.4f} is not among the top {top}",
    }

    min: float | None = setting(None, "least cosine, -1..1; instead of top")
    top: float | None = setting(None, "fraction to keep, over 0 and at most 1; default 0.3")
    model: str | None = setting(
        None, "ARCH/PRETRAINED; default: ViT-L-14/openai where the pool has it, else its only one"
    )
    source: str | None = setting(
        None,
        "where the cosines come from; default: the first that covers every part",
        choices=("column", "published", "own"),
    )
    ties: str = setting("uid", "who stays at the cut of top=", choices=("uid", "datacomp"))

    def __post_init__(self) -> None:
        if self.min is not None and self.top is not None:
            raise ValueError(f"min and top exclude each other (found {self.min} and {self.top})")
        if self.min is not None and not -1 <= self.min <= 1:
            raise ValueError(f"min is a cosine, -1..1 (found {self.min})")
        if self.top is not None and not 0 < self.top <= 1:
            raise ValueError(f"top is a fraction over 0 and at most 1 (found {self.top})")
        if self.model == "":
            raise ValueError("model is ARCH/PRETRAINED, or left out for the pool's (found '')")

    def settle(self, pool: Facts) -> ClipScore:
        top = _DEFAULT_TOP if self.min is None and self.top is None else self.top
        return replace(self, top=top, model=self.model or pool.model("clipscore"))

    def needs(self) -> list[Need]:
        return [Similarity(self.model or "", self.source)]

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        similarity = pl.col("similarity")
        if self.min is not None:
            # a bare number takes the column's own type, single or double, as in pandas
            return {"below_min": similarity >= pl.lit(self.min)}
        top = _DEFAULT_TOP if self.top is None else self.top
        if self.ties == "datacomp":
            return {"below_top": self._datacomp(pool, similarity, top)}
        return {"below_top": pool.top(similarity, fraction_of(pool.n, top))}

    def _datacomp(self, pool: Figures, similarity: pl.Expr, top: float) -> pl.Expr:
        import polars as pl

        rank = int(pool.n * top)  # their arithmetic, rounding included
        known = pl.when(similarity.is_not_null())
        if rank >= pool.n:
            _LOG.warning(
                "rule clipscore: with top=%s and ties=datacomp no sample has the rank of the cut, and DataComp's "
                "code ends with an IndexError; all that have a score are kept",
                top,
            )
            return known.then(True)
        cut = pool.nth_largest(similarity, rank)
        if cut is None:
            _LOG.warning(
                "rule clipscore: the rank of the cut, %s of %s, falls on samples without a score; as in DataComp's "
                "code, the cut is NaN and none is kept",
                f"{rank:,}",
                f"{pool.n:,}",
            )
            return known.then(False)
        # exact in single and in double precision, and where parts have one or the other
        return similarity.cast(pl.Float64) >= pl.lit(cut, pl.Float64)

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        return {"below_min" if self.min is not None else "below_top": pl.col("similarity")}
