"""The numbers behind a selection: what each rule read of each sample, what it decided, and where it cut.

No rule is known by name: its numbers are those that its sentences show, and the numeric scores that it reads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curate.errors import CurateError, PartError
from curate.filter_api import Column, Filter, Judge, Need, Score, Similarity
from curate.plugins import settings
from curate.pool import Part, Pool
from curate.recipe import Group, Rule, Step, parse_step, rule_names
from curate.selection import Selection
from curate.stages import score
from curate.stages.decisions import MACHINE_RULES
from curate.stages.joint import samples_of
from curate.stages.samples import Samples

log = logging.getLogger("curate.report")

ROWS = 2_000_000
"""Samples that charts and examples are of; of a larger pool whole parts are drawn."""
VALUE = "value"
"""The column of the readings that are known of dropped samples alone."""
_LIMIT_NAME = re.compile(r"(^|_)(min|max|least|most|threshold|limit)(_|$)")
_FIELD = re.compile(r"\{(\w+)")


@dataclass(frozen=True)
class Reading:
    """A number that a rule reads of each sample."""

    label: str
    source: str
    """The model or scorer that it comes from, or empty."""
    needs: tuple[Need, ...]
    value: pl.Expr
    column: str = ""
    """Its name in the evidence's table."""


@dataclass(frozen=True)
class Cut:
    """The place at which a rule parts its readings."""

    at: float
    label: str


@dataclass
class RuleEvidence:
    """One line of the funnel: the rule, its readings by reason, and its cuts by reason."""

    line: Mapping[str, Any]
    place: int
    step: Step | None
    readings: dict[str, Reading] = field(default_factory=dict)
    """By reason: the number that decides."""
    further: list[Reading] = field(default_factory=list)
    """Scores that are read and stand in no sentence."""
    cuts: dict[str, Cut] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The rule's name in the decisions."""
        return str(self.line["rule"])


@dataclass
class Evidence:
    """A table with a row a sample, and what its columns mean.

    Columns: part, row (where it lies), place (of the rule that took it; the number of rules where it is kept),
    reason, error_code, value (of the drop), and one a reading.
    """

    parts: list[Part]
    table: pl.DataFrame
    rules: list[RuleEvidence]
    sampled: bool
    notes: list[str]
    """What could not be read, in words."""

    @property
    def kept(self) -> pl.Expr:
        """Whether a sample is in the selection."""
        return pl.col("place") == len(self.rules)

    def taken(self, rule: RuleEvidence, reason: str | None = None) -> pl.DataFrame:
        """The samples that a rule dropped, all or for one reason."""
        mine = (pl.col("place") == rule.place) & pl.col("reason").is_not_null()
        return self.table.filter(mine if reason is None else mine & (pl.col("reason").cast(pl.String) == reason))

    def readings(self) -> list[Reading]:
        """All readings that the table has a column of, each once, in the order of the rules."""
        held = [r for rule in self.rules for r in [*rule.readings.values(), *rule.further] if r.column != VALUE]
        return list({r.column: r for r in held}.values())


def gather(pool: Pool, selection: Selection, *, rows: int = ROWS, seed: int = 0) -> Evidence:
    """What the selection's rules read and decided, of all samples or of drawn parts with some `rows` of them.

    A part, a rule or a score that cannot be read costs itself and is noted.
    """
    notes: list[str] = []
    rules = [RuleEvidence(line, at, None) for at, line in enumerate(selection.funnel)]
    _load_rules(pool, selection, rules, notes)
    parts = [p for p in pool.parts if p.name in pool.rows]
    chosen = _draw_parts(pool, parts, rows, seed)
    samples = samples_of(pool)
    _find_readings(samples, rules, chosen, notes)
    evidence = Evidence(chosen, pl.DataFrame(), rules, len(chosen) < len(parts), notes)
    frames = [_part(samples, selection, evidence, index) for index in range(len(chosen))]
    whole = [f for f in frames if f is not None]
    evidence.table = pl.concat(whole) if whole else _empty(evidence)
    _find_cuts(evidence)
    return evidence


# --- the rules --------------------------------------------------------------------------------------------


def _load_rules(pool: Pool, selection: Selection, rules: Sequence[RuleEvidence], notes: list[str]) -> None:
    own = [r for r in rules if r.name not in MACHINE_RULES]
    for rule, text in zip(own, selection.raw.get("rules", ()), strict=False):
        try:
            rule.step = parse_step(_trusted(pool, str(text)))
        except CurateError as error:
            notes.append(f"The scores that {rule.name} read are not shown: {error}.")


