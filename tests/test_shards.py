"""Shards: tars that anybody reads, the same bytes each time, an index of byte ranges, cuts that are noticed."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import shards
from curate.errors import InputError, PartError
from curate.receipts import Output
from curate.shards import TarWriter

SAMPLES = {
    "000000000": [("jpg", b"\xff\xd8" + bytes(700)), ("txt", "größe".encode()), ("json", b"{}")],
    "000000001": [("jpg", b""), ("txt", b"x" * 512)],
    "0000/a-long-name" + "y" * 120: [("png", b"1"), ("cls.txt", b"2")],
    "ключ": [("webp", b"12345")],
}


def tar_of(samples: dict[str, list[tuple[str, bytes]]] = SAMPLES) -> bytes:
    sink = io.BytesIO()
    writer = TarWriter(sink)
    for key, members in samples.items():
        writer.add(key, members)
    writer.finish()
    return sink.getvalue()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    (tmp_path / "t.tar").write_bytes(tar_of())
    return tmp_path / "t.tar"


# --- writing ----------------------------------------------------------------------------------------------


def test_tarfile_and_tar_read_it(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        found = {m.name: (archive.extractfile(m) or io.BytesIO()).read() for m in archive}
        fixed = {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in archive}
    assert found == {f"{key}.{ext}": data for key, members in SAMPLES.items() for ext, data in members}
    assert fixed == {(0, 0o444, 0, 0, "", "")}
    listed = subprocess.run(["tar", "-tf", tar], capture_output=True, check=True).stdout.decode()
    assert listed.count("\n") == 8


def test_it_is_padded_as_tars_are_and_the_same_each_time() -> None:
    assert len(tar_of()) % 10240 == 0
    assert len(tar_of({})) == 10240
    assert tar_of() == tar_of()


def test_a_header_is_what_tarfile_writes() -> None:
    info = tarfile.TarInfo("000000000.jpg")
    info.size, info.mode = 123456, 0o444
    assert shards.header("000000000.jpg", 123456) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_table_is_the_same_each_time(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1000)), "b": [str(n) for n in range(1000)]})
    for name in "xy":
        output = Output("s", 1, name, tmp_path, {})
        shards.write_table(output, f"{name}.parquet", table)
        output.commit({"samples": 0})
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    assert pq.read_table(tmp_path / "x.parquet") == table


# --- reading ----------------------------------------------------------------------------------------------


def test_the_index_says_where_each_sample_lies(tar: Path) -> None:
    keys, offsets, lengths = shards.read_index(tar)
    assert keys == list(SAMPLES)
    data = tar.read_bytes()
    for key, offset, length in zip(keys, offsets, lengths, strict=True):
        assert shards.sample_members(data, offset, length) == dict(SAMPLES[key])
    sink = io.BytesIO()
    writer = TarWriter(sink)
    for key, members in SAMPLES.items():
        writer.add(key, members)
    assert writer.index() == shards.index_table(keys, offsets, lengths)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_read(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "a.txt", "folder/b.jpg", "folder/" + "long" * 22 + ".jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["x" * 180 + ".jpg", "ü" * 60 + ".jpg"]
    with tarfile.open(tmp_path / "t.tar", "w", format=form) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(name), 1.5
            archive.addfile(info, io.BytesIO(name.encode()[: len(name)]))
    keys, offsets, lengths = shards.read_index(tmp_path / "t.tar")
    assert keys == list(dict.fromkeys(shards.split_name(n)[0] for n in names))
    data = (tmp_path / "t.tar").read_bytes()
    last = shards.sample_members(data, offsets[-1], lengths[-1])
    assert last["jpg"] == names[-1].encode()[: len(names[-1])]


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("0001.jpg", "0001", "jpg"),
        ("a/b/0001.JPG", "a/b/0001", "jpg"),
        ("0001.cls.txt", "0001", "cls.txt"),
        ("v1.2/0001.png", "v1.2/0001", "png"),
        ("none", "none", ""),
    ],
)
def test_keys_end_at_the_first_dot_of_the_last_component(name: str, key: str, extension: str) -> None:
    assert shards.split_name(name) == (key, extension)


def test_the_preferred_image_is_taken() -> None:
    assert shards.image_of({"png": b"p", "jpg": b"j", "txt": b"t"}) == ("jpg", b"j")
    assert shards.image_of({"txt": b"t"}) is None


# --- damage -----------------------------------------------------------------------------------------------


def test_every_cut_is_noticed(tar: Path) -> None:
    """Wherever a tar with samples ends too early, its index is refused, or is whole."""
    data = tar.read_bytes()
    whole = shards.read_index(tar)
    end = whole[1][-1] + whole[2][-1]
    for cut in [*range(0, end + 512, 256), end + 511]:
        tar.write_bytes(data[:cut])
        with pytest.raises(PartError, match="is cut short"):
            shards.read_index(tar)
    tar.write_bytes(data[: end + 512])
    assert shards.read_index(tar) == whole


def test_what_is_no_tar_is_said(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[600 + 700] ^= 0xFF  # in the bytes of an image: nothing that a header tells
    tar.write_bytes(data)
    assert shards.read_index(tar)[0] == list(SAMPLES)
    data[3] ^= 0xFF  # in a name
    tar.write_bytes(data)
    with pytest.raises(PartError, match=r"is not a tar \(no header at byte 0\)"):
        shards.read_index(tar)
    tar.write_bytes(b"<html>" * 1000)
    with pytest.raises(PartError, match="is not a tar"):
        shards.read_index(tar)


def test_a_key_that_comes_back_is_refused(tar: Path) -> None:
    tar.write_bytes(tar_of({"a": [("jpg", b"1")]})[:1024] + tar_of({"b": [("jpg", b"1")], "a": [("jpg", b"1")]}))
    with pytest.raises(PartError, match="holds the key 'a' twice"):
        shards.read_index(tar)


def test_two_files_of_one_extension_are_no_sample(tar: Path) -> None:
    one = tar_of({"a": [("jpg", b"1"), ("txt", b"2")]})[: 4 * 512]
    tar.write_bytes(one + tar_of({"a": [("jpg", b"3"), ("txt", b"4")]}))
    with pytest.raises(PartError, match=r"holds 'a\.jpg' twice"):
        shards.read_index(tar)


def test_a_name_that_is_no_text_is_refused(tar: Path) -> None:
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as made:
        made.addfile(tarfile.TarInfo("caf\xe9.jpg"))
    with pytest.raises(PartError, match=r"holds a name that is not UTF-8 \('caf\\udce9\.jpg'\)"):
        shards.read_index(tar)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="cannot be read"):
        shards.read_index(tmp_path / "nowhere.tar")
    with pytest.raises(PartError, match=r"a sample at byte 100 has 50 of 512 bytes"):
        shards.sample_members(bytes(150), 100, 512)


def test_a_mapped_file_can_be_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with shards.mapped(tmp_path / "empty") as data:
        assert bytes(data) == b""


# --- tables -----------------------------------------------------------------------------------------------


def test_a_table_is_its_file_alone(tmp_path: Path) -> None:
    """pyarrow's own way adds a column for a folder that is called key=value."""
    path = tmp_path / "key=value" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), path)
    assert shards.read_table(path).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    assert shards.read_table(path, ["b"]).to_pydict() == {"b": ["x", "y"]}


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(PartError, match=r"a\.parquet: is missing") as missing:
        shards.read_table(path)
    assert missing.value.hint == "curate verify says what else is"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(PartError, match=r"a\.parquet: is not a readable Parquet file \(") as broken:
        shards.read_table(path, hint="make it again")
    assert broken.value.hint == "make it again"
    with pytest.raises(InputError, match="is not a readable"), shards.readable(path, InputError):
        pq.read_schema(path)
