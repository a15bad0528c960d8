"""Lists that cannot be downloaded from: refused with what was found, before anything is written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands.bad_input.outcomes import contents, refused
from tests.commands.cli import curate
from tests.pools import make_img2dataset, make_pool

ROW = "http://images.test/1.jpg,one\n"


def _parquet(path: Path, **columns: pa.Array) -> None:
    pq.write_table(pa.table(columns), path)


def _text(text: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode(encoding))


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


LISTS: dict[str, tuple[Callable[[Path], object], str, str | None]] = {
    # no url column
    "link.csv": (_text("link,text\n" + ROW), "has no url column (found: link, text)", "--url-col NAME"),
    "links.parquet": (
        lambda p: _parquet(p, image_url_=pa.array(["x"]), text=pa.array(["y"])),
        "has no url column (found: image_url_, text)",
        "--url-col",
    ),
    "urls.csv": (_text("urls,text\n" + ROW), "has no url column (found: urls, text)", "--url-col urls"),
    "headless.csv": (_text(ROW * 3), "has no url column (found: http://images.test/1.jpg, one)", "first line"),
    "commas.tsv": (_text("url,text\n" + ROW), "has no url column (found: url,text)", ".csv has commas, .tsv tabs"),
    "records.jsonl": (_text('{"link": "http://x.test/1"}\n'), "has no url column (found: link)", "--url-col"),
    "words.txt": (_text("hello there\n"), "has no URL in its first lines", "one URL a line"),
    # empty
    "nothing.csv": (_bytes(b""), "is an empty list (0 rows)", None),
    "header.csv": (_text("url,text\n"), "is an empty list (0 rows)", None),
    "blank.txt": (_text("\n\n"), "is an empty list (0 rows)", None),
    "none.json": (_text("[]"), "is an empty list (0 rows)", None),
    "nothing.jsonl.gz": (_bytes(gzip.compress(b"")), "is an empty list (0 rows)", None),
    "norows.parquet": (lambda p: _parquet(p, url=pa.array([], pa.string())), "is an empty list (0 rows)", None),
    # not what the name says
    "empty.parquet": (_bytes(b""), "is not Parquet that can be read (Parquet file size is 0 bytes)", None),
    "zeros.parquet": (_bytes(bytes(4096)), "is not Parquet that can be read (Parquet magic bytes not found", None),
    "text.parquet": (_text("url,text\n" + ROW), "is not Parquet that can be read", None),
    "table.csv": (lambda p: _parquet(p, url=pa.array(["x"])), "is not CSV (its first bytes are b'PAR1", None),
    "text.jsonl": (_text("url,text\n" + ROW), "is not JSONL (its first line is no JSON object)", None),
    "text.json": (_text("{}"), "is neither a JSON array of objects nor an object of columns", None),
    "cut.csv.gz": (
        _bytes(gzip.compress(("url,text\n" + ROW * 999).encode())[:-9]),
        "cannot be read to its end",
        None,
    ),
    "wide.csv": (_text("url,text\n" + ROW, "utf-16"), "is UTF-16 text", "iconv"),
    "list.xlsx": (_text("x"), "is of no known list format (known: .parquet, ", None),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_none(here: Path, name: str) -> None:
    write, says, hint = LISTS[name]
    write(here / name)
    before = contents(here)
    refused(curate("download", "--source", name, "--workers", "0"), f"{name}: {says}", hint)
    assert contents(here) == before


def test_a_folder_without_lists_or_with_a_broken_one(here: Path) -> None:
    (here / "none").mkdir()
    refused(curate("download", "--source", "none"), "none: holds no list (known: .parquet, ", None)
    (here / "some").mkdir()
    (here / "some" / "a.csv").write_text("url,text\n" + ROW)
    (here / "some" / "b.parquet").write_bytes(bytes(64))
    refused(curate("download", "--source", "some"), "some/b.parquet: is not Parquet that can be read", None)
    assert sorted(contents(here)) == ["none", "some", "some/a.csv", "some/b.parquet"]


def test_a_pool_that_the_list_does_not_go_with(here: Path) -> None:
    (here / "list.csv").write_text("url,text\n" + ROW)
    make_img2dataset(here / "crawl")
    make_pool(here / "ours")
    before = contents(here)
    download = ("download", "--source", "list.csv", "--pool")
    refused(curate(*download, "crawl"), "crawl: holds shards that others made (00000.tar)", "another --pool")
    refused(curate(*download, "ours"), "ours/sources.json: names no list", "another --pool")
    refused(curate(*download, "list.csv"), "list.csv: is not a folder", "--pool DIR")
    refused(curate(*download, "list.csv/pool"), "list.csv: is not a folder", "--pool DIR")
    refused(curate("download", "--pool", "ours"), "ours/sources.json: names no list", "another --pool")
    assert contents(here) == before
