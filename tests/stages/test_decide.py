"""The pieces of a decision: groups against Kleene's tables, figures against numpy, draws that are checked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.errors import InputError
from curate.filter_api import Column, Draw
from curate.pool import open_pool
from curate.recipe import Group, parse_rule
from curate.stages import decide, judging
from curate.stages.decisions import Decisions, Words
from curate.stages.figures import PoolFigures, SamplesLeft
from curate.stages.judging import DROP, KEEP, UNJUDGED
from curate.stages.samples import Samples
from tests.pools import make_metadata

VALUES = (KEEP, DROP, UNJUDGED)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """12 samples in two parts, uids in no order; a score with ties, a null and a nan."""
    chance = np.random.default_rng(1)
    uids = [chance.bytes(16).hex() for _ in range(12)]
    scores = [0.5, 0.25, 0.5, None, 0.75, float("nan"), 0.25, 1.0, 0.5, 0.0, 0.25, 0.5]
    rows = [{"uid": u, "url": u, "text": u, "score": s} for u, s in zip(uids, scores, strict=True)]
    make_metadata(tmp_path, rows[:7], "a")
    make_metadata(tmp_path, rows[7:], "b")
    return Samples(open_pool(tmp_path))


# --- groups -----------------------------------------------------------------------------------------------


def verdicts(decisions: Decisions, states: list[int], number: int) -> judging._Verdicts:
    state = np.array(states, dtype=np.int8)
    reason = np.where(state == DROP, decisions.reasons.number(f"r{number}"), -1).astype(np.int16)
    return judging._Verdicts(state, reason, np.where(state == DROP, number, np.nan).astype(np.float32))


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("how", ["any", "all", "not"])
def test_groups_are_kleenes(samples: Samples, how: str, members: int) -> None:
    """`not` is of all of its members: false where all keep, true where one drops."""
    decisions = Decisions(samples)
    rows = list(itertools.product(VALUES, repeat=members))
    columns = [verdicts(decisions, [row[m] for row in rows], m) for m in range(members)]
    group = Group(how, tuple(parse_rule("clipscore") for _ in range(members)))
    found = judging._combine(decisions, group, columns)
    truth = {KEEP: True, DROP: False, UNJUDGED: None}
    for row, state, reason in zip(rows, found.state.tolist(), found.reason.tolist(), strict=True):
        values = [truth[v] for v in row]
        every = False if False in values else None if None in values else True
        some = True if True in values else None if None in values else False
        expected = {"any": some, "all": every, "not": None if every is None else not every}[how]
        assert truth[state] is expected, row
        if state == DROP:
            word = decisions.reasons.words[reason]
            first = f"r{row.index(DROP)}" if DROP in row else ""
            assert word == {"any": "no_member_keeps", "all": first, "not": "members_keep"}[how]


# --- figures ----------------------------------------------------------------------------------------------


def figures(samples: Samples, mask: Any = None, n: int = 12) -> PoolFigures:
    held = np.ones(12, dtype=bool) if mask is None else mask
    return PoolFigures(samples, [Column("score")], held, n)


KNOWN = np.array([0.5, 0.25, 0.5, 0.75, 0.25, 1.0, 0.5, 0.0, 0.25, 0.5])


def test_figures_are_numpys(samples: Samples) -> None:
    asked, value = figures(samples), pl.col("score")
    for rank in range(10):
        assert asked.nth_largest(value, rank) == np.sort(KNOWN)[::-1][rank]
    assert asked.nth_largest(value, 10) is None
    assert asked.nth_largest(value, -1) is None
    assert asked.quantile(value, 0.3) == pytest.approx(np.quantile(KNOWN, 0.3))
    assert asked.mean(value) == pytest.approx(KNOWN.mean())
    nobody = figures(samples, np.zeros(12, dtype=bool))
    assert (nobody.mean(value), nobody.quantile(value, 0.5), nobody.nth_largest(value, 0)) == (None, None, None)
    assert nobody.notes == {"mean": None, "quantile 0.5": None}


@pytest.mark.parametrize("n", range(13))
@pytest.mark.parametrize("half", [False, True])
def test_top_is_exact(samples: Samples, n: int, half: bool) -> None:
    mask = np.arange(12) % 2 == 0 if half else np.ones(12, dtype=bool)
    frame = pl.concat([samples.frame([Column("score")], p).collect() for p in samples.parts])
    ranked = frame.with_columns(mask=pl.Series(mask)).filter(pl.col("mask"), pl.col("score").is_not_null())
    best = set(ranked.sort(["score", "uid"], descending=[True, False]).head(n)["uid"])
    said = frame.select(keep=figures(samples, mask).top(pl.col("score"), n))["keep"]
    assert said.null_count() == 2
    kept = {u for u, k, m in zip(frame["uid"], said, mask, strict=True) if k and m}
    assert kept == best


# --- what is left -----------------------------------------------------------------------------------------


def test_left_is_in_uid_order_throughout(samples: Samples) -> None:
    mask = np.arange(12) % 3 != 1
    left = SamplesLeft(samples, [Column("score")], mask)
    frame = left.frame().collect()
    assert left.n == len(frame) == 8
    assert left.pool_n == 12
    assert frame["uid"].to_list() == sorted(frame["uid"])
    whole = pl.concat([samples.frame([Column("score")], p).collect() for p in samples.parts])
    told = dict(zip(whole["uid"], whole["score"], strict=True))
    assert frame["score"].to_list() == [told[u] for u in frame["uid"]]
    half = left.frame(pl.col("score") / 2).collect()
    assert half.columns == ["score"]
    assert half["score"].to_list() == [None if s is None else s / 2 for s in frame["score"]]
    luck = dict(zip(frame["uid"], left.chance(7), strict=True))
    everyone = SamplesLeft(samples, [], np.ones(12, dtype=bool))
    again = dict(zip(everyone.frame().collect()["uid"], everyone.chance(7), strict=True))
    assert {u: again[u] for u in luck} == luck
    assert all(0 <= v < 1 for v in again.values())


# --- draws ------------------------------------------------------------------------------------------------

ONES = np.ones(3, np.uint16)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (Draw(ONES[:2], "not_drawn"), "gave 2 copies for 3 samples"),
        (Draw(ONES, "not_drawn", unjudged=np.zeros(4, dtype=bool)), "gave 4 unjudged for 3 samples"),
        (Draw(ONES, "not_drawn", value=np.zeros(1, np.float32)), "gave 1 value for 3 samples"),
        (Draw(ONES, "not_drawn", of=np.array([0, 1, 3])), "speaks of row 3 of 3"),
        (Draw(ONES, "not_drawn", of=np.array([0, 1, -2])), "speaks of row"),
        (Draw(np.full(3, 0.5), "not_drawn"), "copies that are not whole numbers"),
        (Draw(np.array([0, -1, 1]), "not_drawn"), "copies that are not whole numbers from 0 to 65,535"),
        (Draw(np.array([0, 1, 70_000]), "not_drawn"), "copies that are not whole numbers"),
        ([1, 1, 1], "drew [1, 1, 1], which is no Draw"),
        (Draw([1, 1, 1], "not_drawn"), "gave copies that are not whole numbers"),  # type: ignore[arg-type]
        (Draw(np.ones((3, 1), np.uint16), "not_drawn"), "gave copies that are not whole numbers"),
        (Draw(ONES, None), "gave reason that are not places"),  # type: ignore[arg-type]
        (Draw(ONES, "not_drawn", value=["a", "b", "c"]), "gave value that are not numbers"),  # type: ignore[arg-type]
        (Draw(ONES, "not_drawn", of=np.zeros(3)), "gave of that are not rows"),  # type: ignore[arg-type]
        (Draw(ONES, "not_drawn", unjudged=ONES), "gave unjudged that are not true or false"),  # type: ignore[arg-type]
        (Draw(ONES, "not_drawn", notes={"target": np.float32(2)}), "gave notes that JSON cannot say"),
        (None, "drew None, which is no Draw"),
    ],
)
def test_draws_that_are_refused(draw: Any, said: str) -> None:
    with pytest.raises(InputError, match=r"^rule random: ") as error:
        decide._check_draw(parse_rule("random:n=1"), draw, 3)
    assert said in str(error.value)


@pytest.mark.parametrize("answer", [pl.Series([5, -1]), pl.Series(["true", "false"]), pl.Series([1.0, 0.0])])
def test_a_condition_is_true_or_false(answer: pl.Series) -> None:
    with pytest.raises(InputError, match="rule mine: the condition for 'dull' is neither true nor false"):
        judging._said("mine", "dull", answer)


def test_null_is_unjudged() -> None:
    assert judging._said("mine", "dull", pl.Series([True, None, False])).tolist() == [1, -1, 0]
    assert judging._said("mine", "dull", pl.Series([None, None])).tolist() == [-1, -1]


def test_words_are_numbered_as_they_come() -> None:
    words = Words()
    assert [words.number(w) for w in ("b", "a", "b")] == [0, 1, 0]
    assert words.words == ["b", "a"]
