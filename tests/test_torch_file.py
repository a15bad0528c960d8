"""Files of torch.save, written by torch itself and by hand, read by `arrays` without torch."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate import arrays
from tests.test_arrays import refused

ROWS = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def by_hand(path: Path, raw: bytes, **members: bytes) -> Path:
    """A file in the form of torch.save's whose pickle is `raw`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("saved/data.pkl", raw)
        for name, body in members.items():
            archive.writestr(f"saved/data/{name}", body)
    return path


def pickled(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pt"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f8"])
def test_a_numpy_array(path: Path, protocol: int, order: Any, dtype: str) -> None:
    """DataComp's centroids are such, in protocol 4."""
    array = np.array(ROWS.astype(dtype), order=order)
    torch.save(array, path, pickle_protocol=protocol)
    found = arrays.vectors([path])
    np.testing.assert_array_equal(found, array.astype(np.float32))
    assert not found.flags.writeable


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_numpy_array_by_numpy_1(path: Path, protocol: int) -> None:
    """numpy 1 wrote `numpy.core`, numpy 2 writes `numpy._core`: either is read by either."""
    torch.save(ROWS, path, pickle_protocol=protocol)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    raw = pickled(path)
    if new not in raw:
        new, old = old, new
    if protocol == 4:  # names and the frame have their lengths before them
        raw = raw.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
        raw = raw[:3] + struct.pack("<Q", struct.unpack("<Q", raw[3:11])[0] + len(old) - len(new)) + raw[11:]
    else:
        raw = raw.replace(new, old)
    np.testing.assert_array_equal(arrays.vectors([by_hand(path, raw)]), ROWS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_dictionary_of_tensors(path: Path, dtype: torch.dtype, protocol: int) -> None:
    """DataComp's files of ImageNet are such."""
    tensor = torch.from_numpy(ROWS).to(dtype)
    beside = {"labels": torch.arange(6), "mean": np.float32(1), "paths": ["a", "b"], "sizes": tensor.size()}
    torch.save(OrderedDict(**beside, image_features=tensor), path, pickle_protocol=protocol)
    np.testing.assert_array_equal(arrays.vectors([path]), tensor.float().numpy())


def test_views_and_parameters(path: Path) -> None:
    tensor = torch.from_numpy(ROWS)
    for saved in (tensor.T, tensor[2:5], tensor[:, 1:3], torch.nn.Parameter(tensor), {"only": tensor[::2]}):
        torch.save(saved, path)
        wanted = next(iter(saved.values())) if isinstance(saved, dict) else saved
        np.testing.assert_array_equal(arrays.vectors([path]), wanted.detach().numpy())


def test_a_float32_tensor_is_mapped_and_torch_not_imported(path: Path) -> None:
    torch.save(torch.from_numpy(ROWS), path)
    base: Any = arrays.vectors([path])
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    code = (
        "import pathlib, sys; from curate import arrays; "
        f"arrays.vectors([pathlib.Path({str(path)!r})]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- files that want to be run ----------------------------------------------------------------------------


class Calls:
    """Unpickles as the result of a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_that_names_anything_else_is_refused_and_not_run(path: Path, protocol: int, inside: bool) -> None:
    sprung = path.with_name("sprung")
    trap = Calls(os.mkdir, str(sprung))
    torch.save(
        {"image_features": torch.from_numpy(ROWS), "x": trap} if inside else trap, path, pickle_protocol=protocol
    )
    error = refused(path, rf"names {os.name}\.mkdir, which no array is made of; nothing of it was run")
    assert error.hint == "save the array alone, as numpy.save does, and give that file"
    assert not sprung.exists()


@pytest.mark.parametrize(
    "named", [eval, getattr, __import__, np.load, torch.load, np.memmap, pickle.loads, Path, bytearray]
)
def test_no_other_name_is_known(path: Path, named: Any) -> None:
    refused(by_hand(path, pickle.dumps(Calls(named, "x"))), "which no array is made of")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        # the names that are known cannot be changed, called oddly, nor made objects of
        (b"cnumpy\nndarray\n}X\x05\x00\x00\x00_makeNsb.", "changes what it names"),
        (b"cnumpy\nndarray\nN}X\x05\x00\x00\x00_makecnumpy\ndtype\ns\x86b.", "changes what it names"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "cannot be read"),
        (b"cnumpy\ndtype.__init__\n.", "names numpy.dtype.__init__, which"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "names numpy.ndarray.__init__, which"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00xX\x03\x00\x00\x00hextR.", "bytes as 'hex'"),
        (b"X\x01\x00\x00\x00xQ.", "cannot be read"),
        (b"}.", r"holds no matrix of floats \(found: none\)"),
        (b"N.", "holds neither an array nor a dictionary of arrays"),
        (b"cnumpy\nndarray\n.", "holds neither an array"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "holds neither an array"),
        (b"", "cannot be read .EOFError"),
        (b"\xff\xff", "cannot be read .UnpicklingError"),
    ],
)
def test_pickles_made_by_hand(path: Path, raw: bytes, says: str) -> None:
    refused(by_hand(path, raw), says)


def tensor_of(offset: Any, shape: Any, strides: Any, length: int = 4, kind: str = "FloatStorage") -> bytes:
    """The pickle of a tensor as torch writes it."""

    class Named:
        def __init__(self, module: str, name: str) -> None:
            self.raw = module, name

    class Writer(pickle._Pickler):  # the one in Python lets names be written that are not there
        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Named):
                self.write(b"c%s\n%s\n" % tuple(part.encode() for part in obj.raw))  # type: ignore[attr-defined]
            else:
                super().save(obj, save_persistent_id)  # type: ignore[misc]

        def persistent_id(self, obj: Any) -> Any:
            return ("storage", Named("torch", kind), "0", "cpu", length) if obj is storage else None

    import io

    storage, out = object(), io.BytesIO()
    writer = Writer(out, 2)
    writer.save(Named("torch._utils", "_rebuild_tensor_v2"))
    writer.save((storage, offset, shape, strides, False, None))
    return out.getvalue() + b"R."


def test_a_tensor_stays_inside_its_storage(path: Path) -> None:
    body = np.arange(4, dtype="<f4").tobytes()
    good = by_hand(path, tensor_of(0, (2, 2), (2, 1)), **{"0": body})
    np.testing.assert_array_equal(arrays.vectors([good]), [[0, 1], [2, 3]])
    for offset, shape, strides, says in (
        (0, (2, 2), (3, 1), "cannot be read"),
        (1, (2, 2), (2, 1), "cannot be read"),
        (9, (2, 2), (2, 1), "cannot be read"),
        (0, (1000, 1000), (0, 0), "a tensor .1000, 1000. of 4 values"),
        (0, (2, 2), (2,), "a tensor of no shape"),
        (-1, (2, 2), (2, 1), "a tensor of no shape"),
        (0, (2, 2), (-2, 1), "a tensor of no shape"),
        (0, (2.0, 2), (2, 1), "a tensor of no shape"),
    ):
        refused(by_hand(path, tensor_of(offset, shape, strides), **{"0": body}), says)
    refused(by_hand(path, tensor_of(0, (2, 2), (2, 1)), **{"0": body[:-4]}), "tensor 0 is cut short .3 of 4 values")
    refused(by_hand(path, tensor_of(0, (2, 2), (2, 1))), "cannot be read .KeyError")
    refused(
        by_hand(path, tensor_of(0, (2, 2), (2, 1), kind="QInt8Storage"), **{"0": body}), "names torch.QInt8Storage"
    )


def test_an_array_of_objects_is_not_made(path: Path) -> None:
    torch.save(np.array([[1, "a"]], dtype=object), path)
    refused(path, "an array of objects")


def test_a_cut_file_is_named(path: Path) -> None:
    torch.save(ROWS, path, pickle_protocol=4)
    raw = path.read_bytes()
    for cut in range(8, len(raw), 97):
        path.write_bytes(raw[:cut])
        refused(path, "cannot be read")
    for cut in range(0, 200, 7):
        refused(by_hand(path, pickle.dumps(ROWS)[:cut]), "cannot be read")
