"""A seeded draw: a fraction or a number of samples, in which a smaller draw lies inside a larger one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from curate.filter_api import Draw, Left, Need, Sampler, fraction_of, setting


@dataclass(frozen=True)
class Random(Sampler):
    """Keep a random fraction or number of the samples left by the rules above.

    Exactly floor(fraction * N), or n (all, where fewer are left): those whose chance is lowest, ties by uid.
    Chance depends on (uid, seed) alone, so that under one seed a smaller draw lies inside a larger one, and
    a sample's luck is the same in every pool and order. `of=pool` takes N from the pool instead of what is
    left.
    """

    reasons: ClassVar[Mapping[str, str]] = {"not_drawn": "not drawn under seed {seed}"}

    fraction: float | None = setting(None, "share to keep, over 0 and at most 1; instead of n")
    n: int | None = setting(None, "samples to keep, 1 or more; instead of fraction")
    seed: int = setting(0, "seed of the chance")
    of: str = setting("left", "what the fraction is of", choices=("left", "pool"))

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.n is None):
            found = "neither" if self.n is None else f"fraction={self.fraction} and n={self.n}"
            raise ValueError(f"wants either fraction or n (found {found})")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is over 0 and at most 1 (found {self.fraction})")
        if self.n is not None and self.n < 1:
            raise ValueError(f"n is 1 or more (found {self.n})")
        if self.of not in ("left", "pool"):
            raise ValueError(f"of is left or pool (found {self.of!r})")
        if self.of == "pool" and self.fraction is None:
            raise ValueError("of=pool goes with fraction; n is a number of samples in any case")

    def needs(self) -> list[Need]:
        return []

    def draw(self, left: Left) -> Draw:
        import numpy as np

        if self.fraction is None:
            wanted = self.n or 0
        else:
            wanted = fraction_of(left.n if self.of == "left" else left.pool_n, self.fraction)
        if wanted >= left.n:
            return Draw(np.ones(left.n, np.uint16), "not_drawn")
        copies = np.zeros(left.n, np.uint16)
        copies[np.argsort(left.chance(self.seed), kind="stable")[:wanted]] = 1
        return Draw(copies, "not_drawn")
