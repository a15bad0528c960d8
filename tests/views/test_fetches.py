from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import PartError
from curate.pool import Pool, open_pool
from curate.receipts import FORMAT, Output, write_json
from curate.shards import TarWriter, write_table
from curate.views.fetches import Fetches
from curate.views.status import lines, status
from tests.pools import make_img2dataset, make_metadata, make_pool, uid_of, url_of

Row = Mapping[str, Any]

KINDS = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("error_code", pa.string()),
        ("sha256", pa.string()),
        ("hash_ok", pa.bool_()),
        ("placeholder", pa.bool_()),
    ]
)


def pool_of(folder: Path, *shards: Sequence[Row], **counts: int) -> Pool:
    """A pool whose shards have these rows in their tables and nothing in their tars."""
    for number, rows in enumerate(shards):
        name = f"{number:08d}"
        output = Output("download", 1, name, folder / "shards", {"test": number})
        named = [{"uid": uid_of(number, r), "key": f"{name}{r:04d}", **row} for r, row in enumerate(rows)]
        TarWriter(output.open(f"{name}.tar")).finish()
        write_table(output, f"{name}.parquet", pa.Table.from_pylist(named, KINDS))
        output.commit({"samples": len(rows), **counts})
    return open_pool(folder)


def fails(code: str, host: str, count: int) -> list[Row]:
    return [{"url": f"https://{host}/{n}.jpg", "error_code": code} for n in range(count)]


def said(pool: Pool) -> tuple[dict[str, Any], str]:
    """What status says of the download, as values and as text."""
    told = status(pool)
    assert json.loads(json.dumps(told)) == told
    assert isinstance(told["download"], dict)
    return told["download"], "\n".join(lines(told))


# --- codes and a second pass ------------------------------------------------------------------------------


def test_codes_have_shares_and_a_fate(tmp_path: Path) -> None:
    rows = [*fails("http_404", "a.test", 3), *fails("timeout", "a.test", 2), *[{"url": "http://a.test/x"}] * 5]
    told, text = said(pool_of(tmp_path, rows, received_bytes=4_000_000, stored_bytes=1_500_000))
    assert (told["asked"], told["stored"], told["share"]) == (10, 5, 0.5)
    assert told["codes"] == [
        {"code": "http_404", "samples": 3, "share": 0.3, "transient": False},
        {"code": "timeout", "samples": 2, "share": 0.2, "transient": True},
    ]
    assert (told["received_bytes"], told["stored_bytes"]) == (4_000_000, 1_500_000)
    assert "1: 5 images stored, 5 failed (50.0% success)" in text
    assert [line.split() for line in text.splitlines() if line.startswith("  http_404")] == [
        ["http_404", "3", "30.0%", "dead"]
    ]
    assert "20.0%  transient" in text
    assert "bytes     1.5 MB of images; 4.0 MB were received" in text


def test_what_another_attempt_may_mend(tmp_path: Path) -> None:
    pool = pool_of(
        tmp_path / "my pool",
        [*fails("timeout", "a.test", 5), *fails("reset", "b.test", 2), *fails("no_such_host", "c.test", 4)],
    )
    told, text = said(pool)
    again = f"curate download --retry-failed --pool {shlex.quote(str(tmp_path / 'my pool'))}"
    timeouts = again.replace("--pool", "--codes timeout --pool")
    assert told["again"] == {
        "transient": 7,
        "dead": 4,
        "command": again,
        "code": "timeout",
        "code_command": timeouts,
        "go_on_command": None,
    }
    assert "again     another attempt may mend 7 of 11 failures; 4 are dead" in text
    assert f"  {again}\n" in text
    assert f"  for timeout alone, the most of them: {timeouts}" in text


