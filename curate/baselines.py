"""What DataComp's baselines reached: facts to hold a subset against, with where they stand.

Zero-shot accuracy on ImageNet-1k and the average over DataComp's 38 data sets are open_clip's own evaluation of the
published models. Its row for `image_based` at small is left out: it repeats that of another baseline to the last
digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SOURCE = "open_clip, docs/openclip_results.csv"
URL = "https://github.com/mlfoundations/open_clip/blob/main/docs/openclip_results.csv"
RECIPES = "datacomp/"
"""The folder of the recipes that make these baselines."""


@dataclass(frozen=True)
class Baseline:
    """One published model: what it was trained on, and what it reached. Higher is better."""

    scale: str
    recipe: str
    """Without its folder."""
    model: str
    """Its name in the source's column `pretrained`."""
    imagenet: float
    average: float
    """Over 38 data sets."""

    @property
    def kept(self) -> float | None:
        """The share of the pool that it was trained on, where that is published."""
        return KEPT.get(self.recipe)


KEPT = {"no_filter": 1.0, "clip_score": 0.3, "image_based_intersect_clip_score": 0.11}
"""The whole pool; the fraction that DataComp's README sets; 1.4M of 12.8M, 14M of 128M and so on (open_clip,
docs/datacomp_models.md). Of the others no figures are published there."""

BASELINES: Sequence[Baseline] = tuple(
    Baseline(scale, recipe, model, imagenet, average)
    for scale, recipe, model, imagenet, average in (
        ("small", "no_filter", "commonpool_s_s13m_b4k", 0.0270, 0.1420),
        ("small", "basic_filter", "commonpool_s_basic_s13m_b4k", 0.0377, 0.1423),
        ("small", "text_based", "commonpool_s_text_s13m_b4k", 0.0460, 0.1573),
        ("small", "laion2b", "commonpool_s_laion_s13m_b4k", 0.0305, 0.1332),
        ("small", "clip_score", "commonpool_s_clip_s13m_b4k", 0.0505, 0.1731),
        ("small", "image_based_intersect_clip_score", "datacomp_s_s13m_b4k", 0.0392, 0.1449),
        ("medium", "no_filter", "commonpool_m_s128m_b4k", 0.1755, 0.2580),
        ("medium", "basic_filter", "commonpool_m_basic_s128m_b4k", 0.2255, 0.2849),
        ("medium", "text_based", "commonpool_m_text_s128m_b4k", 0.2548, 0.3066),
        ("medium", "image_based", "commonpool_m_image_s128m_b4k", 0.2678, 0.3118),
        ("medium", "laion2b", "commonpool_m_laion_s128m_b4k", 0.2304, 0.2919),
        ("medium", "clip_score", "commonpool_m_clip_s128m_b4k", 0.2725, 0.3278),
        ("medium", "image_based_intersect_clip_score", "datacomp_m_s128m_b4k", 0.2972, 0.3281),
        ("large", "no_filter", "commonpool_l_s1b_b8k", 0.4593, 0.4370),
        ("large", "basic_filter", "commonpool_l_basic_s1b_b8k", 0.5155, 0.4585),
        ("large", "text_based", "commonpool_l_text_s1b_b8k", 0.5605, 0.4760),
        ("large", "image_based", "commonpool_l_image_s1b_b8k", 0.5719, 0.4812),
        ("large", "laion2b", "commonpool_l_laion_s1b_b8k", 0.5526, 0.5011),
        ("large", "clip_score", "commonpool_l_clip_s1b_b8k", 0.5777, 0.5294),
        ("large", "image_based_intersect_clip_score", "datacomp_l_s1b_b8k", 0.6310, 0.5372),
        ("xlarge", "no_filter", "commonpool_xl_s13b_b90k", 0.7229, 0.6207),
        ("xlarge", "laion2b", "commonpool_xl_laion_s13b_b90k", 0.7545, 0.6360),
        ("xlarge", "clip_score", "commonpool_xl_clip_s13b_b90k", 0.7637, 0.6501),
        ("xlarge", "image_based_intersect_clip_score", "datacomp_xl_s13b_b90k", 0.7921, 0.6627),
    )
)


@dataclass(frozen=True)
class Nearest:
    """The baseline that is nearest to a subset, and by what it was found, as a clause."""

    baseline: Baseline
    by: str


def nearest(scale: str, recipe: str, kept: float) -> Nearest | None:
    """The baseline to hold a subset against: that of the recipe's name, else the one that kept the nearest share.

    `kept` is the share of the pool that is in the subset. None for debug, which has no baselines.
    """
    known = [b for b in BASELINES if b.scale == scale]
    if same := next((b for b in known if recipe == RECIPES + b.recipe), None):
        return Nearest(same, f"the selection is of the recipe `{recipe}`")
    shares = [(abs(b.kept - kept), b) for b in known if b.kept is not None]
    if not shares:
        return None
    found = min(shares, key=lambda share: share[0])[1]
    why = f"`{RECIPES}{found.recipe}` keeps {found.kept:.0%} of the pool, this subset {kept:.1%}"
    others = "; of the baselines whose share is published, that is the nearest"
    return Nearest(found, why + others)
