"""Captions in one language, by the detector that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import Facts, Figures, File, InputError, Judge, Need, Score, asset, setting

from ._language import Language, LanguageByGcld3, has_gcld3

if TYPE_CHECKING:
    import polars as pl

_LOG = logging.getLogger("curate.filter")


@dataclass(frozen=True)
class InLanguage(Judge):
    """Keep samples whose caption is in one language, by the detector's first guess whatever its probability.

    `detector=gcld3` is what DataComp's LAION-2B baseline uses: a package that no longer builds everywhere.
    `detector=auto` takes it where it is installed, else fastText with a warning; which one it was stands in the
    selection's recipe.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "caption_language": "the caption's likeliest language by {detector} is not {language!r} "
        "(probability {value:.2f})",
    }

    language: str = setting("en", "language of the caption, as the detector codes it")
    detector: str = setting(
        "fasttext",
        "what says the language; auto: gcld3 where it is installed",
        choices=("fasttext", "gcld3", "auto"),
    )
    language_model: File | None = setting(None, "fastText model; default: lid.176.bin as published")

    def __post_init__(self) -> None:
        if not self.language:
            raise ValueError("language is a code such as en (found '')")
        if self.detector == "gcld3" and self.language_model is not None:
            raise ValueError("language_model goes with detector=fasttext; gcld3 has its own")

    def settle(self, pool: Facts) -> InLanguage:
        detector = self.detector
        if detector == "auto":
            detector = "gcld3" if has_gcld3() and self.language_model is None else "fasttext"
            if detector == "fasttext" and self.language_model is None:
                _LOG.warning(
                    "rule language: gcld3 is not installed, so fastText says the languages; a set made with gcld3, "
                    "as DataComp's laion2b is, will differ from this one in some samples"
                )
        if detector == "gcld3" and not has_gcld3():
            raise InputError(
                "rule language",
                "detector=gcld3 wants the package gcld3, which does not load here",
                hint="detector=fasttext says the languages by another model, detector=auto does where it must",
            )
        if detector == "fasttext" and self.language_model is None:
            return replace(self, detector=detector, language_model=asset("fasttext-lid"))
        return replace(self, detector=detector)

    def needs(self) -> list[Need]:
        return [Score(LanguageByGcld3() if self.detector == "gcld3" else Language(self.language_model))]

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        return {"caption_language": pl.col("language") == self.language}

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        return {"caption_language": pl.col("language_probability")}
