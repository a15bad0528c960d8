from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.errors import InputError
from curate.filter_api import Similarity, settings_of
from curate.filters.clipscore import ClipScore

from .fakes import FakeFacts, FakeFigures, judged, uids

SHARED = Path(__file__).resolve().parents[3] / "shared"


def pool(similarity: object) -> pl.DataFrame:
    series = pl.Series("similarity", similarity, dtype=pl.Float32)
    return pl.DataFrame({"uid": uids(len(series)), "similarity": series})


def scores(n: int) -> pl.DataFrame:
    return pool(np.random.default_rng(n).normal(0.2, 0.05, n).astype(np.float32))


@pytest.mark.parametrize("n", [1, 7, 99, 100, 1000])
@pytest.mark.parametrize("top", [0.01, 0.1, 0.29, 0.3, 0.57, 1.0])
def test_top_keeps_exactly_the_floor(n: int, top: float) -> None:
    frame = scores(n)
    outcome = judged(ClipScore(top=top), frame)
    kept = [s for s, o in zip(frame["similarity"], outcome, strict=True) if o == "kept"]
    assert len(kept) == int(Decimal(str(top)) * n)
    assert sorted(kept) == sorted(frame["similarity"])[n - len(kept) :]


def test_the_fraction_is_the_decimal_that_was_written() -> None:
    assert int(0.29 * 100) == 28
    assert judged(ClipScore(top=0.29), scores(100)).count("kept") == 29


def test_ties_go_to_the_lowest_uid() -> None:
    frame = pool([0.5] * 10)
    outcome = judged(ClipScore(top=0.35), frame)
    kept = {u for u, o in zip(frame["uid"], outcome, strict=True) if o == "kept"}
    assert kept == set(sorted(frame["uid"])[:3])


def test_unjudged_samples_count_but_do_not_rank() -> None:
    outcome = judged(ClipScore(top=0.5), pool([0.1, None, 0.3, None, 0.2, None]))
    assert outcome == ["kept", None, "kept", None, "kept", None]


@pytest.mark.parametrize("top", [0.1, 0.25, 0.29, 0.5])
def test_datacomps_cut(top: float) -> None:
    values = np.random.default_rng(3).integers(0, 40, 500).astype(np.float32) / 100
    frame = pool(values)
    threshold = -np.sort(-values)[int(len(values) * top)]
    outcome = judged(ClipScore(top=top, ties="datacomp"), frame)
    assert [o == "kept" for o in outcome] == list(values >= threshold)
    assert outcome.count("kept") > 500 * top


def test_datacomps_cut_at_top_1_is_where_its_code_fails(caplog: pytest.LogCaptureFixture) -> None:
    frame = pool([0.1, None, 0.3])
    with pytest.raises(IndexError):
        -np.sort(-frame["similarity"].to_numpy())[int(3 * 1.0)]
    assert judged(ClipScore(top=1.0, ties="datacomp"), frame) == ["kept", None, "kept"]
    assert "all that have a score are kept" in caplog.text


@pytest.mark.parametrize("top", [0.25, 0.4, 0.5, 0.6, 0.75, 0.99])
def test_datacomps_cut_among_samples_without_a_score(top: float, caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([0.1, np.nan, 0.3, np.nan, 0.2], np.float32)
    threshold = -np.sort(-values)[int(len(values) * top)]
    frame = pool([None if np.isnan(v) else v for v in values])
    outcome = judged(ClipScore(top=top, ties="datacomp"), frame)
    assert [o == "kept" for o in outcome] == (values >= threshold).tolist()
    assert [o is None for o in outcome] == np.isnan(values).tolist()
    assert ("none is kept" in caplog.text) == bool(np.isnan(threshold))


def test_datacomps_cut_in_double_precision() -> None:
    close = [0.3, np.nextafter(0.3, 1), np.nextafter(0.3, 0)]
    frame = pl.DataFrame({"uid": uids(3), "similarity": pl.Series(close, dtype=pl.Float64)})
    assert judged(ClipScore(top=0.34, ties="datacomp"), frame) == ["kept", "kept", "below_top"]


def test_datacomps_cut_where_files_have_either_precision() -> None:
    single = np.float32(0.3)
    cut = np.nextafter(float(single), 1)  # in single precision it would be the same
    joined = pl.DataFrame({"uid": uids(2), "similarity": pl.Series([cut, float(single)], dtype=pl.Float64)})
    [condition] = ClipScore(top=0.4, ties="datacomp").keep(FakeFigures(joined)).values()
    file = pl.DataFrame({"similarity": pl.Series([single], dtype=pl.Float32)})
    assert file.select(kept=condition)["kept"].to_list() == [bool(single.astype(np.float64) >= cut)] == [False]


@pytest.mark.parametrize(("dtype", "kind"), [(pl.Float32, np.float32), (pl.Float64, np.float64)])
def test_min_compares_in_the_columns_own_precision(dtype: type[pl.DataType], kind: type[np.floating[Any]]) -> None:
    least = kind(0.28)
    values = [least, np.nextafter(least, kind(0)), kind(0.3), np.float32(0.28), None]
    frame = pl.DataFrame({"uid": uids(5), "similarity": pl.Series(values, dtype=dtype)})
    stays = "kept" if kind(np.float32(0.28)) >= least else "below_min"
    assert judged(ClipScore(min=0.28), frame) == ["kept", "below_min", "kept", stays, None]


def test_defaults_settle_on_the_pool() -> None:
    settled = ClipScore().settle(FakeFacts(("tiny",)))
    assert (settled.top, settled.model) == (0.3, "tiny")
    assert settled.needs() == [Similarity("tiny", None)]
    assert ClipScore(min=0.2).settle(FakeFacts()).top is None
    named = ClipScore(model="ViT-B-32/openai", source="published").settle(FakeFacts(("tiny",)))
    assert named.needs() == [Similarity("ViT-B-32/openai", "published")]
    with pytest.raises(InputError, match="which model"):
        ClipScore().settle(FakeFacts(("a/b", "c/d")))


def test_sentences() -> None:
    rule = ClipScore(min=0.28)
    assert list(rule.values()) == list(rule.keep(FakeFigures(scores(2))))
    said = rule.reasons["below_min"].format(**settings_of(rule), value=0.2123456)
    assert said == "the image-text similarity 0.2123 is under 0.28"


@pytest.mark.parametrize("settings", [{"min": 0.2, "top": 0.3}, {"top": 0.0}, {"top": 1.1}, {"min": 2.0}])
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\(found|exclude|every"):
        ClipScore(**settings)  # type: ignore[arg-type]


def test_real_pairs_beat_shuffled_ones() -> None:
    path = SHARED / "data" / "clip-features" / "modality_gap_coco_vitb16.npy"
    if not path.exists():
        pytest.skip("no CLIP features in ../shared")
    image, text = np.load(path)
    matched, shuffled = (image * text).sum(1), (image * np.roll(text, 1, axis=0)).sum(1)
    outcome = judged(ClipScore(top=0.5), pool(np.concatenate([matched, shuffled])))
    assert outcome.count("kept") == 500
    assert outcome[:500].count("kept") > 470
