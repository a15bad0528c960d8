"""Not written yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import Figures, Judge, Need

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class TextBased(Judge):
    """Not written yet."""

    reasons: ClassVar[Mapping[str, str]] = {"never": "never"}

    def needs(self) -> list[Need]:
        return []

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        return {"never": pl.lit(True)}
