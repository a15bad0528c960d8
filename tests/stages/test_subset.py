from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import selection, shards, uid_lists
from curate.cli.subset import subset_lines
from curate.errors import InputError
from curate.pool import Pool, open_pool
from curate.pool.adopt import adopt
from curate.receipts import read_receipt
from curate.scales import SCALES, scale
from curate.shards import TarWriter
from curate.stages import copying, placing, resharding
from curate.stages.subset import Result, subset
from curate.uids import find, to_hex, to_pairs
from tests.pools import (
    caption_of,
    make_img2dataset,
    make_metadata,
    make_pool,
    make_selection,
    members_of,
    sample_of,
    uid_of,
)

DEBUG = SCALES["debug"]


def some_fail(shard: int, row: int) -> str | None:
    return {(0, 1): "http_404", (1, 2): "timeout"}.get((shard, row))


def everything(n_shards: int, rows: int) -> list[str]:
    return [uid_of(s, r) for s in range(n_shards) for r in range(rows)]


def made(pool: Pool, out: Path, **options: Any) -> Result:
    return subset(pool, selection.load(pool.layout, None), DEBUG, out, **options)


def content(folder: Path) -> dict[str, bytes]:
    """All files but receipts, which hold clock readings."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "_receipts" not in p.parts
    }


def samples(out: Path) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """(shard, key, members) of each sample, found through the indexes."""
    for tar in sorted((out / "shards").glob("*.tar")):
        data = tar.read_bytes()
        index = pq.read_table(tar.with_suffix(".index.parquet")).to_pylist()
        assert [r["key"] for r in index] == shards.read_index(tar)[0]
        for row in index:
            yield tar.stem, row["key"], shards.sample_members(data, row["offset"], row["length"])


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = make_pool(tmp_path / "pool", 3, 4, fails=some_fail)
    make_selection(pool, everything(3, 4))
    return pool


def test_bytes_are_unchanged_in_even_shards_in_order(pool: Pool, tmp_path: Path) -> None:
    result = made(pool, tmp_path / "out", samples_per_shard=4)
    found = list(samples(tmp_path / "out"))
    expected = [(s, r) for s in range(3) for r in range(4) if not some_fail(s, r)]
    assert [key for _, key, _ in found] == [f"{uid_of(*at)}-0" for at in expected]
    assert [members for *_, members in found] == [dict(members_of(sample_of(*at))) for at in expected]
    sizes = [sum(shard == f"{n:08d}" for shard, *_ in found) for n in range(3)]
    assert sizes == [3, 3, 4]
    assert (result.kept, result.samples, result.shards, result.failure) == (10, 10, 3, None)
    for n, size in enumerate(sizes):
        stats = json.loads((tmp_path / f"out/shards/{n:08d}_stats.json").read_text())
        assert stats == {"successes": size}


def test_tables_hold_the_kept_rows(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out", samples_per_shard=5)
    again = open_pool(tmp_path / "out")
    assert (again.kind, again.n, [s.name for s in again.shards]) == ("curate", 10, ["00000000", "00000001"])
    table = pq.read_table(again.shards[0].table)
    assert table["key"].to_pylist() == [f"{u}-0" for u in table["uid"].to_pylist()]
    assert table["caption"].to_pylist()[:2] == [caption_of(0, 0), caption_of(0, 2)]
    assert table["error_code"].null_count == 5
    make_selection(again, [uid_of(2, 3)])
    assert made(again, tmp_path / "smaller").kept == 1


def test_uid_lists_and_missing(pool: Pool, tmp_path: Path) -> None:
    wanted = [*everything(3, 4), "0" * 32]
    make_selection(pool, wanted)
    result = made(pool, tmp_path / "out")
    assert result.missing == {"http_404": 1, "not_downloaded": 1, "timeout": 1}
    assert result.failure is None
    ids = np.load(tmp_path / "out/uids.npy")
    kept = sorted(u for s in range(3) for r in range(4) if not some_fail(s, r) for u in [uid_of(s, r)])
    assert to_hex(ids) == kept
    assert (tmp_path / "out/shards/sample_ids.npy").read_bytes() == (tmp_path / "out/uids.npy").read_bytes()
    lost = {uid_of(0, 1): "http_404", uid_of(1, 2): "timeout", "0" * 32: "not_downloaded"}
    listed = pq.read_table(tmp_path / "out/missing.parquet").to_pylist()
    assert listed == [{"uid": u, "cause": lost[u]} for u in sorted(lost)]


def test_require_all_fails_after_all_is_written(pool: Pool, tmp_path: Path) -> None:
    result = made(pool, tmp_path / "out", require_all=True)
    assert result.failure is not None
    assert result.failure.exit_code == 3
    assert "2 selected samples have no image here (http_404 1, timeout 1)" in str(result.failure)
    assert json.loads((tmp_path / "out/subset.json").read_text())["done"]


@pytest.mark.parametrize("per_shard", [1, 2, 3, 100])
def test_copies(pool: Pool, tmp_path: Path, per_shard: int) -> None:
    make_selection(pool, [uid_of(0, 0)] * 3 + [uid_of(2, 1)] + [uid_of(2, 2)] * 2)
    result = made(pool, tmp_path / "out", samples_per_shard=per_shard)
    keys = [f"{uid_of(0, 0)}-{j}" for j in range(3)] + [f"{uid_of(2, 1)}-0"]
    keys += [f"{uid_of(2, 2)}-{j}" for j in range(2)]
    found = list(samples(tmp_path / "out"))
    assert [key for _, key, _ in found] == keys
    assert {m["jpg"] for _, key, m in found if key.startswith(uid_of(0, 0))} == {sample_of(0, 0)["image"]}
    assert (result.kept, result.samples) == (3, 6)
    assert to_hex(np.load(tmp_path / "out/uids.npy")) == sorted(k[:32] for k in keys)


def test_what_datacomps_train_and_open_clip_are_given(pool: Pool, tmp_path: Path) -> None:
    import webdataset as wds

    result = made(pool, tmp_path / "out", samples_per_shard=4)
    # train.py descends into every folder; one with meta.json is expanded from the two values
    folders = [p for p in (tmp_path / "out").iterdir() if p.is_dir()]
    assert [p.name for p in folders] == ["shards"]
    assert not list((tmp_path / "out").glob("*.tar"))
    meta = json.loads((folders[0] / "meta.json").read_text())
    first, last = (meta["output_shard_format"].format(n)[:-4] for n in (0, meta["output_shard_count"] - 1))
    urls = wds.shardlists.expand_urls(f"{folders[0]}/{{{first}..{last}}}.tar")
    assert urls == [str(p) for p in sorted(folders[0].glob("*.tar"))]
    sizes = json.loads((folders[0] / "sizes.json").read_text())
    assert sum(sizes.values()) == result.samples
    training = json.loads((tmp_path / "out/training.json").read_text())
    assert (training["model"], training["batch"], training["samples_seen"]) == ("ViT-B-32", 1024, 128_000)
    assert training["repeats"] == 12_800
    assert f"shards/{{{first}..{last}}}.tar" in training["command"]


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_it(pool: Pool, tmp_path: Path) -> None:
    import webdataset as wds

    made(pool, tmp_path / "out", samples_per_shard=4)
    urls = [str(p) for p in sorted((tmp_path / "out/shards").glob("*.tar"))]
    read = list(wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "txt", "json"))
    assert len(read) == 10
    gc.collect()  # webdataset leaves its files to the collector
    key, image, text, said = read[0]
    assert (key, image.size, text, said["uid"]) == (f"{uid_of(0, 0)}-0", (24, 16), caption_of(0, 0), uid_of(0, 0))


@pytest.mark.filterwarnings("ignore")
def test_open_clips_own_loader_reads_it(pool: Pool, tmp_path: Path) -> None:
    from open_clip_train import data
    from open_clip_train.params import parse_args

    made(pool, tmp_path / "out", samples_per_shard=4)
    pattern = str(tmp_path / "out/shards/{00000000..00000002}.tar")
    args = parse_args(
        ["--train-data", pattern, "--batch-size", "5", "--workers", "0", "--dataset-type", "webdataset"]
    )
    args.world_size = 1

    def prepare(image: Any) -> Any:
        return np.asarray(image.resize((8, 8)))

    def tokens(text: str) -> list[str]:
        return [text]

    # the number of samples is found in sizes.json
    info = data.get_wds_dataset(args, prepare, is_train=True, tokenizer=tokens)
    assert info.dataloader.num_samples == 10
    batches = list(info.dataloader)
    gc.collect()
    texts = [t for _, batch in batches for t in batch]
    assert len(texts) == 10
    assert set(texts) <= {caption_of(s, r) for s in range(3) for r in range(4)}
    assert tuple(batches[0][0].shape) == (5, 8, 8, 3)


def test_same_bytes_for_any_workers_and_again(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.stages.subset.PROCESSES_FROM", 0)
    made(pool, tmp_path / "one", samples_per_shard=4)
    made(pool, tmp_path / "two", samples_per_shard=4, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    stamp = (tmp_path / "one/shards/00000001.tar").stat().st_mtime_ns
    made(pool, tmp_path / "one", samples_per_shard=4)
    assert (tmp_path / "one/shards/00000001.tar").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "lose",
    [
        lambda out: (out / "shards/_receipts/00000001.json").unlink(),
        lambda out: (out / "shards/00000002.tar").unlink(),
        lambda out: (out / "shards/meta.json").unlink(),
        lambda out: (out / "subset.json").rename(out / "subset.json.tmp"),
    ],
    ids=["receipt", "tar", "meta", "mark"],
)
def test_goes_on_after_a_break(pool: Pool, tmp_path: Path, lose: Callable[[Path], object]) -> None:
    made(pool, tmp_path / "whole", samples_per_shard=4)
    out = tmp_path / "out"
    made(pool, out, samples_per_shard=4)
    lose(out)
    (out / "shards/00000001.tar.tmp").write_bytes(b"half")
    if not (out / "subset.json").exists():
        # a folder without the mark that holds files is somebody else's
        with pytest.raises(InputError, match="holds something else"):
            made(pool, out, samples_per_shard=4)
        return
    made(pool, out, samples_per_shard=4)
    assert content(out) == content(tmp_path / "whole")


def test_other_settings_leave_nothing_of_the_old_subset(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(pool, out, samples_per_shard=1)
    assert len(list((out / "shards").glob("*.tar"))) == 10
    made(pool, out, samples_per_shard=6)
    made(pool, tmp_path / "fresh", samples_per_shard=6)
    assert content(out) == content(tmp_path / "fresh")


def test_a_real_subset_in_the_place_of_a_virtual_one_has_one_folder(pool: Pool, tmp_path: Path) -> None:
    """train.py takes every folder for more data: an empty one would be a source without shards."""
    out = tmp_path / "out"
    for virtual, folder in ((True, "index"), (False, "shards"), (True, "index")):
        made(pool, out, virtual=virtual)
        assert [p.name for p in out.iterdir() if p.is_dir()] == [folder]


# --- damage -----------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("hurt", [Path.unlink, cut], ids=["gone", "cut"])
def test_a_damaged_tar_costs_its_samples(
    pool: Pool, tmp_path: Path, hurt: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    hurt(tmp_path / "pool/shards/00000001.tar")
    result = made(pool, tmp_path / "out", samples_per_shard=4)
    assert result.missing == {"http_404": 1, "part_failed": 3, "timeout": 1}
    assert result.failure is not None
    assert "3 selected samples should be in the pool and are not (shards 00000001)" in str(result.failure)
    assert result.failure.hint == f"curate verify --pool {tmp_path / 'pool'} says what else is"
    assert "00000001.tar" in caplog.text
    assert [key[:32] for _, key, _ in samples(tmp_path / "out")] == [
        uid_of(s, r) for s in (0, 2) for r in range(4) if not some_fail(s, r)
    ]
    assert json.loads((tmp_path / "out/subset.json").read_text())["done"]


def test_a_damaged_tar_that_is_not_wanted_costs_nothing(pool: Pool, tmp_path: Path) -> None:
    cut(tmp_path / "pool/shards/00000001.tar")
    make_selection(pool, [uid_of(0, 0), uid_of(1, 2)])
    result = made(pool, tmp_path / "out")
    assert (result.kept, result.missing, result.failure) == (1, {"timeout": 1}, None)


def test_a_broken_table_costs_its_samples(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "pool/shards/00000002.parquet").write_bytes(bytes(900))
    result = made(open_pool(tmp_path / "pool"), tmp_path / "out")
    assert result.missing == {"http_404": 1, "part_failed": 4, "timeout": 1}
    assert result.failure is not None
    assert result.kept == 6


def test_blocks_that_are_not_the_samples_fail_the_part(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "pool/shards/00000001.tar"
    data = bytearray(path.read_bytes())
    data[0:100] = bytes(100)
    path.write_bytes(data)
    result = made(pool, tmp_path / "out", samples_per_shard=2)
    assert result.failure is not None
    assert "1 of 5 shards could not be made (00000001)" in str(result.failure)
    assert "without the tar, its samples are listed as missing" in str(result.failure.hint)
    assert result.unmade == result.as_json()["unmade"] == 1
    assert "commands" not in result.as_json()
    said = "\n".join(subset_lines(result))
    assert "of these not made" in said
    assert "train" not in said
    assert not (tmp_path / "out/shards/meta.json").exists()
    assert len(list((tmp_path / "out/shards").glob("*.tar"))) == 4
    assert not json.loads((tmp_path / "out/subset.json").read_text())["done"]
    assert not list(tmp_path.rglob("*.tmp"))
    path.unlink()
    again = made(pool, tmp_path / "out", samples_per_shard=2)
    assert (again.unmade, again.missing["part_failed"]) == (0, 3)
    assert json.loads((tmp_path / "out/subset.json").read_text())["done"]


@pytest.mark.parametrize("at", [0, 124, 150], ids=["name", "size", "sum"])
def test_a_header_that_is_none_is_told_by_the_sample(pool: Pool, tmp_path: Path, at: int) -> None:
    path = tmp_path / "pool/shards/00000001.tar"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    result = made(pool, tmp_path / "out")
    assert result.failure is not None
    assert result.unmade == 1


def test_a_pool_that_lost_all_is_told_from_one_that_has_nothing(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for tar in (tmp_path / "pool/shards").glob("*.tar"):
        tar.unlink()
    with pytest.raises(InputError, match=r"none of its 12 samples has an image here .*part_failed 10") as e:
        made(pool, tmp_path / "out")
    assert e.value.exit_code == 3
    assert "curate verify" in str(e.value.hint)
    assert "00000002.tar: is missing" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_tar_without_an_index_is_named_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_img2dataset(tmp_path / "pool", 2, 3, columns=("uid",))
    cut(tmp_path / "pool/00001.tar")
    pool = open_pool(tmp_path / "pool")
    make_selection(pool, everything(2, 3))
    result = made(pool, tmp_path / "out", allow_stale=True)
    assert result.missing == {"part_failed": 3}
    assert f"{tmp_path / 'pool/00001.tar'}: its index could not be made" in caplog.text


def test_a_disk_that_cannot_read_a_tar_fails_the_part(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool/shards/00000001.tar"
    real, bad = os.preadv, path.stat().st_ino

    def read(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if os.fstat(fd).st_ino == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", read)
    result = made(pool, tmp_path / "out", samples_per_shard=4)
    assert result.failure is not None
    assert "1 of 3 shards could not be made" in str(result.failure)
    assert "curate verify" in str(result.failure.hint)


# --- other pools ------------------------------------------------------------------------------------------


def test_img2datasets_shards(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "pool", 2, 3, fails=lambda s, r: "timeout" if r == 1 else None)
    pool = adopt(open_pool(tmp_path / "pool"), workers=0)
    make_selection(pool, everything(2, 3))
    result = made(open_pool(tmp_path / "pool"), tmp_path / "out", samples_per_shard=3)
    assert result.missing == {"timeout": 2}
    found = list(samples(tmp_path / "out"))
    assert [key[:32] for _, key, _ in found] == [uid_of(s, r) for s in (0, 1) for r in (2, 0)]
    assert found[0][2]["jpg"] == sample_of(0, 2)["image"]
    assert json.loads(found[0][2]["json"])["key"] == "000000002"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "a folder/", "x" * 120 + "/"], ids=["flat", "folder", "long"])
def test_tars_of_other_writers(tmp_path: Path, form: int, folder: str) -> None:
    (tmp_path / "pool").mkdir()
    with tarfile.open(tmp_path / "pool/some.tar", "w", format=form) as tar:
        for row in range(3):
            for extension, data in members_of(sample_of(0, row)):
                info = tarfile.TarInfo(f"{folder}{row}.{extension.upper()}")
                info.size, info.mtime, info.uname = len(data), 1700000000.5, "böb"
                tar.addfile(info, io.BytesIO(data))
    pool = adopt(open_pool(tmp_path / "pool"), workers=0)
    make_selection(pool, [uid_of(0, 0), uid_of(0, 2)])
    made(pool, tmp_path / "out")
    found = list(samples(tmp_path / "out"))
    assert [key for _, key, _ in found] == [f"{uid_of(0, r)}-0" for r in (0, 2)]
    assert [m for *_, m in found] == [dict(members_of(sample_of(0, r))) for r in (0, 2)]
    with tarfile.open(tmp_path / "out/shards/00000000.tar") as tar:
        assert {(i.mtime, i.uname, i.mode) for i in tar} == {(0, "", 0o444)}


def test_a_tar_of_several_writers(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    blocks = io.BytesIO()
    ours = TarWriter(blocks)
    for row in range(4):
        if row != 2:
            ours.add(f"key{row}", members_of(sample_of(0, row)))
            continue
        for extension, data in members_of(sample_of(0, row)):
            info = tarfile.TarInfo(f"key{row}.{extension}")
            info.size, info.mtime = len(data), 1700000000.5
            head = info.tobuf(tarfile.PAX_FORMAT)
            blocks.write(head + data + bytes(-len(data) % 512))
    blocks.write(bytes(1024))
    (tmp_path / "pool/some.tar").write_bytes(blocks.getvalue())
    pool = adopt(open_pool(tmp_path / "pool"), workers=0)
    make_selection(pool, [uid_of(0, r) for r in range(4)] * 2)
    made(pool, tmp_path / "out")
    found = list(samples(tmp_path / "out"))
    assert [key for _, key, _ in found] == [f"{uid_of(0, r)}-{j}" for r in range(4) for j in range(2)]
    assert [m for *_, m in found] == [dict(members_of(sample_of(0, r))) for r in range(4) for _ in range(2)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_webdatasets_tars_are_not_taken_member_by_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    """Its times are no whole numbers, so a pax record stands before each member; img2dataset's tars are its."""
    import webdataset as wds

    (tmp_path / "pool").mkdir()
    writer = wds.TarWriter(str(tmp_path / "pool/00000.tar"), encoder=False)
    for row in range(12):
        members = dict(members_of(sample_of(0, row)))
        writer.write({"__key__": f"{row:09d}", **members})
    writer.close()
    assert b"mtime=" in (tmp_path / "pool/00000.tar").read_bytes()
    pool = adopt(open_pool(tmp_path / "pool"), workers=0)
    make_selection(pool, [uid_of(0, r) for r in range(12) if r != 5] + [uid_of(0, 7)] * 11)

    def never(*_: object) -> bytes:
        raise AssertionError("member by member")

    monkeypatch.setattr(copying, "rewritten", never)
    made(pool, tmp_path / "out", samples_per_shard=7, shuffle=shuffle)
    found = {key: members for _, key, members in samples(tmp_path / "out")}
    assert len(found) == 22
    for row in range(12):
        for copy in range(0 if row == 5 else 12 if row == 7 else 1):
            assert found[f"{uid_of(0, row)}-{copy}"] == dict(members_of(sample_of(0, row)))
    for tar in (tmp_path / "out/shards").glob("*.tar"):
        with tarfile.open(tar) as opened:
            assert {(i.mtime, i.uname, i.mode, i.type) for i in opened} == {(0, "", 0o444, tarfile.REGTYPE)}


