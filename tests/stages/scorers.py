"""Scorers that the tests of `score` run; spawned processes import them from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.filter_api import Batch, Column, Images, Need, SampleError, Scorer, Vectors

if TYPE_CHECKING:
    from PIL.Image import Image

Compute = Callable[[Batch], Mapping[str, Any]]
computed: list[str] = []
"""The uids that scorers over pixels have computed in this process."""


@dataclass(frozen=True)
class Length(Scorer):
    """The caption's length, a list of its words, and in which batch it came."""

    name: ClassVar[str] = "length"
    version: ClassVar[int] = 3
    columns: ClassVar[Mapping[str, str]] = {"length": "Int32", "words": "List(String)", "rows": "Int32"}
    rows: ClassVar[int] = 4

    def needs(self) -> Sequence[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Compute:
        def compute(batch: Batch) -> Mapping[str, Any]:
            captions = batch.columns["caption"]
            return {
                "length": [len(c) for c in captions],
                "words": [c.split() for c in captions],
                "rows": [len(batch)] * len(batch),
            }

        return compute


@dataclass(frozen=True)
class Times(Scorer):
    """A number of the list, times a setting; nan where it is 13."""

    name: ClassVar[str] = "times"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"product": "Float32"}

    factor: float = 2.0

    def needs(self) -> Sequence[Need]:
        return [Column("number"), Column("unknown", optional=True)]

    def open(self, device: str) -> Compute:
        def compute(batch: Batch) -> Mapping[str, Any]:
            assert set(batch.columns["unknown"]) <= {None}
            return {"product": [float("nan") if n == 13 else n * self.factor for n in batch.columns["number"]]}

        return compute


@dataclass(frozen=True)
class Brightness(Scorer):
    """The mean of the pixels; refuses what is wider than it is high by half or more."""

    name: ClassVar[str] = "brightness"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"brightness": "Float32"}
    rows: ClassVar[int] = 2

    widest: float = 100.0

    def needs(self) -> Sequence[Need]:
        return [Images(), Column("caption")]

    def prepare(self, image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if image.width > self.widest:
            raise SampleError("bad_aspect", "is too wide")
        return np.asarray(image.resize((4, 4)))

    def open(self, device: str) -> Compute:
        def compute(batch: Batch) -> Mapping[str, Any]:
            assert len(batch.images) == len(batch.columns["caption"]) == len(batch.uid)
            computed.extend(batch.uid)
            return {"brightness": batch.images.reshape(len(batch), -1).mean(axis=1)}

        return compute


@dataclass(frozen=True)
class First(Scorer):
    """The first number of the image's vector."""

    name: ClassVar[str] = "first"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"first": "Float32"}

    model: str = "ViT-L-14/openai"

    def needs(self) -> Sequence[Need]:
        return [Vectors(self.model, "image")]

    def open(self, device: str) -> Compute:
        return lambda batch: {"first": batch.vectors[self.model, "image"][:, 0]}


@dataclass(frozen=True)
class Both(Scorer):
    """The mean of the pixels, and their words: over pixels and vectors."""

    name: ClassVar[str] = "both"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"pixels": "Float32", "words": "List(String)"}
    rows: ClassVar[int] = 4

    model: str = "tiny"

    def needs(self) -> Sequence[Need]:
        return [Images(), Vectors(self.model, "image"), Column("caption")]

    def prepare(self, image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.asarray(image.resize((4, 4)))

    def open(self, device: str) -> Compute:
        def compute(batch: Batch) -> Mapping[str, Any]:
            computed.extend(batch.uid)
            pixels = batch.images.reshape(len(batch), -1).mean(axis=1)
            return {
                "pixels": pixels + batch.vectors[self.model, "image"][:, 0],
                "words": [c.split() for c in batch.columns["caption"]],
            }

        return compute


@dataclass(frozen=True)
class Costly(Scorer):
    """The caption's length, for those rows alone that a rule has yet to decide on."""

    name: ClassVar[str] = "costly"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"cost": "Int32"}
    rows: ClassVar[int] = 4
    some_rows: ClassVar[bool] = True

    factor: int = 1
    refuses: str = "never"
    """A caption for which the whole part fails."""

    def needs(self) -> Sequence[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Compute:
        def compute(batch: Batch) -> Mapping[str, Any]:
            assert self.refuses not in batch.columns["caption"]
            computed.extend(batch.uid)
            return {"cost": [self.factor * len(c) for c in batch.columns["caption"]]}

        return compute
