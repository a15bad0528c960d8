"""Neighbours: pairs and components against float64 brute force, at the edges, and through lists."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from curate.errors import InputError
from curate.vectors import buckets
from curate.vectors.blocks import Blocks
from curate.vectors.components import forest
from curate.vectors.neighbours import components, links, pairs, plan

SHARED = Path(__file__).resolve().parents[3] / "shared"


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def planted(n: int, dim: int, copies: int, *, seed: int = 0, low: float = 0.9) -> np.ndarray:
    """float16 unit vectors around a common mean, `copies` of them near others at a cosine of `low`..1."""
    rng = np.random.default_rng(seed)
    x = unit(rng.standard_normal((n, dim)) + rng.standard_normal(dim))
    chosen = rng.permutation(n)[: 2 * copies]
    source, copy = chosen[:copies], chosen[copies:]
    side = rng.standard_normal((copies, dim))
    side = unit(side - (side * x[source]).sum(1, keepdims=True) * x[source])
    cosine = rng.uniform(low, 1, (copies, 1))
    x[copy] = cosine * x[source] + np.sqrt(1 - cosine**2) * side
    return x.astype(np.float16)


def brute(x: np.ndarray, threshold: float, ok: np.ndarray | None = None) -> list[tuple[int, int, float]]:
    """All pairs by the definition, in float64, the cosine rounded to float32 as the contract says."""
    wide = x.astype(np.float64)
    length = np.linalg.norm(wide, axis=1)
    usable = np.isfinite(length) & (length > 0) & (True if ok is None else ok)
    found = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if usable[i] and usable[j]:
                cosine = np.float32(wide[i] @ wide[j] / (length[i] * length[j]))
                if cosine >= np.float32(threshold):
                    found.append((i, j, float(cosine)))
    return found


def rows(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(found[0].tolist(), found[1].tolist(), strict=True))


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pairs_are_those_of_the_definition(threshold: float, dtype: str) -> None:
    x = planted(150, 24, 40).astype(dtype)
    i, j, cosine = pairs(Blocks([x[:70], x[70:]]), threshold)
    wanted = brute(x, threshold)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [w[:2] for w in wanted]
    assert np.allclose(cosine, [w[2] for w in wanted], atol=1e-7)
    assert (i.dtype, j.dtype, cosine.dtype) == (np.int64, np.int64, np.float32)


def test_a_row_that_cannot_be_compared_pairs_with_none() -> None:
    x = np.ones((8, 5), np.float32)
    x[1] = 0
    x[3, 2] = np.nan
    x[4, 0] = np.inf
    x[5] *= 7  # unnormalised, yet the same direction
    x[6] *= 1e-30
    ok = np.array([True, True, False, True, True, True, True, True])
    i, j, cosine = pairs(Blocks([x]), 0.99, ok=ok)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 5), (0, 6), (0, 7), (5, 6)]
    assert cosine.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match=r"ok has shape \(3,\) for 8 rows"):
        pairs(Blocks([x]), 0.99, ok=ok[:3])


def test_equal_rows_are_a_star_to_the_first() -> None:
    x = planted(40, 16, 0)
    x[[11, 30, 25]] = x[3]
    x[7] = 0.0
    x[9] = -0.0
    assert rows(pairs(Blocks([x]), 1.0)) == [(3, 11), (3, 25), (3, 30)]
    near = rows(pairs(Blocks([x]), -1.0))
    # each pair of the 35 distinct vectors that can be compared, and the star
    assert len(near) == 35 * 34 // 2 + 3
    assert not any(i in (11, 25, 30) for i, _ in near)
    assert [i for i, j in near if j in (11, 25, 30)] == [3, 3, 3]


def test_one_group_of_100000_equal_rows_stays_small() -> None:
    x = np.tile(planted(2, 32, 0), (50_000, 1))
    i, j, cosine = pairs(Blocks([x]), 0.95, memory=1 << 20)
    assert len(i) == 100_000 - 2
    assert set(i.tolist()) == {0, 1}
    assert (cosine == 1).all()
    assert np.array_equal(components(len(x), i, j), np.arange(len(x)) % 2)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_nothing_and_almost_nothing(n: int) -> None:
    x = np.ones((n, 4), np.float16)
    for search in (pairs, links):
        assert rows(search(Blocks([x]), 0.5)) == ([(0, 1)] if n == 2 else [])
        assert rows(search(Blocks([x]), 0.5, ok=np.zeros(n, bool))) == []


@pytest.mark.parametrize("threshold", [1.01, -1.5, float("nan")])
def test_a_threshold_that_is_no_cosine(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"a cosine threshold lies in -1\.\.1"):
        pairs(Blocks([np.ones((2, 4), np.float16)]), threshold)


def test_too_many_pairs_are_an_error_and_links_are_not() -> None:
    rng = np.random.default_rng(3)
    x = unit(rng.standard_normal(24) * 30 + rng.standard_normal((3000, 24))).astype(np.float16)
    with pytest.raises(InputError, match="more than 16,384 pairs have a cosine of at least") as caught:
        pairs(Blocks([x]), 0.9, memory=1 << 20)
    assert caught.value.hint is not None
    i, j, cosine = links(Blocks([x]), 0.9, memory=1 << 20)
    assert len(i) == 2999
    assert (cosine >= np.float32(0.9)).all()
    assert not components(3000, i, j).any()


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_links_connect_what_pairs_connect_and_are_some_of_them(threshold: float) -> None:
    x = planted(1200, 12, 500, seed=4, low=0.7)
    x[1000:1010] = x[5]
    every = pairs(Blocks([x]), threshold)
    few = links(Blocks([x]), threshold)
    assert set(rows(few)) <= set(rows(every))
    assert rows(few) == sorted(rows(few))
    labels = components(len(x), few[0], few[1])
    assert np.array_equal(labels, components(len(x), every[0], every[1]))
    assert len(few[0]) == len(x) - len(np.unique(labels))


def test_the_number_of_threads_and_the_parts_change_nothing() -> None:
    x = planted(3000, 64, 600, seed=5)
    cut = Blocks([x[:13], x[13:2000], x[2000:]])
    for exact_rows in (5000, 1024):
        for search in (pairs, links):
            one = search(Blocks([x]), 0.93, threads=1, exact_rows=exact_rows)
            four = search(cut, 0.93, threads=4, exact_rows=exact_rows)
            assert all(np.array_equal(a, b) for a, b in zip(one, four, strict=True))


def test_another_order_of_rows_gives_the_same_pairs() -> None:
    x = planted(600, 32, 150, seed=6)
    order = np.random.default_rng(7).permutation(600)
    place = np.argsort(order)
    straight = pairs(Blocks([x]), 0.9)
    turned = pairs(Blocks([x], order), 0.9)
    wanted = {
        (min(place[i], place[j]), max(place[i], place[j])): c
        for i, j, c in zip(*(side.tolist() for side in straight), strict=True)
    }
    assert dict(zip(rows(turned), turned[2].tolist(), strict=True)) == wanted


@pytest.mark.parametrize("threshold", [0.93, 0.95])
def test_lists_find_what_is_planted(threshold: float) -> None:
    x = planted(12_000, 96, 4000, seed=8, low=threshold - 0.02)
    how = plan(Blocks([x]), threshold, exact_rows=1024)
    assert how.lists > 0
    assert how.recall >= buckets.RECALL
    every = set(rows(pairs(Blocks([x]), threshold, exact_rows=1 << 20)))
    found = set(rows(pairs(Blocks([x]), threshold, exact_rows=1024)))
    assert found <= every
    assert len(every) > 2000
    assert len(found) / len(every) >= 0.999


def test_where_lists_would_lose_pairs_every_pair_is_computed() -> None:
    x = planted(1100, 64, 100, seed=9)
    assert plan(Blocks([x]), 0.2, exact_rows=1024).lists == 0
    assert plan(Blocks([x]), 0.95, exact_rows=1100).lists == 0
    assert rows(pairs(Blocks([x]), 0.2, exact_rows=1024)) == rows(pairs(Blocks([x]), 0.2))


def test_a_dense_group_in_one_list_is_linked_without_its_square() -> None:
    rng = np.random.default_rng(10)
    crowd = unit(rng.standard_normal(32) * 60 + rng.standard_normal((6000, 32)))
    x = np.concatenate([planted(6000, 32, 100, seed=11), crowd.astype(np.float16)])
    i, j, _ = links(Blocks([x]), 0.95, exact_rows=1024)
    labels = components(len(x), i, j)
    assert (labels[6000:] == labels[-1]).all()
    assert len(i) < len(x)


def test_no_thread_outlives_a_search() -> None:
    before = threading.active_count()
    pairs(Blocks([planted(100, 8, 10)]), 0.9)
    with pytest.raises(InputError):
        pairs(Blocks([planted(100, 8, 10)]), -1.0, memory=64)
    assert threading.active_count() == before


def test_faiss_is_imported_when_it_is_used() -> None:
    import subprocess

    code = "import sys, curate.vectors.neighbours; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- components -------------------------------------------------------------------------------------------


def oracle(n: int, i: np.ndarray, j: np.ndarray) -> list[int]:
    parent = list(range(n))

    def root(a: int) -> int:
        while parent[a] != a:
            a = parent[a]
        return a

    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(a) for a in range(n)]


@pytest.mark.parametrize("edges", [0, 30, 90, 400])
def test_components_against_union_find(edges: int) -> None:
    rng = np.random.default_rng(edges)
    i, j = rng.integers(0, 100, (2, edges))
    assert components(100, i, j).tolist() == oracle(100, i, j)
    labels = np.arange(100)
    used = forest(labels, i, j)
    assert labels.tolist() == oracle(100, i, j)
    assert len(used) == 100 - len(set(labels.tolist()))
    assert components(100, i[used], j[used]).tolist() == labels.tolist()


def test_a_chain_of_a_million_in_any_order() -> None:
    n = 1_000_000
    order = np.random.default_rng(0).permutation(n)
    assert not components(n, order[:-1], order[1:]).any()
    assert not components(n, np.arange(n - 1), np.arange(1, n)).any()


# --- real features ----------------------------------------------------------------------------------------


def test_real_clip_features() -> None:
    path = SHARED / "data" / "clip-features" / "modality_gap_coco_vitb16.npy"
    if not path.exists():
        pytest.skip("shared/data/clip-features is not here")
    images = np.load(path)[0]
    again = images[:100] + np.random.default_rng(0).normal(0, 0.005, (100, images.shape[1]))
    x = np.concatenate([images, unit(again)]).astype(np.float16)
    found = rows(pairs(Blocks([x]), 0.95))
    assert found == [w[:2] for w in brute(x, 0.95)]
    assert {(k, 500 + k) for k in range(100)} <= set(found)
