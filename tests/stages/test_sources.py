"""What a pool was downloaded from: lists that grow or are added, selections, folders; no row lost or had twice."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import receipts, uids
from curate.errors import Busy, InputError, UnknownName
from curate.fetch.lists import open_list
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.filter_api import chance
from curate.pool import open_pool
from curate.stages import download as stage
from curate.stages import drawn
from curate.stages.download import DownloadSettings, Plan, download, keep_metadata, plan
from curate.uids import derive_uid
from curate.views import inventory
from tests.fetch.servers import HostileServer, answer, running
from tests.stages.test_download import jpeg, stored, table_of

LIMITS = FetchLimits(total_seconds=2, allow_private=True, retries=0)
SETTINGS = DownloadSettings(ImageSettings(image_size=32), LIMITS, samples_per_shard=4)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n), Content_Type="image/jpeg") for n in range(40)})) as s:
        yield s


Rows = list[dict[str, Any]]
Make = Callable[..., Rows]


@pytest.fixture
def rows(server: HostileServer) -> Make:
    def make(first: int, last: int, **more: Any) -> Rows:
        return [{"url": server.url(f"/{n}.jpg"), "text": f"photo {n}", "n": n, **more} for n in range(first, last)]

    return make


def write(path: Path, records: Rows, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, **options)
    elif path.suffix == ".csv":
        lines = [",".join(records[0]), *(",".join(str(v) for v in r.values()) for r in records)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def run(made: Plan) -> Plan:
    summary = download(made, workers=0, connections=8)
    assert not summary.failed
    return made


def numbers(pool: Path) -> list[int]:
    return [row["n"] for row in table_of(pool)]


def entries(pool: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((pool / "sources.json").read_text())["sources"]
    return found


# --- lists that grow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_list_that_only_grew_adds_shards(tmp_path: Path, rows: Make, suffix: str) -> None:
    pool, source = tmp_path / "pool", tmp_path / f"l.{suffix}"
    run(plan(pool, write(source, rows(0, 6)), SETTINGS))
    before = stored(pool)
    write(source, rows(0, 11), **({"row_group_size": 2} if suffix == "parquet" else {}))
    made = run(plan(pool, source, SETTINGS))
    assert [(w.entry.first_row, w.entry.rows, w.entry.first_shard, w.entry.shards) for w in made.works] == [
        (0, 6, 0, 2),
        (6, 5, 2, 2),
    ]
    assert numbers(pool) == list(range(11))
    assert stored(pool).items() >= before.items()
    assert [e["continues"] for e in entries(pool)] == [None, 0]
    # what was there before it grew can still be made again, as it was, from the list as it is
    after = stored(pool)
    (pool / "shards" / "00000001.tar").unlink()
    (pool / "shards" / "00000003.tar").unlink()
    run(plan(pool, source, SETTINGS))
    assert stored(pool) == after
    assert len(entries(pool)) == 2
    # and the list as it was goes on with what is its own
    write(source, rows(0, 6))
    assert [w.place for w in plan(pool, source, SETTINGS).works if w.numbers] == [0]


def test_a_folder_grows_by_files_and_by_its_last_text(tmp_path: Path, rows: Make) -> None:
    pool, folder = tmp_path / "pool", tmp_path / "lists"
    write(folder / "a.parquet", rows(0, 3))
    write(folder / "b.jsonl", rows(3, 5))
    run(plan(pool, folder, SETTINGS))
    write(folder / "b.jsonl", rows(3, 7))
    write(folder / "c.csv", rows(7, 9))
    run(plan(pool, folder, SETTINGS))
    assert numbers(pool) == list(range(9))
    write(folder / "aa.csv", rows(9, 10))  # in between: the rows after it are others now
    with pytest.raises(InputError, match="was downloaded from another list"):
        plan(pool, folder, SETTINGS)


def test_a_column_keeps_the_type_that_it_had(tmp_path: Path, server: HostileServer) -> None:
    pool, source = tmp_path / "pool", tmp_path / "l.csv"
    write(source, [{"url": server.url(f"/{n}.jpg"), "text": "x", "tag": n} for n in range(2)])
    run(plan(pool, source, SETTINGS))
    before = stored(pool)
    with source.open("a") as stream:
        stream.write(f"{server.url('/2.jpg')},x,word\n")
    run(plan(pool, source, SETTINGS))
    (pool / "shards" / "00000000.parquet").unlink()
    run(plan(pool, source, SETTINGS))
    assert stored(pool).items() >= before.items()
    assert [r["tag"] for r in table_of(pool)] == [0, 1, "word"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("l.csv", lambda text: text.replace("photo 1", "photo !") + "x"),
        ("l.csv", lambda text: text[:-1] + "0\n"),  # the last line went on
        ("l.jsonl", lambda text: text[: len(text) // 2]),
        ("l.jsonl", lambda text: "\n" + text),
    ],
)
def test_a_text_list_that_did_more_than_grow(
    tmp_path: Path, rows: Make, name: str, change: Callable[[str], str]
) -> None:
    source = write(tmp_path / name, rows(0, 5))
    run(plan(tmp_path / "pool", source, SETTINGS))
    digest = entries(tmp_path / "pool")[0]["list_digest"]
    source.write_text(change(source.read_text()))
    with pytest.raises(InputError, match="was downloaded from another list") as caught:
        plan(tmp_path / "pool", source, SETTINGS)
    assert digest in caught.value.what
    assert receipts.file_sha256(source) in caught.value.what
    assert caught.value.exit_code == 2


def test_a_parquet_list_that_did_more_than_grow(tmp_path: Path, rows: Make) -> None:
    source = write(tmp_path / "l.parquet", rows(0, 5))
    run(plan(tmp_path / "pool", source, SETTINGS))
    for changed in (rows(0, 4) + rows(5, 9), rows(0, 4), rows(0, 8, more=1)):
        write(source, changed)
        with pytest.raises(InputError, match="was downloaded from another list"):
            plan(tmp_path / "pool", source, SETTINGS)


def test_growth_of_a_gzipped_list_cannot_be_seen(tmp_path: Path, rows: Make) -> None:
    source = tmp_path / "l.jsonl.gz"
    source.write_bytes(gzip.compress(write(tmp_path / "l.jsonl", rows(0, 3)).read_bytes()))
    run(plan(tmp_path / "pool", source, SETTINGS))
    source.write_bytes(gzip.compress(write(tmp_path / "l.jsonl", rows(0, 6)).read_bytes()))
    with pytest.raises(InputError) as caught:
        plan(tmp_path / "pool", source, SETTINGS)
    assert "gzipped" in str(caught.value.hint)


def test_a_larger_limit_is_growth(tmp_path: Path, rows: Make) -> None:
    pool, source = tmp_path / "pool", write(tmp_path / "l.parquet", rows(0, 10))
    run(plan(pool, source, SETTINGS, limit=3))
    assert numbers(pool) == [0, 1, 2]
    run(plan(pool, source, SETTINGS, limit=3))
    assert len(entries(pool)) == 1
    run(plan(pool, source, SETTINGS, limit=5))
    assert plan(pool, source, SETTINGS, limit=2).shards == 1  # of those that are there, the one with these rows
    run(plan(pool, source, SETTINGS))
    assert numbers(pool) == list(range(10))
    assert [(e["first_row"], e["rows"]) for e in entries(pool)] == [(0, 3), (3, 2), (5, 5)]
    for limit in (0, -1):
        with pytest.raises(InputError, match="must be above 0"):
            plan(pool, source, SETTINGS, limit=limit)


def test_a_list_as_it_was_once_takes_nothing_twice(tmp_path: Path, rows: Make) -> None:
    pool, old, new = tmp_path / "pool", tmp_path / "old.csv", tmp_path / "new.csv"
    write(old, rows(0, 10))
    write(new, rows(0, 14))
    run(plan(pool, old, SETTINGS, limit=3))
    run(plan(pool, new, SETTINGS, limit=6))
    run(plan(pool, old, SETTINGS))  # rows 3 to 5 are the grown list's, and here already
    assert [(e["first_row"], e["rows"]) for e in entries(pool)] == [(0, 3), (3, 3), (6, 4)]
    run(plan(pool, new, SETTINGS))
    assert numbers(pool) == list(range(14))
    assert run(plan(pool, old, SETTINGS)).new is None
    assert run(plan(pool, None, SETTINGS)).shards == 4


# --- several lists ----------------------------------------------------------------------------------------


def test_another_list_is_added_after_the_last_shard_and_never_twice(tmp_path: Path, rows: Make) -> None:
    pool = tmp_path / "pool"
    one, two = write(tmp_path / "one.csv", rows(0, 5)), write(tmp_path / "two.parquet", rows(10, 13))
    run(plan(pool, one, SETTINGS))
    with pytest.raises(InputError) as caught:
        plan(pool, two, SETTINGS)
    assert str(caught.value.hint).startswith("--add appends it after the last shard")
    run(plan(pool, two, SETTINGS, add=True))
    assert numbers(pool) == [*range(5), *range(10, 13)]
    before = stored(pool)
    for source in (one, two):
        for add in (False, True):
            run(plan(pool, source, SETTINGS, add=add))
    assert (len(entries(pool)), stored(pool)) == (2, before)
    write(one, rows(0, 7))
    write(two, rows(10, 15))
    run(plan(pool, one, SETTINGS))
    run(plan(pool, two, SETTINGS, add=True))
    assert numbers(pool) == [*range(5), *range(10, 13), 5, 6, 13, 14]
    assert [e["continues"] for e in entries(pool)] == [None, None, 0, 1]
    assert open_pool(pool).awaited == 0


def test_columns_may_differ_and_settings_may_not(tmp_path: Path, rows: Make, server: HostileServer) -> None:
    pool, one = tmp_path / "pool", write(tmp_path / "one.csv", rows(0, 2))
    run(plan(pool, one, SETTINGS))
    two = write(tmp_path / "two.csv", [{"link": server.url("/5.jpg"), "words": "five", "n": 5}])
    named = DownloadSettings(SETTINGS.images, LIMITS, 4, url_col="link", caption_col="words")
    run(plan(pool, two, named, add=True))
    assert [r["caption"] for r in table_of(pool)] == ["photo 0", "photo 1", "five"]
    other = DownloadSettings(ImageSettings(image_size=64), LIMITS, 4)
    with pytest.raises(InputError, match="image-size was 32, is 64"):
        plan(pool, write(tmp_path / "three.csv", rows(6, 8)), other, add=True)
    with pytest.raises(InputError, match=r"other columns of this list \(caption was text, is n"):
        plan(pool, one, DownloadSettings(SETTINGS.images, LIMITS, 4, caption_col="n"))


def test_all_lists_go_on_without_a_source(tmp_path: Path, rows: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool = tmp_path / "pool"
    one, two = write(tmp_path / "one.csv", rows(0, 5)), write(tmp_path / "two.csv", rows(10, 13))
    run(plan(pool, one, SETTINGS))
    run(plan(pool, two, SETTINGS, add=True))
    before = stored(pool)
    for number in (1, 2):
        (pool / "shards" / f"0000000{number}.tar").unlink()
    run(plan(pool, None, SETTINGS))
    assert stored(pool) == before
    # a list that is gone is named, and the others go on
    for number in (1, 2):
        (pool / "shards" / f"0000000{number}.tar").unlink()
    one.rename(tmp_path / "moved.csv")
    caplog.clear()
    summary = download(plan(pool, None, SETTINGS), workers=0)
    assert (summary.parts, summary.counts["samples"]) == (2, 7)
    assert "1 shard of it not here yet" in caplog.text
    assert "--source one.csv" in caplog.text
    run(plan(pool, tmp_path / "moved.csv", SETTINGS))
    assert stored(pool) == before
    with pytest.raises(InputError, match="is of a list"):
        plan(pool, None, SETTINGS, limit=3)


def test_what_another_command_wrote_meanwhile_stays(tmp_path: Path, rows: Make) -> None:
    pool = tmp_path / "pool"
    one, two = write(tmp_path / "one.csv", rows(0, 2)), write(tmp_path / "two.csv", rows(2, 4))
    late, same = plan(pool, two, SETTINGS), plan(pool, one, SETTINGS)
    run(plan(pool, one, SETTINGS))
    run(same)
    with pytest.raises(Busy, match="was changed by another command"):
        run(late)
    assert [e["files"][0]["name"] for e in entries(pool)] == ["one.csv"]


def test_attempts_since_are_no_reason_to_begin_again(tmp_path: Path, rows: Make, server: HostileServer) -> None:
    pool, source = tmp_path / "pool", write(tmp_path / "l.csv", rows(0, 3))
    run(plan(pool, source, SETTINGS))
    receipts.write_json(pool / "attempts.json", {"format": 1, "attempts": []})
    path = receipts.receipt_path(pool / "shards", "00000000")
    told = json.loads(path.read_text())
    told["what"]["attempt"] = 1
    told["fingerprint"] = receipts.digest(told["what"])
    path.write_text(json.dumps(told))
    hits = server.hits.total()
    assert download(plan(pool, source, SETTINGS), workers=0).skipped == 1
    assert server.hits.total() == hits


# --- parts of metadata ------------------------------------------------------------------------------------


def select(pool: Path, name: str, chosen: Sequence[str]) -> None:
    """A selection with what a download reads of it."""
    folder = pool / "selections" / name
    folder.mkdir(parents=True)
    pairs = uids.to_pairs(pa.array(chosen, pa.string()))
    np.save(folder / "uids.npy", pairs[uids.sort_order(pairs)])
    told = {"format": 1, "counts": {}, "funnel": [], "pool": open_pool(pool).identity()}
    receipts.write_json(folder / "selection.json", told)


def uid_of(records: Rows, *numbers: int) -> list[str]:
    return [derive_uid(records[n]["url"], records[n]["text"]) for n in numbers]


@pytest.fixture
def pool(tmp_path: Path, rows: Make) -> Path:
    """A pool that has metadata alone: 20 rows."""
    keep_metadata(tmp_path / "pool", write(tmp_path / "l.parquet", rows(0, 20)), SETTINGS)
    return tmp_path / "pool"


def test_only_what_a_selection_kept_is_fetched_and_nothing_twice(
    pool: Path, rows: Make, server: HostileServer
) -> None:
    known = rows(0, 20)
    select(pool, "some", uid_of(known, 17, 3, 5, 5, 8, 2))
    run(plan(pool, None, SETTINGS, selection="some"))
    assert numbers(pool) == [2, 3, 5, 8, 17]
    assert server.hits.total() == 5
    assert [row["uid"] for row in table_of(pool)] == uid_of(known, 2, 3, 5, 8, 17)
    assert open_pool(pool).n == 20
    # it can go on when the selection is gone; a second one fetches what is new
    (pool / "shards" / "00000001.tar").unlink()
    shutil.rmtree(pool / "selections" / "some")
    before = run(plan(pool, None, SETTINGS, limit=1))  # row 0 is new; shards without it are left for another time
    assert [(w.place, w.numbers) for w in before.works] == [(0, []), (1, [0])]
    select(pool, "more", uid_of(known, 5, 6, 17, 0))
    made = run(plan(pool, None, SETTINGS, selection="more"))
    assert [(w.entry.kind, w.numbers) for w in made.works] == [
        ("selection", [0, 1]),
        ("list", [0]),
        ("selection", [0]),
    ]
    assert numbers(pool) == [2, 3, 5, 8, 17, 0, 6]
    run(plan(pool, None, SETTINGS))
    assert sorted(numbers(pool)) == list(range(20))
    assert open_pool(pool).awaited == 0
    found = inventory.take(open_pool(pool))
    assert [p for p in found.foreign if "sources" in str(p)] == []
    assert found.damage() == []


def test_a_selection_that_is_not_to_be_had(tmp_path: Path, pool: Path, rows: Make) -> None:
    select(pool, "some", uid_of(rows(0, 20), 1))
    with pytest.raises(UnknownName) as caught:
        plan(pool, None, SETTINGS, selection="sone")
    assert caught.value.hint == "did you mean 'some'?"
    select(pool, "none", [])
    with pytest.raises(InputError, match="the selection 'none' keeps no row"):
        plan(pool, None, SETTINGS, selection="none")
    write(pool / "metadata" / "later.parquet", rows(20, 21))
    with pytest.raises(InputError, match="was made of an older state"):
        plan(pool, None, SETTINGS, selection="some")
    plain = tmp_path / "plain"
    run(plan(plain, write(tmp_path / "l.csv", rows(0, 2)), SETTINGS))
    with pytest.raises(InputError, match="has no metadata") as missing:
        plan(plain, None, SETTINGS, selection="some")
    assert "--retry-failed" in str(missing.value.hint)
    assert "--metadata-only" in str(missing.value.hint)


def test_lost_rows_of_a_selection_are_named(pool: Path, rows: Make, caplog: pytest.LogCaptureFixture) -> None:
    select(pool, "some", uid_of(rows(0, 20), 1, 2))
    run(plan(pool, None, SETTINGS, selection="some"))
    (pool / "sources" / "0000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"0000\.parquet: has 4 of the"):
        plan(pool, None, SETTINGS)


def test_a_sample_is_drawn_by_chance_and_grows(tmp_path: Path, rows: Make) -> None:
    pool, known = tmp_path / "pool", rows(0, 30)
    source = write(tmp_path / "l.csv", known)
    pairs = uids.to_pairs(pa.array(uid_of(known, *range(30))))
    luck = chance(pairs["f0"], pairs["f1"], 0)

    def below(fraction: float) -> list[int]:
        return np.flatnonzero(luck < fraction).tolist()

    run(plan(pool, source, SETTINGS, sample=0.3))
    assert numbers(pool) == below(0.3) != []
    assert entries(pool)[0]["kind"] == "sample"
    before = stored(pool)
    assert run(plan(pool, source, SETTINGS, sample=0.3)).new is None
    run(plan(pool, source, SETTINGS, sample=0.6))
    assert numbers(pool) == [*below(0.3), *sorted({*below(0.6)} - {*below(0.3)})]
    assert stored(pool).items() >= before.items()
    run(plan(pool, source, SETTINGS))
    assert sorted(numbers(pool)) == list(range(30))
    first = tmp_path / "first"
    run(plan(first, source, SETTINGS, sample=0.6, limit=2))
    assert numbers(first) == below(0.6)[:2]
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="is a fraction"):
            plan(pool, source, SETTINGS, sample=fraction)


def test_rows_that_the_list_spoils_stay_spoiled_when_drawn(tmp_path: Path, server: HostileServer) -> None:
    lines = [
        f"{server.url('/0.jpg')},caf\u00e9".encode("latin-1"),
        b",no url",
        f"{server.url('/2.jpg')},x".encode(),
    ]
    (tmp_path / "l.csv").write_bytes(b"url,text\n" + b"\n".join(lines) + b"\n")
    run(plan(tmp_path / "drawn", tmp_path / "l.csv", SETTINGS, sample=1.0))
    keep_metadata(tmp_path / "kept", tmp_path / "l.csv", SETTINGS)
    run(plan(tmp_path / "kept", None, SETTINGS))
    for pool in ("drawn", "kept"):
        assert [r["error_code"] for r in table_of(tmp_path / pool)] == ["bad_caption", "no_url", None]


# --- metadata of a list -----------------------------------------------------------------------------------


def test_a_list_becomes_metadata(tmp_path: Path, rows: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.stages.metadata.FILE_ROWS", 7)
    pool, source = tmp_path / "pool", write(tmp_path / "l.csv", rows(0, 20))
    assert keep_metadata(pool, source, SETTINGS, limit=16) == 16
    files = sorted((pool / "metadata").iterdir())
    assert [f.name for f in files] == [f"0000000{n}.parquet" for n in range(3)]
    table = pa.concat_tables([pq.read_table(f) for f in files])
    assert table.column_names[:3] == ["uid", "url", "caption"]
    assert table["n"].to_pylist() == list(range(16))
    assert table["uid"].to_pylist() == uid_of(rows(0, 20), *range(16))
    assert (open_pool(pool).kind, open_pool(pool).n) == ("metadata", 16)
    assert [p.name for p in pool.iterdir()] == ["metadata"]
    # again: as it is; as the source of a download: the metadata
    assert keep_metadata(pool, source, SETTINGS, limit=16) == 16
    run(plan(pool, source, SETTINGS))
    assert numbers(pool) == list(range(16))
    assert entries(pool)[0]["path"] == "metadata"
    with pytest.raises(InputError, match="other rows of this list"):
        keep_metadata(pool, source, SETTINGS)
    other = write(tmp_path / "other.csv", rows(3, 5))
    for call in (lambda: plan(pool, other, SETTINGS, add=True), lambda: keep_metadata(pool, other, SETTINGS)):
        with pytest.raises(InputError, match="is the list of this pool"):
            call()


def test_half_of_a_metadata_folder_is_no_metadata(
    tmp_path: Path, rows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.stages.metadata.FILE_ROWS", 7)
    pool, source = tmp_path / "pool", write(tmp_path / "l.csv", rows(0, 20))
    commit, made = receipts.Output.commit, []

    def dies(self: receipts.Output, counts: Any) -> receipts.Receipt:
        made.append(self.part)
        if len(made) == 2:
            raise KeyboardInterrupt
        return commit(self, counts)

    with monkeypatch.context() as patched:
        patched.setattr(receipts.Output, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            keep_metadata(pool, source, SETTINGS)
    assert not (pool / "metadata").exists()
    assert not stage.has_source(pool)
    assert keep_metadata(pool, source, SETTINGS) == 20
    assert not list(pool.glob("*.incomplete"))


def test_metadata_is_not_put_on_a_pool_that_has_samples(tmp_path: Path, rows: Make) -> None:
    source = write(tmp_path / "l.csv", rows(0, 2))
    run(plan(tmp_path / "pool", source, SETTINGS))
    with pytest.raises(InputError, match="was downloaded from already"):
        keep_metadata(tmp_path / "pool", source, SETTINGS)
    images(tmp_path / "images", 1)
    with pytest.raises(InputError, match="holds images, and no list"):
        keep_metadata(tmp_path / "new", tmp_path / "images", SETTINGS)


# --- folders ----------------------------------------------------------------------------------------------


def images(folder: Path, *names: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in names:
        (folder / f"{n:03d}.jpg").write_bytes(jpeg(n))
        (folder / f"{n:03d}.txt").write_text(f"photo {n}")
        (folder / f"{n:03d}.json").write_text(json.dumps({"n": n}))
    return folder


def test_a_folder_of_images_becomes_shards_grows_and_moves(tmp_path: Path) -> None:
    pool, folder = tmp_path / "pool", images(tmp_path / "images", *range(5))
    run(plan(pool, folder, SETTINGS))
    rows = table_of(pool)
    assert [r["n"] for r in rows] == list(range(5))
    assert [r["caption"] for r in rows] == [f"photo {n}" for n in range(5)]
    assert [r["url"] for r in rows] == [None] * 5
    assert [r["uid"] for r in rows] == [derive_uid(r["sha256"], r["caption"]) for r in rows]
    assert entries(pool)[0]["kind"] == "folder"
    before = stored(pool)
    folder = folder.rename(tmp_path / "moved")
    images(folder, 5, 6)
    assert run(plan(pool, folder, SETTINGS)).shards == 3
    assert numbers(pool) == list(range(7))
    assert stored(pool).items() >= before.items()
    (pool / "shards" / "00000000.tar").unlink()
    run(plan(pool, None, SETTINGS))
    assert stored(pool).items() >= before.items()
    (folder / "001.jpg").write_bytes(jpeg(9))
    with pytest.raises(InputError, match="another list"):
        plan(pool, folder, SETTINGS)


def test_shards_become_shards(tmp_path: Path, rows: Make) -> None:
    run(plan(tmp_path / "pool", write(tmp_path / "l.csv", rows(0, 6)), SETTINGS))
    run(plan(tmp_path / "copy", tmp_path / "pool" / "shards", SETTINGS))
    first, second = table_of(tmp_path / "pool"), table_of(tmp_path / "copy")
    for name in ("uid", "url", "caption", "key", "n", "width"):
        assert [r[name] for r in second] == [r[name] for r in first]
    assert [r["sha256"] for r in second] == [r["stored_sha256"] for r in first]
    assert entries(tmp_path / "copy")[0]["columns"]["hash"] is None


def test_a_sample_of_a_folder(tmp_path: Path) -> None:
    pool, folder = tmp_path / "pool", images(tmp_path / "images", *range(12))
    run(plan(pool, folder, SETTINGS, sample=0.5))
    drawn_rows = numbers(pool)
    assert 0 < len(drawn_rows) < 12
    run(plan(pool, folder, SETTINGS))
    assert sorted(numbers(pool)) == list(range(12))
    assert numbers(pool)[: len(drawn_rows)] == drawn_rows


# --- repeats, hashes, boxes, space ------------------------------------------------------------------------


def test_each_url_of_a_list_is_fetched_once(tmp_path: Path, rows: Make, server: HostileServer) -> None:
    settings = DownloadSettings(SETTINGS.images, LIMITS, 4, dedup_urls=True)
    pool, known = tmp_path / "pool", rows(0, 6)
    known[3]["url"] = f" {known[0]['url']} "
    known[5]["url"] = known[1]["url"]
    source = write(tmp_path / "l.jsonl", known)
    run(plan(pool, source, settings))
    assert [r["error_code"] for r in table_of(pool)] == [None, None, None, "duplicate_url", None, "duplicate_url"]
    assert server.hits.total() == 4
    before = stored(pool)
    write(source, [*known, *rows(0, 1), *rows(6, 7)])  # one that stood before it grew, one that is new
    run(plan(pool, source, settings))
    assert [r["error_code"] for r in table_of(pool)[6:]] == ["duplicate_url", None]
    (pool / "shards" / "00000001.tar").unlink()
    run(plan(pool, source, settings))
    assert stored(pool).items() >= before.items()


def test_a_url_that_another_selection_had_is_not_fetched_again(
    tmp_path: Path, rows: Make, server: HostileServer
) -> None:
    known = [{**row, "url": server.url(f"/{n % 4}.jpg")} for n, row in enumerate(rows(0, 12))]
    settings, pool = replace(SETTINGS, dedup_urls=True), tmp_path / "pool"
    keep_metadata(pool, write(tmp_path / "l.parquet", known), settings)
    select(pool, "some", uid_of(known, 0, 1, 2, 3))
    select(pool, "others", uid_of(known, 5, 6))
    run(plan(pool, None, settings, selection="some"))
    run(plan(pool, None, settings, selection="others"))
    assert [r["error_code"] for r in table_of(pool)] == [None] * 4 + ["duplicate_url"] * 2
    assert server.hits.total() == 4


def test_drawn_rows_whose_repeats_cannot_be_looked_up_are_left_for_another_time(
    tmp_path: Path, rows: Make, caplog: pytest.LogCaptureFixture
) -> None:
    settings, pool = replace(SETTINGS, dedup_urls=True), tmp_path / "pool"
    source = write(tmp_path / "l.jsonl", rows(0, 12))
    run(plan(pool, source, settings, limit=4))
    run(plan(pool, source, settings, sample=0.9))
    (pool / "shards" / "00000001.tar").unlink()
    source.rename(tmp_path / "elsewhere.jsonl")
    made = plan(pool, None, settings)
    assert not download(made, workers=0).failed
    assert "left for another time" in caplog.text
    run(plan(pool, tmp_path / "elsewhere.jsonl", settings, sample=0.9))
    assert (pool / "shards" / "00000001.tar").is_file()


def test_hashes_and_boxes_that_a_list_has_are_used(tmp_path: Path, rows: Make) -> None:
    import hashlib

    known = rows(0, 3)
    for n, row in enumerate(known):
        row["sha256"] = hashlib.sha256(jpeg(n if n else 7)).hexdigest()
        row["face_bboxes"] = [[0.1, 0.1, 0.6, 0.6]] if n == 1 else []
    source = write(tmp_path / "l.parquet", known)
    run(plan(tmp_path / "pool", source, SETTINGS))
    assert [r["hash_ok"] for r in table_of(tmp_path / "pool")] == [False, True, True]
    columns = entries(tmp_path / "pool")[0]["columns"]
    assert (columns["boxes"], columns["hash"]) == ("face_bboxes", ["sha256", "sha256"])
    run(plan(tmp_path / "clear", source, DownloadSettings(SETTINGS.images, LIMITS, 4, blur=False)))
    one, two = (table_of(tmp_path / p) for p in ("pool", "clear"))
    assert [a["stored_sha256"] == b["stored_sha256"] for a, b in zip(one, two, strict=True)] == [True, False, True]
    # a column of that name that holds something else is a column like others
    for row in known:
        row |= {"sha256": "unknown", "face_bboxes": "none"}
    columns = run(plan(tmp_path / "odd", write(tmp_path / "o.parquet", known), SETTINGS)).works[0].entry.columns
    assert (columns["boxes"], columns["hash"]) == (None, None)
    with pytest.raises(InputError, match="has no column 'boxes'"):
        plan(tmp_path / "no", source, DownloadSettings(SETTINGS.images, LIMITS, 4, bbox_col="boxes"))


def test_a_list_of_blocked_things_is_a_setting(tmp_path: Path, rows: Make) -> None:
    blocked, source = tmp_path / "blocked.txt", write(tmp_path / "l.csv", rows(0, 1))
    settings = DownloadSettings(SETTINGS.images, FetchLimits(allow_private=True, block_list=str(blocked)), 4)
    with pytest.raises(InputError, match="no such block list"):
        plan(tmp_path / "pool", source, settings)
    blocked.write_text("0" * 63 + "\n")
    with pytest.raises(InputError, match="line 1 is no digest"):
        plan(tmp_path / "pool", source, settings)
    blocked.write_text("0" * 64 + "\n")
    run(plan(tmp_path / "pool", source, settings))
    blocked.write_text("1" * 64 + "\n")
    with pytest.raises(InputError, match="block-list was"):
        plan(tmp_path / "pool", source, settings)


def test_what_img2dataset_cannot_do_is_refused_before_the_pool_is_promised_to_it(
    tmp_path: Path, rows: Make
) -> None:
    source = write(tmp_path / "l.csv", rows(0, 1))
    with pytest.raises(UnknownName, match="no fetcher 'img2datset'"):
        replace(SETTINGS, fetcher="img2datset")
    settings = replace(SETTINGS, fetcher="img2dataset", limits=replace(LIMITS, obey_robots=True))
    with pytest.raises(InputError, match="no robots"):
        download(plan(tmp_path / "pool", source, settings), workers=0)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(InputError, match="fetches URLs only"):
        download(plan(tmp_path / "pool", folder, replace(SETTINGS, fetcher="img2dataset")), workers=0)
    assert not (tmp_path / "pool").exists()
    run(plan(tmp_path / "pool", source, SETTINGS))


def test_space_is_foretold(tmp_path: Path, rows: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, source = tmp_path / "pool", write(tmp_path / "l.csv", rows(0, 6))
    made = plan(pool, source, DownloadSettings(ImageSettings(), LIMITS, 4))
    assert stage.space_needed(made) == 6 * 35_000
    assert stage.space_needed(plan(pool, source, SETTINGS)) == round(6 * 35_000 / 256)
    whole = DownloadSettings(ImageSettings(resize_mode="no"), LIMITS, 4)
    assert stage.space_needed(plan(pool, source, whole)) == 6 * 150_000
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=6 * 35_000))
    with pytest.raises(InputError, match=r"needs about .*\(220,500 and 210,000 bytes\)") as caught:
        stage.check_space(made)
    assert "--no-space-check" in str(caught.value.hint)
    run(plan(pool, source, SETTINGS))
    assert stage.space_needed(plan(pool, source, SETTINGS)) == 0
    monkeypatch.setattr(stage, "KNOWN_FROM", 6)
    (pool / "shards" / "00000001.tar").unlink()
    size = sum(p.stat().st_size for p in (pool / "shards").iterdir() if p.is_file())
    assert 0 < stage.space_needed(plan(pool, source, SETTINGS)) < size
    stage.check_space(plan(pool, source, SETTINGS))


def test_a_pool_with_its_own_metadata_given_by_name(pool: Path) -> None:
    linked = pool.parent / "linked"
    linked.symlink_to(pool / "metadata")
    run(plan(pool, linked, SETTINGS))
    assert [e["path"] for e in entries(pool)] == ["metadata"]
    assert run(plan(pool, None, SETTINGS)).new is None


def test_a_selection_finds_its_rows_over_many_groups(tmp_path: Path, rows: Make) -> None:
    known = [{"uid": f"{n:032x}", "url": f"http://a/{n}", "text": "x"} for n in range(25_000)]
    known[7]["uid"] = None
    source = open_list(write(tmp_path / "l.parquet", known, row_group_size=4_000))
    kept = uids.to_pairs(pa.array([f"{n:032x}" for n in range(0, 25_000, 3)]))
    want = drawn.wanted(source, kept=kept, sample=None, limit=None)
    assert np.flatnonzero(want).tolist() == list(range(0, 25_000, 3))
