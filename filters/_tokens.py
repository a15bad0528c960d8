"""fastText's tokens, counted without fastText."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_TOKEN = r"[^\x00\t-\r ]+|\n"
"""A run of bytes between ASCII white space and NULs; and each newline, which fastText reads as `</s>`."""


def count_tokens(caption: pl.Expr) -> pl.Expr:
    """`len(fasttext.tokenize(caption))` of each caption, exactly: other spaces of Unicode do not divide."""
    return caption.str.count_matches(_TOKEN)