@pytest.mark.parametrize(
    ("rows", "transient"),
    [
        ([*fails("timeout", "a.test", 2), *fails("reset", "a.test", 2)], 4),  # no code is the most of them
        (fails("timeout", "a.test", 3), 3),  # all of one code: the short command asks for the same
    ],
)
def test_one_code_is_not_named_where_it_tells_nothing(tmp_path: Path, rows: list[Row], transient: int) -> None:
    told, text = said(pool_of(tmp_path, rows))
    assert (told["again"]["transient"], told["again"]["code"], told["again"]["code_command"]) == (
        transient,
        None,
        None,
    )
    assert "--codes" not in text


def test_the_dead_are_not_asked_again(tmp_path: Path) -> None:
    told, text = said(pool_of(tmp_path, fails("http_404", "a.test", 2)))
    assert (told["again"]["transient"], told["again"]["dead"], told["again"]["command"]) == (0, 2, None)
    assert "no failure is transient" in text
    assert "--retry-failed" not in text


def test_a_pool_without_failures_says_nothing_of_them(tmp_path: Path) -> None:
    told, text = said(make_pool(tmp_path, 2, 3))
    assert (told["asked"], told["codes"], told["hosts"], told["share"]) == (6, [], [], 1.0)
    assert "2: 6 images stored, 0 failed (100.0% success)" in text
    for label in ("again", "hosts", "pictures", "hashes", "attempts", "bytes"):
        assert f"\n{label} " not in text


def test_attempts(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [*fails("timeout", "a.test", 2), *fails("reset", "b.test", 2)])
    attempts = [
        {"number": 1, "codes": [], "done": True},
        {"number": 2, "codes": ["reset", "timeout"], "done": False},
    ]
    write_json(tmp_path / "attempts.json", {"format": FORMAT, "attempts": attempts[:1]})
    told, text = said(pool)
    assert (told["attempts"], told["again"]["go_on_command"]) == (attempts[:1], None)
    assert "attempts  1 since the download" in text
    write_json(tmp_path / "attempts.json", {"format": FORMAT, "attempts": attempts})
    told, text = said(pool)
    goes_on = f"curate download --retry-failed --codes reset,timeout --pool {tmp_path}"
    assert told["again"]["go_on_command"] == goes_on
    assert "attempts  2 since the download" in text
    assert f"number 2 was broken off and goes on with: {goes_on}" in text
    (tmp_path / "attempts.json").write_text('{"format": 1}')
    assert said(pool)[0]["attempts"] == []


def test_bytes_received_are_not_said_of_a_download_that_was_gone_over(tmp_path: Path) -> None:
    """The receipt of a part that saw another attempt has the bytes of that attempt alone."""
    pool = pool_of(tmp_path, [{"url": "http://a.test/x"}], received_bytes=10, stored_bytes=5)
    path = tmp_path / "shards/_receipts/00000000.json"
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps(receipt | {"what": {"attempt": 1}}))
    told, _ = said(pool)
    assert (told["received_bytes"], told["stored_bytes"]) == (None, 5)


# --- hosts ------------------------------------------------------------------------------------------------


def test_worst_hosts(tmp_path: Path) -> None:
    first = [*fails("timeout", "slow.test", 4), *fails("http_404", "gone.test", 6), *fails("reset", "rare.test", 4)]
    second = [
        *fails("http_503", "slow.test", 3),
        *fails("tls", "slow.test", 1),
        {"url": "http://slow.test:80/ok.jpg"},
    ]
    told, text = said(pool_of(tmp_path, first, second))
    assert told["hosts"] == [
        {"host": "slow.test", "failed": 8, "requests": 9, "code": "timeout"},
        {"host": "gone.test", "failed": 6, "requests": 6, "code": "http_404"},
    ]
    assert not told["hosts_cut"]
    shown = [line.split() for line in text.splitlines() if line.startswith("  slow.test")]
    assert shown == [["slow.test", "8", "of", "9", "timeout"]]


