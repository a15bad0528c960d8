"""Rule files that answer wrongly: refused or failed under the file's name, and nothing of them stays.

tests/test_plugins.py has many more ways to be wrong; here stands what a command leaves behind.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pools import make_pool

JUDGE = """
from dataclasses import dataclass
import polars as pl
from curate.filter_api import Column, Judge, Score, Scorer

@dataclass(frozen=True)
class Mine(Judge):
    "Keep what is long."
    reasons = {{"short": "it is short"}}

    def needs(self):
        return [Column({column!r})]

    def keep(self, pool):
        return {{"short": {keep}}}
"""
SCORER = """
from dataclasses import dataclass
import polars as pl
from curate.filter_api import Column, Judge, Score, Scorer

@dataclass(frozen=True)
class Length(Scorer):
    "The caption's length."
    name = "length"
    version = 1
    columns = {{"length": "Int32"}}

    def needs(self):
        return [Column("caption")]

    def open(self, device):
        return lambda batch: {answer}

@dataclass(frozen=True)
class Mine(Judge):
    "Keep what is long."
    reasons = {{"short": "it is short"}}

    def needs(self):
        return [Score(Length())]

    def keep(self, pool):
        return {{"short": pl.col("length") > 9}}
"""
GOOD = "{'length': [len(c) for c in batch.columns['caption']]}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a small pool in `pool`."""
    make_pool(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filtered(text: str, *words: str) -> Ran:
    """A filter by this rule file."""
    Path("mine.py").write_text(text)
    ran = curate("filter", "--rule", "mine.py", "--workers", "0", *words)
    shutil.rmtree("__pycache__", ignore_errors=True)
    return ran


@pytest.mark.parametrize(
    ("column", "keep", "says", "hint"),
    [
        ("captoin", "pl.col('captoin') > ''", "no column 'captoin' (found: caption, ", "did you mean 'caption'?"),
        ("caption", "pl.col('captoin') > ''", 'ColumnNotFoundError: unable to find column "captoin"', None),
        ("caption", "pl.col('caption').head(2) > ''", "", None),
        ("caption", "pl.lit(1 // 0)", "ZeroDivisionError: ", None),
        ("caption", "pl.col('caption').map_elements(lambda c: 1 / 0, pl.Boolean)", "ZeroDivisionError: ", None),
        ("caption", "exit(0)", "SystemExit: 0", None),
    ],
)
def test_a_judge_that_is_wrong_costs_nothing(
    here: Path, column: str, keep: str, says: str, hint: str | None
) -> None:
    before = contents(here / "pool")
    refused(filtered(JUDGE.format(column=column, keep=keep)), f"rule mine.py: {says}", hint)
    left = contents(here / "pool")
    assert {name: left[name] for name in before} == before
    assert not [name for name, data in left.items() if data is not None and name not in before]
    assert curate("subset", "--scale", "debug").code == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("{'length': [1]}", "gave 1 values of 'length' for 3 rows"),
        ("{'width': [1, 1, 1]}", "gave no column 'length' (found: width)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(0)", "SystemExit: 0"),
    ],
)
def test_a_scorer_that_is_wrong_is_named_and_judges_nothing(here: Path, answer: str, says: str) -> None:
    first = filtered(SCORER.format(answer=GOOD), "--json")
    succeeded(first)
    assert first.json["counts"]["kept"] == 6
    ran = filtered(SCORER.format(answer=answer), "--json")
    assert ran.code == 3
    assert f"parts failed: 00000000, 00000001 (rule length: {says}" in ran.err
    assert "Traceback" not in ran.err
    # the columns of the file as it was are not taken for those of the file as it is
    assert ran.json["counts"] == {"samples": 6, "kept": 0, "dropped": 0, "unjudged": 6}
    assert ran.json["funnel"][0]["unjudged"] == {"part_failed": 6}
    again = filtered(SCORER.format(answer=GOOD), "--json")
    succeeded(again)
    assert again.json["counts"]["kept"] == 6
    succeeded(curate("verify", "--workers", "0"))


def test_what_a_rule_file_prints_is_no_result(here: Path) -> None:
    ran = filtered("print('noise')\n" + SCORER.format(answer=f"print('more') or {GOOD}"), "--json")
    succeeded(ran)
    assert ran.json["counts"]["kept"] == 6
    assert ran.err.count("noise") >= 1
    assert ran.err.count("more") == 2
