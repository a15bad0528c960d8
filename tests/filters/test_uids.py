"""The rule `uids`: copies as the list has them, in whatever order; what is not here is counted or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from curate import plugins, uid_files, uids
from curate.errors import InputError
from curate.filter_api import Draw, File

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


class _Left:
    """What is left: uids in order."""

    def __init__(self, *words: str) -> None:
        self.words = sorted(words)

    @property
    def n(self) -> int:
        return len(self.words)

    @property
    def uids(self) -> npt.NDArray[np.void]:
        return uids.to_pairs(pa.array(self.words, pa.string()))


def draw(path: Path, listed: list[str], left: list[str], **settings: Any) -> Draw:
    np.save(path / "list.npy", uids.to_pairs(pa.array(listed)))
    rule: Any = plugins.build("uids", {"file": str(path / "list.npy"), **settings})
    drawn: Draw = rule.draw(_Left(*left))
    return drawn


def test_copies_are_those_of_the_list(tmp_path: Path) -> None:
    drawn = draw(tmp_path, [C, A, A, A], [A, B, C])
    assert (drawn.copies.tolist(), drawn.copies.dtype) == ([3, 0, 1], np.uint16)
    assert (drawn.reason, dict(drawn.notes)) == ("not_listed", {"listed": 2, "not here": 0, "copies": 4})


def test_samples_of_one_uid_share_its_copies(tmp_path: Path) -> None:
    assert draw(tmp_path, [A] * 3 + [B], [A, A, B, B]).copies.tolist() == [2, 1, 1, 0]


def test_listed_uids_that_are_not_here(tmp_path: Path) -> None:
    assert draw(tmp_path, [A, B], [B, C]).notes == {"listed": 2, "not here": 1}
    with pytest.raises(InputError, match=r"list\.npy: 1 of its 2 uids are not among the 2 samples left"):
        draw(tmp_path, [A, B], [B, C], missing="refuse")


def test_more_copies_than_a_selection_holds(tmp_path: Path) -> None:
    assert draw(tmp_path, [A] * 65_535, [A]).copies.tolist() == [65_535]
    with pytest.raises(InputError, match="wants a sample 65,536 times; a selection holds at most 65,535 copies"):
        draw(tmp_path, [A] * 65_536, [A])


def test_its_content_is_what_counts(tmp_path: Path) -> None:
    pairs = uids.to_pairs(pa.array([A, B]))
    for name in ("one.txt", "two.txt"):
        uid_files.write(tmp_path / name, pairs)
    assert File.at(tmp_path / "one.txt").sha256 == File.at(tmp_path / "two.txt").sha256
    with pytest.raises(InputError, match="wants the uid list"):
        plugins.build("uids", {})
