"""Decisions: every rule in turn over the samples that those above it left; a drop is booked once."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.errors import InputError
from curate.filter_api import Draw, Judge, Sampler, Score, Scorer
from curate.plugins import blamed
from curate.pool import Part, reading
from curate.recipe import Group, Recipe, Rule, Step
from curate.stages.figures import PoolFigures, SamplesLeft
from curate.stages.samples import Mask, Samples

log = logging.getLogger("curate.filter")

KEEP, DROP, UNJUDGED = 1, 0, -1
MOST_COPIES = np.iinfo(np.uint16).max
SAME_UID = "same_uid"
OUTSIDE = "outside_scale"

States = npt.NDArray[np.int8]
Compute = Callable[[Scorer, Mapping[str, Mask]], None]
"""Has a scorer's columns computed for some rows of each part."""


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
        return cls(_counted(reasons), _counted(codes))

    def add(self, other: Taken) -> None:
        """Count those of `other` too."""
        self.dropped.update(other.dropped)
        self.unjudged.update(other.unjudged)


def _counted(numbers: npt.NDArray[np.int16]) -> Counter[int]:
    return Counter({i: int(n) for i, n in enumerate(np.bincount(numbers[numbers >= 0])) if n})


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


def decide(
    samples: Samples,
    recipe: Recipe,
    *,
    texts: Sequence[str] | None = None,
    inside: Mask | None = None,
    compute: Compute | None = None,
) -> Decisions:
    """The decision of `recipe` on every sample; `inside` is the scale's pool, outside of which all is dropped.

    `texts` are the rules as their user wrote them, for the funnel. `compute` is called for scores that may be
    had for some rows only, with those that a rule has yet to decide on; without it they are taken as they are.
    """
    decisions = Decisions(samples)
    left = samples.n
    if inside is not None and not inside.all():
        decisions.take(~inside, "scale", OUTSIDE)
        decisions.book("scale", "scale", {}, left)
        left = int(decisions.funnel[-1]["left"])
    if not recipe.keep_same_uid:
        left = _drop_same_uid(decisions, left)
    ranked = decisions.left
    for number, step in enumerate(recipe):
        name = _unique_name(step.label, decisions, number)
        taken: Taken | None = None
        if isinstance(step, Rule) and isinstance(step.filter, Sampler):
            notes = _draw(decisions, step, name)
        else:
            notes, taken = _judge(decisions, step, name, ranked, left, compute)
        sources = samples.sources([n for rule in step.rules for n in rule.needs])
        decisions.book(name, texts[number] if texts else step.text, sources | notes, left, taken)
        left = int(decisions.funnel[-1]["left"])
    return decisions


def _unique_name(name: str, decisions: Decisions, number: int) -> str:
    return name if name not in decisions.rules.words else f"{name}#{number + 1}"


def _drop_same_uid(decisions: Decisions, left: int) -> int:
    samples = decisions.samples
    ordered = samples.uids[samples.order]
    same = ordered["f0"][1:] == ordered["f0"][:-1]
    same &= ordered["f1"][1:] == ordered["f1"][:-1]
    again = samples.order[1:][same]
    again = again[decisions.rule[again] < 0]
    if len(again):
        decisions.take(again, SAME_UID, SAME_UID)
        decisions.book(SAME_UID, SAME_UID, {}, left)
    return left - len(again)


# --- judges -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """A judge with its conditions made."""

    rule: Rule
    keep: dict[str, pl.Expr]
    values: dict[str, pl.Expr]


@dataclass
class _Verdicts:
    """What a judge or a group says of the samples of one part."""

    state: States
    reason: npt.NDArray[np.int16]
    value: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _View:
    """A part with the frame of each rule that is asked about it."""

    index: int
    part: Part
    frames: Mapping[int, pl.LazyFrame]


