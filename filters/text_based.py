"""DataComp's text-based filtering: captions that name something ImageNet-21k shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import Facts, Figures, File, Judge, Need, Score, asset, setting

from . import _synsets
from ._language import Language

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class TextBased(Judge):
    """Keep samples with an English caption that has a word for an ImageNet-21k synset.

    DataComp's text-based filter (arXiv 2304.14108) is the default: a token between white space counts if its
    first WordNet synset, over all parts of speech, has an offset of the list; fastText's first label is English.
    With the punctuation on it, "dog," is not a word: `strip=true` takes it off. Any list of WordNet 3.0 ids can
    stand in for ImageNet-21k's. The word and the offset are stored as columns `synset_word` and `synset_offset`.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "caption_synset": "no word of the caption has a synset of the list",
        "caption_language": "the caption's likeliest language is not {language!r} (probability {value:.2f})",
    }

    language: str = setting("en", "language of the caption, as fastText codes it; empty: any, no model needed")
    language_model: File | None = setting(None, "fastText model; default: lid.176.bin as published")
    synsets: File | None = setting(None, "WordNet 3.0 ids, one a line; default: those of ImageNet-21k as published")
    wordnet: File | None = setting(None, "zip of WordNet's files; default: nltk_data's wordnet.zip as published")
    strip: bool = setting(False, "take punctuation off both ends of a token before it is looked up")

    def settle(self, pool: Facts) -> TextBased:
        wordnet = self.wordnet or asset("wordnet")
        synsets = self.synsets or asset("imagenet21k-synsets")
        # what is no WordNet and no list is refused here, before a worker opens it
        _synsets.database(wordnet)[0].close()
        _synsets.listed(synsets)
        model = self.language_model or (asset("fasttext-lid") if self.language else None)
        return replace(self, wordnet=wordnet, synsets=synsets, language_model=model)

    def needs(self) -> list[Need]:
        found: list[Need] = [Score(_synsets.ListedSynset(self.wordnet, self.synsets, self.strip))]
        return found + ([Score(Language(self.language_model))] if self.language else [])

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        # the look-up takes a tenth of the time of the language
        conditions = {"caption_synset": pl.col("synset_offset") >= 0}
        if self.language:
            conditions["caption_language"] = pl.col("language") == self.language
        return conditions

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        return {"caption_language": pl.col("language_probability")} if self.language else {}
