"""Samples that show what a rule does: those nearest to its cuts first, then some at random; ready to be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from curate import uids
from curate.errors import CurateError
from curate.pool import Part, Pool
from curate.selection import Selection
from curate.views.charts import number
from curate.views.evidence import Evidence, Reading, RuleEvidence
from curate.views.inert import CAPTION_CHARACTERS, inert, plain_url
from curate.views.pictures import Picture, Pictures, meaning

NEAR, RANDOM, OPEN = 12, 6, 6
"""Examples of a rule and a side: nearest to a cut, at random; and unjudged ones of a rule."""
TILES = 640
"""Examples on a page at most, beside the copies that stayed."""
NUMBERS = 8
"""Scores on a tile at most, the rule's own first."""
BUDGET = 11_000_000
"""Characters of all thumbnails of a page, so that it stays under 15 MB."""
_COLUMNS = ("uid", "url", "caption", "original_width", "original_height", "width", "height")


@dataclass(frozen=True)
class Tile:
    """One sample as it is shown."""

    uid: str
    verdict: str
    """kept, dropped or unjudged: its end, not what this rule says."""
    said: str
    later: str
    """The rule that took it, where that is not the rule that it is shown under."""
    caption: str | None
    characters: int
    """Of the whole caption."""
    url: str
    size: str
    numbers: Sequence[tuple[str, str]]
    picture: Picture
    stayed: Tile | None = None
    """The copy that the reason speaks of."""


@dataclass(frozen=True)
class Group:
    """Tiles of one kind under a heading."""

    title: str
    tiles: Sequence[Tile]


def examples(
    pool: Pool, selection: Selection, evidence: Evidence, *, seed: int = 0, pictures: bool = True
) -> tuple[list[list[Group]], int]:
    """For each rule of the evidence its groups of examples; and how many pictures they have."""
    factor = min(1.0, TILES / max(1, len(evidence.rules) * (2 * (NEAR + RANDOM) + OPEN)))
    plans = [list(_plan(evidence, rule, factor, seed)) for rule in evidence.rules]
    shown = _Shown(pool, selection, evidence, Pictures(pool, wanted=pictures))
    shown.load([rows for plan in plans for _, rows in plan])
    groups = [
        [Group(title, shown.tiles(rule, rows)) for title, rows in plan]
        for rule, plan in zip(evidence.rules, plans, strict=True)
    ]
    return groups, shown.drawn


# --- which ------------------------------------------------------------------------------------------------


