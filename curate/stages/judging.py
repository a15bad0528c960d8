"""Judges: their conditions on every sample, a part at a time in threads; groups by three-valued logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.errors import InputError
from curate.filter_api import Judge, Score, Scorer
from curate.plugins import blamed
from curate.pool import Part, reading
from curate.recipe import Group, Rule, Step
from curate.stages.decisions import Decisions, Taken, counted, numbers, pool_size, put
from curate.stages.figures import PoolFigures
from curate.stages.samples import Mask

KEEP, DROP, UNJUDGED = 1, 0, -1

States = npt.NDArray[np.int8]
Compute = Callable[[Scorer, Mapping[str, Mask]], None]
"""Has a scorer's columns computed for some rows of each part."""


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


def judge(
    decisions: Decisions,
    step: Step,
    name: str,
    ranked: Mask,
    before: int,
    compute: Compute | None,
    device: str = "auto",
) -> tuple[dict[str, Any], Taken]:
    """Decide on every sample that is left, by a judge or a group of judges; the figures it rests on, and counts.

    `ranked` are the rows that figures are taken over, `before` is how many are left; `device` as for `decide`.
    """
    samples = decisions.samples
    ready: dict[int, _Ready] = {}
    notes: dict[str, Any] = {}
    for rule in step.rules:
        asking = _Asking(decisions, rule, compute)
        ready[id(rule)], noted = _make_ready(decisions, rule, ranked, before, asking, device)
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
        put(decisions.rule[span], dropped | unjudged, number)
        put(decisions.copies[span], dropped | unjudged, 0)
        put(decisions.reason[span], dropped, verdicts.reason)
        put(decisions.value[span], dropped, verdicts.value)
        put(verdicts.reason, ~dropped, -1)
        return view, Taken(counted(verdicts.reason)), unjudged if unjudged.any() else None

    total = Taken()
    for view, taken, unjudged in samples.over(prepare, work):
        total.add(taken)
        if unjudged is not None:
            causes = samples.codes(needs, view.part).filter(pl.Series(unjudged))
            found = numbers(decisions.codes, causes)
            decisions.code[samples.span(view.index)][unjudged] = found
            total.unjudged.update(counted(found))
    return notes, total


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
        still = pl.all_horizontal([c.fill_null(True) for c in conditions])
        # of scores that are yet to be computed nothing is read: what is there may be damaged, and is made again
        needs = [n for n in self.rule.needs if not (isinstance(n, Score) and n.scorer in self.open)]
        with blamed(self.rule.name, InputError):
            for index, answer in enumerate(samples.column(needs, still)):
                rows[samples.span(index)] &= answer.to_numpy()
        return rows

    def _compute(self, scorer: Scorer, rows: Mask) -> None:
        assert self.compute is not None
        samples = self.decisions.samples
        self.compute(scorer, {part.name: rows[samples.span(i)] for i, part in enumerate(samples.parts)})


def _make_ready(
    decisions: Decisions, rule: Rule, ranked: Mask, before: int, asking: _Asking, device: str
) -> tuple[_Ready, dict[str, Any]]:
    judge_ = cast(Judge, rule.filter)
    mask = decisions.left if rule.among == "left" else ranked
    of_pool = (rule.of or rule.among) == "pool"
    base = pool_size(decisions.funnel, decisions.samples.n) if of_pool else before
    with blamed(rule.name, InputError):
        figures = PoolFigures(decisions.samples, rule.needs, mask, base, ask=asking.columns, device=device)
        ready = _Ready(rule, judge_.keep(figures), judge_.values())
    for what, answer in (("keep", ready.keep), ("values", ready.values)):
        if not isinstance(answer, dict) or not all(isinstance(e, pl.Expr) for e in answer.values()):
            raise InputError(f"rule {rule.name}", f"{what}() is no dictionary of polars expressions ({answer!r})")
    unknown = set(ready.keep) - set(judge_.reasons)
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
        put(reason, first, decisions.reasons.number(r))
        if r in ready.values:
            put(value, first, answered[f"value {r}"].fill_null(float("nan")).to_numpy())
        put(state, (said == UNJUDGED) & (state == KEEP), UNJUDGED)
        put(state, first, DROP)
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
