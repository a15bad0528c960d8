"""DataComp's basic filtering: the cheap rules on caption and image size that every pool needs first."""

from __future__ import annotations

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
    setting,
)

from ._captions import count_chars, count_words
from ._language import Language

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl


@dataclass(frozen=True)
class Basic(Judge):
    """Keep samples with an English caption of some length and an image of some size.

    DataComp's basic filter (arXiv 2304.14108) is the default: fastText's first label is English, at least
    3 words (split at white space), at least 6 characters (code points), shorter side at least 200 pixels,
    longer over shorter side at most 3. Sizes are those of the image as published, before any resize.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "image_side": "the image's shorter side is {value:.0f} pixels, under {min_side}",
        "image_aspect": "the image's longer side is {value:.2f} times the shorter, over {max_aspect}",
        "caption_chars": "the caption has {value:.0f} characters, under {min_chars}",
        "caption_words": "the caption has {value:.0f} words, under {min_words}",
        "caption_language": "the caption's likeliest language is not {language!r} (probability {value:.2f})",
    }

    language: str = setting("en", "language of the caption, as fastText codes it; empty: any, no model needed")
    language_model: File | None = setting(None, "fastText model; default: lid.176.bin as published")
    min_words: int = setting(3, "fewest words in the caption, split at white space; 0: any")
    min_chars: int = setting(6, "fewest characters in the caption, code points; 0: any")
    min_side: int = setting(200, "least shorter side of the original image, pixels; 0: any")
    max_aspect: float = setting(3.0, "greatest ratio of longer to shorter side, 1 or more; 0: any")

    def __post_init__(self) -> None:
        for name in ("min_words", "min_chars", "min_side", "max_aspect"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is 0 (off) or more (found {getattr(self, name)})")
        if 0 < self.max_aspect < 1:
            raise ValueError(f"max_aspect is 1 or more, or 0 for any (found {self.max_aspect})")
        if not (self._of_image or self._of_caption or self.language):
            raise ValueError("every condition is off, so it would keep all: leave the rule out")

    @property
    def _of_image(self) -> bool:
        return self.min_side > 0 or self.max_aspect > 0

    @property
    def _of_caption(self) -> bool:
        return self.min_words > 0 or self.min_chars > 0

    def settle(self, pool: Facts) -> Basic:
        if self.language and self.language_model is None:
            return replace(self, language_model=asset("fasttext-lid"))
        return self

    def needs(self) -> list[Need]:
        read: list[Need] = []
        if self._of_image:
            read += [Column("original_width"), Column("original_height")]
        if self._of_caption:
            read.append(Column("caption"))
        if self.language:
            read.append(Score(Language(self.language_model)))
        return read

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        value = self.values()
        conditions: dict[str, pl.Expr] = {}
        if self.min_side > 0:
            conditions["image_side"] = value["image_side"] >= self.min_side
        if self.max_aspect > 0:
            conditions["image_aspect"] = value["image_aspect"] <= self.max_aspect
        if self.min_chars > 0:
            conditions["caption_chars"] = value["caption_chars"] >= self.min_chars
        if self.min_words > 0:
            conditions["caption_words"] = value["caption_words"] >= self.min_words
        if self.language:
            conditions["caption_language"] = pl.col("language") == self.language
        return conditions

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        sides = pl.col("original_width"), pl.col("original_height")
        # the horizontal functions skip nulls: with one side unknown, both measures must be null
        known = sides[0].is_not_null() & sides[1].is_not_null()
        shorter = pl.when(known).then(pl.min_horizontal(*sides))
        longer = pl.when(known).then(pl.max_horizontal(*sides))
        shown = {
            "image_side": shorter,
            "image_aspect": longer.cast(pl.Float64) / shorter.cast(pl.Float64),
            "caption_chars": count_chars(pl.col("caption")),
            "caption_words": count_words(pl.col("caption")),
            "caption_language": pl.col("language_probability"),
        }
        off = {
            "image_side": not self.min_side,
            "image_aspect": not self.max_aspect,
            "caption_chars": not self.min_chars,
            "caption_words": not self.min_words,
            "caption_language": not self.language,
        }
        return {reason: value for reason, value in shown.items() if not off[reason]}