def _judge(
    decisions: Decisions, step: Step, name: str, ranked: Mask, before: int, compute: Compute | None
) -> tuple[dict[str, Any], Taken]:
    samples = decisions.samples
    ready: dict[int, _Ready] = {}
    notes: dict[str, Any] = {}
    for rule in step.rules:
        asking = _Asking(decisions, rule, compute)
        ready[id(rule)], noted = _make_ready(decisions, rule, ranked, before, asking)
        asking.in_turn(ready[id(rule)])
        notes |= noted if len(step.rules) == 1 else {f"{rule.name} {k}": v for k, v in noted.items()}
    needs = [n for rule in step.rules for n in rule.needs]
    number = decisions.rules.number(name)
    _number_reasons(decisions, step, ready)

    def prepare(index: int, part: Part) -> _View:
        some = bool((decisions.rule[samples.span(index)] < 0).any())
        return _View(index, part, {id(r): samples.frame(r.needs, part) for r in step.rules} if some else {})

    def work(view: _View) -> tuple[_View, Taken, Mask | None]:
        if not view.frames:
            return view, Taken(), None
        verdicts = _verdicts(decisions, step, ready, view)
        span = samples.span(view.index)
        left = decisions.rule[span] < 0
        dropped = left & (verdicts.state == DROP)
        unjudged = left & (verdicts.state == UNJUDGED)
        taken = dropped | unjudged
        decisions.rule[span][taken] = number
        decisions.copies[span][taken] = 0
        np.copyto(decisions.reason[span], verdicts.reason, where=dropped)
        np.copyto(decisions.value[span], verdicts.value, where=dropped)
        return view, Taken(_counted(verdicts.reason[dropped])), unjudged if unjudged.any() else None

    counted = Taken()
    for view, taken, unjudged in samples.over(prepare, work):
        counted.add(taken)
        if unjudged is not None:
            causes = samples.codes(needs, view.part).filter(pl.Series(unjudged))
            numbers = _numbers(decisions.codes, causes)
            decisions.code[samples.span(view.index)][unjudged] = numbers
            counted.unjudged.update(_counted(numbers))
    return notes, counted


def _number_reasons(decisions: Decisions, step: Step, ready: Mapping[int, _Ready]) -> None:
    """Give the reasons of a step their numbers in a fixed order, before threads use them."""
    if isinstance(step, Rule):
        for reason in ready[id(step)].keep:
            decisions.reasons.number(reason)
        return
    for member in step.members:
        _number_reasons(decisions, member, ready)
    if step.how in _GROUP_REASONS:
        decisions.reasons.number(_GROUP_REASONS[step.how])


class _Asking:
    """Has scores that may be had for some rows computed for those on which their rule has yet to decide."""

    def __init__(self, decisions: Decisions, rule: Rule, compute: Compute | None) -> None:
        self.decisions, self.rule, self.compute = decisions, rule, compute
        scorers = [n.scorer for n in rule.needs if isinstance(n, Score)] if compute else []
        self.open = [s for s in scorers if decisions.samples.some_rows(s)]

    def columns(self, names: Sequence[str], rows: Mask) -> None:
        """What `PoolFigures` asks: the scores that these columns are of, for these rows."""
        for scorer in [s for s in self.open if set(s.columns) & set(names)]:
            self._compute(scorer, rows)
            self.open.remove(scorer)

    def in_turn(self, ready: _Ready) -> None:
        """Each score when the first condition needs it, for the rows for which none before that one is false."""
        before: list[pl.Expr] = []
        for condition in ready.keep.values():
            wanted = [s for s in self.open if set(s.columns) & set(condition.meta.root_names())]
            if wanted:
                rows = self._undecided(before)
                for scorer in wanted:
                    self._compute(scorer, rows)
                    self.open.remove(scorer)
            before.append(condition)

    def _undecided(self, conditions: Sequence[pl.Expr]) -> Mask:
        samples = self.decisions.samples
        rows = self.decisions.left
        if not conditions:
            return rows
        still = pl.all_horizontal([c.fill_null(True) for c in conditions]).alias("still")

        def prepare(index: int, part: Part) -> tuple[Part, pl.LazyFrame]:
            return part, samples.frame(self.rule.needs, part)

        def work(found: tuple[Part, pl.LazyFrame]) -> pl.Series:
            part, frame = found
            with reading(frame, part):
                return frame.select(pl.int_range(pl.len()).alias("_row"), still).collect()["still"]

        with blamed(self.rule.name, InputError):
            for index, answer in enumerate(samples.over(prepare, work)):
                rows[samples.span(index)] &= answer.to_numpy()
        return rows

    def _compute(self, scorer: Scorer, rows: Mask) -> None:
        assert self.compute is not None
        samples = self.decisions.samples
        self.compute(scorer, {part.name: rows[samples.span(i)] for i, part in enumerate(samples.parts)})


