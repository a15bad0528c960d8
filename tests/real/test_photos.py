"""All stages on real photos with their alt texts, as processes: every sample accounted for at every stage."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from curate import receipts, shards
from curate.demo.server import serve
from curate.uids import to_hex
from tests.programs import run, told

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
PHOTOS = SHARED / "data" / "openstax-photos"
LANGUAGES = SHARED / "data" / "fasttext-lid" / "lid.176.ftz"
NEEDED = (PHOTOS / "metadata.jsonl", LANGUAGES)

pytestmark = pytest.mark.skipif(
    not all(p.is_file() for p in NEEDED), reason=f"real photos and a language model are not in {SHARED}"
)

RULES = (f"basic:language_model={LANGUAGES}", "clipscore:top=0.8", "dedup:model=tiny", "concepts:target=20")
NAMES = ["basic", "clipscore", "dedup", "concepts"]


@dataclass(frozen=True)
class Job:
    """A folder in which all stages were run, and what each of them told."""

    folder: Path
    listed: pl.DataFrame
    """The list: url, text, and how the photos are called in their collection."""
    told: dict[str, Any]

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @property
    def selection(self) -> Path:
        return self.folder / self.told["filter"]["folder"]

    @property
    def subset(self) -> Path:
        return self.folder / "subset"

    def table(self, folder: Path) -> pl.DataFrame:
        """All parts' tables of one stage's folder, in order."""
        parts = sorted(p for p in folder.glob("*.parquet") if re.fullmatch(r"\d{8}\.parquet", p.name))
        return pl.concat([pl.read_parquet(p, glob=False) for p in parts])


@pytest.fixture(scope="module", params=[600, pytest.param(2360, marks=pytest.mark.slow)])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """All stages, one after the other, on so many photos."""
    count: int = request.param
    folder = tmp_path_factory.mktemp("photos")
    with serve(PHOTOS) as base:
        listed = pl.read_ndjson(PHOTOS / "metadata.jsonl").head(count)
        listed = listed.select(pl.format(base + "/{}", "file").alias("url"), "text", "kind", "book")
        assert len(listed) == count
        listed.write_parquet(folder / "list.parquet")
        said = {}
        words = ("--source", "list.parquet", "--caption-col", "text", "--allow-private-hosts")
        shards_of = ("--samples-per-shard", str(count // 4 + 1))
        said["download"] = told("download", *words, *shards_of, cwd=folder)
    said["embed"] = told("embed", "--model", "tiny", cwd=folder)
    said["filter"] = told("filter", *(w for rule in RULES for w in ("--rule", rule)), cwd=folder)
    said["subset"] = told("subset", "--scale", "small", "--samples-per-shard", "100", cwd=folder)
    said["verify"] = told("verify", cwd=folder)
    said["status"] = told("status", cwd=folder)
    said["report"] = told("report", cwd=folder)
    yield Job(folder, listed, said)
    shutil.rmtree(folder)


def test_download_accounts_for_every_photo(job: Job) -> None:
    count = len(job.listed)
    said = job.told["download"]
    assert (said["samples"], said["ok"], said["failed"], said["codes"]) == (count, count, 0, {})
    table = job.table(job.pool / "shards")
    assert table["url"].to_list() == job.listed["url"].to_list()
    assert table["caption"].to_list() == job.listed["text"].to_list()
    assert table["book"].to_list() == job.listed["book"].to_list()
    assert table["status"].unique().to_list() == ["success"]
    assert table["uid"].n_unique() == count
    keys = [key for tar in sorted(job.pool.glob("shards/*.tar")) for key in shards.read_index(tar)[0]]
    assert keys == table["key"].to_list()


def test_downloaded_hashes_are_those_of_the_files(job: Job) -> None:
    table = job.table(job.pool / "shards")
    for row in table.sample(20, seed=1).iter_rows(named=True):
        served = (PHOTOS / "images" / row["url"].rsplit("/", 1)[1]).read_bytes()
        assert row["sha256"] == hashlib.sha256(served).hexdigest()
        assert row["original_bytes"] == len(served)


def test_embed_accounts_for_every_photo(job: Job) -> None:
    count = len(job.listed)
    assert {k: job.told["embed"][k] for k in ("samples", "ok", "failed")} == {
        "samples": count,
        "ok": count,
        "failed": 0,
    }
    folder = job.pool / "embeddings" / "tiny"
    made = job.table(folder)
    assert made["uid"].to_list() == job.table(job.pool / "shards")["uid"].to_list()
    sides = {
        side: np.concatenate([np.load(p) for p in sorted(folder.glob(f"*.{side}.npy"))]).astype(np.float32)
        for side in ("image", "text")
    }
    for vectors in sides.values():
        assert len(vectors) == count
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(made["similarity"], (sides["image"] * sides["text"]).sum(1), atol=1e-5)


def test_filter_accounts_for_every_photo(job: Job) -> None:
    count = len(job.listed)
    said, counts = job.told["filter"], job.told["filter"]["counts"]
    decisions = job.table(job.selection / "decisions")
    assert len(decisions) == counts["samples"] == count
    assert counts["kept"] + counts["dropped"] + counts["unjudged"] == count
    assert 0 < counts["kept"] < count
    assert [line["rule"] for line in said["funnel"]] == NAMES
    left = count
    for line in said["funnel"]:
        assert line["in"] == left
        left -= sum(line["dropped"].values()) + sum(line["unjudged"].values())
        assert line["left"] == left
        by_reason = decisions.filter(pl.col("rule") == line["rule"], pl.col("error_code").is_null())
        dropped = dict(by_reason["reason"].cast(pl.String).value_counts().iter_rows())
        assert dropped == {k: v for k, v in line["dropped"].items() if v}
    assert left == counts["kept"]
    # every rule has something to say about real photos
    assert all(sum(line["dropped"].values()) for line in said["funnel"])


def kept_of(job: Job) -> list[str]:
    """The uids that the decisions keep, in the pool's order."""
    decisions = job.table(job.selection / "decisions")
    uids = job.table(job.pool / "shards")["uid"]
    kept = decisions["copies"] > 0
    assert (decisions["rule"].is_null() == kept).all()
    return uids.filter(kept).to_list()


