"""The decision on every sample, in the making: small arrays over all rows, and the funnel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.stages.samples import Mask, Samples

MOST_COPIES = np.iinfo(np.uint16).max

SCALE, SAME_UID = "scale", "same_uid"
MACHINE_RULES = (SCALE, SAME_UID)
"""What stands in a rule's place where the machine itself drops samples: those outside of the scale's pool, and
further rows of one uid. No rule of a recipe is called so."""
OUTSIDE = "outside_scale"
"""Why a sample outside of the scale's pool is dropped."""


def pool_size(funnel: Sequence[Mapping[str, Any]], samples: int) -> int:
    """How many a fraction of the pool is of: all `samples` or, if there is a scale, those in its pool."""
    return int(funnel[0]["left"]) if funnel and funnel[0]["rule"] == SCALE else samples


class Words:
    """A growing list of words that arrays refer to by number."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, word: str) -> int:
        """The number of `word`, a new one where it is new."""
        if word not in self._numbers:
            self._numbers[word] = len(self.words)
            self.words.append(word)
        return self._numbers[word]


@dataclass
class Taken:
    """How many samples a rule took: by the number of the reason, or of the error code."""

    dropped: Counter[int] = field(default_factory=Counter)
    unjudged: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, reasons: npt.NDArray[np.int16], codes: npt.NDArray[np.int16]) -> Taken:
        """Counted from the numbers of some samples, -1 for none."""
        return cls(counted(reasons), counted(codes))

    def add(self, other: Taken) -> None:
        """Count those of `other` too."""
        self.dropped.update(other.dropped)
        self.unjudged.update(other.unjudged)


def counted(numbers: npt.NDArray[np.int16]) -> Counter[int]:
    """How often each number stands there, -1 (none) left out."""
    counts = np.bincount(numbers + 1)[1:]  # -1 is none
    return Counter({i: int(n) for i, n in enumerate(counts) if n})


def put(target: npt.NDArray[Any], where: Mask, values: Any) -> None:
    """`target[where] = values[where]` (or one value), without a branch a row: fast also where chance decides."""
    kind = f"i{target.itemsize}"
    bits = target.view(kind)
    new = np.asarray(values, target.dtype).view(kind)
    bits ^= (bits ^ new) & -where.view(np.int8).astype(kind)


@dataclass
class Decisions:
    """The decision on every sample: 12 bytes each, beside the uids."""

    samples: Samples
    rule: npt.NDArray[np.int16] = field(init=False)
    """The rule that dropped it or could not judge it; -1 while it is left."""
    reason: npt.NDArray[np.int16] = field(init=False)
    code: npt.NDArray[np.int16] = field(init=False)
    value: npt.NDArray[np.float32] = field(init=False)
    copies: npt.NDArray[np.uint16] = field(init=False)
    of: npt.NDArray[np.int64] | None = None
    """The sample that the reason speaks of, as a global row; -1 for none."""
    rules: Words = field(default_factory=Words)
    reasons: Words = field(default_factory=Words)
    codes: Words = field(default_factory=Words)
    funnel: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.samples.n
        self.rule, self.reason, self.code = (np.full(n, -1, dtype=np.int16) for _ in range(3))
        self.value = np.full(n, np.nan, dtype=np.float32)
        self.copies = np.ones(n, dtype=np.uint16)

    @property
    def left(self) -> Mask:
        """The samples that no rule has taken."""
        return self.rule < 0

    def book(self, name: str, text: str, notes: Mapping[str, Any], before: int, taken: Taken | None = None) -> None:
        """Add the funnel's line of the rule that just ran; what it took is counted where nobody did."""
        if taken is None:
            number = self.rules.number(name)
            mine = self.rule == number
            taken = Taken.of(self.reason[mine], self.code[mine])
            self.copies[mine] = 0
        self.funnel.append(
            {
                "rule": name,
                "text": text,
                "figures": {name: _plain(figure) for name, figure in notes.items()},
                "in": before,
                "dropped": {w: taken.dropped[i] for i, w in enumerate(self.reasons.words) if taken.dropped[i]},
                "unjudged": {w: taken.unjudged[i] for i, w in enumerate(self.codes.words) if taken.unjudged[i]},
                "left": before - taken.dropped.total() - taken.unjudged.total(),
            }
        )

    def take(self, rows: Any, name: str, reason: str) -> None:
        """Drop the global `rows` (index or mask) for one reason."""
        self.rule[rows] = self.rules.number(name)
        self.reason[rows] = self.reasons.number(reason)


def _plain(figure: Any) -> Any:
    """A figure as JSON can say it: infinity and NaN in words."""
    return figure if not isinstance(figure, float) or math.isfinite(figure) else str(figure)


def numbers(words: Words, column: pl.Series) -> npt.NDArray[np.int16]:
    """The number of each word of a column."""
    known = {w: words.number(w) for w in column.unique(maintain_order=True).to_list()}
    return column.replace_strict(known, return_dtype=pl.Int16).to_numpy()
