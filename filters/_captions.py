"""What several filters do with captions, so that it is done the same way everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_WORD = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
"""A run of characters for which `str.isspace` is false: what `str.split()` splits at differs from regex `\\s`
in U+001C to U+001F."""


def count_words(caption: pl.Expr) -> pl.Expr:
    """`len(caption.split())` of each caption, exactly, Unicode's spaces included."""
    return caption.str.count_matches(_WORD)


def count_chars(caption: pl.Expr) -> pl.Expr:
    """`len(caption)` of each caption: code points."""
    return caption.str.len_chars()