def _make_ready(
    decisions: Decisions, rule: Rule, ranked: Mask, before: int, asking: _Asking
) -> tuple[_Ready, dict[str, Any]]:
    judge = cast(Judge, rule.filter)
    mask = decisions.left if rule.among == "left" else ranked
    base = before
    if (rule.of or rule.among) == "pool":
        scaled = bool(decisions.funnel) and decisions.funnel[0]["rule"] == "scale"
        base = int(decisions.funnel[0]["left"]) if scaled else decisions.samples.n
    with blamed(rule.name, InputError):
        figures = PoolFigures(decisions.samples, rule.needs, mask, base, ask=asking.columns)
        ready = _Ready(rule, judge.keep(figures), judge.values())
    for what, answer in (("keep", ready.keep), ("values", ready.values)):
        if not isinstance(answer, dict) or not all(isinstance(e, pl.Expr) for e in answer.values()):
            raise InputError(f"rule {rule.name}", f"{what}() is no dictionary of polars expressions ({answer!r})")
    unknown = set(ready.keep) - set(judge.reasons)
    if not ready.keep or unknown:
        what = f"reasons without a sentence: {', '.join(sorted(unknown))}" if unknown else "it has no condition"
        raise InputError(f"rule {rule.name}", what)
    return ready, figures.notes


def _verdicts(decisions: Decisions, step: Step, ready: Mapping[int, _Ready], view: _View) -> _Verdicts:
    if isinstance(step, Rule):
        return _rule_verdicts(decisions, ready[id(step)], view)
    members = [_verdicts(decisions, m, ready, view) for m in step.members]
    return _combine(decisions, step, members)


def _rule_verdicts(decisions: Decisions, ready: _Ready, view: _View) -> _Verdicts:
    name = ready.rule.name
    names = list(ready.keep)
    rows = decisions.samples.pool.rows[view.part.name]
    frame = view.frames[id(ready.rule)]
    asked = [pl.int_range(pl.len()).alias("_row")]
    asked += [ready.keep[r].alias(f"keep {r}") for r in names]
    asked += [ready.values[r].cast(pl.Float32).alias(f"value {r}") for r in names if r in ready.values]
    with blamed(name, InputError), reading(frame, view.part):
        answered = frame.select(asked).collect()
    if len(answered) != rows:
        raise InputError(f"rule {name}", f"gave {len(answered):,} answers for {rows:,} samples")
    state: States = np.full(rows, KEEP, dtype=np.int8)
    reason = np.full(rows, -1, dtype=np.int16)
    value = np.full(rows, np.nan, dtype=np.float32)
    for r in names:
        said = _said(name, r, answered[f"keep {r}"])
        first = (said == DROP) & (state != DROP)
        reason[first] = decisions.reasons.number(r)
        if r in ready.values:
            np.copyto(value, answered[f"value {r}"].fill_null(float("nan")).to_numpy(), where=first)
        state[(said == UNJUDGED) & (state == KEEP)] = UNJUDGED
        state[first] = DROP
    return _Verdicts(state, reason, value)


def _said(rule: str, reason: str, answer: pl.Series) -> States:
    """KEEP, DROP or UNJUDGED for each answer of a condition, which is true, false or null and nothing else."""
    if answer.dtype not in (pl.Boolean, pl.Null):
        raise InputError(
            f"rule {rule}",
            f"the condition for {reason!r} is neither true nor false (its values are {answer.dtype})",
        )
    return np.asarray(answer.cast(pl.Int8).fill_null(UNJUDGED).to_numpy())


_GROUP_REASONS = {"any": "no_member_keeps", "not": "members_keep"}
"""Why a group drops a sample; `all` has its member's reason."""


def _combine(decisions: Decisions, group: Group, members: list[_Verdicts]) -> _Verdicts:
    """Kleene's three-valued any, all and not. A drop by `all` keeps its member's reason."""
    states = np.stack([m.state for m in members])
    some_drop, some_keep = (states == DROP).any(axis=0), (states == KEEP).any(axis=0)
    some_open = (states == UNJUDGED).any(axis=0)
    every: States = np.where(some_drop, DROP, np.where(some_open, UNJUDGED, KEEP)).astype(np.int8)
    value = np.full(states.shape[1], np.nan, dtype=np.float32)
    if group.how == "all":
        reason = np.full(states.shape[1], -1, dtype=np.int16)
        for member in reversed(members):
            drops = member.state == DROP
            reason[drops], value[drops] = member.reason[drops], member.value[drops]
        return _Verdicts(every, reason, value)
    number = decisions.reasons.number(_GROUP_REASONS[group.how])
    reason = np.full(states.shape[1], number, dtype=np.int16)
    if group.how == "any":
        state = np.where(some_keep, KEEP, np.where(some_open, UNJUDGED, DROP))
    else:
        state = np.where(every == UNJUDGED, UNJUDGED, 1 - every)
    return _Verdicts(state.astype(np.int8), reason, value)


