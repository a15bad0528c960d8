"""DataComp's image-based filtering: images that lie where those of ImageNet-1k do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import (
    Column,
    Facts,
    Figures,
    File,
    Judge,
    Need,
    Score,
    asset,
    assets,
    setting,
)

from ._captions import count_chars
from ._centroids import Centroid
from ._language import Language
from ._tokens import count_tokens

if TYPE_CHECKING:
    import polars as pl

_LOG = logging.getLogger("curate.filter")

_MODEL = "ViT-L-14/openai"
_SCALES = {"small": 12_800_000, "medium": 128_000_000, "large": 1_280_000_000, "xlarge": 12_800_000_000}
"""DataComp's scales: each has published centroids, trained on as many samples."""


@dataclass(frozen=True)
class ImageBased(Judge):
    """Keep samples with an English caption whose image shares a centroid with a target image.

    DataComp's image-based filter (arXiv 2304.14108) is the default: fastText's first label is English, at least 2
    tokens as fastText cuts them, at least 6 characters; and among 100,000 centroids of the pool the one closest
    to the image (largest inner product, none normalised) is closest to some image of ImageNet-1k too.
    Centroids are published for ViT-L-14/openai and each of DataComp's scales; `curate centroids` trains others.
    `captions_only=true` leaves out the images: what is left is what DataComp trains centroids on.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "caption_chars": "the caption has {value:.0f} characters, under {min_chars}",
        "caption_tokens": "the caption has {value:.0f} tokens, under {min_tokens}",
        "caption_language": "the caption's likeliest language is not {language!r} (probability {value:.2f})",
        "far_from_targets": "the image belongs to centroid {value:.0f}, to which no target belongs",
    }

    model: str = setting(_MODEL, "ARCH/PRETRAINED of the image vectors, centroids and targets")
    scale: str | None = setting(
        None, "whose published centroids; default: the least that is as large as the pool", choices=tuple(_SCALES)
    )
    centroids: File | None = setting(None, "centroids of your own, rows x dim in .npy, .npz or .pt")
    targets: tuple[File, ...] = setting((), "vectors of the target images, likewise; default: ImageNet-1k's")
    language: str = setting("en", "language of the caption, as fastText codes it; empty: any, no model needed")
    language_model: File | None = setting(None, "fastText model; default: lid.176.bin as published")
    min_tokens: int = setting(2, "fewest tokens in the caption, split at ASCII white space; 0: any")
    min_chars: int = setting(6, "fewest characters in the caption, code points; 0: any")
    captions_only: bool = setting(False, "judge the caption alone")
    nan: str = setting(
        "unjudged",
        "what an image is whose vector holds NaN or infinity; datacomp: in the centroid that torch.argmax says",
        choices=("unjudged", "datacomp"),
    )

    def __post_init__(self) -> None:
        for name in ("min_tokens", "min_chars"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is 0 (off) or more (found {getattr(self, name)})")
        if self.scale is not None and self.centroids is not None:
            raise ValueError("scale and centroids exclude each other: either published ones or your own")
        if not self.model:
            raise ValueError("model is ARCH/PRETRAINED (found '')")
        if self.captions_only and not (self.language or self.min_tokens or self.min_chars):
            raise ValueError("every condition is off, so it would keep all: leave the rule out")
        if self.captions_only and (self.scale or self.centroids or self.targets):
            raise ValueError("captions_only looks at no image: it goes without scale, centroids and targets")
        if self.model != _MODEL and not self.captions_only and not (self.centroids and self.targets):
            raise ValueError(
                f"centroids and targets are published for {_MODEL} alone: for {self.model} name files of both"
            )

    def settle(self, pool: Facts) -> ImageBased:
        settled = self
        if self.language and self.language_model is None:
            settled = replace(settled, language_model=asset("fasttext-lid"))
        if self.captions_only:
            return settled
        if self.centroids is None:
            scale = self.scale or next((s for s, n in _SCALES.items() if pool.n <= n), "xlarge")
            if self.scale is None:
                _LOG.info("rule image_based: scale=%s, by the pool's %s samples", scale, f"{pool.n:,}")
            # the file stands for the scale from here on
            settled = replace(settled, scale=None, centroids=asset("centroids", scale))
        return settled if self.targets else replace(settled, targets=assets("imagenet-targets"))

    def needs(self) -> list[Need]:
        read: list[Need] = []
        if self.min_chars or self.min_tokens:
            read.append(Column("caption"))
        if self.language:
            read.append(Score(Language(self.language_model)))
        if not self.captions_only:
            read.append(Score(Centroid(self.model, self.centroids)))
        return read

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        value = self.values()
        conditions: dict[str, pl.Expr] = {}
        if self.min_chars:
            conditions["caption_chars"] = value["caption_chars"] >= self.min_chars
        if self.min_tokens:
            conditions["caption_tokens"] = value["caption_tokens"] >= self.min_tokens
        if self.language:
            conditions["caption_language"] = pl.col("language") == self.language
        if not self.captions_only:
            assert self.centroids is not None
            rows = pool.reached(self.targets, self.centroids)
            near = pl.col("centroid").is_in(pl.Series(rows, dtype=pl.Int32).implode())
            finite = pl.lit(True) if self.nan == "datacomp" else pl.col("vector_is_finite")
            conditions["far_from_targets"] = pl.when(finite).then(near)
        return conditions

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        shown = {}
        if self.min_chars:
            shown["caption_chars"] = count_chars(pl.col("caption"))
        if self.min_tokens:
            shown["caption_tokens"] = count_tokens(pl.col("caption"))
        if self.language:
            shown["caption_language"] = pl.col("language_probability")
        if not self.captions_only:
            shown["far_from_targets"] = pl.col("centroid")
        return shown
