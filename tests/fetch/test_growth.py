"""Growth is proved from content, and repeated URLs are found, whatever lays the values out."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetch import growth
from curate.fetch.growth import ROWS, content_digest
from curate.fetch.lists import open_list
from curate.fetch.repeats import repeats


def table(rows: int) -> pa.Table:
    n = range(rows)
    return pa.table(
        {
            "url": [f"http://a/{i}" for i in n],
            "text": [None if i % 7 == 0 else f"caption {i}" for i in n],
            "tag": pa.array([f"t{i % 3}" if i % 5 else None for i in n]).dictionary_encode(),
            "n": pa.array([i if i % 3 else None for i in n], pa.int32()),
            "x": [i / 7 for i in n],
            "b": [None if i % 11 == 0 else i % 2 == 0 for i in n],
            "raw": [bytes([i % 256]) for i in n],
            "boxes": [None if i % 4 == 0 else [[0.1 * (i % 3)], []] for i in n],
            "pair": [{"a": i, "b": None if i % 2 else "x"} for i in n],
            "when": [datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=i) for i in n],
            "price": [decimal.Decimal(i) for i in n],
            "nothing": pa.nulls(rows),
        }
    )


def test_content_is_the_same_in_every_layout(tmp_path: Path) -> None:
    whole, rows = table(ROWS + 3_000), ROWS + 1_500
    layouts: list[dict[str, Any]] = [{}, {"row_group_size": 777}, {"use_dictionary": False, "compression": "zstd"}]
    digests = set()
    for options in layouts:
        pq.write_table(whole, tmp_path / "l.parquet", **options)
        digests.add(content_digest(tmp_path / "l.parquet", rows))
    pq.write_table(whole.slice(0, rows), tmp_path / "l.parquet")
    digests.add(content_digest(tmp_path / "l.parquet", rows))
    large = whole.set_column(1, "text", whole["text"].cast(pa.large_string()))
    pq.write_table(large, tmp_path / "l.parquet", row_group_size=5_000)
    digests.add(content_digest(tmp_path / "l.parquet", rows))
    assert len(digests) == 1


@pytest.mark.parametrize("name", table(2).column_names)
def test_any_cell_counts(tmp_path: Path, name: str) -> None:
    before = table(50)
    pq.write_table(before, tmp_path / "l.parquet")
    digest = content_digest(tmp_path / "l.parquet", 50)
    column = before[name].to_pylist()
    changed = pa.array([*column[:-1], column[2] if name != "nothing" else None], before.schema.field(name).type)
    place = before.column_names.index(name)
    pq.write_table(before.set_column(place, name, changed), tmp_path / "l.parquet")
    assert (content_digest(tmp_path / "l.parquet", 50) == digest) == (name == "nothing")
    pq.write_table(before.rename_columns([*before.column_names[:-1], "other"]), tmp_path / "l.parquet")
    assert content_digest(tmp_path / "l.parquet", 50) != digest


def test_a_null_is_not_an_empty_text(tmp_path: Path) -> None:
    digests = set()
    for cells in (["", "a"], [None, "a"], ["a", ""]):
        pq.write_table(pa.table({"url": pa.array(cells, pa.string())}), tmp_path / "l.parquet")
        digests.add(content_digest(tmp_path / "l.parquet", 2))
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [
        ("url\nhttp://a/1\n", "url\nhttp://a/1\nhttp://a/2\n", True),
        ("url\nhttp://a/1", "url\nhttp://a/1\nhttp://a/2\n", True),
        ("url\nhttp://a/1", "url\nhttp://a/1\r\nhttp://a/2\n", True),
        ("url\nhttp://a/1", "url\nhttp://a/12\n", False),
        ("url\nhttp://a/1\n", "url\nhttp://a/9\nhttp://a/2\n", False),
        ("url\nhttp://a/1\nhttp://a/2\n", "url\nhttp://a/1\n", False),
        ("url\nhttp://a/1\n", "url\nhttp://a/1\n", True),
    ],
)
def test_texts_that_grew(tmp_path: Path, before: str, after: str, grown: bool) -> None:
    path = tmp_path / "l.csv"
    path.write_text(before)
    known = growth.described(open_list(path).files)
    path.write_text(after)
    assert growth.grew(open_list(path).files, known) is grown


def test_repeats_are_found_in_order() -> None:
    urls: list[list[str | None]] = [["a", "b", None], [" a\n", "", "c", "b"], [None, "", "a"]]
    assert repeats(urls, 10).tolist() == [3, 6, 9]
    assert repeats([], 0).tolist() == []
    many = [[f"http://a/{n % 700}" for n in range(1000)]]
    assert repeats(many, 1000).tolist() == list(range(700, 1000))
