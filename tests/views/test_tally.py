from __future__ import annotations

import polars as pl
import pytest

from curate.views import tally as tallies
from curate.views.tally import Tally


def frame(*rows: tuple[str, str | None, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, {"key": pl.String, "label": pl.String, "samples": pl.UInt32}, orient="row")


def test_a_tally_forgets_the_rare_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "KEPT", 8)
    monkeypatch.setattr(tallies, "PENDING", 50)
    tally = Tally()
    for turn in range(40):
        tally.add(frame(("bad", "timeout", 3), ("bad", "reset", 1), ("good", None, 5), ("half", None, 2)))
        tally.add(
            frame(*((f"{turn}-{n}", "http_404" if n % 2 else None, 1) for n in range(20)), ("half", "tls", 2))
        )
    assert tally.cut
    assert len(tally._merge()) < 100
    assert tally.top("failed", 2) == [
        {"key": "bad", "samples": 160, "failed": 160, "label": "timeout"},
        {"key": "half", "samples": 160, "failed": 80, "label": "tls"},
    ]
    assert tally.top("samples", 1)[0] == {"key": "good", "samples": 200, "failed": 0, "label": None}


def test_an_empty_tally() -> None:
    assert Tally().top("failed", 3) == []
