"""Planted against found: how well a run of the pipeline told the demo's defects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from curate.demo.plant import COPIES, HARMLESS, SHARES


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    defect: str
    planted: int
    found: int
    flagged: int
    """Samples that bear this finding's reason or error code, whatever was planted."""
    precision: float | None
    """Planted defects among the flagged; None where nothing was flagged."""
    recall: float | None


def _rule(name: str) -> pl.Expr:
    return pl.col("rule").str.starts_with(name).fill_null(False)


def _reason(*names: str) -> pl.Expr:
    return pl.col("reason").is_in(names).fill_null(False)


def _code(*names: str) -> pl.Expr:
    return pl.col("error_code").is_in(names).fill_null(False)


SIGNS: Mapping[str, pl.Expr] = {
    "wrong caption": _rule("clipscore"),
    **dict.fromkeys(COPIES, _rule("dedup")),
    "watermark": _reason("watermark", "lettering"),
    "foreign caption": _reason("caption_language"),
    "short caption": _reason("caption_words", "caption_chars"),
    "small image": _reason("image_side") | _code("too_small"),
    "stretched image": _reason("image_aspect") | _code("bad_aspect"),
    "dead link": _code("http_404"),
    "HTML for an image": _code("not_an_image"),
    "silent host": _code("timeout"),
    # the sign of a slow host is that its samples are here
    "slow host": pl.col("error_code").is_null(),
}
"""What says, for each defect, that it was found."""


def compare(truth: pl.DataFrame, decisions: pl.DataFrame) -> list[Finding]:
    """A line for each defect, in SHARES' order.

    `truth` is what `plant.write_truth` wrote; `decisions` has `url`, `rule` and `reason` (null where kept) and
    `error_code` (null where fetched), one row a sample. Of a copy and its original either may go: they are found
    if one of the two went. Raises ValueError where a planted candidate has no decision or several.
    """
    path = pl.col("url").str.replace(r"^https?://[^/]*", "").alias("path")
    seen = decisions.select(path, "rule", "reason", "error_code")
    both = truth.join(seen, on="path", how="left", validate="1:1", maintain_order="left")
    missing = both.height - truth.join(seen, on="path", how="semi").height
    if missing:
        raise ValueError(f"{missing} planted candidates have no decision")
    return [_finding(defect, both) for defect in SHARES]


def _finding(defect: str, both: pl.DataFrame) -> Finding:
    flagged = both.filter(SIGNS[defect])
    mine = both.filter(pl.col("defect") == defect)
    if defect in COPIES:
        copies = both.filter(pl.col("defect").is_in(COPIES))
        right = copies.join(flagged, on="seed", how="semi").height
        found = mine.join(flagged, on="seed", how="semi").height
    else:
        right = found = mine.filter(SIGNS[defect]).height
    of_planted = found / mine.height if mine.height else None
    of_flagged = right / flagged.height if flagged.height and defect not in HARMLESS else None
    return Finding(defect, mine.height, found, flagged.height, of_flagged, of_planted)
