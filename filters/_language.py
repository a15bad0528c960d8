"""The language of a caption, by fastText's identification model: a scorer that several rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    rows: ClassVar[int] = 8192

    model: File | None
    """fastText's identification model, lid.176.bin or its compressed form; None until it is settled."""

    def needs(self) -> list[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Any:
        import fasttext
        import numpy as np

        assert self.model is not None
        try:
            model = fasttext.load_model(str(self.model.path))
        except (ValueError, RuntimeError, MemoryError) as error:
            raise InputError(str(self.model.path), f"is not a fastText model ({error})") from error

        def compute(batch: Batch) -> dict[str, Any]:
            captions = [caption.replace("\n", " ") for caption in batch.columns["caption"]]
            # a list: for one string fastText asks NumPy for a copy that NumPy 2 refuses
            labels, probabilities = model.predict(captions, k=1)
            return {
                "language": [found[0].removeprefix("__label__") if found else None for found in labels],
                "language_probability": [
                    # the model adds 1e-5 before its logarithm, so that certainty reads as 1.00001
                    np.float32(min(found[0], 1.0)) if len(found) else None
                    for found in probabilities
                ],
            }

        return compute