def _numbers(words: Words, column: pl.Series) -> npt.NDArray[np.int16]:
    known = {w: words.number(w) for w in column.unique(maintain_order=True).to_list()}
    return column.replace_strict(known, return_dtype=pl.Int16).to_numpy()


# --- samplers ---------------------------------------------------------------------------------------------


def _draw(decisions: Decisions, rule: Rule, name: str) -> dict[str, Any]:
    samples, sampler = decisions.samples, cast(Sampler, rule.filter)
    needs = rule.needs
    left = SamplesLeft(samples, needs, decisions.left)
    if not left.n:
        return {}
    with blamed(rule.name, InputError):
        draw = sampler.draw(left)
    _check_draw(rule, draw, left.n)
    rows = left.rows
    unjudged = draw.unjudged if draw.unjudged is not None else np.zeros(left.n, dtype=bool)
    dropped = (draw.copies == 0) & ~unjudged
    number = decisions.rules.number(name)
    decisions.rule[rows[dropped | unjudged]] = number
    decisions.copies[rows] = draw.copies
    _book_reasons(decisions, rule, draw, rows, dropped)
    if draw.value is not None:
        decisions.value[rows[dropped]] = draw.value[dropped]
    if draw.of is not None:
        if decisions.of is None:
            decisions.of = np.full(samples.n, -1, dtype=np.int64)
        named = dropped & (draw.of >= 0)
        decisions.of[rows[named]] = rows[draw.of[named]]
    for index, part in _parts_with(samples, rows[unjudged]):
        span = samples.span(index)
        mask = (decisions.rule[span] == number) & (decisions.reason[span] < 0)
        causes = samples.codes(needs, part)
        decisions.code[span][mask] = _numbers(decisions.codes, causes.filter(pl.Series(mask)))
    return dict(draw.notes)


def _book_reasons(decisions: Decisions, rule: Rule, draw: Draw, rows: npt.NDArray[np.int64], dropped: Mask) -> None:
    names = list(rule.filter.reasons)
    if isinstance(draw.reason, str):
        if draw.reason not in names:
            raise InputError(f"rule {rule.name}", f"drops for {draw.reason!r}, which has no sentence in `reasons`")
        decisions.reason[rows[dropped]] = decisions.reasons.number(draw.reason)
        return
    for place in np.unique(draw.reason[dropped]).tolist():
        if place >= len(names):
            raise InputError(f"rule {rule.name}", f"drops for reason number {place}, of {len(names)}")
        decisions.reason[rows[dropped & (draw.reason == place)]] = decisions.reasons.number(names[place])


_DRAWN = {
    "copies": ("ui", f"whole numbers from 0 to {MOST_COPIES:,}"),
    "reason": ("ui", "places in `reasons`"),
    "value": ("fui", "numbers"),
    "of": ("ui", "rows"),
    "unjudged": ("b", "true or false"),
}
"""The arrays of a draw: numpy's kinds that they may have, and what those are."""


def _check_draw(rule: Rule, draw: Draw, n: int) -> None:
    where = f"rule {rule.name}"
    if not isinstance(draw, Draw):
        raise InputError(where, f"drew {draw!r}, which is no Draw")
    arrays = {
        "copies": draw.copies,
        "reason": None if isinstance(draw.reason, str) else draw.reason,
        "value": draw.value,
        "of": draw.of,
        "unjudged": draw.unjudged,
    }
    for what, (kinds, those) in _DRAWN.items():
        array = arrays[what]
        if array is None and (what != "reason" or isinstance(draw.reason, str)):
            continue
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
            raise InputError(where, f"gave {what} that are not {those}, one for each sample, as a numpy array")
        if len(array) != n:
            raise InputError(where, f"gave {len(array):,} {what} for {n:,} samples")
    if n and not 0 <= draw.copies.min() <= draw.copies.max() <= MOST_COPIES:
        raise InputError(where, f"gave copies that are not {_DRAWN['copies'][1]}")
    if draw.of is not None and n and not -1 <= draw.of.min() <= draw.of.max() < n:
        raise InputError(where, f"speaks of row {draw.of.max():,} of {n:,}")
    try:
        json.dumps(dict(draw.notes))
    except (TypeError, ValueError) as error:
        raise InputError(where, f"gave notes that JSON cannot say ({error})") from error


def _parts_with(samples: Samples, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, Part]]:
    for index in np.unique(np.searchsorted(samples.starts, rows, side="right") - 1).tolist():
        yield index, samples.parts[index]
