"""Which concepts of a vocabulary a sample has: named by its caption, or shown by its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate.filter_api import Batch, Column, File, Need, Scorer, Vectors, text_encoder

from ._vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROMPT = "a photo of a {}"
_LOGIT_SCALE = 100.0
"""CLIP's own, at which all its published models ended."""
_MOST_LOGITS = 1 << 24
"""Rows are taken so many at a time that a large vocabulary's logits stay at 64 MiB."""


@dataclass(frozen=True)
class CaptionConcepts(Scorer):
    """The concepts of a vocabulary that the caption names, each once, in the vocabulary's order."""

    name: ClassVar[str] = "concepts"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"concepts": "List(String)"}
    rows: ClassVar[int] = 8192

    vocabulary: File | None
    """One concept a line, further forms after tabs; or a JSON list. None until it is settled."""
    fold: bool
    """Whether case is disregarded."""

    def needs(self) -> list[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Any:
        assert self.vocabulary is not None
        find = Vocabulary.read(self.vocabulary).finder(fold=self.fold)
        return lambda batch: {"concepts": [find(caption) for caption in batch.columns["caption"]]}


@dataclass(frozen=True)
class ImageConcepts(Scorer):
    """The concepts of a vocabulary that the image shows by zero-shot CLIP, the most probable first.

    Probabilities are the softmax, over the whole vocabulary, of 100 times the cosine with "a photo of a ...".
    """

    name: ClassVar[str] = "image-concepts"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"image_concepts": "List(String)"}

    vocabulary: File | None
    """One concept a line, further forms after tabs; or a JSON list. None until it is settled."""
    model: str
    """ARCH/PRETRAINED, both of the image embeddings and for the prompts."""
    top: int
    """Most concepts an image."""
    least: float
    """Least probability, 0..1."""

    def needs(self) -> list[Need]:
        return [Vectors(self.model, "image")]

    def open(self, device: str) -> Any:
        import numpy as np

        assert self.vocabulary is not None
        names = np.array(Vocabulary.read(self.vocabulary).names, dtype=object)
        prompts = text_encoder(self.model, device)([_PROMPT.format(name) for name in names])
        step = max(1, _MOST_LOGITS // len(names))

        def compute(batch: Batch) -> dict[str, Any]:
            found: list[list[str]] = []
            vectors = batch.vectors[self.model, "image"]
            for start in range(0, len(vectors), step):
                logits = _LOGIT_SCALE * (vectors[start : start + step] @ prompts.T)
                logits -= logits.max(axis=1, keepdims=True)
                p = np.exp(logits)
                p /= p.sum(axis=1, keepdims=True)
                best = np.argsort(-p, axis=1, kind="stable")[:, : self.top]
                for row, likely in zip(p, best, strict=True):
                    found.append(list(names[likely[row[likely] >= self.least]]))
            return {"image_concepts": found}

        return compute