def test_no_more_than_ten_hosts(tmp_path: Path) -> None:
    rows = [row for host in range(12) for row in fails("timeout", f"h{host}.test", 5 + host)]
    told, _ = said(pool_of(tmp_path, rows))
    assert [h["host"] for h in told["hosts"]] == [f"h{host}.test" for host in range(11, 1, -1)]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("HTTPS://Images.Test/a.jpg", "images.test"),
        (" http://images.test", "images.test"),
        ("http://images.test:8080/a", "images.test:8080"),
        ("http://images.test?q=a@b.test", "images.test"),
        ("http://me:secret@images.test/a", "images.test"),
        ("http://me:se@cret@images.test/a", "images.test"),
        ("https://[2001:db8::1]:444/x", "[2001:db8::1]:444"),
        ("http://b\u00fccher.test/\u00fc", "b\u00fccher.test"),
        ("http://a\u202eb.test/", "a\u27e8U+202E\u27e9b.test"),
        ("http://" + "a" * 300 + ".test/", "a" * 60 + "\u2026"),
        ("ftp://images.test/a", None),
        ("images.test/a.jpg", None),
        ("", None),
        (None, None),
    ],
)
def test_the_host_of_a_url(tmp_path: Path, url: str | None, host: str | None) -> None:
    told, text = said(pool_of(tmp_path, [{"url": url, "error_code": "timeout"}] * 5))
    assert [h["host"] for h in told["hosts"]] == ([host] if host else [])
    assert "secret" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("code", ["blocked", "bad_url", "bad_scheme", "duplicate_url", "no_file"])
def test_a_host_that_was_not_asked_is_not_blamed(tmp_path: Path, code: str) -> None:
    told, _ = said(pool_of(tmp_path, [*fails(code, "a.test", 9), *fails("timeout", "a.test", 5)]))
    assert told["hosts"] == [{"host": "a.test", "failed": 5, "requests": 5, "code": "timeout"}]
    assert {c["code"]: c["samples"] for c in told["codes"]} == {code: 9, "timeout": 5}


# --- placeholders, hashes, lists --------------------------------------------------------------------------


def test_placeholders_and_hashes(tmp_path: Path) -> None:
    def same(picture: str, host: str, count: int) -> list[Row]:
        url = {"url": f"http://{host}/x", "sha256": picture * 64, "placeholder": True}
        return [url | {"hash_ok": n > 0} for n in range(count)]

    one = {"url": "http://a.test/1", "sha256": "e" * 64, "placeholder": False, "hash_ok": None}
    first = [*same("a", "a.test", 4), *same("b", "b.test", 2), one]
    second = [*same("b", "c.test", 3), *[row for n in range(6) for row in same(str(n), "a.test", 1)]]
    told, text = said(pool_of(tmp_path, first, second))
    assert told["placeholders"] == 15
    assert told["pictures"][:2] == [
        {"sha256": "b" * 12, "samples": 5, "host": "c.test"},
        {"sha256": "a" * 12, "samples": 4, "host": "a.test"},
    ]
    assert len(told["pictures"]) == 5
    assert told["hash_mismatches"] == 9
    assert "pictures  15 samples are marked as placeholders" in text
    assert "hashes    9 images are not what the list's hash says" in text


def test_tables_of_an_earlier_version(tmp_path: Path) -> None:
    """They lack the columns: that nothing is marked there is not said to be known."""
    told, _ = said(make_pool(tmp_path, 1, 2))
    assert (told["placeholders"], told["pictures"], told["hash_mismatches"]) == (None, [], None)
    assert (told["received_bytes"], told["stored_bytes"]) == (None, None)


def test_lists(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 2, 2)
    listed: list[dict[str, Any]] = [{"kind": "list", "rows": 4, "shards": 2}, {"rows": 1_000, "shards": 1}]
    write_json(tmp_path / "sources.json", {"format": FORMAT, "sources": listed})
    told, text = said(pool)
    assert told["sources"] == [listed[0], {"kind": None, **listed[1]}]
    assert "lists     2, 1,004 rows" in text
    (tmp_path / "sources.json").write_text('{"format": 1, "sources": 5}')
    assert said(open_pool(tmp_path))[0]["sources"] == []