def _trusted(pool: Pool, text: str) -> str:
    """The text of a rule, refused where it is a file in the pool: reading a pool must not run what lies in it."""
    for name in rule_names(text):
        path = Path(name).resolve()
        if name.endswith(".py") and any(
            path.is_relative_to(root.resolve()) for root in (pool.layout.root, pool.layout.work)
        ):
            raise PartError(name, "is a rule file inside the pool, which is not run")
    return text


def _find_readings(
    samples: Samples, rules: Sequence[RuleEvidence], parts: Sequence[Part], notes: list[str]
) -> None:
    """Fill in the readings of each rule, those that several rules share under one column."""
    columns: dict[tuple[str, str], str] = {}
    for rule in rules:
        for member in rule.step.rules if rule.step else ():
            try:
                by_reason, further = _readings(samples, member.filter, parts)
            except CurateError as error:
                notes.append(f"The scores that {rule.name} read are not shown: {error}.")
                continue
            for reason, reading in [*by_reason.items(), *(("", r) for r in further)]:
                column = columns.setdefault((reading.source, str(reading.value)), f"score_{len(columns)}")
                known = Reading(reading.label, reading.source, reading.needs, reading.value, column)
                if reason:
                    rule.readings[reason] = known
                elif column not in {r.column for r in rule.readings.values()}:
                    rule.further.append(known)


def _readings(samples: Samples, filter_: Filter, parts: Sequence[Part]) -> tuple[dict[str, Reading], list[Reading]]:
    needs = [n for n in filter_.needs() if isinstance(n, (Column, Score, Similarity))]
    there = samples.frame(needs, parts[0]).collect_schema() if parts else pl.Schema()
    by_reason = {}
    for reason, value in filter_.values().items() if isinstance(filter_, Judge) else ():
        roots = set(value.meta.root_names())
        read = tuple(n for n in needs if roots & set(_names(n)))
        if roots <= set(there.names()):
            label = value.meta.output_name() if value.meta.is_column() else reason
            by_reason[reason] = Reading(label, _source(read), read, value)
    shown = {name for reading in by_reason.values() for name in reading.value.meta.root_names()}
    further = [
        Reading(name, _source([need]), (need,), pl.col(name))
        for need in needs
        if not (isinstance(need, Column) and isinstance(filter_, Judge))
        for name in _names(need)
        if name not in shown and name in there.names() and there[name].is_numeric()
    ]
    return by_reason, further


def _names(need: Need) -> list[str]:
    if isinstance(need, Column):
        return [need.name]
    return list(need.scorer.columns) if isinstance(need, Score) else ["similarity"]


def _source(needs: Sequence[Need]) -> str:
    said = [score.folder_name(n.scorer) for n in needs if isinstance(n, Score)]
    said += [n.model + (f" ({n.source})" if n.source else "") for n in needs if isinstance(n, Similarity)]
    return ", ".join(said)


# --- the samples ------------------------------------------------------------------------------------------


def _draw_parts(pool: Pool, parts: list[Part], rows: int, seed: int) -> list[Part]:
    """All parts, or as many under `seed` as hold `rows` samples, in their order."""
    if pool.n <= rows:
        return parts
    drawn, held = [], 0
    for at in np.random.default_rng(seed).permutation(len(parts)).tolist():
        if held >= rows:
            break
        drawn.append(at)
        held += pool.rows[parts[at].name]
    return [parts[at] for at in sorted(drawn)]


def _part(samples: Samples, selection: Selection, evidence: Evidence, index: int) -> pl.DataFrame | None:
    part = evidence.parts[index]
    try:
        decided = selection.decisions(part.name)
        if len(decided) != samples.pool.rows[part.name]:
            found = f"{len(decided):,} decisions for {samples.pool.rows[part.name]:,} samples"
            raise PartError(part.name, f"has changed since it was judged ({found})")
    except CurateError as error:
        evidence.notes.append(f"A part is not shown: {error}.")
        return None
    places = {rule.name: rule.place for rule in evidence.rules}
    last = len(evidence.rules)
    base = decided.select(
        pl.lit(index, pl.UInt32).alias("part"),
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        pl.col("rule")
        .cast(pl.String)
        .replace_strict(places, default=last, return_dtype=pl.Int16)
        .fill_null(last)
        .alias("place"),
        pl.col("reason").cast(pl.String).cast(_words(evidence, "dropped"), strict=False),
        pl.col("error_code").cast(pl.String).cast(_words(evidence, "unjudged"), strict=False),
        pl.col("value").cast(pl.Float32),
    )
    return base.with_columns(list(_scores(samples, evidence, part)))


