"""uids as pairs of numbers: read, written, sorted, found."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from curate import uids

DIGITS = "0123456789abcdef0123456789abcdef"


def random_pairs(n: int, seed: int = 0, most: int = 1 << 64) -> npt.NDArray[np.void]:
    """`n` pairs of numbers below `most`."""
    halves = np.random.default_rng(seed).integers(0, most, (n, 2), dtype=np.uint64)
    pairs = np.empty(n, dtype=uids.UID_DTYPE)
    pairs["f0"], pairs["f1"] = halves[:, 0], halves[:, 1]
    return pairs


@pytest.mark.parametrize("n", [0, 1, 5, uids._BLOCK, uids._BLOCK + 1])
def test_pairs_are_what_int_reads(n: int) -> None:
    texts = [hashlib.md5(b"%d" % i).hexdigest() for i in range(n)]
    pairs = uids.to_pairs(pa.array(texts, pa.string()))
    assert pairs.dtype == np.dtype("u8,u8")
    assert pairs.tolist() == [(int(t[:16], 16), int(t[16:], 16)) for t in texts]
    assert uids.to_hex(pairs) == texts


def test_upper_case_is_the_same_uid() -> None:
    mixed = "0123456789ABCDEFabcdefABCDEF9876"
    assert uids.to_hex(uids.to_pairs(pa.array([mixed, mixed.upper()]))) == [mixed.lower()] * 2


def test_slices_and_chunks_and_large_strings() -> None:
    texts = [hashlib.md5(b"%d" % i).hexdigest() for i in range(9)]
    whole = uids.to_pairs(pa.array(texts))
    assert (uids.to_pairs(pa.array(texts, pa.large_string())[2:7]) == whole[2:7]).all()
    assert (uids.to_pairs(pa.chunked_array([texts[:4], texts[4:]])) == whole).all()


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16, 24, 31])
def test_every_character_but_digits_is_refused(place: int) -> None:
    for code in range(128):
        text = DIGITS[:place] + chr(code) + DIGITS[place + 1 :]
        column = pa.array([DIGITS, DIGITS, text])
        if chr(code) in "0123456789abcdefABCDEF":
            assert uids.to_hex(uids.to_pairs(column))[2] == text.lower()
        else:
            with pytest.raises(ValueError, match=r"row 2: .* is not 32 hex digits"):
                uids.to_pairs(column)


@pytest.mark.parametrize("text", ["", "abc", DIGITS + "0", "\u00e9" * 16, "\uff11" * 10 + "00", "0x" + DIGITS[:30]])
def test_what_has_not_32_digits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="row 1: "):
        uids.to_pairs(pa.array([DIGITS, text]))


def test_the_row_is_named_in_later_blocks_too() -> None:
    texts = [DIGITS] * (uids._BLOCK + 10)
    texts[uids._BLOCK + 3] = "g" * 32
    with pytest.raises(ValueError, match=f"row {uids._BLOCK + 3}: 'gggg"):
        uids.to_pairs(pa.array(texts))
    with pytest.raises(ValueError, match="row 1 has no uid"):
        uids.to_pairs(pa.array([DIGITS, None]))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000, 1 << 14])
@pytest.mark.parametrize("most", [1, 3, 1 << 20, 1 << 64])
def test_the_order_is_stable_and_sorts_both_halves(n: int, most: int) -> None:
    pairs = random_pairs(n, most=most)
    expected = np.lexsort((np.arange(n), pairs["f1"], pairs["f0"]))
    assert uids.sort_order(pairs).tolist() == expected.tolist()


def test_high_halves_that_differ_in_their_last_bits_alone() -> None:
    """Sorting looks at the high bits first: those below are put right."""
    pairs = random_pairs(5000, most=4)
    pairs["f0"] += np.uint64(1 << 63)
    assert (pairs[uids.sort_order(pairs)] == np.sort(pairs)).all()


def test_found_where_it_stands_first() -> None:
    pairs = random_pairs(300, most=8)
    ordered = pairs[uids.sort_order(pairs)]
    wanted = random_pairs(200, seed=1, most=9)
    known = ordered.tolist()
    assert uids.find(ordered, wanted).tolist() == [known.index(w) if w in known else -1 for w in wanted.tolist()]
