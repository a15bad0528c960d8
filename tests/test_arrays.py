from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from curate import arrays
from curate.errors import InputError
from curate.filter_api import File, vectors_of

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


def saved(path: Path, **named: npt.NDArray[Any]) -> Path:
    np.savez(path, **named)  # type: ignore[arg-type]  # its stub takes a flag by the same name
    return path


def refused(path: Path, says: str) -> InputError:
    with pytest.raises(InputError, match=says) as error:
        arrays.vectors([path])
    assert error.value.where == str(path)
    assert error.value.exit_code == 2
    return error.value


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_and_npz(tmp_path: Path, dtype: str, order: Any) -> None:
    wanted = np.array(ROWS.astype(dtype), order=order)
    np.save(tmp_path / "a.npy", wanted)
    np.savez_compressed(tmp_path / "packed.npz", vectors=wanted)
    paths = [tmp_path / "a.npy", saved(tmp_path / "a.npz", vectors=wanted), tmp_path / "packed.npz"]
    for path in paths:
        found = arrays.vectors([path])
        assert found.dtype == np.float32
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, wanted.astype(np.float32))
    assert arrays.vectors(paths).shape == (12, 3)


def test_told_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    (tmp_path / "a.npy").rename(tmp_path / "a.pt")
    np.testing.assert_array_equal(arrays.vectors([tmp_path / "a.pt"]), ROWS)


def test_float32_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    for path in (tmp_path / "a.npy", saved(tmp_path / "a.npz", x=ROWS)):
        base: Any = arrays.vectors([path])
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)


def test_the_matrix_among_others(tmp_path: Path) -> None:
    other = np.zeros((2, 3), np.float32)
    beside = {"ids": np.arange(4), "names": np.array(["a"]), "bias": np.zeros(3, np.float32)}
    assert len(arrays.vectors([saved(tmp_path / "one.npz", x=ROWS, **beside)])) == 4
    assert len(arrays.vectors([saved(tmp_path / "two.npz", image_features=ROWS, x=other)])) == 4
    error = refused(saved(tmp_path / "three.npz", x=ROWS, y=other), r"holds several matrices \(x, y\)")
    assert error.hint == "save one alone, or as 'image_features'"
    refused(saved(tmp_path / "none.npz", **beside), r"holds no matrix of floats \(found: bias, ids, names\)")


def test_files_of_one_width_stand_one_below_another(tmp_path: Path) -> None:
    first, second = tmp_path / "1.npy", tmp_path / "2.npy"
    np.save(first, ROWS)
    np.save(second, ROWS[:1] * 2)
    found = vectors_of([File.at(first), File.at(second)])
    np.testing.assert_array_equal(found, np.concatenate([ROWS, ROWS[:1] * 2]))
    assert not found.flags.writeable
    np.testing.assert_array_equal(vectors_of(File.at(first)), ROWS)
    np.save(second, ROWS[:, :2])
    with pytest.raises(InputError, match=r"2\.npy: its vectors have 2 values, those of .*1\.npy 3"):
        vectors_of([File.at(first), File.at(second)])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.arange(6).reshape(2, 3), r"is not a matrix of floats \(found int64, shape \(2, 3\)\)"),
        (ROWS[0], r"is not a matrix of floats \(found float32, shape \(3,\)\)"),
        (np.zeros((2, 2), np.complex64), "is not a matrix of floats"),
        (ROWS[:0], r"holds no vectors \(shape \(0, 3\)\)"),
        (ROWS[:, :0], r"holds no vectors \(shape \(4, 0\)\)"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), "row 1 holds NaN or infinity"),
        (np.array([[1.0], [1.0], [1e300]]), "row 2 holds NaN or infinity"),
    ],
)
def test_an_array_that_is_no_matrix_of_vectors(tmp_path: Path, array: npt.NDArray[Any], says: str) -> None:
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", says)


def test_a_late_row_is_named(tmp_path: Path) -> None:
    array = np.zeros((20_000, 2), np.float32)
    array[19_999, 1] = np.inf
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", "row 19999 holds")


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    trap, sprung = np.array([[Trap(tmp_path / "sprung")]], dtype=object), tmp_path / "sprung"
    np.save(tmp_path / "a.npy", trap)
    refused(tmp_path / "a.npy", "cannot be read .*[Oo]bject")
    refused(saved(tmp_path / "a.npz", x=trap), r"holds no matrix of floats \(found: x\)")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(trap))
    error = refused(tmp_path / "a.pkl", "is a bare pickle, or saved by a torch before 1.6")
    assert error.hint == "save the array alone, as numpy.save does, and give that file"
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["npy", "npz", "packed"])
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    whole = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    {"npy": np.save, "npz": np.savez, "packed": np.savez_compressed}[kind](whole, ROWS)
    raw = whole.read_bytes()
    for cut in range(8, len(raw), 13):
        path.write_bytes(raw[:cut])
        refused(path, "cannot be read")
    bent = bytearray(raw)
    bent[8:200] = bytes(192)
    path.write_bytes(bent)
    refused(path, "cannot be read|holds no matrix|is not a matrix")


@pytest.mark.parametrize("body", [b"", b"\x93", b"uid,score\n", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_such_file(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(body)
    error = refused(path, "is neither .npy nor .npz nor .pt")
    assert error.hint == "vectors are a matrix of floats, rows x dim, in a .npy, .npz or .pt file"


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "a.npz", r"holds no matrix of floats \(found: none\)")
    refused(tmp_path, "cannot be read .*Is a directory")
    refused(tmp_path / "nowhere.npy", "cannot be read .*No such file")
