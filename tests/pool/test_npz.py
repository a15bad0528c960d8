"""Arrays of DataComp's npz, mapped where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curate.errors import PartError
from curate.pool import npz

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
