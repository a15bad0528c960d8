"""Folders of images and of tars as lists: what is read, what is left out, and what two walks agree on."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import InputError
from curate.fetch.folder import holds_images, open_folder
from curate.fetch.lists import read_rows
from curate.uids import derive_uid


def rows_of(source: Path) -> list[dict[str, Any]]:
    found = open_folder(source)
    return read_rows(found.part(0, found.rows)).to_pylist()


def put(folder: Path, **files: bytes | str) -> Path:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_images_with_their_texts_in_order_of_name(tmp_path: Path) -> None:
    uid = "ab" * 16
    put(tmp_path, b_jpg=b"bb", b_txt="second", b_json=json.dumps({"caption": "not this", "n": 1}))
    put(tmp_path, a_png=b"a", a_json=json.dumps({"caption": "first", "url": "http://a/1", "n": 2, "deep": [1]}))
    put(tmp_path, sub__c_webp=b"ccc", sub__c_json=json.dumps({"uid": uid.upper(), "w": 1.5}), z_JPG=b"zzzz")
    rows = rows_of(tmp_path)
    assert [r["local_file"] for r in rows] == ["a.png", "b.jpg", "sub/c.webp", "z.JPG"]
    assert [(r["local_offset"], r["local_length"]) for r in rows] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert [r["caption"] for r in rows] == ["first", "second", None, None]
    assert [r["url"] for r in rows] == ["http://a/1", None, None, None]
    assert [r["uid"] for r in rows] == [derive_uid("http://a/1", "first"), None, uid, None]
    assert [r["n"] for r in rows] == [2, 1, None, None]
    assert [r["w"] for r in rows] == [None, None, 1.5, None]
    assert [r["list_error"] for r in rows] == [None] * 4
    assert set(rows[0]) == {"uid", "url", "caption", "list_error", "n", "w"} | {
        f"local_{what}" for what in ("file", "offset", "length")
    }


def test_tars_are_read_by_their_headers(tmp_path: Path) -> None:
    first = [("x/0.jpg", b"J" * 1000), ("x/0.txt", "caf\u00e9".encode()), ("x/0.json", b'{"n": 1}')]
    second = [("1.json", b"no json"), ("1.txt", b"caf\xe9"), ("1.png", b"P"), ("2.txt", b"alone"), ("3.jpg", b"")]
    tar(tmp_path / "b" / "1.tar", second)
    path = tar(tmp_path / "a.tar", first)
    rows = rows_of(tmp_path)
    assert [r["local_file"] for r in rows] == ["a.tar", "b/1.tar", "b/1.tar"]
    assert [r["caption"] for r in rows] == ["caf\u00e9", None, None]
    assert [r["list_error"] for r in rows] == [None, "bad_caption", None]
    assert [r["n"] for r in rows] == [1, None, None]
    assert [r["local_length"] for r in rows] == [1000, 1, 0]
    assert path.read_bytes()[rows[0]["local_offset"] :][:1000] == b"J" * 1000
    (one,) = rows_of(path)
    assert one["local_file"] == "a.tar"
    assert open_folder(path).root == tmp_path


def test_a_tar_that_is_cut_costs_its_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes(600)) for n in range(5)])
    path.write_bytes(path.read_bytes()[: 3 * 1536 + 700])
    tar(tmp_path / "b.tar", [("9.jpg", b"9")])
    (tmp_path / "c.tar").write_bytes(b"no tar" * 100)
    assert [r["local_file"] for r in rows_of(tmp_path)] == ["a.tar"] * 3 + ["b.tar"]
    assert "a.tar: is cut short" in caplog.text
    assert "c.tar: is not a tar" in caplog.text
    assert "the rest of it is left out" in caplog.text


def test_what_is_no_file_of_the_folder_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path / "images", a_jpg=b"a", notes_md="x", lonely_txt="x", _hidden_jpg=b"h")
    put(tmp_path / "outside", secret_jpg=b"s")
    os.mkfifo(folder / "b.jpg")
    (folder / "c.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (folder / "d.jpg").symlink_to(folder / "a.jpg")
    (folder / "e.jpg").symlink_to(folder / "nowhere")
    (folder / "f").symlink_to(tmp_path / "outside")
    (folder / "g").symlink_to(folder)
    assert [r["local_file"] for r in rows_of(folder)] == ["a.jpg", "d.jpg"]
    for said in (
        "1 left out: no regular files (the first is b.jpg)",
        "3 left out: links to folders, or out of this one (the first is c.jpg)",
        "1 left out: cannot be read (the first is e.jpg)",
        "1 left out: texts without an image (the first is lonely.txt)",
        "1 left out: neither images nor their .txt or .json (the first is notes.md)",
    ):
        assert said in caplog.text


def test_what_kind_of_folder_it_is(tmp_path: Path) -> None:
    assert not holds_images(put(tmp_path / "lists", a_csv="url\nhttp://a\n", b_txt="http://b\n"))
    assert not holds_images(tmp_path / "lists" / "a.csv")
    assert holds_images(put(tmp_path / "images", x__y__a_jpg=b"a", b_txt="b"))
    shards = put(tmp_path / "shards", readme_txt="x")
    tar(shards / "00000.tar", [("0.jpg", b"0")])
    for name in ("00000.parquet", "00000_ledger.parquet", "00000.index.parquet"):
        pq.write_table(pa.table({"url": ["x"]}), shards / name)
    (shards / "00000_stats.json").write_text("{}")
    assert holds_images(shards)
    assert holds_images(shards / "00000.tar")
    (shards / "list.csv").write_text("url\nhttp://a\n")
    with pytest.raises(InputError, match=r"holds images and lists \(found: 00000\.tar, list\.csv\)") as caught:
        holds_images(shards)
    assert str(shards / "list.csv") in str(caught.value.hint)


def test_nothing_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        open_folder(put(tmp_path / "texts", a_txt="x"))
    with pytest.raises(InputError, match="no such file or folder"):
        open_folder(tmp_path / "none")


def test_the_same_files_are_the_same_list_wherever_they_are(tmp_path: Path) -> None:
    folder = put(tmp_path / "images", a_jpg=bytes(9000), b_jpg=b"b", b_txt="x")
    before = open_folder(folder).digest
    folder = folder.rename(tmp_path / "moved")
    (folder / "a.jpg").touch()
    assert open_folder(folder).digest == before
    for change in ({"b_txt": "y"}, {"a_jpg": bytes(8999) + b"1"}, {"c_jpg": b"c"}):
        put(folder, **change)
        changed = open_folder(folder).digest
        assert changed != before
        before = changed


def test_the_text_is_gone_with_the_list(tmp_path: Path) -> None:
    found = open_folder(put(tmp_path, a_jpg=b"a"))
    path = found.files[0].path
    assert path.is_file()
    del found
    assert not path.exists()


def test_texts_that_are_not_json_objects_say_nothing(tmp_path: Path) -> None:
    put(tmp_path, a_jpg=b"a", a_json="[1]", b_jpg=b"b", b_json="{", c_jpg=b"c", c_json='{"uid": 3, "url": 4}')
    put(tmp_path, d_jpg=b"d", d_json='{"local_file": "/etc/passwd", "caption": 5, "big": 1e400}')
    rows = rows_of(tmp_path)
    assert [r["local_file"] for r in rows] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert {(r["uid"], r["url"], r["caption"]) for r in rows} == {(None, None, None)}
