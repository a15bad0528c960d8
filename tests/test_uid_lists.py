"""uid lists: every form read and written, and their arithmetic against Python's Counter."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import uid_files, uid_lists, uids
from curate.errors import InputError
from curate.uid_lists import UidList

SUFFIXES = (".npy", ".bin", ".memmap", ".parquet", ".txt")
WORDS = ["0" * 32, f"{1:032x}", f"{2**64 - 1:032x}", f"{2**64:032x}", "a" * 32, "f" * 32]
"""In order; halves that are equal, 0 and the largest."""


def pairs_of(words: list[str]) -> npt.NDArray[np.void]:
    return uids.to_pairs(pa.array(words, pa.string()))


def listed(words: list[str]) -> UidList:
    return UidList("made", "test", pairs_of(sorted(words)))


# --- forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("words", [WORDS, ["a" * 32], [WORDS[0], *["b" * 32] * 3]], ids=["plain", "one", "copies"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, words: list[str]) -> None:
    path = tmp_path / f"list{suffix}"
    uid_files.write(path, pairs_of(words)[::-1])  # in order whatever order it was given in
    found = uid_lists.read(path)
    assert (uids.to_hex(found.pairs), found.ordered) == (words, True)
    assert uids.to_hex(found.uids) == sorted(set(words))
    assert dict(zip(uids.to_hex(found.uids), found.copies.tolist(), strict=True)) == Counter(words)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_npy_has_the_bytes_of_numpys_own(tmp_path: Path) -> None:
    pairs = pairs_of(WORDS)
    uid_files.write(tmp_path / "ours.npy", pairs)
    np.save(tmp_path / "theirs.npy", pairs)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    uid_files.write(tmp_path / "ours.bin", pairs)
    assert (tmp_path / "ours.bin").read_bytes() == pairs.tobytes()


@pytest.mark.parametrize(
    "dtype",
    ["u8,u8", ">u8,>u8", "<u8,>u8", [("high", "<u8"), ("low", "<u8")], [("low", ">u8"), ("f0", "<u8")]],
    ids=str,
)
def test_two_halves_of_any_name_and_byte_order(tmp_path: Path, dtype: Any) -> None:
    array = np.array([tuple(pair) for pair in pairs_of(WORDS).tolist()], np.dtype(dtype))
    np.save(tmp_path / "list.npy", array)
    assert uids.to_hex(uid_lists.read(tmp_path / "list.npy").pairs) == WORDS


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_a_file_in_datacomps_form_is_mapped(tmp_path: Path, suffix: str) -> None:
    uid_files.write(tmp_path / f"list{suffix}", pairs_of(WORDS))
    base: Any = uid_lists.read(tmp_path / f"list{suffix}").pairs
    while not isinstance(base, np.memmap) and base is not None:
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(WORDS, pa.string()),
        pa.array([w.upper() for w in WORDS], pa.large_string()),
        pa.array(WORDS).dictionary_encode(),
        pa.array([bytes.fromhex(w) for w in WORDS], pa.binary(16)),
        pa.array([bytes.fromhex(w) for w in WORDS], pa.large_binary()),
        pa.array([w.encode() for w in WORDS], pa.binary()),
    ],
    ids=lambda c: str(c.type),
)
def test_columns_of_uids(tmp_path: Path, column: pa.Array) -> None:
    # other columns do not matter
    pq.write_table(pa.table({"text": ["x"] * 6, "uid": column}), tmp_path / "list.parquet", row_group_size=4)
    assert uids.to_hex(uid_lists.read(tmp_path / "list.parquet").pairs) == WORDS


@pytest.mark.parametrize("names", [("f0", "f1"), ("high", "low")])
def test_columns_of_halves(tmp_path: Path, names: tuple[str, str]) -> None:
    pairs = pairs_of(WORDS)
    pq.write_table(pa.table({names[0]: pairs["f0"], names[1]: pairs["f1"]}), tmp_path / "list.parquet")
    assert uids.to_hex(uid_lists.read(tmp_path / "list.parquet").pairs) == WORDS


def test_bytes_that_are_no_uids_and_folders_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": pa.array([b"ab" * 8, b"ab"], pa.binary())}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match=r"column uid: row 0: .* is not 32 hex digits"):
        uid_lists.read(tmp_path / "list.parquet")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match=r"folder\.npy: is a folder, not a uid list"):
        uid_lists.read(tmp_path / "folder.npy")


def test_text_of_any_line_ends(tmp_path: Path) -> None:
    text = f"\ufeff{WORDS[0]}\r\n\n  {WORDS[1]}\t\n{WORDS[4].upper()}"
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert uids.to_hex(uid_lists.read(tmp_path / "list.txt").pairs) == [WORDS[0], WORDS[1], WORDS[4]]


def test_text_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uid_files, "_TEXT_BLOCK", 70)
    words = [f"{n:032x}" for n in range(50)]
    (tmp_path / "list.txt").write_text("\n".join(words))
    assert uids.to_hex(uid_lists.read(tmp_path / "list.txt").pairs) == words
    words[40] = "g" * 32
    (tmp_path / "list.txt").write_text("\n".join(words))
    with pytest.raises(InputError, match="line 41: 'gggggg"):
        uid_lists.read(tmp_path / "list.txt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_blocks_follow_each_other(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uid_files, "BLOCK", 7)
    words = [f"{n:032x}" for n in range(50)]
    uid_files.write(tmp_path / f"list{suffix}", pairs_of(words))
    found = uid_lists.read(tmp_path / f"list{suffix}")
    assert (uids.to_hex(found.pairs), found.ordered) == (words, True)


def test_what_is_not_in_order_is_sorted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [WORDS[5], WORDS[2], WORDS[2], WORDS[0]]
    np.save(tmp_path / "list.npy", pairs_of(words))
    with caplog.at_level(logging.INFO, "curate.uids"):
        found = uid_lists.read(tmp_path / "list.npy").said()
    assert (uids.to_hex(found.pairs), found.ordered) == (sorted(words), False)
    order, copies = caplog.messages
    assert "list.npy: is not in uid order; it was sorted here" in order
    assert "list.npy: 1 further copy of 1 uid" in copies


@pytest.mark.parametrize("at", range(1, 15))
def test_order_is_seen_across_blocks(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uid_files, "BLOCK", 4)
    pairs = pairs_of([f"{n:032x}" for n in range(15)])
    assert uid_files.is_ordered(pairs)
    pairs[[at - 1, at]] = pairs[[at, at - 1]]
    assert not uid_files.is_ordered(pairs)


# --- arithmetic -------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator) -> list[str]:
    """Few different uids, so that lists share some, with copies; halves that tie."""
    return [WORDS[n] for n in rng.integers(0, len(WORDS), rng.integers(1, 14)).tolist()]


def of_counter(how: str, counters: list[Counter[str]]) -> Counter[str]:
    whole = counters[0]
    for other in counters[1:]:
        if how == "and":
            whole = whole & other
        elif how == "or":
            whole = whole | other
        else:
            whole = Counter({uid: n for uid, n in whole.items() if uid not in other})
    return whole


@pytest.mark.parametrize("how", uid_lists.OPERATIONS)
@pytest.mark.parametrize("seed", range(40))
def test_operations_are_those_of_a_counter(how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [drawn(rng) for _ in range(rng.integers(2, 5))]
    found = uid_lists.combine(how, [listed(w) for w in words])
    assert uids.to_hex(found) == sorted(of_counter(how, [Counter(w) for w in words]).elements())


@pytest.mark.parametrize("seed", range(20))
def test_overlap_is_that_of_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = drawn(rng), drawn(rng)
    found = uid_lists.overlap(listed(a), listed(b))
    assert (found.both, found.only_a, found.only_b) == (
        len({*a} & {*b}),
        len({*a} - {*b}),
        len({*b} - {*a}),
    )
    assert found.jaccard == pytest.approx(len({*a} & {*b}) / len({*a} | {*b}))


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_one_uid_share_its_copies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words, rows = drawn(rng), sorted(drawn(rng))
    shares, absent = listed(words).share(pairs_of(rows))
    assert absent == len({*words} - {*rows})
    for uid in set(rows):
        mine = [n for word, n in zip(rows, shares.tolist(), strict=True) if word == uid]
        assert sum(mine) == Counter(words)[uid]
        assert mine == sorted(mine, reverse=True)
        assert max(mine) - min(mine) <= 1


def test_what_no_part_has_is_outside() -> None:
    found = listed(WORDS).outside([pairs_of([WORDS[3], WORDS[0]]), pairs_of([]), pairs_of([WORDS[5], "b" * 32])])
    assert found.tolist() == [False, True, True, False, True, False]


def test_which_names_are_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    assert all(uid_lists.is_file_name(f"x{suffix}") for suffix in (*SUFFIXES, ".NPY"))
    assert uid_lists.is_file_name(str(tmp_path / "plain"))
    assert not any(uid_lists.is_file_name(text) for text in ("mine", "clipscore-1a2b3c", "../mine", "v1.5"))
