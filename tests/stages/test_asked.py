"""Scores that are computed for some rows only: those on which the conditions before have not decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from curate.errors import PartError
from curate.filter_api import Column, Figures, Judge, Need, Score
from curate.pool import open_pool
from curate.recipe import Group, Recipe, Rule, parse_rule
from curate.stages import filter as filtering
from curate.stages import needs, score
from curate.stages.filter import Request
from curate.stages.needs import Means
from curate.views import status
from tests.pools import make_metadata
from tests.stages import scorers
from tests.stages.scorers import Costly

N = 40


@dataclass(frozen=True)
class Cheap(Judge):
    """Keep small numbers, and then captions of some length."""

    reasons: ClassVar[Mapping[str, str]] = {"number": "its number is {value}", "cost": "its cost is {value}"}
    most: int = N
    least: int = 9
    top: int | None = None
    scorer: Costly = field(default=Costly())

    def needs(self) -> Sequence[Need]:
        return [Column("number"), Score(self.scorer)]

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        cost = pl.col("cost") >= self.least if self.top is None else pool.top(pl.col("cost"), self.top)
        return {"number": pl.col("number") < self.most, "cost": cost}

    def values(self) -> dict[str, pl.Expr]:
        return {"number": pl.col("number"), "cost": pl.col("cost")}


def uid(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two parts; caption i has as many characters as i has digits, and seven, but that of 5 is missing."""
    rows: list[dict[str, Any]] = [
        {"uid": uid(i), "url": f"http://images.test/{i}", "text": f"caption{i}", "number": i} for i in range(N)
    ]
    rows[5]["text"] = None
    make_metadata(tmp_path, rows[:25], "a")
    make_metadata(tmp_path, rows[25:], "b")
    scorers.computed.clear()
    return tmp_path


def run(folder: Path, *steps: Rule | Group, name: str | None = None, workers: int = 0) -> filtering.Outcome:
    def allow(work: Any) -> None:
        raise AssertionError(f"wanted {work.what}")

    request = Request(Recipe(steps), name, means=Means("cpu", workers))
    return filtering.filter_pool(open_pool(folder), request, allow=allow)


def computed() -> list[int]:
    """The numbers of the rows that were computed since the last call, in order."""
    found = sorted(int(u, 16) for u in scorers.computed)
    scorers.computed.clear()
    return found


def reasons(outcome: filtering.Outcome) -> list[str | None]:
    frames = [outcome.selection.decisions(part) for part in ("a", "b")]
    return pl.concat([f.select(pl.coalesce("reason", "error_code").cast(pl.String)) for f in frames])[
        "reason"
    ].to_list()


def costs(folder: Path) -> list[tuple[int | None, str | None]]:
    where = score.results(open_pool(folder), Costly()).folder
    table = pl.concat([pl.read_parquet(where / f"{part}.parquet") for part in ("a", "b")])
    return table.select("cost", "error_code").rows()


def tables(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "scores").rglob("*.parquet"))}


def test_status_says_how_many_were_not_asked_for(pool: Path) -> None:
    run(pool, Rule("cheap", Cheap(most=30)))
    told = status.status(open_pool(pool))
    (one,) = told["scores"]
    assert {k: one[k] for k in ("samples", "ok", "failed", "unasked")} == {
        "samples": N,
        "ok": 29,
        "failed": 1,
        "unasked": 10,
    }
    said = f"{one['score']}: 29 of 40 samples (1 failed, 10 not asked for yet)"
    assert f"score     {said}" in status.lines(told)


def test_only_rows_that_are_undecided_are_computed(pool: Path) -> None:
    outcome = run(pool, Rule("cheap", Cheap(most=12)))
    # part b is never asked, and 5 has no caption
    assert computed() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    expected = ["cost"] * 10 + [None] * 2 + ["number"] * 28
    expected[5] = "no_caption"
    assert reasons(outcome) == expected
    where = score.results(open_pool(pool), Costly()).folder
    assert sorted(p.name for p in where.glob("*.parquet")) == ["a.parquet"]
    table = pl.read_parquet(where / "a.parquet")
    assert table["error_code"].to_list() == [None] * 5 + ["no_caption"] + [None] * 6 + ["not_asked"] * 13
    assert table["cost"].to_list() == [8] * 5 + [None] + [8] * 4 + [9] * 2 + [None] * 13