def _scores(samples: Samples, evidence: Evidence, part: Part) -> Iterator[pl.Series]:
    rows = samples.pool.rows[part.name]
    for reading in evidence.readings():
        value = reading.value.cast(pl.Float32).alias(reading.column)
        try:
            yield samples.frame(reading.needs, part).select(value).collect()[reading.column]
        except (CurateError, pl.exceptions.PolarsError) as error:
            evidence.notes.append(f"{reading.label} of part {part.name} is not shown: {error}.")
            yield pl.Series(reading.column, [None] * rows, dtype=pl.Float32)


def _words(evidence: Evidence, what: str) -> pl.Enum:
    """Reasons or error codes as a type of a byte or two: those that the funnel has."""
    return pl.Enum(sorted({word for rule in evidence.rules for word in rule.line[what]}))


def _empty(evidence: Evidence) -> pl.DataFrame:
    schema = {"part": pl.UInt32, "row": pl.UInt32, "place": pl.Int16, "reason": pl.String, "error_code": pl.String}
    return pl.DataFrame(
        schema=schema | dict.fromkeys(["value", *(r.column for r in evidence.readings())], pl.Float32)
    )


# --- the cuts ---------------------------------------------------------------------------------------------


def _find_cuts(evidence: Evidence) -> None:
    for rule in evidence.rules:
        for member in rule.step.rules if rule.step else ():
            if isinstance(member.filter, Judge):
                _cut_judge(evidence, rule, member, alone=not isinstance(rule.step, Group))
            else:
                _cut_sampler(evidence, rule, member)


def _cut_judge(evidence: Evidence, rule: RuleEvidence, member: Rule, *, alone: bool) -> None:
    """The cuts of a judge, checked against what it took and what it left, which is known where it is `alone`."""
    for reason in [r for r in member.filter.reasons if r in rule.readings]:
        column = rule.readings[reason].column
        taken = passed = None
        if alone:
            taken = _range(evidence.taken(rule, reason)[column])
            passed = _range(evidence.table.filter(pl.col("place") > rule.place)[column])
        figure = rule.line.get("figures", {}).get("threshold" if alone else f"{member.name} threshold")
        cut = _cut(_candidates(member.filter, reason, figure), taken, passed)
        if cut is not None:
            rule.cuts[reason] = cut


def _cut_sampler(evidence: Evidence, rule: RuleEvidence, member: Rule) -> None:
    """Readings of a sampler: the numbers that its drops were booked with."""
    for reason in member.filter.reasons:
        taken = _range(evidence.taken(rule, reason)["value"])
        if taken is not None:
            rule.readings[reason] = Reading(reason, "", (), pl.col("value"), VALUE)
            cut = _cut(_candidates(member.filter, reason, None), taken, None)
            if cut is not None:
                rule.cuts[reason] = cut


def _range(values: pl.Series) -> tuple[float, float] | None:
    held = values.drop_nulls()
    low, high = held.min(), held.max()
    return (float(low), float(high)) if isinstance(low, float) and isinstance(high, float) else None


def _candidates(filter_: Filter, reason: str, figure: object) -> list[tuple[str, float]]:
    """Numbers that may be the threshold: the one worked out, else settings in the sentence or named as limits.

    A limit that the sentence of another reason has is that one's.
    """
    if isinstance(figure, float):
        return [("threshold", figure)]
    named = {why: set(_FIELD.findall(sentence)) for why, sentence in filter_.reasons.items()}
    known = [s.name for s in settings(type(filter_))]
    free = [n for n in known if _LIMIT_NAME.search(n) and not any(n in fields for fields in named.values())]
    names = [n for n in known if n in named[reason]] or free
    found = [(name, getattr(filter_, name)) for name in names]
    return [(k, float(v)) for k, v in found if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _cut(
    candidates: Sequence[tuple[str, float]], taken: tuple[float, float] | None, passed: tuple[float, float] | None
) -> Cut | None:
    """The candidate that parts the dropped from the others, else the edge of the others, else None.

    Where one side is empty, only a setting that is named as a limit is believed.
    """
    for name, at in candidates:
        # stored values are float32, so a limit of 0.3 is compared as such
        near = float(np.float32(at))
        floor = (taken is None or taken[1] <= near) and (passed is None or near <= passed[0])
        ceiling = (taken is None or near <= taken[0]) and (passed is None or passed[1] <= near)
        limit = _LIMIT_NAME.search(name) is not None
        if (floor or ceiling) and ((taken and passed) or limit):
            return Cut(at, f"{name} {at:.6g}")
    if taken and passed and taken[1] <= passed[0]:
        return Cut(passed[0], f"lowest left {passed[0]:.6g}")
    if taken and passed and passed[1] <= taken[0]:
        return Cut(passed[1], f"highest left {passed[1]:.6g}")
    return None
