"""The language of a caption, by fastText's identification model or by gcld3: scorers that several rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from curate.filter_api import Batch, Column, File, InputError, Need, Scorer


@dataclass(frozen=True)
class Language(Scorer):
    """The most probable language of the caption: fastText's code (`en`) and its probability, 0..1.

    As DataComp asks it: newlines become spaces, the first label counts, whatever its probability.
    """

    name: ClassVar[str] = "language"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"language": "String", "language_probability": "Float32"}
    rows: ClassVar[int] = 4096  # longer lists take fastText longer a line
    some_rows: ClassVar[bool] = True

    model: File | None
    """fastText's identification model, lid.176.bin or its compressed form; None until it is settled."""

    def needs(self) -> list[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Any:
        import numpy as np

        assert self.model is not None
        model = _fasttext(str(self.model.path), self.model.sha256)

        def compute(batch: Batch) -> dict[str, Any]:
            # a list: for one string fastText asks NumPy for a copy that NumPy 2 refuses
            labels, probabilities = model.predict(_lines(batch), k=1)
            return {
                "language": [found[0].removeprefix("__label__") if found else None for found in labels],
                "language_probability": [
                    # the model adds 1e-5 before its logarithm, so that certainty reads as 1.00001
                    np.float32(min(found[0], 1.0)) if len(found) else None
                    for found in probabilities
                ],
            }

        return compute


@dataclass(frozen=True)
class LanguageByGcld3(Scorer):
    """The most probable language of the caption by gcld3 (`en`, `und` where it has no guess) and its probability.

    As DataComp's LAION-2B baseline asks it: newlines become spaces, the first 1,000 bytes of text count, whether
    the answer is reliable does not.
    """

    name: ClassVar[str] = "language-gcld3"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"language": "String", "language_probability": "Float32"}
    rows: ClassVar[int] = 8192
    some_rows: ClassVar[bool] = True

    def needs(self) -> list[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Any:
        import gcld3

        identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)

        def compute(batch: Batch) -> dict[str, Any]:
            found = [identifier.FindLanguage(text=line) for line in _lines(batch)]
            return {
                "language": [guess.language for guess in found],
                "language_probability": [guess.probability for guess in found],
            }

        return compute


def has_gcld3() -> bool:
    """Whether gcld3 is installed and loads here."""
    try:
        import gcld3  # noqa: F401 - its compiled part may be there and not load
    except ImportError:
        return False
    return True


def _lines(batch: Batch) -> list[str]:
    return [caption.replace("\n", " ") for caption in batch.columns["caption"]]


@lru_cache(maxsize=1)
def _fasttext(path: str, sha256: str) -> Any:
    """The model at `path`, loaded once per process whichever rules ask for it."""
    import fasttext

    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(path, f"is not a fastText model ({error})") from error