def _plan(evidence: Evidence, rule: RuleEvidence, factor: float, seed: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """Titles and rows of the evidence's table: what the rule dropped, left, and could not judge."""
    near, some, open_ = (max(2, int(n * factor)) for n in (NEAR, RANDOM, OPEN))
    taken = evidence.taken(rule)
    passed = evidence.table.filter(pl.col("place") > rule.place)
    for word, side, first in (
        ("Dropped", taken, _nearest_taken(rule, taken, near)),
        ("Left", passed, _nearest_left(rule, passed, near)),
    ):
        if len(first):
            yield f"{word}, nearest to the threshold", first
        rest = side.join(first.select("part", "row"), on=["part", "row"], how="anti", maintain_order="left")
        count = some if len(first) else max(some, near)
        if len(rest):
            how = f", at random (seed {seed})" if len(rest) > count else ", the others" if len(first) else ""
            yield f"{word}{how}", _some(rest, count, seed)
    unjudged = evidence.table.filter((pl.col("place") == rule.place) & pl.col("reason").is_null())
    if len(unjudged):
        yield (
            "Unjudged" + (f", at random (seed {seed})" if len(unjudged) > open_ else ""),
            _some(unjudged, open_, seed),
        )


def _nearest_taken(rule: RuleEvidence, taken: pl.DataFrame, count: int) -> pl.DataFrame:
    """Drops by their distance to the cut, the reasons in turn."""
    by_reason = [
        _by_distance(taken.filter(pl.col("reason").cast(pl.String) == reason), rule.readings[reason], cut.at)
        for reason, cut in rule.cuts.items()
        if reason in rule.readings
    ]
    return _in_turn(by_reason, taken, count)


def _nearest_left(rule: RuleEvidence, passed: pl.DataFrame, count: int) -> pl.DataFrame:
    """Samples that the rule left by their distance to its cuts, the cuts in turn."""
    by_cut = [
        _by_distance(passed, rule.readings[reason], cut.at)
        for reason, cut in rule.cuts.items()
        if rule.readings[reason].needs
    ]
    return _in_turn(by_cut, passed, count)


def _by_distance(side: pl.DataFrame, reading: Reading, at: float) -> pl.DataFrame:
    distance = (pl.col(reading.column).cast(pl.Float64) - at).abs()
    known = side.filter(pl.col(reading.column).is_not_null())
    return known.sort(distance, "part", "row")


def _in_turn(orders: Sequence[pl.DataFrame], side: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first `count` distinct rows of several orders, one of each in turn."""
    ranked = [
        o.head(count).with_row_index("_rank").with_columns(pl.lit(n).alias("_turn")) for n, o in enumerate(orders)
    ]
    if not ranked:
        return side.clear()
    mixed = pl.concat(ranked).sort("_rank", "_turn").unique(["part", "row"], keep="first", maintain_order=True)
    return mixed.head(count).drop("_rank", "_turn")


def _some(side: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    if len(side) <= count:
        return side
    at = np.random.default_rng(seed).choice(len(side), count, replace=False)
    return side[sorted(at.tolist())]


# --- what they are ----------------------------------------------------------------------------------------


class _Shown:
    """The samples that a page shows: read once, part by part."""

    def __init__(self, pool: Pool, selection: Selection, evidence: Evidence, pictures: Pictures) -> None:
        self.pool, self.selection, self.evidence, self.pictures = pool, selection, evidence, pictures
        self.samples: dict[tuple[str, int], dict[str, Any]] = {}
        self.stayed: dict[bytes, tuple[str, int]] = {}
        self.drawn, self._left = 0, BUDGET

    def load(self, chosen: Sequence[pl.DataFrame]) -> None:
        """Read all rows of these frames, and the copies that they name."""
        wanted: dict[str, set[int]] = {}
        for part, row in (place for frame in chosen for place in frame.select("part", "row").iter_rows()):
            wanted.setdefault(self.evidence.parts[part].name, set()).add(row)
        parts = {p.name: p for p in self.pool.parts if p.name in self.pool.rows}
        named: set[bytes] = set()
        for name in sorted(wanted):
            self._read(parts[name], sorted(wanted[name]), named)
        self.stayed = self._find(named)
        others: dict[str, set[int]] = {}
        for name, row in self.stayed.values():
            if (name, row) not in self.samples:
                others.setdefault(name, set()).add(row)
        for name in sorted(others):
            self._read(parts[name], sorted(others[name]), set())

    def _read(self, part: Part, rows: list[int], named: set[bytes]) -> None:
        frame = self.pool.scan(part, _COLUMNS, optional=_COLUMNS).with_row_index("row")
        caption = pl.col("caption").cast(pl.String, strict=False)
        read = frame.filter(pl.col("row").is_in(rows)).with_columns(
            caption.str.len_chars().alias("characters"), caption.str.head(CAPTION_CHARACTERS + 1).alias("caption")
        )
        of = self._of(part, rows)
        named.update(uid for uid in of if uid is not None)
        pictures = self.pictures.of(part, rows)
        for row, uid, picture in zip(read.collect().sort("row").iter_rows(named=True), of, pictures, strict=True):
            self.samples[part.name, row["row"]] = {**row, "of": uid, "picture": picture}

    def _of(self, part: Part, rows: list[int]) -> list[bytes | None]:
        try:
            decided = self.selection.decisions(part.name)["of"]
        except CurateError:
            return [None] * len(rows)
        return list(decided[rows].to_list())

    def _find(self, named: set[bytes]) -> dict[bytes, tuple[str, int]]:
        """The part and row of each of these uids: parts that are charted first, others only if need be."""
        found: dict[bytes, tuple[str, int]] = {}
        charted = {p.name for p in self.evidence.parts}
        parts = sorted(
            (p for p in self.pool.parts if p.name in self.pool.rows), key=lambda p: p.name not in charted
        )
        for part in parts:
            if len(found) == len(named):
                break
            pairs = self.pool.uids(part)
            high = np.array([int.from_bytes(u[:8], "big") for u in named - found.keys()], np.uint64)
            for row in np.flatnonzero(np.isin(pairs["f0"], high)).tolist():
                uid = bytes.fromhex(uids.to_hex(pairs[row : row + 1])[0])
                if uid in named:
                    found.setdefault(uid, (part.name, row))
        return found

    def tiles(self, rule: RuleEvidence, rows: pl.DataFrame) -> list[Tile]:
        """The tiles of these rows of the evidence's table, under a rule."""
        return [self._tile(rule, row) for row in rows.iter_rows(named=True)]

    def _tile(self, rule: RuleEvidence, row: dict[str, Any]) -> Tile:
        sample = self.samples[self.evidence.parts[row["part"]].name, row["row"]]
        verdict, said = self._verdict(row, sample)
        later = "" if verdict == "kept" or row["place"] == rule.place else self.evidence.rules[row["place"]].name
        mine = [*rule.readings.values(), *rule.further]
        others = [r for r in self.evidence.readings() if r.source]
        readings = {r.column: r for r in [*mine, *others] if row[r.column] is not None}
        numbers = [(r.label, number(row[r.column])) for r in list(readings.values())[:NUMBERS]]
        stayed = self.stayed.get(sample["of"]) if row["place"] == rule.place and sample["of"] else None
        kept = self._plain(self.samples[stayed], "stayed") if stayed else None
        return self._plain(sample, verdict, said, later, numbers, kept)

    def _verdict(self, row: dict[str, Any], sample: dict[str, Any]) -> tuple[str, str]:
        if row["place"] == len(self.evidence.rules):
            return "kept", ""
        took = self.evidence.rules[row["place"]]
        if row["reason"] is not None:
            return "dropped", sentence(self.selection, took.name, row["reason"], row["value"], sample["of"])
        code = row["error_code"] or "no_value"
        return "unjudged", f"{code}: {meaning(code)}"

    def _plain(
        self,
        sample: dict[str, Any],
        verdict: str,
        said: str = "",
        later: str = "",
        numbers: Sequence[tuple[str, str]] = (),
        stayed: Tile | None = None,
    ) -> Tile:
        sides = [(sample[f"{kind}width"], sample[f"{kind}height"]) for kind in ("original_", "")]
        size = next((f"{w} \u00d7 {h} px" for w, h in sides if w is not None and h is not None), "")
        if sample["picture"].blocked:  # a metadata file knows them all the same
            sample = {**sample, "url": None, "caption": None, "characters": None}
        caption = None if sample["caption"] is None else inert(sample["caption"])
        return Tile(
            uid=str(sample["uid"]),
            verdict=verdict,
            said=inert(said, 400),
            later=later,
            caption=caption,
            characters=sample["characters"] or 0,
            url=plain_url(str(sample["url"])) if sample["url"] is not None else "",
            size=size,
            numbers=numbers,
            picture=self._afforded(sample["picture"]),
            stayed=stayed,
        )

    def _afforded(self, picture: Picture) -> Picture:
        """The picture, or a note in its place once the page is full."""
        if picture.source is None:
            return picture
        if len(picture.source) > self._left:
            return Picture(None, "left out, so that the page stays small")
        self._left -= len(picture.source)
        self.drawn += 1
        return picture


def sentence(selection: Selection, rule: str, reason: str, value: float | None, of: bytes | None) -> str:
    """Why a rule dropped a sample, in words; a uid is cut to its first 8 digits."""
    text = str(selection.raw.get("sentences", {}).get(rule, {}).get(reason, reason))
    try:
        return text.format(value=float("nan") if value is None else value, of=of.hex()[:8] if of else "another")
    except (ValueError, LookupError, AttributeError, TypeError):
        return text