def test_later_rules_add_what_they_ask_for(pool: Path) -> None:
    run(pool, Rule("cheap", Cheap(most=12)))
    computed()
    first = parse_rule("random:n=1000")
    outcome = run(pool, first, Rule("cheap", Cheap(most=30)))
    assert computed() == list(range(12, 30))
    assert reasons(outcome)[28:32] == [None, None, "number", "number"]
    run(pool, Rule("cheap", Cheap(most=7)))
    assert computed() == []
    told = costs(pool)
    assert [cost for cost, _ in told] == [None if i == 5 or i >= 30 else 8 + (i >= 10) for i in range(N)]
    assert [code for _, code in told[28:]] == [None, None, *["not_asked"] * 10]


def test_the_order_of_asking_does_not_show(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All at once, or in steps: the same table in the end, but for receipts' clocks."""
    recipe = Rule("cheap", Cheap(most=12)), Rule("cheap", Cheap())
    for step in recipe:
        run(pool, step)
    in_steps = tables(pool)
    other = tmp_path_factory.mktemp("other")
    for path in (pool / "metadata").iterdir():
        (other / "metadata").mkdir(exist_ok=True)
        (other / "metadata" / path.name).write_bytes(path.read_bytes())
    one = open_pool(other)
    assert score.score(one, Costly()).counts == {"samples": N, "ok": N - 1, "failed": 1}
    assert tables(other) == in_steps
    # known already: no row is computed, and nothing else is decided
    computed()
    outcome = run(other, recipe[0])
    assert computed() == []
    assert reasons(outcome) == reasons(run(pool, recipe[0]))


def test_a_score_for_all_completes_what_was_asked(pool: Path) -> None:
    run(pool, Rule("cheap", Cheap(most=12)))
    computed()
    made = filtering.compute(open_pool(pool), Recipe((Rule("cheap", Cheap()),)), Means("cpu", 0))
    assert [summary.counts["ok"] for _, summary in made] == [N - 1]
    assert computed() == list(range(12, N))
    assert not list(needs.plan(open_pool(pool), Recipe((Rule("cheap", Cheap()),)), Means("cpu", 0)))


def test_a_figure_over_the_pool_asks_for_all_that_rank(pool: Path) -> None:
    outcome = run(pool, parse_rule("random:n=20"), Rule("cheap", Cheap(most=12, top=3)))
    assert computed() == [i for i in range(N) if i != 5]
    # among=left ranks what is left alone
    scorers.computed.clear()
    left = [i for i, r in enumerate(reasons(outcome)) if r != "not_drawn"]
    rule = Rule("cheap", Cheap(most=12, top=3, scorer=Costly(factor=2)), among="left")
    run(pool, parse_rule("random:n=20"), rule)
    assert computed() == [i for i in left if i != 5]


def test_groups_ask_for_what_is_left(pool: Path) -> None:
    first = Rule("cheap", Cheap(most=20, scorer=Costly(factor=3)))
    both = Group("any", (Rule("cheap", Cheap(most=12)), Rule("cheap", Cheap(most=30, least=99))))
    outcome = run(pool, first, both)
    # of the first all under 20; of the others, those that it left: three times eight are over nine
    assert computed() == sorted([i for i in range(20) if i != 5] * 2)
    assert [i for i, r in enumerate(reasons(outcome)) if r is None] == [10, 11]


def test_a_selection_is_read_back_although_more_was_computed_since(pool: Path) -> None:
    assert not run(pool, Rule("cheap", Cheap(most=12))).reused
    run(pool, Rule("cheap", Cheap(most=30)))
    assert run(pool, Rule("cheap", Cheap(most=12))).reused


def test_a_damaged_score_is_made_again(pool: Path) -> None:
    whole = run(pool, Rule("cheap", Cheap(most=12)), name="before")
    where = score.results(open_pool(pool), Costly()).folder
    (where / "a.parquet").write_bytes(b"junk")
    computed()
    again = run(pool, Rule("cheap", Cheap(most=12)), name="again")
    assert not again.failed_parts
    assert computed() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert reasons(again) == reasons(whole)


def test_what_was_decided_with_a_part_does_not_stand_without_it(pool: Path) -> None:
    """Part c has copies of b's uids, and b's score is damaged later, in a way that only reading it shows."""
    rows = {part: pl.read_parquet(pool / "metadata" / f"{part}.parquet") for part in "ab"}
    (pool / "metadata" / "a.parquet").unlink()
    shared = pl.Series("uid", [*rows["b"]["uid"][:10], *rows["a"]["uid"][10:]])
    rows["a"].with_columns(shared).write_parquet(pool / "metadata" / "c.parquet")
    rule = Rule("cheap", Cheap(least=0))
    assert run(pool, rule, name="one").selection.funnel[0]["dropped"] == {"same_uid": 10}
    table = score.results(open_pool(pool), Costly()).folder / "b.parquet"
    table.write_bytes(table.read_bytes()[:-20] + bytes(20))
    (pool / "selections" / "one" / "decisions" / "b.parquet").unlink()
    outcome = run(pool, rule, name="one")
    assert list(outcome.failed_parts) == ["b"]
    left = outcome.selection.decisions("c")
    assert left["reason"].drop_nulls().to_list() == []
    assert (
        int((left["copies"] > 0).sum()) == len(outcome.selection.uids()) == outcome.selection.counts["kept"] == 24
    )


def test_a_part_that_fails_is_tried_again(pool: Path) -> None:
    broken = Rule("cheap", Cheap(scorer=Costly(refuses="caption30")))
    outcome = run(pool, broken)
    assert list(outcome.failed_parts) == ["b"]
    assert "AssertionError" in outcome.failed_parts["b"]
    assert reasons(outcome)[25:] == ["part_failed"] * 15
    again = run(pool, broken)
    assert not again.reused
    assert list(again.failed_parts) == ["b"]
    fewer = run(pool, Rule("cheap", Cheap(most=30, scorer=Costly(refuses="caption30"))))
    assert not fewer.failed_parts
    assert reasons(fewer)[25:] == [None] * 5 + ["number"] * 10


def test_what_was_decided_of_a_part_that_failed_does_not_stand(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed by chance: the same recipe over the same pool judges its samples the next time."""
    rule = Rule("cheap", Cheap())
    with monkeypatch.context() as patch:
        patch.setattr(score, "_column", lambda *_: (_ for _ in ()).throw(PartError("disk", "cannot be read")))
        first = run(pool, rule, name="one")
    assert reasons(first) == ["part_failed"] * N
    assert sorted(first.failed_parts) == ["a", "b"]
    again = run(pool, rule, name="one")
    assert not again.failed_parts
    assert reasons(again) == reasons(run(pool, rule, name="fresh"))
    assert again.selection.counts["kept"] == sum(reason is None for reason in reasons(again)) == 30


def test_results_do_not_depend_on_workers(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "SPREAD", 1)
    spread = run(pool, Rule("cheap", Cheap(most=30)), name="spread", workers=2)
    assert computed() == []  # other processes did
    here = run(pool, Rule("cheap", Cheap(most=30, scorer=Costly(factor=1))), name="here")
    assert reasons(here) == reasons(spread)
    assert [c for c, _ in costs(pool)][:12] == [8] * 5 + [None] + [8] * 4 + [9] * 2


def test_a_table_that_was_changed_is_not_taken_over(pool: Path) -> None:
    """A table of the right size with other numbers in it: what is copied would get a new receipt."""
    run(pool, Rule("cheap", Cheap(most=12)))
    computed()
    path = score.results(open_pool(pool), Costly()).folder / "a.parquet"
    table = pl.read_parquet(path)
    table.with_columns(pl.lit(99, pl.Int32).alias("cost")).write_parquet(path)
    receipt = path.parent / "_receipts" / "a.json"
    raw = json.loads(receipt.read_bytes())
    raw["outputs"]["a.parquet"]["bytes"] = path.stat().st_size
    receipt.write_text(json.dumps(raw))
    outcome = run(pool, Rule("cheap", Cheap(most=13)))
    assert computed() == [i for i in range(13) if i != 5]
    assert reasons(outcome)[9:14] == ["cost", None, None, None, "number"]
