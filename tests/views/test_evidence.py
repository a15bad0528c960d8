"""Evidence: which numbers rules read, and where they cut, of rules that nobody knows by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.errors import InputError
from curate.recipe import Group, compose, parse_step, rule_names
from curate.stages.filter import Request, filter_pool
from curate.views.evidence import Evidence, gather
from tests.pools import make_pool

RULE = '''
from dataclasses import dataclass
import polars as pl
from curate.filter_api import Column, Judge, setting

@dataclass(frozen=True)
class Made(Judge):
    """A rule over one column."""

    reasons = {{"bad": "{sentence}"}}
    {field}: float = setting(0.0, "the limit")

    def needs(self):
        return [Column("v")]

    def keep(self, pool):
        return {{"bad": {condition}}}

    def values(self):
        return {{"bad": pl.col("v")}}
'''


def evidence(tmp_path: Path, field: str, at: float, sentence: str, condition: str) -> Evidence:
    rule = tmp_path / "made.py"
    rule.write_text(RULE.format(field=field, sentence=sentence, condition=condition))
    pool = make_pool(tmp_path / "pool", 1, 10, extra={"v": lambda shard, row: row / 10})
    request = Request(compose([f"{rule}:{field}={at}"], []), "s")
    return gather(pool, filter_pool(pool, request, allow=lambda work: None).selection)


@pytest.mark.parametrize(
    ("field", "at", "sentence", "condition", "label"),
    [
        ("min", 0.45, "{value} is under {min}", 'pl.col("v") >= self.min', "min 0.45"),
        ("max", 0.45, "{value} is over {max}", 'pl.col("v") <= self.max', "max 0.45"),
        # a setting of any name, where both sides confirm it
        ("bar", 0.45, "{value} is under {bar}", 'pl.col("v") >= self.bar', "bar 0.45"),
        # everything is left: only a name that means a limit is believed
        ("min", 0.0, "{value} is under {min}", 'pl.col("v") >= self.min', "min 0"),
        ("bar", 0.0, "{value} is under {bar}", 'pl.col("v") >= self.bar', None),
        # a fraction that is no place on the axis: the edge of what was left
        ("share", 0.65, "not in the top {share}", 'pl.col("v") >= 1 - self.share', "lowest left 0.4"),
        # no cut: the dropped lie among the others
        ("min", 0.45, "{value} is odd by {min}", '(pl.col("v") * 10).round().cast(pl.Int8) % 2 == 0', None),
    ],
)
def test_the_cut_of_a_rule(
    tmp_path: Path, field: str, at: float, sentence: str, condition: str, label: str | None
) -> None:
    found = evidence(tmp_path, field, at, sentence, condition)
    (rule,) = found.rules
    assert found.notes == []
    assert [r.label for r in found.readings()] == ["v"]
    assert {reason: cut.label for reason, cut in rule.cuts.items()} == ({"bad": label} if label else {})


def test_the_limit_of_another_reason_is_no_cut(tmp_path: Path) -> None:
    """Of a sentence that names no setting, a limit that another sentence has says nothing."""
    found = evidence(
        tmp_path,
        "min",
        0.0,
        '{value} is odd", "low": "{value} is under {min}',
        'pl.col("v") != 2, "low": pl.col("v") >= 0',
    )
    assert found.rules[0].cuts == {}


def test_the_table_has_every_sample_in_its_place(tmp_path: Path) -> None:
    found = evidence(tmp_path, "min", 0.45, "{value} is under {min}", 'pl.col("v") >= self.min')
    assert found.table["row"].to_list() == list(range(10))
    assert found.table["place"].to_list() == [0] * 5 + [1] * 5
    assert found.table.filter(found.kept)["score_0"].to_list() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert found.taken(found.rules[0])["reason"].to_list() == ["bad"] * 5
    assert len(found.taken(found.rules[0], "none such")) == 0
    assert not found.sampled


def test_a_step_is_read_back_from_its_text() -> None:
    text = 'any(clipscore:min=0.3; not(basic:language=,min_words=2); all(nsfw:max=0.4,model="a;(b)"))'
    step = parse_step(text)
    assert isinstance(step, Group)
    assert parse_step(step.text) == step
    assert rule_names(text) == ["clipscore", "basic", "nsfw"]
    assert [r.name for r in step.rules] == ["clipscore", "basic", "nsfw"]
    assert parse_step("clipscore:min=0.3").text == "clipscore:min=0.3"
    with pytest.raises(InputError, match="no rule 'cilpscore'"):
        parse_step("any(cilpscore)")
