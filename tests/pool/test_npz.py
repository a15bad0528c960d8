"""Arrays of DataComp's npz, mapped where they lie."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import PartError
from curate.pool import npz
from tests.pool import datacomp_folder

IMAGE = np.arange(12, dtype=np.float16).reshape(4, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", l14_img=IMAGE, l14_txt=IMAGE + 1, names=np.array(["x"]))
    return tmp_path / "a.npz"


def test_an_array_is_mapped(path: Path) -> None:
    assert npz.names(path) == ["l14_img", "l14_txt", "names"]
    found = npz.member(path, "l14_txt")
    assert isinstance(found, np.memmap)
    assert (found == IMAGE + 1).all()
    assert not found.flags.writeable


def test_other_forms_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", a=IMAGE)
    assert (npz.member(tmp_path / "c.npz", "a") == IMAGE).all()
    np.savez(tmp_path / "f.npz", a=np.asfortranarray(IMAGE), empty=np.empty((0, 3), np.float16))
    assert (npz.member(tmp_path / "f.npz", "a") == IMAGE).all()
    assert npz.member(tmp_path / "f.npz", "empty").shape == (0, 3)


def test_what_is_wrong_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"has no array 'b32_img' \(found: l14_img, l14_txt, names\)"):
        npz.member(path, "b32_img")
    with pytest.raises(PartError, match="is not a readable npz"):
        npz.names(tmp_path / "nowhere.npz")
    (tmp_path / "z.npz").write_bytes(bytes(1000))
    with pytest.raises(PartError, match="is not a readable npz"):
        npz.names(tmp_path / "z.npz")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:300])
    with pytest.raises(PartError, match="is not a readable npz"):
        npz.member(tmp_path / "cut.npz", "l14_img")
    np.savez(tmp_path / "o.npz", a=np.array([object()]))
    with pytest.raises(PartError, match="holds objects, which are not read"):
        npz.member(tmp_path / "o.npz", "a")


def streamed(path: Path, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """An npz with DataComp's five arrays, written as theirs were; the arrays."""
    chance = np.random.default_rng(rows)
    widths = {"b32_img": 512, "b32_txt": 512, "l14_img": 768, "l14_txt": 768}
    arrays = {name: chance.random((rows, width)).astype(np.float16) for name, width in widths.items()}
    arrays["dedup"] = chance.random((rows, 256)).astype(np.float32)
    datacomp_folder.streamed(path, arrays)
    return arrays


@pytest.mark.parametrize(("limit", "more"), [(zipfile.ZIP64_LIMIT, 1368), (150_000, 1456), (0, None)])
def test_datacomps_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, more: int | None) -> None:
    """6,144 bytes a row and 1,456 more is the size of the files that are published.

    Behind 2 GiB an archive has fields of 64 bits, here from 150 kB on: that makes 1,456 bytes of 1,368.
    """
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    path, rows = tmp_path / "a.npz", 37
    arrays = streamed(path, rows)
    assert more is None or path.stat().st_size == rows * 6144 + more
    with zipfile.ZipFile(path) as archive:
        assert all(info.flag_bits & 8 for info in archive.infolist())  # the sizes stand behind each member
    assert npz.names(path) == list(arrays)
    for name, array in arrays.items():
        found = npz.member(path, name)
        assert isinstance(found, np.memmap)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert (found == array).all()


def test_of_a_file_only_the_directory_and_one_member_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = streamed(path, 50)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename != "l14_img.npy":  # damage all the others
                data[info.header_offset : info.header_offset + 512] = bytes(512)
    path.write_bytes(data)
    assert (npz.member(path, "l14_img") == arrays["l14_img"]).all()
    with pytest.raises(PartError, match="the directory of the archive does not point at it"):
        npz.member(path, "l14_txt")


def rewritten(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_that_are_no_arrays(tmp_path: Path, method: int) -> None:
    whole = io.BytesIO()
    np.save(whole, IMAGE)
    for data, says in (
        (whole.getvalue()[:-2], "array 'a' cannot be read ("),
        (b"no array at all", "array 'a' cannot be read (the magic string is not correct"),
        (b"", "array 'a' cannot be read ("),
    ):
        with pytest.raises(PartError) as error:
            npz.member(rewritten(tmp_path / "m.npz", "a", data, method), "a")
        assert says in str(error.value)
    if method == zipfile.ZIP_STORED:
        with pytest.raises(PartError, match="its header promises 152 bytes, and 150 are there"):
            npz.member(rewritten(tmp_path / "m.npz", "a", whole.getvalue()[:-2]), "a")


def test_a_compressed_member_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    np.savez_compressed(path, a=np.random.default_rng(1).random((50, 3)))
    data = bytearray(path.read_bytes())
    data[200:220] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(PartError, match=r"c\.npz: array 'a' cannot be read"):
        npz.member(path, "a")
