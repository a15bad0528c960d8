"""Scores: one row a sample whatever happens, batches at fixed places, a code where something lacks."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest

from curate import pool as pools
from curate.errors import InputError
from curate.filter_api import Column, Need, Scorer
from curate.pool import Pool, open_pool
from curate.stages import score
from tests.pools import make_metadata, make_pool, uid_of
from tests.stages.scorers import Brightness, First, Length, Times


def stored(pool: Pool, scorer: Any, part: str = "00000000") -> pl.DataFrame:
    return pl.read_parquet(score.results(pool, scorer).folder / f"{part}.parquet")


def metadata(folder: Path, numbers: list[float | None], name: str = "m") -> Pool:
    rows = [{"uid": f"{i:032x}", "url": f"u{i}", "text": "t", "number": n} for i, n in enumerate(numbers)]
    make_metadata(folder, rows, name)
    return open_pool(folder)


# --- over columns -----------------------------------------------------------------------------------------


def test_one_row_a_sample_in_the_part_s_order(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=2, rows=3)
    summary = score.score(pool, Length(), workers=0)
    assert dict(summary.counts) == {"samples": 6, "ok": 6, "failed": 0}
    table = stored(pool, Length())
    assert table.columns == ["uid", "length", "words", "rows", "error_code"]
    assert table["uid"].to_list() == pool.scan(pool.parts[0], ["uid"]).collect()["uid"].to_list()
    assert table["words"].to_list()[0] == ["a", "photo", "of", "thing", "0", "on", "table", "0"]
    assert table.schema["length"] == pl.Int32
    assert table.schema["words"] == pl.List(pl.String)
    raw = json.loads((tmp_path / "scores" / "length-v3" / "score.json").read_text())
    assert (raw["format"], raw["scorer"], raw["version"], raw["per"]) == (1, "length", 3, "part")


def test_batches_are_cut_at_fixed_rows(tmp_path: Path) -> None:
    """What fails inside a batch makes it smaller, and never moves the cut of the next."""
    make_pool(tmp_path, n_shards=1, rows=10, fails=lambda shard, row: "dns" if row in (1, 2, 9) else None)
    pool = open_pool(tmp_path)
    path = pool.shards[0].table
    no_caption = pl.when(pl.col("error_code").is_null()).then(pl.col("caption")).alias("caption")
    pl.read_parquet(path).with_columns(no_caption).write_parquet(path)
    score.score(pool, Length(), workers=0)
    assert stored(pool, Length())["rows"].to_list() == [2, None, None, 2, 4, 4, 4, 4, 1, None]


def test_what_lacks_gets_a_code_and_nulls(tmp_path: Path) -> None:
    pool = metadata(tmp_path, [1.0, None, float("nan"), 13.0])
    summary = score.score(pool, Times(), workers=0)
    assert dict(summary.counts) == {"samples": 4, "ok": 2, "failed": 2}
    table = pl.read_parquet(score.results(pool, Times()).folder / "m.parquet")
    assert table["error_code"].to_list() == [None, "no_value", "no_value", None]
    assert table["product"].to_list()[:3] == [2.0, None, None]


def test_a_missing_caption_has_a_code_of_its_own(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": f"{i:032x}", "url": "u", "text": t} for i, t in enumerate(["a", None])], "m")
    pool = open_pool(tmp_path)
    score.score(pool, Length(), workers=0)
    assert stored(pool, Length(), "m")["error_code"].to_list() == [None, "no_caption"]


@dataclass(frozen=True)
class Answers(Scorer):
    """Whatever it is told to answer."""

    name: ClassVar[str] = "answers"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"number": "Float32", "count": "Int32"}

    number: Any = 1.0
    count: Any = 1

    def needs(self) -> list[Need]:
        return [Column("number")]

    def open(self, device: str) -> Any:
        return lambda batch: {"number": [self.number] * len(batch), "count": [self.count] * len(batch)}


def test_a_value_of_another_kind_fails_the_part_and_is_never_lost(tmp_path: Path) -> None:
    pool = metadata(tmp_path, [1.0, 2.0])
    for scorer, name in ((Answers(number="far"), "number"), (Answers(count=1 << 40), "count")):
        summary = score.score(pool, scorer, workers=0)
        assert f"gave values of {name!r} that are no " in str(summary.failed["m"])
    for scorer in (Answers(number=3), Answers(number=None, count=None), Answers(number=float("nan"))):
        assert not score.score(pool, scorer, workers=0).failed


@pytest.mark.parametrize("name", ["", "a/b", "../../up", ".hidden", "a b", "x" * 101])
def test_a_name_that_no_folder_can_have_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = metadata(tmp_path, [1.0])
    monkeypatch.setattr(Answers, "name", name)
    with pytest.raises(InputError, match="its name cannot be a folder's"):
        score.score(pool, Answers(), workers=0)


def test_settings_and_versions_have_folders_of_their_own(tmp_path: Path) -> None:
    pool = metadata(tmp_path, [1.0])
    assert score.folder_name(Length()) == "length-v3"
    names = {score.folder_name(Times(f)) for f in (2.0, 3.0)}
    assert len(names) == 2
    assert all(n.startswith("times-v1-") and len(n) == len("times-v1-") + 8 for n in names)
    for factor in (2.0, 3.0):
        score.score(pool, Times(factor), workers=0)
    assert [stored(pool, Times(f), "m")["product"].item() for f in (2.0, 3.0)] == [2.0, 3.0]


def test_what_is_done_is_not_pending(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = metadata(tmp_path, [1.0, 2.0])
    assert score.pending(pool, Times()).rows == 2
    score.score(pool, Times(), workers=0)
    assert score.pending(pool, Times()).rows == 0
    assert score.score(pool, Times(), workers=0).skipped == 1
    with caplog.at_level(logging.WARNING):
        pool = metadata(tmp_path, [1.0, 2.0, 3.0])
        assert score.pending(pool, Times()).rows == 3
        score.score(pool, Times(), workers=0)
    assert "because these changed: samples" in caplog.text


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "SPREAD", 1)
    found = []
    for workers in (0, 2):
        pool = make_pool(tmp_path / str(workers), n_shards=3, rows=5)
        score.score(pool, Length(), workers=workers)
        folder = score.results(pool, Length()).folder
        found.append({p.name: p.read_bytes() for p in folder.glob("*.parquet")})
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.parametrize("with_metadata", [False, True])
def test_a_part_is_scored_without_looking_at_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_metadata: bool
) -> None:
    pool = make_pool(tmp_path, n_shards=5, rows=2)
    if with_metadata:
        for shard in range(5):
            rows = [{"uid": uid_of(shard, r), "url": "u", "text": "t"} for r in range(2)]
            make_metadata(tmp_path, rows, f"{shard:032x}")
        pool = open_pool(tmp_path)
    read: Counter[Path] = Counter()
    footer = pools._footer

    def counting(path: Path) -> Any:
        read[path] += 1
        return footer(path)

    monkeypatch.setattr(pools, "_footer", counting)
    for scorer in (Length(), Brightness()):
        pool.forget()
        read.clear()
        assert not score.score(pool, scorer, workers=1).failed
        assert max(read.values()) <= 2
    assert pickle.loads(pickle.dumps(pool.narrowed(pool.parts[3]))).columns == pool.columns


def test_a_column_that_nobody_has(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with pytest.raises(InputError, match=r"no column 'number' \(found: caption, content_type, "):
        score.score(pool, Times(), workers=0)


def test_a_pool_without_rows_has_tables_without_rows(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=1, rows=0)
    assert score.score(pool, Length(), workers=0).counts["samples"] == 0
    assert stored(pool, Length()).schema["words"] == pl.List(pl.String)


# --- over pixels ------------------------------------------------------------------------------------------


def test_pixels_are_scored_where_there_are_any(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=1, rows=5, fails=lambda shard, row: "http_404" if row == 1 else None)
    path = pool.shards[0].table
    captions = pl.Series("caption", ["a", "b", None, "d", "e"])
    pl.read_parquet(path).with_columns(captions).write_parquet(path)
    summary = score.score(pool, Brightness(), workers=1)
    assert dict(summary.counts) == {"samples": 5, "ok": 3, "failed": 2}
    table = stored(pool, Brightness())
    assert table["error_code"].to_list() == [None, "http_404", "no_caption", None, None]
    assert [v is not None for v in table["brightness"]] == [True, False, False, True, True]
    assert 0 < table["brightness"].drop_nulls().min() < 255  # type: ignore[operator]


def test_an_image_that_prepare_refuses_costs_its_row(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=2, rows=2, size=(24, 16))
    summary = score.score(pool, Brightness(widest=20.0), workers=1)
    assert dict(summary.counts) == {"samples": 4, "ok": 0, "failed": 4}
    assert stored(pool, Brightness(widest=20.0))["error_code"].to_list() == ["bad_aspect"] * 2
    assert stored(pool, Brightness(widest=20.0))["brightness"].to_list() == [None, None]


def test_pixels_want_a_pool_with_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no shards, so no pixels"):
        score.score(metadata(tmp_path, [1.0]), Brightness(), workers=0)


def test_a_cut_tar_costs_its_part(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=2, rows=3)
    tar = pool.shards[0].tar
    tar.write_bytes(tar.read_bytes()[:1000])
    summary = score.score(pool, Brightness(), workers=1)
    assert list(summary.failed) == ["00000000"]
    assert "00000000.tar" in str(summary.failed["00000000"])
    assert summary.counts["samples"] == 3


# --- over vectors -----------------------------------------------------------------------------------------


def published(folder: Path, rows: int = 4, *, of: int | None = None) -> Pool:
    """Metadata with npz of `of` rows: unit vectors of 8 numbers."""
    pool = metadata(folder, [1.0] * rows)
    chance = np.random.default_rng(3)
    image, text = (chance.normal(size=(of or rows, 8)).astype(np.float32) for _ in range(2))
    image, text = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (image, text))
    np.savez(folder / "metadata" / "m.npz", l14_img=image.astype(np.float16), l14_txt=text.astype(np.float16))
    pool.forget()
    return pool


def test_published_vectors_are_read_where_they_lie(tmp_path: Path) -> None:
    pool = published(tmp_path)
    score.score(pool, First(), workers=0)
    image = np.load(tmp_path / "metadata" / "m.npz")["l14_img"]
    assert stored(pool, First(), "m")["first"].to_list() == image[:, 0].astype(np.float32).tolist()


def test_pair_similarity_is_the_cosine(tmp_path: Path) -> None:
    pool = published(tmp_path)
    scorer = score.PairSimilarity("ViT-L-14/openai")
    score.score(pool, scorer, workers=0)
    raw = np.load(tmp_path / "metadata" / "m.npz")
    expected = (raw["l14_img"].astype(np.float64) * raw["l14_txt"].astype(np.float64)).sum(axis=1)
    assert stored(pool, scorer, "m")["similarity"].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_vectors_of_another_number_of_rows_fail_the_part(tmp_path: Path) -> None:
    summary = score.score(published(tmp_path, 4, of=3), First(), workers=0)
    assert "have 3 rows where the part has 4" in str(summary.failed["m"])


def test_vectors_that_are_not_there(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with pytest.raises(InputError, match=r"needs image vectors of ViT-L-14/openai \(found: none\)") as error:
        score.score(pool, First(), workers=0)
    assert error.value.hint == f"curate embed --pool {tmp_path} --model ViT-L-14/openai"


def test_a_trial_is_of_real_rows(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=2, rows=5, fails=lambda shard, row: "dns" if row < 4 else None)
    batch = score.trial(pool, Brightness(), np.zeros((4, 4, 3), np.uint8), 8)
    assert len(batch) in (1, 5)
    assert batch.images.shape == (len(batch), 4, 4, 3)
    none = make_pool(tmp_path / "none", n_shards=1, rows=0)
    assert len(score.trial(none, Brightness(), np.zeros((4, 4, 3), np.uint8), 8)) == 0


def test_names_of_types() -> None:
    assert score.dtype("Float32") == pl.Float32
    assert score.dtype("List(List(UInt8))") == pl.List(pl.List(pl.UInt8))
