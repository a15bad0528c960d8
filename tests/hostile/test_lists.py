"""Lists with odd cells, downloaded to the end: each row keeps its place, and what is stored is what it asked for.

The rows are those of a probe of img2dataset 1.47 that are about lists. Many have their test where they are decided.

tests/stages/test_download.py, whole downloads:
    captions with newlines, NUL, emoji, 1 MB; one that is not UTF-8, in CSV; dates, bytes, NaN in further columns
tests/fetch/test_lists.py, as they are read:
    the same in every format; TXT that is no CSV; rows that the list spoils; lists that are none
tests/fetch/test_http.py:
    URLs that are never asked for, and how others are percent-encoded
tests/commands/bad_input/test_lists.py:
    lists that the command refuses
tests/hostile/test_content.py:
    one URL in many rows

Here: whole downloads of such lists, from the file to the tar.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.stages.download import download, plan
from tests.fetch.servers import HostileServer, running
from tests.fetch.test_lists import invalid_binary_parquet, invalid_csv, invalid_jsonl, invalid_parquet
from tests.hostile.web import Case, Found, books, crawl, each, jpeg, settings

CAPTIONS = (
    "plain",
    "two\nlines\r\n",
    "n\0ul",
    "\U0001f469\u200d\U0001f680",
    "\u202eright to left",
    "\"q\" 'q'",
    "a\tb",
)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}": jpeg(n) for n in range(12)})) as started:
        yield started


def fetched(source: Path, rows: int) -> list[Found]:
    """Every row of a list, downloaded beside it."""
    pool = source.with_name("pool")
    summary = download(plan(pool, source, settings()), workers=0, connections=8)
    assert not summary.failed
    assert summary.counts["samples"] == rows
    return books(pool, rows)


def codes(found: Sequence[Found]) -> list[str | None]:
    return [one.row["error_code"] for one in found]


# --- captions and further columns -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("text.parquet", invalid_parquet),
        ("binary.parquet", invalid_binary_parquet),
        ("l.csv", invalid_csv),
        ("l.jsonl", invalid_jsonl),
    ],
)
def test_one_caption_that_is_not_utf8_costs_one_row(
    server: HostileServer, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    """img2dataset lost the whole shard, or wrote none of it and said 100 %."""
    make(tmp_path / name)
    if name.endswith(".parquet"):
        table = pq.read_table(tmp_path / name)
        urls = pa.array([server.url(f"/{n}") for n in range(3)])
        pq.write_table(table.set_column(0, "url", urls), tmp_path / name)
    else:
        text = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(text.replace(b"http://a/", server.url("/").encode()))
    found = fetched(tmp_path / name, 3)
    assert codes(found) == [None, "bad_caption", None]
    assert [one.members["txt"].decode() for one in (found[0], found[2])] == ["fine", "\u00fc"]


def test_captions_and_columns_of_bytes_and_dates(server: HostileServer, tmp_path: Path) -> None:
    """A binary caption that is UTF-8 is a caption; what JSON has no form for is told in words."""
    count = len(CAPTIONS)
    table = pa.table(
        {
            "url": [server.url(f"/{n}") for n in range(count)],
            "text": pa.array([text.encode() for text in CAPTIONS], pa.binary()),
            "when": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5, n) for n in range(count)], pa.timestamp("us")),
            "raw": pa.array([bytes([n, 255]) for n in range(count)], pa.binary()),
            "many": pa.array([[{"x": float("inf")}]] * count),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    found = fetched(tmp_path / "list.parquet", count)
    assert codes(found) == [None] * count
    assert [one.members["txt"].decode() for one in found] == list(CAPTIONS)
    told = [json.loads(one.members["json"]) for one in found]
    assert [one["caption"] for one in told] == [one.row["caption"] for one in found] == list(CAPTIONS)
    assert told[3]["when"] == "2024-01-02T03:04:05.000003"
    assert (told[3]["raw"], told[3]["many"]) == ("A/8=", [{"x": None}])
    kept = pq.read_table(tmp_path / "pool" / "shards" / "00000000.parquet")
    assert all(kept[name].equals(table[name]) for name in ("when", "raw", "many"))


def test_no_caption_is_an_empty_text(server: HostileServer, tmp_path: Path) -> None:
    for name, text in (("none", None), ("empty", "")):
        (tmp_path / name).mkdir()
        rows = [{"url": server.url("/1"), "text": "x"}, {"url": server.url("/0"), "text": text}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "list.parquet")
        found = fetched(tmp_path / name / "list.parquet", 2)
        assert (found[1].members["txt"], found[1].row["caption"]) == (b"", text)
        assert json.loads(found[1].members["json"])["caption"] == text


# --- text lists -------------------------------------------------------------------------------------------


def test_a_text_list_is_lines_and_nothing_else(server: HostileServer, tmp_path: Path) -> None:
    """Commas do not end the run, blank lines are no rows, a comment is a row that fails alone."""
    lines = [
        server.url("/0,1"),
        "",
        f"  {server.url('/1')}  ",
        f'"{server.url("/2")}"',
        "# a comment",
        server.url("/3") + "\r",
        server.url("/4") + "?a=1,2&b='x'",
    ]
    server.routes["/0,1"] = jpeg(0)
    (tmp_path / "list.txt").write_bytes("\n".join(lines).encode())
    found = fetched(tmp_path / "list.txt", 6)
    assert codes(found) == [None, None, "bad_url", "bad_url", None, None]
    assert [one.row["url"] for one in found if one.members] == [
        server.url("/0,1"),
        server.url("/1"),
        server.url("/3"),
        server.url("/4") + "?a=1,2&b='x'",
    ]


# --- URLs -------------------------------------------------------------------------------------------------


def at(text: str) -> Callable[[HostileServer], str]:
    return lambda server: text.replace("HERE", server.url(""))


def asks(path: str) -> Callable[[Found], None]:
    """A look that sees which path was asked for."""

    def look(found: Found) -> None:
        assert found.row["final_url"].endswith(path)

    return look


URLS = [
    Case("blanks around", url=at(" \t HERE/1 \n"), look=asks("/1")),
    Case("a blank inside", url=at("HERE/a b"), look=asks("/a%20b")),
    Case("letters in the query", url=at("HERE/2?q=\u00e9"), look=asks("/2?q=%C3%A9")),
    Case("letters in the path", url=at("HERE/\u00fc\U0001f600"), look=asks("/%C3%BC%F0%9F%98%80")),
    Case("a percent sign alone", url=at("HERE/100%"), look=asks("/100%25")),
    Case("encoded already", url=at("HERE/a%20b?x=%2F"), look=asks("/a%20b?x=%2F")),
    Case("a fragment", url=at("HERE/3#top"), look=asks("/3")),
    Case("capitals", url=lambda server: f"HTTP://LocalHost:{server.port}/4", look=asks("/4")),
    Case("no path", url=at("HERE?5"), look=asks("/?5")),
    Case("a newline", code="bad_url", url=at("HERE/1\r\nX-Injected: yes")),
    Case("a NUL", code="bad_url", url=at("HERE/1\0")),
    Case("a user", code="bad_url", url=lambda server: f"http://me:pw@127.0.0.1:{server.port}/1"),
    Case("no scheme", code="bad_url", url="www.example.com/1.jpg"),
    Case("javascript", code="bad_scheme", url="javascript:alert(1)"),
    Case("nothing", code="no_url", url=""),
    Case("blanks", code="no_url", url="   "),
    Case("a port that is none", code="bad_url", url="http://127.0.0.1:99999/1"),
    Case("half an IPv6", code="bad_url", url="http://[::1/1"),
    Case("17,000 characters", code="bad_url", url=at("HERE/" + "x" * 17_000)),
]


@pytest.fixture(scope="module")
def urls(server: HostileServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    server.routes |= dict.fromkeys(("/a%20b", "/%C3%BC%F0%9F%98%80", "/100%25", "/?5"), jpeg(11))
    return crawl(tmp_path_factory.mktemp("urls") / "pool", server, URLS, workers=0).found


@each(URLS)
def test_a_url(urls: dict[str, Found], case: Case) -> None:
    case.check(urls[case.name])


def test_no_header_was_injected_and_null_is_no_url(server: HostileServer, tmp_path: Path) -> None:
    assert "x-injected" not in server.seen
    rows: list[dict[str, Any]] = [{"url": None, "text": "x"}, {"url": server.url("/1"), "text": "y"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    assert codes(fetched(tmp_path / "list.parquet", 2)) == ["no_url", None]