# --- pools of others --------------------------------------------------------------------------------------


def test_img2datasets_tables(tmp_path: Path) -> None:
    make_img2dataset(tmp_path, 2, 8, fails=lambda shard, row: ("timeout", "http_404", None)[min(row % 4, 2)])
    told, text = said(open_pool(tmp_path))
    assert {c["code"]: c["samples"] for c in told["codes"]} == {"http_404": 4, "timeout": 4}
    assert told["hosts"] == [{"host": "images.test", "failed": 8, "requests": 16, "code": "http_404"}]
    assert (told["again"]["transient"], told["again"]["command"]) == (4, None)  # its shards are not ours to write
    assert "--retry-failed" not in text


@pytest.mark.parametrize(
    ("columns", "codes", "hosts"),
    [
        ({"TEXT": ["a"] * 6}, {}, []),
        ({"status": ["failed_to_download"] * 6}, {"download_failed": 6}, []),
        (
            {"URL": ["http://a.test/x"] * 6, "status": ["failed_to_resize", *[None] * 5]},
            {"bad_image": 1, "download_failed": 5},
            ["a.test"],
        ),
        (
            {"URL": [b"http://a.test/\xff", *[b"http://a.test/"] * 5], "error_code": ["tls"] * 6},
            {"tls": 6},
            ["a.test"],
        ),
        ({"url": [{"x": 1}] * 6, "error_code": ["tls"] * 6}, {"tls": 6}, []),
        ({"url": ["http://a.test/x"] * 6, "placeholder": ["yes"] * 6, "hash_ok": ["no"] * 6}, {}, []),
        ({"status": [1] * 6, "error_message": [["x"]] * 6, "sha256": [7] * 6}, {}, []),
    ],
)
def test_tables_of_all_kinds(
    tmp_path: Path, columns: dict[str, list[Any]], codes: dict[str, int], hosts: list[str]
) -> None:
    make_img2dataset(tmp_path, 1, 2)
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    told, _ = said(open_pool(tmp_path))
    assert ({c["code"]: c["samples"] for c in told["codes"]}, told["asked"]) == (codes, 6)
    assert [h["host"] for h in told["hosts"]] == hosts[: bool(codes)]


def test_metadata_beside_shards(tmp_path: Path) -> None:
    make_pool(tmp_path, 1, 6, fails=lambda shard, row: "reset")
    make_metadata(tmp_path, [{"uid": uid_of(0, r), "url": url_of(0, r), "text": "x"} for r in range(9)])
    told, _ = said(open_pool(tmp_path))
    assert (told["asked"], told["again"]["transient"]) == (6, 6)
    assert [h["host"] for h in told["hosts"]] == ["images.test"]


def test_nothing_was_fetched(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": uid_of(0, 0), "url": url_of(0, 0), "text": "x"}])
    assert status(open_pool(tmp_path))["download"] is None
    told, _ = said(pool_of(tmp_path / "empty", []))
    assert (told["asked"], told["share"]) == (0, None)


def test_a_table_that_is_broken_behind_its_footer(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, fails("timeout", "a.test", 5), fails("timeout", "b.test", 5))
    path = tmp_path / "shards/00000000.parquet"
    table = pq.read_metadata(path).row_group(0)
    data = bytearray(path.read_bytes())
    for number in range(table.num_columns):
        column = table.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(bytes(data))
    found = Fetches()
    with pytest.raises(PartError, match=r"00000000\.parquet: cannot be read"):
        found.read(pool, pool.shards[0])
    assert found.read(pool, pool.shards[1])
    assert found.codes == {"": 0, "timeout": 5}
    told = status(pool)
    assert list(told["unreadable"]) == ["00000000"]
    assert told["download"]["asked"] == 5
