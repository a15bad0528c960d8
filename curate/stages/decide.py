"""Decisions: every rule in turn over the samples that those above it left; a drop is booked once."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.errors import InputError
from curate.filter_api import Draw, Judge, Sampler
from curate.plugins import blamed
from curate.pool import Part, reading
from curate.recipe import Group, Recipe, Rule, Step
from curate.stages.samples import Mask, PoolFigures, Samples, SamplesLeft

log = logging.getLogger("curate.filter")

KEEP, DROP, UNJUDGED = 1, 0, -1
MOST_COPIES = np.iinfo(np.uint16).max
SAME_UID = "same_uid"
OUTSIDE = "outside_scale"

States = npt.NDArray[np.int8]


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

    def book(self, name: str, text: str, notes: dict[str, Any], before: int) -> None:
        """Add the funnel's line of the rule that just ran."""
        number = self.rules.number(name)
        mine = self.rule == number
        dropped = np.bincount(self.reason[mine & (self.reason >= 0)], minlength=len(self.reasons.words))
        unjudged = np.bincount(self.code[mine & (self.code >= 0)], minlength=len(self.codes.words))
        self.copies[~self.left] = 0
        self.funnel.append(
            {
                "rule": name,
                "text": text,
                "figures": {name: _plain(figure) for name, figure in notes.items()},
                "in": before,
                "dropped": {w: int(c) for w, c in zip(self.reasons.words, dropped, strict=True) if c},
                "unjudged": {w: int(c) for w, c in zip(self.codes.words, unjudged, strict=True) if c},
                "left": int(self.left.sum()),
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
    samples: Samples, recipe: Recipe, *, texts: Sequence[str] | None = None, inside: Mask | None = None
) -> Decisions:
    """The decision of `recipe` on every sample; `inside` is the scale's pool, outside of which all is dropped.

    `texts` are the rules as their user wrote them, for the funnel.
    """
    decisions = Decisions(samples)
    if inside is not None and not inside.all():
        decisions.take(~inside, "scale", OUTSIDE)
        decisions.book("scale", "scale", {}, samples.n)
    if not recipe.keep_same_uid:
        _drop_same_uid(decisions)
    ranked = decisions.left
    for number, step in enumerate(recipe):
        before = int(decisions.left.sum())
        name = _unique_name(step.label, decisions, number)
        if isinstance(step, Rule) and isinstance(step.filter, Sampler):
            notes = _draw(decisions, step, name)
        else:
            notes = _judge(decisions, step, name, ranked)
        sources = samples.sources([n for rule in step.rules for n in rule.needs])
        decisions.book(name, texts[number] if texts else step.text, sources | notes, before)
    return decisions


def _unique_name(name: str, decisions: Decisions, number: int) -> str:
    return name if name not in decisions.rules.words else f"{name}#{number + 1}"


def _drop_same_uid(decisions: Decisions) -> None:
    samples = decisions.samples
    ordered = samples.uids[samples.order]
    again = np.zeros(samples.n, dtype=bool)
    again[samples.order[1:]] = (ordered["f0"][1:] == ordered["f0"][:-1]) & (ordered["f1"][1:] == ordered["f1"][:-1])
    again &= decisions.left
    if again.any():
        before = int(decisions.left.sum())
        decisions.take(again, SAME_UID, SAME_UID)
        decisions.book(SAME_UID, SAME_UID, {}, before)


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


def _judge(decisions: Decisions, step: Step, name: str, ranked: Mask) -> dict[str, Any]:
    samples = decisions.samples
    ready: dict[int, _Ready] = {}
    notes: dict[str, Any] = {}
    for rule in step.rules:
        ready[id(rule)], noted = _make_ready(decisions, rule, ranked)
        notes |= noted if len(step.rules) == 1 else {f"{rule.name} {k}": v for k, v in noted.items()}
    needs = [n for rule in step.rules for n in rule.needs]
    number = decisions.rules.number(name)
    for index, part in enumerate(samples.parts):
        span = samples.span(index)
        left = decisions.left[span]
        if not left.any():
            continue
        verdicts = _verdicts(decisions, step, ready, part)
        dropped = left & (verdicts.state == DROP)
        unjudged = left & (verdicts.state == UNJUDGED)
        decisions.rule[span][dropped | unjudged] = number
        decisions.reason[span][dropped] = verdicts.reason[dropped]
        decisions.value[span][dropped] = verdicts.value[dropped]
        if unjudged.any():
            causes = samples.codes(needs, part)
            decisions.code[span][unjudged] = _numbers(decisions.codes, causes.filter(pl.Series(unjudged)))
    return notes


def _make_ready(decisions: Decisions, rule: Rule, ranked: Mask) -> tuple[_Ready, dict[str, Any]]:
    judge = cast(Judge, rule.filter)
    left = decisions.left
    mask = left if rule.among == "left" else ranked
    base = decisions.samples.n if (rule.of or rule.among) == "pool" else int(left.sum())
    if (rule.of or rule.among) == "pool" and decisions.funnel and decisions.funnel[0]["rule"] == "scale":
        base = decisions.funnel[0]["left"]
    with blamed(rule.name, InputError):
        figures = PoolFigures(decisions.samples, rule.needs, mask, base)
        ready = _Ready(rule, judge.keep(figures), judge.values())
    for what, answer in (("keep", ready.keep), ("values", ready.values)):
        if not isinstance(answer, dict) or not all(isinstance(e, pl.Expr) for e in answer.values()):
            raise InputError(f"rule {rule.name}", f"{what}() is no dictionary of polars expressions ({answer!r})")
    unknown = set(ready.keep) - set(judge.reasons)
    if not ready.keep or unknown:
        what = f"reasons without a sentence: {', '.join(sorted(unknown))}" if unknown else "it has no condition"
        raise InputError(f"rule {rule.name}", what)
    return ready, figures.notes


def _verdicts(decisions: Decisions, step: Step, ready: dict[int, _Ready], part: Part) -> _Verdicts:
    if isinstance(step, Rule):
        return _rule_verdicts(decisions, ready[id(step)], part)
    members = [_verdicts(decisions, m, ready, part) for m in step.members]
    return _combine(decisions, step, members)


def _rule_verdicts(decisions: Decisions, ready: _Ready, part: Part) -> _Verdicts:
    name = ready.rule.name
    names = list(ready.keep)
    rows = decisions.samples.pool.rows[part.name]
    frame = decisions.samples.frame(ready.rule.needs, part)
    asked = [pl.int_range(pl.len()).alias("_row")]
    asked += [ready.keep[r].alias(f"keep {r}") for r in names]
    asked += [ready.values[r].cast(pl.Float32).alias(f"value {r}") for r in names if r in ready.values]
    with reading(frame, part), blamed(name, InputError):
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
            value[first] = answered[f"value {r}"].fill_null(float("nan")).to_numpy()[first]
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
    number = decisions.reasons.number("no_member_keeps" if group.how == "any" else "members_keep")
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
