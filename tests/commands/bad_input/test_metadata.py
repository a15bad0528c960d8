"""Metadata of others whose texts are none: rows are unjudged, parts fail by name, the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands.bad_input.outcomes import succeeded
from tests.commands.cli import curate

HERE = ("--workers", "0")
LATIN = [b"caf\xe9 with a dog", b"a cat on a table"]


def metadata(name: str, **columns: Any) -> Path:
    """A part of the pool in `pool`: two samples of its own, with these columns."""
    path = Path(f"pool/metadata/{name}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    uids = [name * 32, name * 31 + "0"]
    pq.write_table(pa.table({"uid": uids, "url": ["http://x.test/1", "http://x.test/2"], **columns}), path)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("captions", "judged"),
    [
        (pa.array(["a dog", "a cat"]), 2),
        (pa.array(["a dog", None]), 1),
        (pa.nulls(2), 0),
        (pa.array(["a dog", "a cat"]).dictionary_encode(), 2),
        (pa.array(LATIN), 1),
        (pa.array([1, 2]), 2),
        (pa.array([["a dog"], ["a cat"]]), 0),
        (pa.array([{"en": "a dog"}, {"en": "a cat"}]), 0),
        (pa.array(["a\0dog", "\U0001f600 cat\u2028"]), 2),
    ],
    ids=["text", "null", "nulls", "categories", "bytes", "numbers", "lists", "structs", "odd"],
)
def test_captions_of_any_type(captions: pa.Array, judged: int) -> None:
    metadata("a", text=captions)
    metadata("b", text=["a dog", "a cat"])
    ran = curate("filter", "--rule", "concepts:target=9", *HERE, "--json")
    succeeded(ran)
    counts = ran.json["counts"]
    assert (counts["samples"], counts["kept"], counts["unjudged"]) == (4, 2 + judged, 2 - judged)
    assert ran.json["funnel"][0]["unjudged"] == ({"no_caption": 2 - judged} if judged < 2 else {})
    succeeded(curate("filter", "--rule", "dedup", *HERE))


def test_a_part_without_captions() -> None:
    metadata("a", text=["a dog", "a cat"])
    metadata("b")
    ran = curate("filter", "--rule", "concepts:target=9", *HERE, "--json")
    succeeded(ran)
    assert (ran.json["counts"]["kept"], ran.json["counts"]["unjudged"]) == (2, 2)


def test_text_that_is_not_utf8_costs_its_part() -> None:
    claimed = pa.Array.from_buffers(pa.large_string(), 2, pa.array(LATIN, pa.large_binary()).buffers())
    path = metadata("a", text=claimed)
    metadata("b", text=["a dog", "a cat"])
    ran = curate("filter", "--rule", "concepts:target=9", *HERE, "--json")
    assert ran.code == 3
    assert f"parts failed: a ({path}: cannot be read (" in ran.err
    assert ran.json["counts"] == {"samples": 4, "kept": 2, "dropped": 0, "unjudged": 2}
    assert ran.json["funnel"][0]["unjudged"] == {"part_failed": 2}
    ran = curate("filter", "--rule", "dedup", *HERE, "--json")
    assert ran.code == 3
    assert f"parts failed: a ({path}: cannot be read (" in ran.err
    assert ran.json["counts"] == {"samples": 2, "kept": 2, "dropped": 0, "unjudged": 0}
    assert curate("status", "--json").json["selections"][-1]["stale"] is False
    ran = curate("verify", *HERE)
    assert ran.code == 3
    assert f"{path}: column 'text': " in ran.out


@pytest.mark.parametrize(
    ("uids", "says"),
    [(["x" * 32, "0" * 32], "row 0: "), (["0" * 32, None], "row 1 has no uid"), ([1, 2], "")],
)
def test_uids_that_are_none(uids: list[Any], says: str) -> None:
    path = metadata("a", text=["a dog", "a cat"])
    metadata("b", text=["a dog", "a cat"])
    table = pq.read_table(path).set_column(0, "uid", pa.array(uids))
    pq.write_table(table, path)
    for command in (("filter", "--rule", "random:n=9"), ("filter", "--rule", "dedup"), ("verify",)):
        ran = curate(*command, *HERE)
        assert ran.code == 3, ran
        assert f"{path}: column 'uid': {says}" in ran.out + ran.err
        assert "Traceback" not in ran.err
    assert [s["kept"] for s in curate("status", "--json").json["selections"]] == [2, 2]
