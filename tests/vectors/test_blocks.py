"""Blocks: what is read is what lies in the parts, whatever the order and the cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curate.errors import InputError
from curate.vectors.blocks import Blocks


def parts(dtype: str = "float16") -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((rows, 6)).astype(dtype) for rows in (5, 0, 1, 9)]


def test_without_a_selection_all_rows_come_in_order() -> None:
    whole = np.concatenate(parts()).astype(np.float32)
    blocks = Blocks(parts())
    assert (blocks.n, blocks.dim, len(blocks)) == (15, 6, 15)
    for size in (1, 4, 15, 99):
        assert np.array_equal(np.concatenate(list(blocks.iterate(size))), whole)
    assert np.array_equal(blocks.block(4, 12), whole[4:12])
    assert blocks.block(0, 0).shape == (0, 6)
    assert blocks.block(3, 4).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_order_with_repeats_and_absent_rows(dtype: str) -> None:
    whole = np.concatenate(parts(dtype)).astype(np.float32)
    rows = np.array([14, -1, 0, 7, 7, 5, -1, 3, 14])
    wanted = np.where(rows[:, None] < 0, 0, whole[rows])
    blocks = Blocks(parts(dtype), rows)
    assert np.array_equal(blocks.block(0, 9), wanted)
    assert np.array_equal(np.concatenate(list(blocks.iterate(2))), wanted)
    index = np.array([8, 1, 1, 3, 0])
    assert np.array_equal(blocks.gather(index), wanted[index])
    assert np.array_equal(blocks.take(index).block(1, 5), wanted[index][1:])
    assert np.array_equal(blocks.take([4, -1]).block(0, 2), np.stack([wanted[4], np.zeros(6)]))
    assert Blocks(parts(dtype), []).n == 0
    assert list(Blocks(parts(dtype), []).iterate()) == []


def test_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.npy" for k in range(4)]
    for path, part in zip(paths, parts(), strict=True):
        np.save(path, part)
    blocks = Blocks.open(paths, [9, 2])
    assert all(isinstance(part, np.memmap) for part in blocks.parts if len(part))
    assert np.array_equal(blocks.block(0, 2), np.concatenate(parts())[[9, 2]].astype(np.float32))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 5), np.float16), "holds vectors 5 wide where .*0.npy has 6"),
        (np.zeros((2, 6), np.float64), "does not hold vectors of float16 or float32 .it is float64 .2, 6.."),
        (np.zeros(6, np.float16), r"it is float16 \(6,\)"),
        (None, "is not an array that can be mapped"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, array: np.ndarray | None, says: str) -> None:
    good, bad = tmp_path / "0.npy", tmp_path / "1.npy"
    np.save(good, parts()[0])
    if array is None:
        bad.write_bytes(b"\0" * 64)
    else:
        np.save(bad, array)
    with pytest.raises(InputError, match=says) as caught:
        Blocks.open([good, bad])
    assert caught.value.where == str(bad)
    assert caught.value.exit_code == 2


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(IndexError, match=r"outside -1\.\.14"):
        Blocks(parts(), [3, 15])
    with pytest.raises(IndexError, match=r"rows 3\.\.16 of 15"):
        Blocks(parts()).block(3, 16)
    with pytest.raises(ValueError, match="no parts"):
        Blocks([])
    with pytest.raises(ValueError, match="part 1: 5 wide where part 0 is 6"):
        Blocks([np.zeros((1, 6), np.float16), np.zeros((1, 5), np.float16)])
    with pytest.raises(ValueError, match="part 0: wants rows x dim"):
        Blocks([np.zeros((1, 6), np.int8)])
