"""Concept-aware sampling: what is shown often makes room for what is shown rarely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import Draw, Facts, File, Left, Need, Sampler, Score, setting

from ._concept_scores import CaptionConcepts, ImageConcepts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    import polars as pl

_COMMON = Path(__file__).with_name("vocabularies") / "common.txt"
_DEFAULT_TAIL = 0.06
_SALT = 0x636F6E6365707473
"""Parts this rule's chance from that of other samplers with the same seed: a sample that an earlier draw
kept for its low number would otherwise always be kept here too."""


@dataclass(frozen=True)
class Concepts(Sampler):
    """Even out concepts: thin the samples of common ones, keep all of rare ones.

    Concepts are found in captions by MetaCLIP's substring matching (arXiv 2309.16671) over a vocabulary, here
    without regard to case unless fold=false; with `images=MODEL` also in images, by zero-shot CLIP. A sample
    has the concepts of both. Counts are those among the samples left by the rules above. Then one of

    - `target=t`, MetaCLIP's balancing: a concept with c samples votes for each with probability t / c (all,
      if c <= t); a sample stays with the probability that one of its concepts votes for it.
    - `cap=n`, exact: of each concept the n samples with the lowest chance stay, all if it has no more. Beyond
      n a concept keeps only samples that another of their concepts keeps.
    - `tail=p`, for pools of any size: target at which the concepts below it hold the share p of all matches.
      MetaCLIP's t = 20,000 left 5.6 % of 5.67 billion matches below it; MetaCLIP 2 (arXiv 2507.22062)
      carries such a share from pool to pool. Neither of the three given: tail=0.06.

    Chance depends on (uid, seed) alone, so the order of samples does not matter, and under one seed what a
    lower target or cap keeps, a higher one keeps too. MetaCLIP itself is fold=false,unmatched=drop with its
    own vocabulary; the default one has some 400 everyday nouns and their plurals.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "common_concepts": "its rarest concept has {value:.0f} samples, and the draw left this one out",
        "no_concept": "no concept of the vocabulary was found",
    }

    vocabulary: File | None = setting(None, "one concept a line, further forms after tabs; default: everyday nouns")
    target: float | None = setting(None, "samples wanted of each concept, over 0 (expected, for it alone)")
    cap: int | None = setting(None, "most samples of each concept, 1 or more, beyond what others keep")
    tail: float | None = setting(None, "share of all matches held by concepts kept whole, 0..1; default 0.06")
    seed: int = setting(0, "seed of the chance")
    fold: bool = setting(True, "find concepts without regard to case")
    images: str | None = setting(None, "model for concepts in images too, ARCH/PRETRAINED; default: none")
    image_top: int = setting(3, "most concepts found in one image, 1 or more")
    image_min: float = setting(0.1, "least probability of a concept in an image, 0..1")
    unmatched: str = setting("keep", "what to do with samples that show no concept", choices=("keep", "drop"))

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("target", "cap", "tail")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        for name, value in given.items():
            if not value > 0 or (name == "tail" and not value < 1):
                raise ValueError(f"{name} is over 0{' and under 1' * (name == 'tail')} (found {value})")
        if self.image_top < 1 or not 0 <= self.image_min <= 1:
            raise ValueError(
                f"image_top is 1 or more, image_min 0..1 (found {self.image_top} and {self.image_min})",
            )

        if self.images == "":
            raise ValueError("images is ARCH/PRETRAINED, or left out for captions only (found '')")

    def settle(self, pool: Facts) -> Concepts:
        tail = _DEFAULT_TAIL if self.target is self.cap is self.tail is None else self.tail
        return replace(self, tail=tail, vocabulary=self.vocabulary or File.at(_COMMON))

    def needs(self) -> list[Need]:
        scores: list[Need] = [Score(CaptionConcepts(self.vocabulary, self.fold))]
        if self.images:
            scores.append(Score(ImageConcepts(self.vocabulary, self.images, self.image_top, self.image_min)))
        return scores

    def draw(self, left: Left) -> Draw:
        import numpy as np

        columns = ["concepts", "image_concepts"] if self.images else ["concepts"]
        frame = left.frame().select(columns).collect()
        judged = np.zeros(left.n, bool)
        for column in columns:
            judged |= frame[column].is_not_null().to_numpy()
        rows, concepts = _matches(frame)
        counts = np.bincount(concepts)
        chance = left.chance(self.seed + _SALT)
        if self.cap is not None:
            kept = _lowest(rows, concepts, counts, chance, self.cap)
        else:
            target = self.target if self.target is not None else _target(counts, self.tail or _DEFAULT_TAIL)
            kept = chance < _probability(rows, concepts, counts, target, left.n)
        rarest = np.full(left.n, np.nan, np.float32)
        if len(rows):
            first = _starts(rows)
            rarest[rows[first]] = np.minimum.reduceat(counts[concepts], first)
        unmatched = np.isnan(rarest)
        kept[unmatched] = self.unmatched == "keep"
        kept &= judged
        reason: str | npt.NDArray[np.uint8] = "common_concepts"
        if self.unmatched == "drop":
            names = list(self.reasons)
            reason = np.where(unmatched, names.index("no_concept"), names.index("common_concepts")).astype(np.uint8)
        return Draw(kept.astype(np.uint16), reason, value=rarest, unjudged=~judged)


def _matches(frame: pl.DataFrame) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(row, concept) of each match, sorted, each once; concepts are numbered in the order of their names."""
    import numpy as np
    import polars as pl

    pairs = pl.concat(
        frame.select(pl.int_range(pl.len()).alias("row"), pl.col(column).alias("concept"))
        .explode("concept")
        .drop_nulls()
        for column in frame.columns
    )
    if not len(pairs):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    names = pairs["concept"].unique().sort()
    number = pairs["concept"].cast(pl.Enum(names)).to_physical().to_numpy()
    width = len(names)
    keys = np.sort(pairs["row"].to_numpy() * width + number)
    # not np.unique: by hashing, it takes a hundred times as long on keys like these
    keys = keys[_starts(keys)]
    return keys // width, keys % width


def _starts(ascending: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each run of equal values begins."""
    import numpy as np

    return np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))


def _lowest(
    rows: npt.NDArray[np.int64],
    concepts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    chance: npt.NDArray[np.float64],
    cap: int,
) -> npt.NDArray[np.bool_]:
    """Which rows are among the `cap` of lowest chance of one of their concepts, ties by row."""
    import numpy as np

    order = np.lexsort((chance[rows], concepts))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.zeros(len(chance), bool)
    kept[rows[order[rank < cap]]] = True
    return kept


def _probability(
    rows: npt.NDArray[np.int64],
    concepts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    target: float,
    n: int,
) -> npt.NDArray[np.float64]:
    """1 - product over a row's concepts of (1 - min(1, target / count)); 0 for a row without any."""
    import numpy as np

    missed = np.ones(n)
    if len(rows):
        first = _starts(rows)
        votes = np.minimum(1.0, target / counts)
        missed[rows[first]] = np.multiply.reduceat(1.0 - votes[concepts], first)
    return 1.0 - missed


def _target(counts: npt.NDArray[np.int64], tail: float) -> float:
    """The count of the concept at which the share of matches, from the rarest up, comes closest to `tail`."""
    import numpy as np

    if not len(counts):
        return 1.0
    ascending = np.sort(counts)
    share = np.cumsum(ascending) / ascending.sum()
    return float(ascending[np.abs(share - tail).argmin()])
