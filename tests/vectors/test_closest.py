"""The row with the largest inner product: as torch finds it, at ties, at what is no number, on every path."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from curate.vectors import closest as module
from curate.vectors.closest import Closest, closest

torch = pytest.importorskip("torch")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use")

Array = npt.NDArray[np.floating]


def unit(n: int, dim: int, seed: int) -> Array:
    x = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(n: int, k: int, dim: int, seed: int = 0) -> tuple[Array, Array]:
    """float16 unit vectors around `k` centres, and the centres as k-means leaves them: float32, of many lengths."""
    rng = np.random.default_rng(seed)
    centres = unit(k, dim, seed + 1)
    x = centres[rng.integers(0, k, n)] + 0.08 * rng.standard_normal((n, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    return x, (centres * rng.uniform(0.4, 0.9, (k, 1))).astype(np.float32)


def reference(x: Array, table: Array, batch: int = 1024) -> Array:
    """What DataComp computes: torch.einsum in float32, then torch.argmax, a batch at a time."""
    found = [
        torch.einsum("ik,jk->ij", torch.from_numpy(x[i : i + batch]).float(), torch.from_numpy(table)).argmax(1)
        for i in range(0, len(x), batch)
    ]
    return torch.cat(found).numpy() if found else np.empty(0, np.int64)


def by_torch(table: Array) -> Closest:
    """The path that a GPU takes, on the CPU, in tiles that cut everything unevenly."""
    return module._on_torch(table, torch.device("cpu"), (100, 37))


def in_small_tiles(table: Array) -> Closest:
    return module._Search(table, np, None, (100, 37))


Path = Callable[[Array], Closest]
PATHS = pytest.mark.parametrize("path", [closest, in_small_tiles, by_torch], ids=["numpy", "tiles", "torch"])


@PATHS
@pytest.mark.parametrize("dim", [1, 3, 64, 768])
def test_rows_are_those_that_torch_finds(path: Path, dim: int) -> None:
    x, table = clustered(1500, 300, dim)
    assert np.array_equal(path(table)(x), reference(x, table))


@PATHS
def test_of_equal_products_the_lowest_row(path: Path) -> None:
    x, table = clustered(400, 120, 32)
    again = np.concatenate([table, table[::-1], table])
    found = path(again)(x)
    assert np.array_equal(found, path(table)(x))
    assert np.array_equal(found, reference(x, again))


@PATHS
def test_a_vector_of_zeros_goes_to_row_0(path: Path) -> None:
    x, table = clustered(250, 90, 16)
    x[::3] = 0
    x[1] = -0.0
    found = path(table)(x)
    assert not found[::3].any()
    assert found[1] == 0
    assert np.array_equal(found, reference(x, table))


@PATHS
def test_whole_numbers_with_many_ties(path: Path) -> None:
    rng = np.random.default_rng(7)
    x = rng.integers(-2, 3, (600, 6)).astype(np.float16)
    table = rng.integers(-2, 3, (200, 6)).astype(np.float32)
    found = path(table)(x)
    assert np.array_equal(found, (x.astype(np.float64) @ table.T.astype(np.float64)).argmax(1))
    assert np.array_equal(found, reference(x, table))


@PATHS
def test_what_is_no_number_is_taken_as_torch_takes_it(path: Path) -> None:
    x, table = clustered(300, 150, 8)
    table[::5, 0] = 0
    x[3, 0], x[50] = np.nan, np.nan
    x[7, 0], x[8, 0] = np.inf, -np.inf
    x[9, :2] = np.inf, -np.inf
    found = path(table)(x)
    assert np.array_equal(found, reference(x, table))
    assert found[3] == found[50] == 0


@PATHS
def test_what_float32_cannot_tell_apart_is_told_apart_exactly(path: Path) -> None:
    """Rows a few units of the last place apart: the largest is that of exact arithmetic."""
    rng = np.random.default_rng(3)
    x = unit(200, 256, 5).astype(np.float16)
    near = unit(20, 256, 6)
    table = np.repeat(near, 6, axis=0) * (1 + rng.integers(-4, 5, (120, 1)) * 2.0**-24)
    table = table.astype(np.float32)
    exact = x.astype(np.longdouble) @ table.T.astype(np.longdouble)
    assert np.array_equal(path(table)(x), exact.argmax(1))
    differ = (reference(x, table) != exact.argmax(1)).mean()
    assert differ > 0, "the case is too easy to show anything"


@PATHS
def test_any_number_of_rows(path: Path) -> None:
    x, table = clustered(301, 1, 12)
    for n in (0, 1, 99, 100, 101, 301):
        assert path(table)(x[:n]).tolist() == [0] * n
    x, table = clustered(5, 75, 12)
    assert path(table)(x).dtype == np.int64
    assert np.array_equal(path(table)(x.astype(np.float32)), path(table)(x))


@PATHS
def test_a_table_may_be_mapped(path: Path, tmp_path: pathlib.Path) -> None:
    x, table = clustered(120, 80, 24)
    np.save(tmp_path / "table.npy", table)
    np.save(tmp_path / "x.npy", x)
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("table.npy", "x.npy")]
    assert np.array_equal(path(mapped[0])(mapped[1]), path(table)(x))


def test_how_vectors_are_batched_changes_nothing() -> None:
    x, table = clustered(700, 210, 40)
    find = closest(table)
    assert np.array_equal(np.concatenate([find(x[i : i + 33]) for i in range(0, 700, 33)]), find(x))


def test_torch_is_left_as_precise_as_it_was() -> None:
    x, table = clustered(10, 10, 4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        by_torch(table)(x)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@needs_gpu
def test_a_gpu_finds_the_same_rows() -> None:
    x, table = clustered(20_000, 3000, 768)
    assert np.array_equal(closest(table, "cuda")(x), closest(table)(x))
