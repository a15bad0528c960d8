"""Decisions: every rule in turn over the samples that those above it left; a drop is booked once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.errors import InputError
from curate.filter_api import Draw, Sampler
from curate.plugins import blamed
from curate.pool import Part
from curate.recipe import Recipe, Rule
from curate.stages.decisions import (
    MACHINE_RULES,
    MOST_COPIES,
    OUTSIDE,
    SAME_UID,
    SCALE,
    Decisions,
    Taken,
    numbers,
    pool_size,
)
from curate.stages.figures import SamplesLeft
from curate.stages.judging import Compute, judge
from curate.stages.samples import Mask, Samples


def decide(
    samples: Samples,
    recipe: Recipe,
    *,
    texts: Sequence[str] | None = None,
    inside: Mask | None = None,
    compute: Compute | None = None,
    device: str = "auto",
) -> Decisions:
    """The decision of `recipe` on every sample; `inside` is the scale's pool, outside of which all is dropped.

    `texts` are the rules as their user wrote them, for the funnel. `compute` is called for scores that may be
    had for some rows only, with those that a rule has yet to decide on; without it they are taken as they are.
    `device` is where figures are worked out that are worth a GPU.
    """
    decisions = Decisions(samples)
    left = samples.n
    if inside is not None and not inside.all():
        decisions.take(~inside, SCALE, OUTSIDE)
        decisions.book(SCALE, SCALE, {}, left)
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
            notes, taken = judge(decisions, step, name, ranked, left, compute, device)
        sources = samples.sources([n for rule in step.rules for n in rule.needs])
        decisions.book(name, texts[number] if texts else step.text, sources | notes, left, taken)
        left = int(decisions.funnel[-1]["left"])
    return decisions


def _unique_name(name: str, decisions: Decisions, number: int) -> str:
    return name if name not in (*MACHINE_RULES, *decisions.rules.words) else f"{name}#{number + 1}"


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


# --- samplers ---------------------------------------------------------------------------------------------


def _draw(decisions: Decisions, rule: Rule, name: str) -> dict[str, Any]:
    samples, sampler = decisions.samples, cast(Sampler, rule.filter)
    needs = rule.needs
    left = SamplesLeft(samples, needs, decisions.left, pool_size(decisions.funnel, samples.n))
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
        decisions.code[span][mask] = numbers(decisions.codes, causes.filter(pl.Series(mask)))
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
