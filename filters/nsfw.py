"""Unsafe images, by LAION's classifiers over CLIP image embeddings: no pixels are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from curate.filter_api import (
    Batch,
    Facts,
    Figures,
    File,
    InputError,
    Judge,
    Need,
    Score,
    Scorer,
    Vectors,
    asset,
    setting,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

_HEADS = {"ViT-L-14/openai": "nsfw-vit-l-14", "ViT-B-32/openai": "nsfw-vit-b-32"}


@dataclass(frozen=True)
class Unsafe(Scorer):
    """The probability of unsafe (sexual) content in the image, 0..1, from its embedding by one model."""

    name: ClassVar[str] = "nsfw"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"p_unsafe": "Float32"}
    rows: ClassVar[int] = 4096

    model: str
    """The model that the head was trained on, ARCH/PRETRAINED."""
    head: File | None
    """Its weights, as published (a zipped SavedModel) or as an npz of its arrays; None until it is settled."""

    def needs(self) -> list[Need]:
        return [Vectors(self.model, "image")]

    def open(self, device: str) -> Any:
        from . import _unsafe_head

        assert self.head is not None
        where = str(self.head.path)
        head = _unsafe_head.load(self.head)

        def compute(batch: Batch) -> dict[str, Any]:
            vectors = batch.vectors[self.model, "image"]
            if vectors.shape[1] != head.dim:
                raise InputError(
                    where,
                    f"reads embeddings of {head.dim} numbers ({self.model} makes {vectors.shape[1]})",
                    hint="name the model that this head was trained on: model=ARCH/PRETRAINED",
                )
            return {"p_unsafe": head(vectors)}

        return compute


@dataclass(frozen=True)
class Nsfw(Judge):
    """Keep samples whose image is probably safe: p_unsafe at most `max` (0..1, lower is safer).

    p_unsafe is LAION's CLIP-based NSFW detector on the image embedding (arXiv 2210.08402): a classifier with
    .96 accuracy on its own 3,000 test images, for ViT-L-14/openai and ViT-B-32/openai. LAION-5B tags above
    0.5; Re-LAION's research-safe release drops above 0.45. It misses explicit content and flags harmless
    images (arXiv 2405.08209 looks at whom); it knows nothing of captions.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "unsafe": "the image is unsafe with probability {value:.3f}, over {max}"
    }

    max: float = setting(0.5, "greatest p_unsafe to keep, 0..1")
    model: str | None = setting(None, "whose embeddings: ViT-L-14/openai or ViT-B-32/openai; default: the pool's")
    head: File | None = setting(
        None, "weights of a head (zip as published, or npz); default: LAION's for the model"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.max <= 1:
            raise ValueError(f"max is a probability, 0..1 (found {self.max})")

        if self.model == "":
            raise ValueError("model is ARCH/PRETRAINED, or left out for the pool's (found '')")

    def settle(self, pool: Facts) -> Nsfw:
        model = self.model or pool.model("nsfw", among=tuple(_HEADS))
        if self.head is not None:
            return replace(self, model=model)
        if model not in _HEADS:
            raise InputError(
                "nsfw",
                f"LAION published no head for {model} (found heads for {', '.join(sorted(_HEADS))})",
                hint="name one of these models, or give a head of your own: head=FILE",
            )
        return replace(self, model=model, head=asset(_HEADS[model]))

    def needs(self) -> list[Need]:
        return [Score(Unsafe(self.model or "", self.head))]

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        return {"unsafe": pl.col("p_unsafe") <= pl.lit(self.max, pl.Float32)}

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        return {"unsafe": pl.col("p_unsafe")}
