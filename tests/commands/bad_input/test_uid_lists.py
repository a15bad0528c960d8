"""uid lists that are none: each command that takes one refuses it alike, and nothing is written."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import uid_files, uids
from tests.commands.bad_input.outcomes import contents, refused
from tests.commands.cli import curate
from tests.pools import make_pool, uid_of

COMMANDS = (
    "subset --scale debug --selection {}",
    "selection import {} --name new",
    "selection minus kept {} --name new",
    "selection export {} --out out.npy",
    "filter --rule uids:file={}",
)


EVERYWHERE = ("holds", "is empty", "has 2", "has 40")
"""How messages begin that are looked for after every command, others after one of them."""


class _Trap:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("trapped").touch, ()


def _pairs(*words: str) -> npt.NDArray[np.void]:
    return uids.to_pairs(pa.array(words or [f"{n:032x}" for n in range(4)]))


def _npy(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


def _bytes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def _parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def _cut(path: Path) -> None:
    np.save(path, _pairs())
    path.write_bytes(path.read_bytes()[:-16])


def _pickled(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([_Trap()], object), allow_pickle=True)


BAD: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("a.npy", _npy(np.empty(0, "u8,u8")), "holds no uid", "nothing would be kept"),
    ("a.npy", _bytes(b""), "is empty", "nothing would be kept"),
    ("a.npy", _npy(_pairs().reshape(2, 2)), "has 2 dimensions, (2, 2); a uid list has one", "u8,u8 as .npy"),
    ("a.npy", _npy(np.zeros(4, "u8")), "has the dtype uint64; a uid list has u8,u8", "u8,u8 as .npy"),
    ("a.npy", _npy(np.zeros((4, 2), "u8")), "has the dtype uint64", "u8,u8 as .npy"),
    ("a.npy", _npy(np.zeros(4, "i8,i8")), "has the dtype [('f0', '<i8'), ('f1', '<i8')]", "u8,u8 as .npy"),
    ("a.npy", _npy(np.zeros(4, "u8,u8,u8")), "has the dtype [('f0', '<u8'), ('f1', '<u8'), ('f2'", "u8,u8"),
    ("a.npy", _npy(np.array(["a" * 32])), "has the dtype <U32", "u8,u8 as .npy"),
    ("a.npy", _pickled, "holds pickled objects (dtype object), which are never loaded", "save u8,u8"),
    ("a.npy", _bytes(pickle.dumps(_Trap())), "is not an npy file (it begins with b'\\x80", "ends in .bin"),
    ("a.npy", _cut, "has 176 bytes where its header says 192", "make it again"),
    ("a.npy", _bytes(b"\x93NUMPY\x01\x00"), "is not an npy file that can be read", "u8,u8 as .npy"),
    ("a.npy", _bytes(b"a" * 32 + b"\n"), "is not an npy file, but text, one uid a line", "name it ....txt"),
    ("a.bin", _bytes(b"\0" * 40), "has 40 bytes, which is no multiple of 16", "u8,u8 as .npy"),
    ("a.bin", _bytes(b"\x93NUMPY" + b"\0" * 58), "but an npy file by its first bytes", "name it ....npy"),
    ("a.parquet", _bytes(b"PAR1nothing"), "is not a readable Parquet file", "u8,u8 as .npy"),
    ("a.parquet", _bytes(b"uid\n"), "is not a Parquet file (it begins with b'uid", "ends in .bin"),
    ("a.parquet", _parquet(id=["a" * 32]), "has neither a column uid nor two uint64 columns (found: id)", "u8,u8"),
    ("a.parquet", _parquet(uid=[1, 2]), "column uid is int64, neither text nor 16 bytes", "u8,u8"),
    ("a.parquet", _parquet(uid=["a" * 32, None]), "row 1 has no uid", "u8,u8"),
    ("a.parquet", _parquet(uid=["a" * 32, "b" * 31]), "column uid: row 1: 'bbb", "u8,u8"),
    ("a.parquet", _parquet(uid=pa.array([], pa.string())), "holds no uid", "nothing would be kept"),
    ("a.txt", _bytes(b"\n \n"), "holds no uid", "nothing would be kept"),
    ("a.txt", _bytes(b"uid\n" + b"a" * 32), "line 1: 'uid' is not 32 hex digits", "no header"),
    ("a.txt", _bytes(b"a" * 32 + b"\n" + b"b" * 31), "line 2: 'bbb", "one uid a line"),
    ("a.txt", _bytes(b"a" * 32 + b" 2\n"), "line 1: '2' is not 32 hex digits", "one uid a line"),
    ("a.txt", _bytes(b"a" * 32 + b"\n" + b"\xe9" * 32), "line 2: ", "one uid a line"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a small pool and a selection of it."""
    make_pool(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    assert curate("filter", "--rule", "random:n=3", "--name", "kept").code == 0
    return tmp_path


@pytest.mark.parametrize(("name", "make", "says", "hint"), BAD, ids=[f"{b[0][2:]}-{b[2][:24]}" for b in BAD])
def test_what_is_no_uid_list(here: Path, name: str, make: Callable[[Path], None], says: str, hint: str) -> None:
    make(here / name)
    before = contents(here)
    for command in COMMANDS if says.startswith(EVERYWHERE) else COMMANDS[1:2]:
        ran = curate(*command.format(name).split())
        refused(ran, f"{name}: ", hint)
        assert says in ran.err
    assert contents(here) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_list_that_is_not_there(here: Path, command: str) -> None:
    uid_files.write(here / "mine.npy", _pairs())
    before = contents(here)
    lists = ran_says = "no such file" if "uids:" in command else "no such uid list"
    refused(curate(*command.format("mime.npy").split()), f"mime.npy: {ran_says}", "did you mean 'mine.npy'?")
    refused(curate(*command.format("a/b.npy").split()), f"a/b.npy: {lists}", None if "uids:" in command else "u8")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("command", "says", "hint"),
    [
        ("selection and kept", "curate selection and: wants two operands or more (found kept)", "and A B"),
        ("selection and kept kep", "no selection 'kep' (found: kept)", "did you mean 'kept'?"),
        ("selection and kept ok.npy --name kept", "--name: 'kept' is an operand", "another name"),
        (
            "selection and kept ok.npy --out ok.npy",
            "ok.npy: is an operand, and is not written over",
            "another file",
        ),
        ("selection and kept ok.npy --name x.npy", "a selection cannot be called 'x.npy'", "letters"),
        ("selection and kept ok.npy --out both.csv", "both.csv: is no uid list by its name (found .csv", ".txt"),
        ("selection and kept ok.npy --foreign gone", "gone: is no uid list by its name (found no suffix", ".txt"),
        ("selection and kept other.npy", "kept and other.npy: leaves no uid", "selection list"),
        ("selection import other.npy --name x", "other.npy: none of its 4 uids is in pool", "--pool DIR"),
        (
            "selection import lists/plain --name x",
            "lists/plain: is no uid list by its name (found no suffix",
            ".bin",
        ),
        ("selection export kept --out both.csv", "both.csv: is no uid list by its name", ".txt"),
        ("selection export kep --out both.npy", "no selection 'kep' (found: kept)", "did you mean 'kept'?"),
        ("filter --rule uids", "rule uids: wants the uid list: file=FILE.npy", "curate rules uids"),
        ("filter --rule uids:file=ok.npy,missing=no", "no missing 'no'", "curate rules uids"),
    ],
)
def test_what_cannot_be_done_with_them(here: Path, command: str, says: str, hint: str) -> None:
    uid_files.write(here / "ok.npy", _pairs(uid_of(0, 0)))
    uid_files.write(here / "other.npy", _pairs())
    (here / "lists").mkdir()
    (here / "lists" / "plain").write_bytes(b"\0" * 16)
    before = contents(here)
    ran = curate(*command.split())
    assert ran.code == 2
    assert says in ran.err
    assert hint in ran.err.partition("hint: ")[2]
    assert {k: v for k, v in contents(here).items() if "logs" not in k} == {
        k: v for k, v in before.items() if "logs" not in k
    }


def test_a_selection_of_an_older_pool(here: Path) -> None:
    uid_files.write(here / "ok.npy", _pairs(uid_of(0, 0), uid_of(1, 1)))
    make_pool(here / "pool", 3)
    before = contents(here)
    refused(
        curate("selection", "or", "kept", "ok.npy", "--out", "x.npy"), "was made of an older state", "--allow-stale"
    )
    assert contents(here) == before
    assert curate("selection", "or", "kept", "ok.npy", "--out", "x.npy", "--allow-stale").code == 0
