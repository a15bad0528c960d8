"""dedup: groups against brute force, the survivor by rank, a reason that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate.filter_api import Column, Neighbours, Vectors
from curate.filters.dedup import Dedup
from curate.plugins import build

from .fakes import FakeLeft, uids

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIDE = ("original_width", "original_height")


def left(rows: list[dict[str, object]], vectors: np.ndarray | None = None) -> FakeLeft:
    """Samples numbered in the order of the list: uid 0...0, 0...1, ..."""
    blank = {"sha256": None, "url": None, "caption": None, "original_width": None, "original_height": None}
    filled = [{"uid": f"{at:032x}", **blank, **row} for at, row in enumerate(rows)]
    types = {"sha256": pl.String, "url": pl.String, "caption": pl.String} | dict.fromkeys(SIDE, pl.Int32)
    table = pl.DataFrame(filled or {"uid": [], **blank}, schema_overrides=types, infer_schema_length=None)
    return FakeLeft(table, {} if vectors is None else {("tiny", "image"): vectors})


def outcome(pool: FakeLeft, **settings: object) -> list[str]:
    """A word a row: "kept", "unjudged", or "reason>row"."""
    draw = Dedup(**settings).draw(pool)
    assert draw.of is not None
    assert draw.unjudged is not None
    words = []
    for row in range(pool.n):
        if draw.unjudged[row]:
            assert draw.copies[row] == 0
            words.append("unjudged")
        elif draw.copies[row]:
            assert (draw.copies[row], draw.of[row]) == (1, -1)
            words.append("kept")
        else:
            assert draw.copies[draw.of[row]] == 1
            words.append(f"{list(Dedup.reasons)[draw.reason[row]]}>{draw.of[row]}")
    return words


def a(digit: str) -> str:
    return digit * 64


def test_equal_image_bytes() -> None:
    pool = left([{"sha256": a("1")}, {"sha256": a("2")}, {"sha256": a("1")}, {"sha256": a("1").upper()}])
    assert outcome(pool) == ["kept", "kept", "same_image>0", "same_image>0"]


def test_half_an_equal_digest_is_none() -> None:
    pool = left([{"sha256": "1" * 64}, {"sha256": "1" * 32 + "2" * 32}, {"sha256": "2" * 32 + "1" * 32}])
    assert outcome(pool) == ["kept"] * 3


def test_equal_url_and_caption() -> None:
    pool = left(
        [
            {"url": "http://x/1", "caption": "a dog"},
            {"url": "http://x/1", "caption": "a cat"},
            {"url": "http://x/2", "caption": "a dog"},
            {"url": "http://x/1", "caption": "a dog"},
            {"url": "http://x/1"},
            {"url": "http://x/1"},
            {"url": "http://x/1", "caption": ""},
        ]
    )
    assert outcome(pool) == ["kept"] * 3 + ["same_url_caption>0", "kept", "same_url_caption>4", "kept"]


def test_nothing_to_compare_stays() -> None:
    pool = left([{"caption": "a dog"}, {"caption": "a dog"}, {"sha256": "", "url": ""}, {"sha256": "", "url": ""}])
    assert outcome(pool) == ["kept"] * 4
    typeless = FakeLeft(pool.table.with_columns(sha256=None, url=None, caption=None))
    assert outcome(typeless) == ["kept"] * 4
    assert outcome(left([])) == []


def test_the_largest_image_stays_then_the_lowest_uid() -> None:
    sizes = [(10, 10), (30, 20), (None, None), (20, 30), (1, 5)]
    pool = left([{"sha256": a("1"), **dict(zip(SIDE, size, strict=True))} for size in sizes])
    assert outcome(pool) == ["same_image>1", "kept"] + ["same_image>1"] * 3
    assert outcome(pool, keep=("uid",)) == ["kept"] + ["same_image>0"] * 4


def test_keep_names_columns_best_first() -> None:
    rows = [{"good": 1.0, "new": 5}, {"good": 3.0, "new": 1}, {"good": None, "new": 9}, {"good": 3.0, "new": 2}]
    pool = left([{"sha256": a("1"), **row} for row in rows])
    assert outcome(pool, keep=("good", "new"))[3] == "kept"
    assert outcome(pool, keep=("good", "uid", "new"))[1] == "kept"
    assert outcome(pool, keep=("new",))[2] == "kept"


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def chain() -> np.ndarray:
    """Four vectors at steps of 0.2 radians (cosine .980, .921, .825), and one across."""
    angle = np.array([0.0, 0.2, 0.4, 0.6])
    turned = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    return np.concatenate([turned, [[0, 0, 1]]]).astype(np.float32)


def test_near_copies_through_others_are_one_group() -> None:
    pool = left([{} for _ in range(5)], chain())
    draw = Dedup(model="tiny", threshold=0.9).draw(pool)
    assert outcome(pool, model="tiny", threshold=0.9) == ["kept"] + ["near_duplicate>0"] * 3 + ["kept"]
    # rows 1 and 2 are near the one that stays; row 3 is not, and tells its nearest cosine in the group
    assert draw.value is not None
    assert draw.value[1:4] == pytest.approx(np.cos([0.2, 0.4, 0.2]), abs=1e-6)
    assert np.isnan(draw.value[[0, 4]]).all()
    assert outcome(pool, model="tiny", threshold=0.99) == ["kept"] * 5


def test_exact_and_near_join_into_one_group() -> None:
    rows = [{"sha256": a("1")}, {}, {"sha256": a("1")}, {"url": "u"}, {"url": "u", "original_width": 9}]
    rows[4]["original_height"] = 9
    vectors = chain()[[0, 1, 4, 1, 4]]
    pool = left(rows, vectors)
    # 0-2 the same bytes, 0-1-3 near, 3-4 the same address, 2-4 equal vectors; 4 is the largest
    assert outcome(pool, model="tiny") == [
        "same_image>4",
        "near_duplicate>4",
        "near_duplicate>4",
        "same_url_caption>4",
        "kept",
    ]
    assert outcome(pool) == ["kept", "kept", "same_image>0", "same_url_caption>4", "kept"]


def test_without_a_vector_unjudged_and_no_mans_survivor() -> None:
    vectors = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    big = {"original_width": 99, "original_height": 99}
    pool = left([{"sha256": a("1"), **big}, {"sha256": a("1")}, {"sha256": a("2")}], vectors)
    assert outcome(pool, model="tiny") == ["unjudged", "kept", "near_duplicate>1"]


def brute(pool: FakeLeft, near: float, vectors: np.ndarray) -> set[frozenset[int]]:
    """Groups by repeated merging over every pair, vectors in float64."""
    rows = pool.table.to_dicts()
    groups = [{k} for k in range(len(rows))]
    for i, one in enumerate(rows):
        for j in range(i):
            two = rows[j]
            alike = (
                (one["sha256"] and one["sha256"] == two["sha256"])
                or (one["url"] and (one["url"], one["caption"]) == (two["url"], two["caption"]))
                or vectors[i].astype(np.float64) @ vectors[j] >= near
            )
            if alike:
                first = next(g for g in groups if i in g)
                second = next(g for g in groups if j in g)
                if first is not second:
                    groups.remove(second)
                    first |= second
    return {frozenset(g) for g in groups}


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 150
    vectors = unit(rng.standard_normal((n, 6)))
    rows = [
        {
            "sha256": rng.choice([None, *(f"{k:064d}" for k in range(60))]),
            "url": rng.choice([None, *(f"http://h/{k}" for k in range(25))]),
            "caption": rng.choice([None, "one", "two"]),
            "original_width": int(rng.integers(1, 9)),
            "original_height": int(rng.integers(1, 9)),
        }
        for _ in range(n)
    ]
    pool = left(rows, vectors)
    groups = brute(pool, 0.95, vectors)
    draw = Dedup(model="tiny", threshold=0.95).draw(pool)
    assert draw.of is not None
    stays = np.where(draw.of < 0, np.arange(n), draw.of)
    assert {frozenset(np.flatnonzero(stays == s).tolist()) for s in set(stays.tolist())} == groups
    assert draw.copies.sum() == len(groups)
    for group in groups:
        best = min(group, key=lambda k: (-rows[k]["original_width"] * rows[k]["original_height"], k))
        assert draw.copies[best] == 1


def test_the_order_of_the_list_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    names = uids(300)
    table = pl.DataFrame(
        {
            "uid": names,
            "sha256": [f"{k:064d}" for k in rng.integers(0, 200, 300)],
            "url": [f"u{k}" for k in rng.integers(0, 200, 300)],
            "caption": ["c"] * 300,
            "original_width": rng.integers(1, 4, 300),
            "original_height": [1] * 300,
        }
    )
    one, two = (FakeLeft(t) for t in (table, table.sample(fraction=1.0, shuffle=True, seed=1)))
    assert outcome(one) == outcome(two)


def test_needs_follow_the_settings() -> None:
    exact = Dedup().needs()
    assert exact == [
        Column(name, optional=True) for name in ("sha256", "url", "caption", "original_width", "original_height")
    ]
    near = Dedup(model="tiny", threshold=0.9, keep=("score", "uid")).needs()
    assert near[3:] == [Column("score"), Vectors("tiny", "image"), Neighbours("tiny", 0.9)]
    assert build("dedup", {"keep": "a+b", "model": "tiny"}) == Dedup(model="tiny", keep=("a", "b"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"threshold": 1.5}, "threshold is a cosine, -1..1 .found 1.5."),
        ({"threshold": float("nan")}, "threshold is a cosine"),
        ({"keep": ()}, "keep names each column once, best first .found none."),
        ({"keep": ("a", "a")}, r"found a\+a"),
        ({"model": ""}, "model is ARCH/PRETRAINED"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Dedup(**settings)


def test_sentences_name_the_copy_that_stays() -> None:
    for sentence in Dedup.reasons.values():
        assert "abc" in sentence.format(of="abc", value=0.97)


def test_real_clip_features() -> None:
    path = SHARED / "data" / "clip-features" / "modality_gap_coco_vitb16.npy"
    if not path.exists():
        pytest.skip("shared/data/clip-features is not here")
    images = np.load(path)[0]
    noise = np.random.default_rng(0).normal(0, 0.005, (100, images.shape[1]))
    x = np.concatenate([unit(images), unit(images[:100] + noise)])
    words = outcome(left([{} for _ in x], x), model="tiny", threshold=0.97)
    assert words[500:] == [f"near_duplicate>{k}" for k in range(100)]
    assert words[:500].count("kept") == 500
