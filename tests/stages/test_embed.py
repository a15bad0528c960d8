from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate import models, receipts
from curate.decoding import decode
from curate.errors import Busy, InputError
from curate.pool import Pool, open_pool
from curate.runner import Summary
from curate.stages.embed import embed, pending
from curate.stages.reuse import Todo
from tests import pools
from tests.pools import make_img2dataset, make_metadata, make_pool

ROWS = 7
TINY = models.parse("tiny")
DEAD, CAPTIONLESS, UNDECODABLE = (0, 2), (1, 4), (1, 5)


def fails(shard: int, row: int) -> str | None:
    return "http_404" if (shard, row) == DEAD else None


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Two shards of seven samples: one was not had, one has no caption, one image does not decode."""
    caption, jpeg = pools.caption_of, pools.jpeg

    def caption_of(shard: int, row: int) -> str | None:
        return None if (shard, row) == CAPTIONLESS else caption(shard, row)

    def image(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
        whole = jpeg(seed, size)
        return whole[:-40] if divmod(seed, 10_000) == UNDECODABLE else whole

    monkeypatch.setattr(pools, "caption_of", caption_of)
    monkeypatch.setattr(pools, "jpeg", image)
    return make_pool(tmp_path / "pool", 2, ROWS, fails=fails)


def made(pool: Pool) -> Summary:
    return embed(pool, TINY, device="cpu", workers=0)


def folder(pool: Pool) -> Path:
    return pool.layout.embeddings(TINY.slug)


def contents(pool: Pool) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder(pool).iterdir()) if p.is_file()}


def arrays(pool: Pool, name: str) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    image, text = (np.load(folder(pool) / f"{name}.{side}.npy", mmap_mode="r") for side in ("image", "text"))
    return image, text, pl.read_parquet(folder(pool) / f"{name}.parquet")


# --- what is written --------------------------------------------------------------------------------------


def test_a_row_for_every_sample(pool: Pool) -> None:
    summary = made(pool)
    assert dict(summary.counts) == {
        "samples": 2 * ROWS,
        "ok": 2 * ROWS - 3,
        "failed": 3,
        "code:http_404": 1,
        "code:no_caption": 1,
        "code:bad_image": 1,
    }
    for shard, name in enumerate(["00000000", "00000001"]):
        image, text, table = arrays(pool, name)
        assert image.shape == text.shape == (ROWS, 192)
        assert image.dtype == text.dtype == np.float16
        assert table["uid"].to_list() == [pools.uid_of(shard, row) for row in range(ROWS)]
        for vectors, ok in ((image, table["image_ok"]), (text, table["text_ok"])):
            lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
            assert np.allclose(lengths, ok.cast(pl.Float32).to_numpy(), atol=2e-3)
            assert (lengths[~ok.to_numpy()] == 0).all()


def test_what_is_missing_says_why(pool: Pool) -> None:
    made(pool)
    first, second = arrays(pool, "00000000")[2], arrays(pool, "00000001")[2]
    none = [None] * ROWS
    dead = [*none[:2], "http_404", *none[3:]]
    assert first["error_code"].to_list() == first["text_error_code"].to_list() == dead
    assert second["error_code"].to_list() == [*none[:5], "bad_image", None]
    assert second["text_error_code"].to_list() == [*none[:4], "no_caption", *none[5:]]
    assert second["similarity"].is_null().to_list() == [False] * 4 + [True, True, False]
    for table in (first, second):
        assert (table["image_ok"] == table["error_code"].is_null()).all()
        assert (table["text_ok"] == table["text_error_code"].is_null()).all()


def test_similarity_is_that_of_the_stored_vectors(pool: Pool) -> None:
    made(pool)
    image, text, table = arrays(pool, "00000000")
    dots = (image.astype(np.float64) * text.astype(np.float64)).sum(axis=1)
    assert table["similarity"].dtype == pl.Float32
    assert np.allclose(table["similarity"].fill_null(0.0).to_numpy(), dots, atol=1e-6)


def test_vectors_are_the_model_s(pool: Pool) -> None:
    made(pool)
    model = models.load(TINY, device="cpu")
    images = np.stack([model.prepare(decode(pools.jpeg(row))) for row in range(2)])
    captions = [pools.caption_of(0, row) for row in range(2)]
    image, text, _ = arrays(pool, "00000000")
    assert np.allclose(image[:2], model.encode_images(images), atol=1e-3)
    assert np.allclose(text[:2], model.encode_texts(captions), atol=1e-3)


def test_model_json_says_what_made_them(pool: Pool) -> None:
    made(pool)
    raw = json.loads((folder(pool) / "model.json").read_text())
    assert (raw["format"], raw["model"], raw["device"], raw["precision"]) == (1, "tiny", "cpu", "fp32")
    assert raw["weights_sha256"] == receipts.file_sha256(models.TINY_WEIGHTS)
    assert raw["preprocessing"]["size"] == [64, 64]
    assert open_pool(pool.layout.root).embedded == {"tiny": "tiny"}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_do_not_depend_on_workers(pool: Pool, workers: int) -> None:
    made(pool)
    expected = contents(pool)
    for name in ("00000000", "00000001"):
        receipts.remove_part(folder(pool), name)
    summary = embed(pool, TINY, device="cpu", workers=workers)
    assert summary.skipped == 0
    assert contents(pool) == expected


# --- again ------------------------------------------------------------------------------------------------


def test_what_stands_is_skipped_and_counted(pool: Pool) -> None:
    first = made(pool)
    assert pending(pool, TINY) == Todo(0, 0)
    again = made(pool)
    assert (again.skipped, again.counts) == (2, first.counts)


def test_a_changed_shard_is_redone(pool: Pool) -> None:
    made(pool)
    make_pool(pool.layout.root, 1, ROWS, size=(30, 20))
    pool = open_pool(pool.layout.root)
    assert pending(pool, TINY) == Todo(1, ROWS)
    assert made(pool).skipped == 1
    assert arrays(pool, "00000000")[2]["image_ok"].all()


def test_changed_settings_are_said_and_never_mixed(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    made(pool)
    (pool.shards[1].tar).unlink()
    with caplog.at_level(logging.WARNING):
        summary = embed(pool, TINY, device="cpu", workers=0, batch=3)
    assert "embed: 2 parts are redone, because these changed: batch" in caplog.text
    assert list(summary.failed) == ["00000001"]
    assert not list(folder(pool).glob("00000001*"))
    assert json.loads((folder(pool) / "model.json").read_text())["batch"] == 3


def test_settings_not_given_are_those_that_stand(pool: Pool) -> None:
    embed(pool, TINY, device="cpu", workers=0, batch=3)
    assert made(pool).skipped == 2


def test_other_weights_under_the_same_name_are_redone(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    made(pool)
    path = folder(pool) / "model.json"
    path.write_text(path.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    with caplog.at_level(logging.WARNING):
        assert made(pool).skipped == 0
    assert "these changed: weights_sha256" in caplog.text


def test_two_with_different_settings_do_not_mix(pool: Pool) -> None:
    made(pool)
    other = os.open(folder(pool), os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert made(pool).skipped == 2  # the same settings
        with pytest.raises(Busy, match="is being written with other settings by another process"):
            embed(pool, TINY, device="cpu", workers=0, batch=3)
    finally:
        os.close(other)
    assert pending(pool, TINY) == Todo(0, 0)


# --- pools that are hurt, or not ours ---------------------------------------------------------------------


def test_a_cut_tar_costs_its_part(pool: Pool) -> None:
    os.truncate(pool.shards[0].tar, 3000)
    summary = made(pool)
    assert list(summary.failed) == ["00000000"]
    assert "cut short" in str(summary.failed["00000000"])
    assert summary.counts["samples"] == ROWS
    assert not list(folder(pool).glob("00000000*"))


def test_a_broken_receipt_costs_its_part(pool: Pool) -> None:
    receipts.receipt_path(pool.layout.shards, "00000000").write_bytes(b"\0" * 50)
    summary = made(pool)
    assert list(summary.failed) == ["00000000"]
    assert "has no receipt" in str(summary.failed["00000000"])


def test_metadata_alone_has_no_pixels(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": "0" * 32, "url": "http://a.test/1.jpg", "text": "a cat"}])
    with pytest.raises(InputError, match="has no shards, so no pixels"):
        made(open_pool(tmp_path))
    assert not (tmp_path / "embeddings").exists()


def test_a_pool_of_img2dataset(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "pool", 2, 3, fails=fails)
    summary = made(open_pool(tmp_path / "pool", tmp_path / "work"))
    assert (summary.counts["samples"], summary.counts["ok"], summary.counts["code:http_404"]) == (6, 5, 1)
    assert (tmp_path / "work" / "embeddings" / "tiny" / "00000.image.npy").is_file()
    assert not (tmp_path / "pool" / "embeddings").exists()


# --- the command ------------------------------------------------------------------------------------------


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", "from curate.cli import main; main()", "embed", *map(str, words)]


def test_the_command(pool: Pool) -> None:
    done = subprocess.run(
        command("--model", "tiny", "--pool", pool.layout.root, "--device", "cpu", "--workers", "0", "--json"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads(done.stdout)
    assert (raw["model"], raw["samples"], raw["ok"], raw["failed"], raw["parts"]) == ("tiny", 14, 11, 3, 2)
    assert raw["codes"] == {"bad_image": 1, "http_404": 1, "no_caption": 1}


def test_killed_and_run_again(tmp_path: Path) -> None:
    whole, broken = (make_pool(tmp_path / name, 3, 100) for name in ("whole", "broken"))
    words = ["--model", "tiny", "--device", "cpu", "--workers", "2", "--batch", "16", "--pool"]
    embed(whole, TINY, device="cpu", workers=0, batch=16)
    with subprocess.Popen(command(*words, broken.layout.root), stdout=subprocess.DEVNULL) as process:
        children = set()
        for _ in until(60):
            children |= set(children_of(process.pid))
            begun = any(folder(broken).glob("*.npy*"))
            if begun and len(children) > 2:  # two that decode, and Python's own that watches over them
                break
        process.send_signal(signal.SIGKILL)
    for _ in until(10):
        if not any(alive(pid) for pid in children):
            break
    assert len(children) > 2
    assert not any(alive(pid) for pid in children)
    subprocess.run(command(*words, broken.layout.root), stdout=subprocess.DEVNULL, check=True)
    assert contents(broken) == contents(whole)
    assert not list(folder(broken).rglob("*.tmp"))


def until(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
