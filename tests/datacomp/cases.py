"""Which baseline is run on which pool: DataComp's arguments, and our recipe that has to keep the same."""

from __future__ import annotations

from dataclasses import dataclass

MODELS = {"b32": "ViT-B-32/openai", "l14": "ViT-L-14/openai"}
SCALE = "small"
"""Which centroids DataComp is told to take; both sides get the made-up ones."""


@dataclass(frozen=True)
class Case:
    """One run of DataComp's `baselines.py` and ours."""

    pool: str
    baseline: str
    arch: str | None = None
    fraction: float | None = None
    threshold: float | None = None

    @property
    def name(self) -> str:
        """Its name in tests and in the file of expected results."""
        said = [self.pool, self.baseline, self.arch]
        said += [
            f"{k}={v}" for k, v in (("fraction", self.fraction), ("threshold", self.threshold)) if v is not None
        ]
        return "-".join(word for word in said if word)

    @property
    def recipe(self) -> str:
        """What stands after `curate filter --recipe`."""
        settings = [f"model={MODELS[self.arch]}"] if self.arch else []
        settings += [f"top={self.fraction}"] if self.fraction is not None else []
        settings += [f"min={self.threshold}"] if self.threshold is not None else []
        return f"datacomp/{self.baseline}" + (":" + ",".join(settings) if settings else "")

    @property
    def asset(self) -> bool:
        """Whether it reads a language model or more."""
        return self.baseline not in ("no_filter", "clip_score", "laion2b")


POOLS = (
    *("published", "other_types", "mixed_types", "copies", "unscored", "no_scores", "level"),
    *("edges", "edges_double", "broken_vectors", "hundred", "few"),
)
_CAPTIONS = ("published", "other_types", "copies", "few")
"""Where the rules over captions and sizes run: the others hold the same captions."""
_VECTORS = (*_CAPTIONS, "broken_vectors")
_ON = {"basic_filter": _CAPTIONS, "text_based": _CAPTIONS, "image_based": _VECTORS}
_PLAIN = ("no_filter", *_ON, "laion2b")
_BOTH = "image_based_intersect_clip_score"
_FRACTIONS = {
    "published": (0.1, 0.29, 0.5, 0.9999, 0.57),
    "unscored": (0.1, 0.29, 0.9999),
    "copies": (0.1,),
    "hundred": (0.1, 0.29, 0.57, 0.58, 0.07),
}
_THRESHOLDS = {
    "published": (0.3, 0.28),
    "edges": (0.3, 0.28, 0.25),
    "edges_double": (0.3, 0.28, 0.25),
    "copies": (0.28,),
    "mixed_types": (0.3, 0.25),
    "unscored": (0.28,),
    "no_scores": (0.28,),
}


def _of(pool: str) -> list[Case]:
    cases = [Case(pool, baseline) for baseline in _PLAIN if pool in _ON.get(baseline, POOLS)]
    for arch in MODELS:
        fractions = (0.3, *_FRACTIONS.get(pool, ()))
        cases += [Case(pool, "clip_score", arch, fraction=f) for f in fractions]
        cases += [Case(pool, "clip_score", arch, threshold=t) for t in _THRESHOLDS.get(pool, ())]
    cases.append(Case(pool, _BOTH, "l14", fraction=0.3))
    if pool in ("published", "copies"):
        cases += [Case(pool, _BOTH, "b32", fraction=0.1), Case(pool, _BOTH, "l14", threshold=0.28)]
    return cases


CASES = [case for pool in POOLS for case in _of(pool)]
