"""Fractions that are none, or that no sample has the rank of: said before anything is computed, or kept to.

After a rule and after a recipe alike.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pools import make_metadata

N = 10
REFUSED = {
    "0": "top is a fraction over 0 and at most 1 (found 0.0)",
    "1.5": "top is a fraction over 0 and at most 1 (found 1.5)",
    "-0.3": "top is a fraction over 0 and at most 1 (found -0.3)",
    "1e999": "top is a fraction over 0 and at most 1 (found inf)",
    "nan": "top must be a number (found 'nan')",
    "abc": "top must be a number (found 'abc')",
    "30%": "top must be a number (found '30%')",
    "": "top must be a number (found '')",
}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Ten samples with rising scores; the fourth and the seventh have none."""
    rows = [
        {
            "uid": f"{i:032x}",
            "url": f"https://images.example/{i}",
            "text": "a dog",
            "clip_l14_similarity_score": i / 20,
        }
        for i in range(N)
    ]
    for row in (rows[3], rows[6]):
        row["clip_l14_similarity_score"] = float("nan")
    make_metadata(tmp_path / "pool", rows)
    return tmp_path / "pool"


def ways(top: str) -> list[tuple[str, str]]:
    return [("--rule", f"clipscore:top={top}"), ("--recipe", f"datacomp/clip_score:top={top}")]


def filtered(pool: Path, *how: str) -> Ran:
    return curate("filter", "--pool", pool, "--workers", "0", "--json", *how)


@pytest.mark.parametrize("top", REFUSED)
def test_a_fraction_that_is_none(pool: Path, top: str) -> None:
    before = contents(pool)
    for how in ways(top):
        refused(filtered(pool, *how), f"rule clipscore: {REFUSED[top]}", "curate rules clipscore")
    assert contents(pool) == before


@pytest.mark.parametrize("text", ["random:fraction=0", "random:fraction=1.5", "random:fraction=abc"])
def test_a_fraction_to_draw_that_is_none(pool: Path, text: str) -> None:
    said = "fraction must be a number" if text.endswith("abc") else "fraction is over 0 and at most 1 (found "
    refused(filtered(pool, "--rule", text), said, "curate rules random")
    refused(
        filtered(pool, "--recipe", text.replace("random:", "datacomp/random_subset:")), said, "curate rules random"
    )


@pytest.mark.parametrize("how", ways("1"))
def test_all_of_the_pool_is_all_that_have_a_score(pool: Path, how: tuple[str, str]) -> None:
    ran = filtered(pool, *how)
    succeeded(ran)
    assert ran.json["counts"] == {"samples": N, "kept": N - 2, "dropped": 0, "unjudged": 2}
    assert ("no sample has the rank of the cut" in ran.err) == (how[0] == "--recipe"), "where DataComp's code fails"


def test_a_cut_that_falls_on_samples_without_a_score_keeps_none_as_datacomps_does(pool: Path) -> None:
    own, theirs = (filtered(pool, *how) for how in ways("0.85"))
    succeeded(own)
    succeeded(theirs)
    assert own.json["counts"]["kept"] == N - 2, "as many as have one"
    assert theirs.json["counts"] == {"samples": N, "kept": 0, "dropped": N - 2, "unjudged": 2}
    assert "the rank of the cut, 8 of 10, falls on samples without a score" in theirs.err
    assert "rank" not in own.err


def test_no_score_at_all(tmp_path: Path) -> None:
    rows = [{"uid": f"{i:032x}", "url": "https://images.example", "text": "a"} for i in range(3)]
    make_metadata(tmp_path, [row | {"clip_l14_similarity_score": float("nan")} for row in rows])
    for how in ways("0.5"):
        ran = filtered(tmp_path, *how)
        succeeded(ran)
        assert ran.json["counts"] == {"samples": 3, "kept": 0, "dropped": 0, "unjudged": 3}