def test_uid_list_is_sorted_and_what_the_decisions_keep(job: Job) -> None:
    pairs = np.load(job.selection / "uids.npy")
    assert pairs.dtype == np.dtype("u8,u8")
    assert to_hex(pairs) == sorted(kept_of(job))


def test_subset_holds_every_kept_photo_unchanged(job: Job) -> None:
    said, kept = job.told["subset"], kept_of(job)
    assert said["selected"] == len(kept)
    assert said["kept"] + sum(said["missing"].values()) == len(kept)
    assert (said["missing"], said["samples"]) == ({}, len(kept))
    assert job.table(job.subset / "shards")["uid"].to_list() == kept
    assert (job.subset / "uids.npy").read_bytes() == (job.selection / "uids.npy").read_bytes()
    before, after = images(job.pool), images(job.subset)
    assert list(after) == kept
    assert after == {uid: before[uid] for uid in kept}
    stats = [json.loads(p.read_bytes())["successes"] for p in sorted(job.subset.glob("shards/*_stats.json"))]
    assert sum(stats) == len(kept)
    assert max(stats) - min(stats) <= 1


def images(folder: Path) -> dict[str, bytes]:
    """uid to the stored image of a pool or a subset, in the order of its tars."""
    found = {}
    for tar in sorted(folder.glob("shards/*.tar")):
        data = tar.read_bytes()
        uids = dict(pl.read_parquet(tar.with_suffix(".parquet"), glob=False).select("key", "uid").iter_rows())
        for key, offset, length in pl.read_parquet(tar.with_suffix(".index.parquet"), glob=False).iter_rows():
            found[uids[key]] = shards.sample_members(data, offset, length)["jpg"]
    return found


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_the_subset(job: Job) -> None:
    import webdataset as wds

    captions = dict(job.table(job.pool / "shards").select("uid", "caption").iter_rows())
    tars = [str(p) for p in sorted(job.subset.glob("shards/*.tar"))]
    seen = []
    for sample in wds.WebDataset(tars, shardshuffle=False):
        said = json.loads(sample["json"])
        seen.append(said["uid"])
        assert sample["__key__"] == f"{said['uid']}-0"
        assert sample["txt"].decode() == captions[said["uid"]] == said["caption"]
        Image.open(io.BytesIO(sample["jpg"])).load()
    gc.collect()  # webdataset leaves its files to the collector
    assert seen == kept_of(job)


@pytest.mark.filterwarnings("ignore")
def test_open_clips_own_loader_reads_the_subset(job: Job) -> None:
    from open_clip_train import data
    from open_clip_train.params import parse_args

    training = json.loads((job.subset / "training.json").read_bytes())
    pattern = re.search(r"--train-data '([^']+)'", training["command"])
    assert pattern
    words = ["--train-data", str(job.subset / pattern[1]), "--dataset-type", "webdataset"]
    args = parse_args([*words, "--batch-size", "1", "--workers", "0"])
    args.world_size = 1

    def prepare(image: Any) -> Any:
        return np.asarray(image.convert("RGB").resize((8, 8)))

    info = data.get_wds_dataset(args, prepare, is_train=True, tokenizer=lambda text: [text])
    kept = kept_of(job)
    assert info.dataloader.num_samples == len(kept)
    batches = list(info.dataloader)
    gc.collect()
    assert {tuple(images.shape) for images, _ in batches} == {(1, 8, 8, 3)}
    captions = dict(job.table(job.pool / "shards").select("uid", "caption").iter_rows())
    assert sorted(text for _, texts in batches for text in texts) == sorted(captions[uid] for uid in kept)


def test_verify_and_status_and_report_say_the_same(job: Job) -> None:
    count, kept = len(job.listed), len(kept_of(job))
    assert job.told["verify"]["clean"] is True
    assert job.told["verify"]["problems"] == []
    assert job.told["verify"]["samples"] == count
    status = job.told["status"]
    assert (status["kind"], status["samples"], status["stored"], status["failed"]) == ("curate", count, count, {})
    assert (status["missing"], status["foreign"], status["unfinished"]) == ([], [], [])
    assert (job.told["report"]["samples"], job.told["report"]["kept"]) == (count, kept)
    page = (job.folder / "report.html").read_text()
    assert all(name in page for name in NAMES)
    assert f"{count:,}" in page
    assert "<script" not in page


def test_a_flipped_byte_is_named(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.pool, tmp_path / "pool")
    tar = tmp_path / "pool" / "shards" / "00000001.tar"
    offset, length = (
        pl.read_parquet(tar.with_suffix(".index.parquet"), glob=False).select("offset", "length").row(3)
    )
    with tar.open("r+b") as stream:
        stream.seek(offset + length // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, io.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    done = run("verify", cwd=tmp_path)
    assert done.returncode == 3
    assert "00000001.tar" in done.stdout + done.stderr
    assert "00000000.tar" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    # read only: the receipts still say what was written
    receipt = receipts.read_receipt(tar.parent, "00000001")
    assert receipt is not None
    assert receipts.file_sha256(tar) != receipt.outputs[tar.name].sha256
