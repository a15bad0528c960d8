"""Lists in every format: each row is read once, in order, whatever its cells hold; wrong lists are refused."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import InputError, PartError
from curate.fetch.lists import open_list, read_rows
from curate.fetch.records import MARK_EVERY, format_of
from curate.pool.names import ALIASES
from curate.uids import derive_uid

SHARED = Path(__file__).resolve().parents[3] / "shared"

CAPTIONS: list[str | None] = [
    "a cat",
    "",
    "two\nlines",
    'he said "no", twice',
    "tab\there",
    "\U0001f600 \u202e",
    "n\0ul",
]
CAPTIONS += ["x" * 1_000_000, "back\rslash \\n", "  blanks  ", "\u00fcber"]


def rows_of(source: Path, **options: Any) -> list[dict[str, Any]]:
    found = open_list(source, **options)
    table = read_rows(found.part(0, found.rows))
    assert len(table) == found.rows
    return table.to_pylist()


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    form = format_of(path)
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=3)
        return path
    if form == "json":
        text = json.dumps(records)
    elif form == "jsonl":
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    elif form == "txt":
        text = "".join(f"{r['url']}\n" for r in records)
    else:
        import io

        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(records[0]), delimiter="," if form == "csv" else "\t")
        writer.writeheader()
        writer.writerows(records)
        text = stream.getvalue()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


FORMATS = ["parquet", "csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "json", "json.gz"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    records = [
        {"url": f"http://example.com/{n}.jpg", "caption": caption, "n": n, "score": n + 0.5, "tag": f"t{n}"}
        for n, caption in enumerate(CAPTIONS)
    ]
    found = rows_of(write(tmp_path / f"list.{suffix}", records))
    for got, wanted in zip(found, records, strict=True):
        assert {k: got[k] for k in wanted} == wanted
        assert got["uid"] == derive_uid(wanted["url"], wanted["caption"])
        assert got["list_error"] is None


def test_txt_is_one_url_a_line_and_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b'\xef\xbb\xbfhttp://a/1,2.jpg\r\n\n  http://a/"q".jpg  \n# comment\nhttp://a/last')
    found = rows_of(path)
    assert [r["url"] for r in found] == ["http://a/1,2.jpg", 'http://a/"q".jpg', "# comment", "http://a/last"]
    assert {r["caption"] for r in found} == {None}


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "parquet", "txt", "json"])
def test_any_range_can_be_read_alone(tmp_path: Path, suffix: str) -> None:
    count = 2 * MARK_EVERY + 500
    records = [{"url": f"http://example.com/{n}", "text": f"line\n{n}"} for n in range(count)]
    source = open_list(write(tmp_path / f"list.{suffix}", records))
    assert source.rows == count
    for start, length in ((0, 3), (MARK_EVERY - 1, 3), (MARK_EVERY, 2), (15_000, 1), (count - 2, 50)):
        got = read_rows(source.part(start, length))
        wanted = [f"http://example.com/{n}" for n in range(start, min(start + length, count))]
        assert got["url"].to_pylist() == wanted


def test_a_folder_is_its_files_in_order_of_name(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", [{"url": "http://b/1", "caption": "x", "n": 1}])
    write(tmp_path / "a.parquet", [{"url": f"http://a/{n}", "caption": "y", "only": [n]} for n in range(5)])
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "a.npz").write_bytes(b"")
    source = open_list(tmp_path)
    got = read_rows(source.part(3, 10)).to_pylist()
    assert [(r["url"], r["n"], r["only"]) for r in got] == [
        ("http://a/3", None, [3]),
        ("http://a/4", None, [4]),
        ("http://b/1", 1, None),
    ]
    before = source.digest
    write(tmp_path / "b.csv", [{"url": "http://b/2", "caption": "x", "n": 1}])
    assert open_list(tmp_path).digest != before


@pytest.mark.parametrize(
    ("names", "url", "caption"),
    [
        (["url", "caption"], "url", "caption"),
        (["URL", "TEXT"], "URL", "TEXT"),
        (["uid", "url", "text"], "url", "text"),
        (["url", "top_caption"], "url", "top_caption"),
        (["url"], "url", None),
    ],
)
def test_usual_names_are_found(tmp_path: Path, names: list[str], url: str, caption: str | None) -> None:
    path = write(tmp_path / "list.csv", [{name: f"http://{name}" for name in names}])
    columns = open_list(path, usual=ALIASES).columns
    assert (columns.url, columns.caption) == (url, caption)


def test_named_columns_win_and_no_column_is_lost(tmp_path: Path) -> None:
    record = {"link": "http://a", "alt": "words", "url": "http://page", "caption": "other"}
    path = write(tmp_path / "list.csv", [record])
    (row,) = rows_of(path, url_col="link", caption_col="alt")
    assert (row["url"], row["caption"]) == ("http://a", "words")
    assert (row["list_url"], row["list_caption"]) == ("http://page", "other")
    (row,) = rows_of(write(tmp_path / "l.csv", [{**record, "list_url": "older"}]), url_col="link")
    assert (row["url"], row["list_list_url"], row["list_url"]) == ("http://a", "http://page", "older")


def test_other_columns_keep_their_arrow_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": ["http://a", "http://b"],
            "text": pa.array(["x", None]).dictionary_encode(),
            "boxes": pa.array([[[0.1, 0.2]], None], pa.list_(pa.list_(pa.float32()))),
            "when": pa.array([datetime.datetime(2024, 1, 2), None], pa.timestamp("us", "UTC")),
            "raw": pa.array([b"\xff\0", None], pa.binary()),
            "small": pa.array([1, None], pa.int8()),
            "kind": pa.array(["k", None]).dictionary_encode(),
            "pair": pa.array([{"a": 1}, None]),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    source = open_list(tmp_path / "list.parquet")
    got = read_rows(source.part(0, 2))
    for name in table.column_names[2:]:
        assert got.schema.field(name).type == table.schema.field(name).type
        assert got[name].to_pylist() == table[name].to_pylist()
    assert got["caption"].to_pylist() == ["x", None]


def test_types_of_text_lists_are_those_of_all_rows(tmp_path: Path) -> None:
    records = [
        {"url": "http://a", "i": "1", "f": "1", "mixed": "1", "zip": "00123", "gap": "", "nan": "nan"},
        {"url": "http://b", "i": "-20", "f": "1.5e3", "mixed": "x", "zip": "9", "gap": "3", "nan": "1"},
    ]
    got = rows_of(write(tmp_path / "list.csv", records))
    assert [r["i"] for r in got] == [1, -20]
    assert [r["f"] for r in got] == [1.0, 1500.0]
    assert [r["mixed"] for r in got] == ["1", "x"]
    assert [r["zip"] for r in got] == ["00123", "9"]
    assert [r["gap"] for r in got] == [None, 3]
    assert [r["nan"] for r in got] == ["nan", "1"]
    records = [
        {"url": "http://a", "b": True, "n": 1, "x": 1, "deep": {"a": [1]}, "big": 1 << 70},
        {"url": "http://b", "b": None, "n": 2.5, "x": "s", "deep": None, "big": 1},
    ]
    got = rows_of(write(tmp_path / "list.jsonl", records))
    assert [r["b"] for r in got] == [True, None]
    assert [r["n"] for r in got] == [1.0, 2.5]
    assert [r["x"] for r in got] == ["1", "s"]
    assert got[0]["deep"] == '{"a": [1]}'
    assert got[0]["big"] == str(1 << 70)


def invalid_parquet(path: Path) -> None:
    values = [b"fine", b"caf\xe9", "\u00fc".encode()]
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 8, 10)))
    text = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"".join(values))])
    urls = [f"http://a/{n}" for n in range(3)]
    pq.write_table(pa.table({"url": urls, "text": text, "tag": text}), path)


def invalid_binary_parquet(path: Path) -> None:
    values = [b"fine", b"caf\xe9", "\u00fc".encode()]
    pq.write_table(pa.table({"url": [f"http://a/{n}" for n in range(3)], "text": values, "tag": values}), path)


def invalid_csv(path: Path) -> None:
    rows = (b"http://a/0,fine,fine", b"http://a/1,caf\xe9,caf\xe9", "http://a/2,\u00fc,\u00fc".encode())
    path.write_bytes(b"url,text,tag\n" + b"\n".join(rows))


def invalid_jsonl(path: Path) -> None:
    path.write_bytes(
        b'{"url": "http://a/0", "text": "fine", "tag": "fine"}\n'
        b'{"url": "http://a/1", "text": "caf\xe9", "tag": "caf\xe9"}\n'
        b'{"url": "http://a/2", "text": "\\u00fc", "tag": "\xc3\xbc"}\n'
    )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("l.parquet", invalid_parquet),
        ("binary.parquet", invalid_binary_parquet),
        ("l.csv", invalid_csv),
        ("l.jsonl", invalid_jsonl),
    ],
)
def test_bytes_that_are_not_utf8_cost_their_row(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    got = rows_of(tmp_path / name)
    assert [r["caption"] for r in got] == ["fine", None, "\u00fc"]
    assert [r["list_error"] for r in got] == [None, "bad_caption", None]
    if name != "binary.parquet":
        assert [r["tag"] for r in got] == ["fine", "caf\ufffd", "\u00fc"]


def test_rows_that_the_list_spoils_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_bytes(
        b'{"url": "http://a/0", "text": "x"}\n'
        b"this is no JSON\n"
        b'{"text": "no url"}\n'
        b'["an", "array"]\n'
        b'{"url": null, "text": "x"}\n'
        b'{"url": " ", "text": "x"}\n'
        b'{"url": "http://a/\xe9", "text": "x"}\n'
        b'{"url": "http://a/7", "text": "half a pair \\ud83d"}\n'
        b'{"url": 8, "text": 9}\n'
    )
    got = rows_of(tmp_path / "l.jsonl")
    assert [r["list_error"] for r in got] == [
        None,
        "bad_metadata",
        "no_url",
        "bad_metadata",
        "no_url",
        "no_url",
        "bad_url",
        "bad_caption",
        None,
    ]
    assert (got[8]["url"], got[8]["caption"]) == ("8", "9")
    (tmp_path / "l.csv").write_text("url,text\nhttp://a,one,two\nhttp://b\n\nhttp://c,fine\n")
    assert [r["list_error"] for r in rows_of(tmp_path / "l.csv")] == ["bad_metadata", "bad_metadata", None]


def test_given_uids_are_kept_and_others_derived(tmp_path: Path) -> None:
    given = "0123456789ABCDEF" * 2
    records = [
        {"uid": given, "url": "http://a", "text": "x"},
        {"uid": None, "url": "http://b", "text": "y"},
        {"uid": "short", "url": "http://c", "text": "z"},
    ]
    got = rows_of(write(tmp_path / "l.parquet", records))
    derived = [derive_uid("http://b", "y"), derive_uid("http://c", "z")]
    assert [r["uid"] for r in got] == [given.lower(), *derived]
    assert [r["list_error"] for r in got] == [None, None, "bad_metadata"]
    # a column of that name that holds something else is a column like any other
    for other in ({"uid": 7}, {"uid": "user-7"}):
        (row,) = rows_of(write(tmp_path / "o.parquet", [{"url": "http://a", "text": "x", **other}]))
        assert row["uid"] == derive_uid("http://a", "x")
        assert row["list_uid"] == other["uid"]


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("l.csv", b"", "is an empty list (0 rows)", None),
        ("l.csv", b"url,text\n", "is an empty list (0 rows)", None),
        ("l.txt", b"\n\n", "is an empty list (0 rows)", None),
        ("l.json", b"[]", "is an empty list (0 rows)", None),
        ("l.csv", b"link,text\na,b\n", "has no url column (found: link, text)", None),
        ("l.csv", b"urls,text\na,b\n", "has no url column (found: urls, text)", "--url-col urls"),
        ("l.csv", b"http://a,cat\nhttp://b,dog\n", "has no url column", "its first line must name the columns"),
        ("l.csv", b"PAR1\0\0\0\0", "is not CSV", None),
        ("l.csv", b"url,url\na,b\n", "names a column twice", None),
        ("l.csv", b'url,text\nhttp://a,"open\n', "breaks the rules of quoting", None),
        ("l.csv", b'url,text\nhttp://a,"a" b\n', "breaks the rules of quoting", None),
        ("l.csv", "url,text\nhttp://a,b\n".encode("utf-16"), "is UTF-16 text", None),
        ("l.parquet", b"url,text\na,b\n", "is not Parquet that can be read", None),
        ("l.parquet", bytes(1000), "is not Parquet that can be read", None),
        ("l.parquet", b"", "is not Parquet that can be read", None),
        ("l.jsonl", b"url,text\n", "is not JSONL", None),
        ("l.json", b'{"url": 1}\n{"url": 2}\n', "is not JSON", "lines of JSON are .jsonl"),
        ("l.json", b'"text"', "is neither a JSON array", None),
        ("l.txt", b"once upon a time\nthere was\n", "has no URL in its first lines", None),
        ("l.csv.gz", gzip.compress(b"url\nhttp://a\n")[:-12], "cannot be read to its end", None),
        ("l.xlsx", b"PK", "is of no known list format", None),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, name: str, content: bytes, message: str, hint: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_list(tmp_path / name)
    assert message in caught.value.what
    assert caught.value.where == str(tmp_path / name)
    assert hint is None or caught.value.hint == hint


def test_missing_places_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_list(tmp_path / "none.csv")
    with pytest.raises(InputError, match="holds no list"):
        open_list(tmp_path)
    path = write(tmp_path / "l.csv", [{"url": "http://a", "text": "x"}])
    with pytest.raises(InputError, match=r"has no column 'txt' \(found: url, text\)") as caught:
        open_list(path, caption_col="txt")
    assert caught.value.hint == "--caption-col text"
    with pytest.raises(InputError, match="cannot be both"):
        open_list(path, url_col="text")


def test_a_list_that_changed_since_costs_its_part(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", [{"url": "http://a", "text": "x"}])
    part = open_list(path).part(0, 1)
    path.write_text("url,text\n")
    with pytest.raises(PartError, match="is not the list it was"):
        read_rows(part)


def test_gzip_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(gzip.compress(b"url,text\nhttp://a,x\n"))
    assert rows_of(tmp_path / "l.csv")[0]["caption"] == "x"
    (tmp_path / "m.csv.gz").write_bytes(b"url,text\nhttp://a,x\n")
    assert rows_of(tmp_path / "m.csv.gz")[0]["caption"] == "x"


def test_random_cells_survive_csv(tmp_path: Path) -> None:
    rng = random.Random(4)
    letters = "ab ,\"\n\r\t\0\u00e9\U0001f600;|'"
    records = [
        {"url": f"http://a/{n}", "caption": "".join(rng.choices(letters, k=rng.randrange(12)))} for n in range(2000)
    ]
    for suffix in ("csv", "tsv"):
        found = rows_of(write(tmp_path / f"l.{suffix}", records))
        assert [r["caption"] for r in found] == [r["caption"] for r in records]


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with path.open("w") as stream:
        for n in range(60_000):
            stream.write(json.dumps({"url": f"http://a/{n}", "text": "w" * 1000}) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = open_list(path)
    assert len(read_rows(source.part(50_000, 100))) == 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_real_lists_are_read_whole() -> None:
    folder = SHARED / "data" / "metadata-img2dataset"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/metadata-img2dataset")
    for name in ("test_1000.parquet", "test_10000.parquet"):
        source = open_list(folder / name)
        got = read_rows(source.part(0, source.rows))
        raw = pq.read_table(folder / name)
        assert got["url"].to_pylist() == raw["URL"].to_pylist()
        assert got["caption"].to_pylist() == raw["TEXT"].to_pylist()
        assert set(got["list_error"].to_pylist()) == {None}
    assert open_list(folder / "test_1000.txt").rows == 1000


def test_columns_that_mean_something_are_known_by_what_they_hold(tmp_path: Path) -> None:
    known = {"url": "http://a", "text": "x", "sha256": "A" * 64, "face_bboxes": [[0.0, 0.0, 1.0, 1.0]]}
    source = open_list(write(tmp_path / "l.parquet", [known, {**known, "sha256": None}]))
    assert (source.hash_column, source.box_column) == ("sha256", "face_bboxes")
    odd = {**known, "sha256": "A" * 63, "face_bboxes": [0.0]}
    source = open_list(write(tmp_path / "o.parquet", [odd]))
    assert (source.hash_column, source.box_column) == (None, None)
    source = open_list(
        write(tmp_path / "l.csv", [{"url": "http://a", "sha256": ""}, {"url": "b", "sha256": "0" * 64}])
    )
    assert (source.hash_column, source.box_column) == ("sha256", None)


def test_what_an_earlier_reading_said_of_a_row_stays_said(tmp_path: Path) -> None:
    record = {"url": "http://a", "text": None, "list_error": "bad_caption"}
    found = rows_of(write(tmp_path / "l.parquet", [record, {**record, "list_error": None}]))
    assert [r["list_error"] for r in found] == ["bad_caption", None]
    assert "list_list_error" not in found[0]
    # a column of that name with other words in it is a column like others
    (row,) = rows_of(write(tmp_path / "o.parquet", [{**record, "list_error": "whatever"}]))
    assert (row["list_error"], row["list_list_error"]) == (None, "whatever")


def test_repeats_are_told_by_their_rows(tmp_path: Path) -> None:
    from dataclasses import replace

    source = open_list(write(tmp_path / "l.csv", [{"url": f"http://a/{n}" if n else "", "n": n} for n in range(4)]))
    found = read_rows(replace(source.part(0, 4), duplicates=(0, 2)))
    assert found["list_error"].to_pylist() == ["no_url", None, "duplicate_url", None]