def test_samples_larger_than_the_buffer(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(pool, tmp_path / "one")
    monkeypatch.setattr(copying, "READ", 2000)
    made(pool, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_metadata_with_shards_of_some(tmp_path: Path) -> None:
    rows = [{"uid": uid_of(s, r), "url": "u", "text": "t"} for s in range(2) for r in range(3)]
    make_metadata(tmp_path / "pool", rows)
    make_pool(tmp_path / "pool", 1, 3)
    pool = open_pool(tmp_path / "pool")
    assert pool.joined
    make_selection(pool, everything(2, 3))
    result = made(pool, tmp_path / "out")
    assert (result.kept, result.missing) == (3, {"not_downloaded": 3})


def test_shards_with_other_columns_are_joined(tmp_path: Path) -> None:
    first, second = pa.table({"a": [1], "b": ["x"]}), pa.table({"a": ["1"], "c": [0.5]})
    table = resharding.joined([first, second, pa.table({"a": pa.nulls(1)})])
    assert table.to_pylist() == [
        {"a": "1", "b": "x", "c": None},
        {"a": "1", "b": None, "c": 0.5},
        {"a": None, "b": None, "c": None},
    ]
    assert resharding.joined([pa.table({"a": [1]}), pa.table({"a": [0.5]})])["a"].to_pylist() == [1.0, 0.5]


# --- scales -----------------------------------------------------------------------------------------------


def test_a_larger_pool_is_cut_to_the_scales(pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = selection.load(pool.layout, None)
    inside = {n: replace(scale("small"), pool_size=n, samples_seen=20) for n in (3, 6)}
    results = {n: subset(pool, chosen, s, tmp_path / f"out{n}", seed=5) for n, s in inside.items()}
    kept = {n: {key for _, key, _ in samples(tmp_path / f"out{n}")} for n in inside}
    assert kept[3] < kept[6]
    for n, result in results.items():
        assert (result.selected, result.outside) == (12, 12 - n)
        assert result.kept + sum(result.missing.values()) == n
    assert not caplog.records


def test_a_smaller_pool_is_said(pool: Pool, tmp_path: Path) -> None:
    result = subset(pool, selection.load(pool.layout, None), scale("small"), tmp_path / "out")
    assert result.warnings == [
        "the pool has 12 samples, the scale small 12,800,000: with 12,800,000 samples seen, each sample is seen "
        "about 1,280,000 times",
        "more than 10 passes over the same samples rarely help: keep more, or a smaller scale",
    ]
    little = replace(scale("small"), pool_size=None, samples_seen=100)
    assert subset(pool, selection.load(pool.layout, None), little, tmp_path / "out").warnings == []


def test_many_passes_are_warned_of(pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(pool, tmp_path / "out")
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert said[0] == "128,000 samples seen of 10 kept: each sample is seen about 12,800 times"


# --- the card ---------------------------------------------------------------------------------------------


def test_card(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert "license: other" in front
    assert "- n<1K" in front
    assert "path: shards/*.tar" in front
    for line in (
        "# chosen at debug",
        "| samples of the pool | 12 |",
        "| kept | 10 |",
        "| `rule none` | 12 | 0 | 0 | 12 |",
        "| http_404 | 1 |",
        "about 12,800 times",
        "torchrun",
        "was not checked",
    ):
        assert line in body
    assert str(tmp_path) not in text


# --- what is refused --------------------------------------------------------------------------------------


def test_refusals_write_nothing(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(match: str, **options: Any) -> InputError:
        with pytest.raises(InputError, match=match) as e:
            made(pool, options.pop("out", out), **options)
        assert e.value.exit_code == 2
        return e.value

    refused("must be 1 or more", samples_per_shard=0)
    refused("is the pool itself", out=tmp_path / "pool")
    for own in ("metadata", "embeddings", "selections/new", "derived/../scores"):
        refused("is among the pool's own folders", out=tmp_path / "pool" / own)
        assert not (tmp_path / "pool" / own).exists()
    (tmp_path / "file").write_text("x")
    refused("is not a folder", out=tmp_path / "file")
    make_selection(pool, [])
    assert "curate filter" in str(refused("none of its 0 samples has an image here").hint)
    make_selection(pool, [uid_of(0, 1)])
    assert "curate download" in str(refused(r"none of its 1 samples has an image here \(http_404 1\)").hint)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(r"holds something else \(found: notes.txt\)")
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


def test_a_subset_does_not_take_the_place_of_a_pools_shards(tmp_path: Path) -> None:
    """Tars that lie in the folder itself are its pool's only as long as it has no shards/."""
    make_img2dataset(tmp_path / "pool", 2, 3, columns=("uid",))
    pool = open_pool(tmp_path / "pool")
    make_selection(pool, everything(2, 3))
    with pytest.raises(InputError, match="is among the pool's own folders") as e:
        made(pool, tmp_path / "pool/shards", allow_stale=True)
    assert "--out" in str(e.value.hint)
    assert not (tmp_path / "pool/shards").exists()
    assert made(pool, tmp_path / "pool/small", allow_stale=True).kept == 6
    assert open_pool(tmp_path / "pool").n == 6


def test_a_selection_of_an_older_pool(pool: Pool, tmp_path: Path) -> None:
    grown = make_pool(tmp_path / "pool", 4, 4, fails=some_fail)
    with pytest.raises(InputError, match="was made of an older state of this pool") as e:
        made(grown, tmp_path / "out")
    assert "--allow-stale" in str(e.value.hint)
    assert not (tmp_path / "out").exists()
    assert made(grown, tmp_path / "out", allow_stale=True).kept == 10


def test_metadata_alone_has_no_pixels(tmp_path: Path) -> None:
    make_metadata(tmp_path / "pool", [{"uid": uid_of(0, 0), "url": "u", "text": "t"}])
    pool = open_pool(tmp_path / "pool")
    make_selection(pool, [uid_of(0, 0)])
    with pytest.raises(InputError, match="has no shards, so no pixels"):
        made(pool, tmp_path / "out")


# --- pieces -----------------------------------------------------------------------------------------------


def test_receipts_are_complete(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out")
    receipt = read_receipt(tmp_path / "out/shards", "00000000")
    assert receipt is not None
    assert (receipt.stage, receipt.counts["samples"], receipt.counts["kept"]) == ("subset", 10, 10)
    assert set(receipt.outputs) == {f"00000000{e}" for e in (".tar", ".parquet", ".index.parquet", "_stats.json")}


def test_bytes_are_estimated_before_they_are_copied(pool: Pool, tmp_path: Path) -> None:
    for wanted in (everything(3, 4), [uid_of(0, 0)] * 3):
        make_selection(pool, wanted)
        uids, copies = uid_lists.distinct(selection.load(pool.layout, None).uids())
        about = placing.bytes_about(placing.make_plan(pool, uids, copies))
        result = made(pool, tmp_path / f"out{len(wanted)}")
        assert result.bytes <= about <= result.bytes * 2


def test_find_and_distinct() -> None:
    listed = [f"{0:016x}{n:016x}" for n in (1, 3, 3, 5)] + [f"{7:016x}{0:016x}"]
    ordered, copies = uid_lists.distinct(to_pairs(pa.array(listed)))
    assert copies.tolist() == [1, 2, 1, 1]
    wanted = [f"{h:016x}{low:016x}" for h, low in ((0, 5), (0, 2), (7, 0), (7, 1), (9, 9), (0, 1))]
    assert find(ordered, to_pairs(pa.array(wanted))).tolist() == [2, -1, 3, -1, -1, 0]
    assert find(ordered[:0], ordered).tolist() == [-1] * 4
    assert [len(a) for a in uid_lists.distinct(ordered[:0])] == [0, 0]
