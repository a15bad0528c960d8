"""The pool as rules see it: one set of names, parts in order, identities that change with the content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate.errors import InputError, PartError, UnknownName
from curate.pool import need_shards, open_pool
from tests.pools import make_img2dataset, make_metadata, make_pool, uid_of

UID = "0123456789abcdef" * 2


def scanned(folder: Path, *columns: str, optional: tuple[str, ...] = ()) -> list[dict[str, object]]:
    pool = open_pool(folder)
    return [row for p in pool.parts for row in pool.scan(p, columns, optional=optional).collect().to_dicts()]


@pytest.mark.parametrize(
    ("url", "caption", "width"),
    [("url", "text", "original_width"), ("URL", "TEXT", "WIDTH"), ("url", "caption", "w")],
)
def test_names_of_others_become_ours(tmp_path: Path, url: str, caption: str, width: str) -> None:
    make_metadata(tmp_path, [{"uid": UID, url: "u", caption: "c", width: 7}])
    assert scanned(tmp_path, "caption", "url", "uid") == [{"caption": "c", "url": "u", "uid": UID}]
    expected = {"uid", "url", "caption", "w" if width == "w" else "original_width"}
    assert open_pool(tmp_path).columns == expected


def test_the_first_of_several_names_counts(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID, "url": "u", "text": "theirs", "caption": "ours"}])
    assert scanned(tmp_path, "caption", "text") == [{"caption": "ours", "text": "theirs"}]


def test_nan_is_null(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID, "score": v} for v in (0.5, float("nan"), None)])
    assert [r["score"] for r in scanned(tmp_path, "score")] == [0.5, None, None]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID, "score": 1.0}, {"uid": UID, "score": 2.0}], "a")
    make_metadata(tmp_path, [{"uid": UID}], "b")
    # a part may lack what another has; nobody has the rest
    assert [r["score"] for r in scanned(tmp_path, "score")] == [1.0, 2.0, None]
    assert scanned(tmp_path, "other", optional=("other",)) == [{"other": None}] * 3
    with pytest.raises(UnknownName, match=r"no column 'scor' \(found: score, uid\)") as error:
        scanned(tmp_path, "scor")
    assert error.value.hint == "did you mean 'score'?"
    pool = open_pool(tmp_path)
    assert pool.covered_by("uid")
    assert not pool.covered_by("score")


def test_rows_are_counted_from_footers_and_broken_parts_named(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID}] * 3, "a")
    make_metadata(tmp_path, [{"uid": UID}] * 2, "c")
    (tmp_path / "metadata" / "b.parquet").write_bytes(b"PAR1" + bytes(100))
    pool = open_pool(tmp_path)
    assert pool.rows == {"a": 3, "c": 2}
    assert pool.n == 5
    assert list(pool.unreadable) == ["b"]
    with pytest.raises(PartError, match="is not a readable Parquet file"):
        pool.scan(pool.parts[1], ["uid"])


def test_uids_are_pairs(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID}, {"uid": UID.upper()}])
    pool = open_pool(tmp_path)
    pairs = pool.uids(pool.parts[0])
    assert [(int(a), int(b)) for a, b in pairs] == [(0x0123456789ABCDEF, 0x0123456789ABCDEF)] * 2
    make_metadata(tmp_path, [{"uid": UID}, {"uid": None}])
    with pytest.raises(PartError, match="column 'uid': row 1 has no uid"):
        pool.uids(open_pool(tmp_path).parts[0])
    make_metadata(tmp_path, [{"url": UID}])
    with pytest.raises(PartError, match="has no column 'uid'"):
        pool.uids(open_pool(tmp_path).parts[0])


def test_the_identity_is_the_content_s(tmp_path: Path) -> None:
    make_pool(tmp_path / "a")
    make_pool(tmp_path / "b")
    one = open_pool(tmp_path / "a").identity()
    assert open_pool(tmp_path / "b").identity() == one
    make_pool(tmp_path / "b", rows=4)
    assert open_pool(tmp_path / "b").identity() != one
    make_metadata(tmp_path / "c", [{"uid": UID}], "x")
    two = open_pool(tmp_path / "c").identity()
    make_metadata(tmp_path / "c", [{"uid": UID}], "y")
    assert open_pool(tmp_path / "c").identity() != two
    (tmp_path / "c" / "metadata" / "y.parquet").unlink()
    assert open_pool(tmp_path / "c").identity() == two


def test_failed_samples_say_why(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, fails=lambda shard, row: "http_404" if row == 1 else None)
    assert pool.failed(pool.parts[0]).to_list() == [None, "http_404", None]
    make_metadata(tmp_path / "m", [{"uid": UID}] * 2)
    pool = open_pool(tmp_path / "m")
    assert pool.failed(pool.parts[0]).to_list() == [None, None]


def test_pixels_want_shards(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID}])
    with pytest.raises(InputError, match="has no shards, so no pixels") as error:
        need_shards(open_pool(tmp_path))
    assert "curate download" in (error.value.hint or "")
    assert len(need_shards(make_pool(tmp_path / "ours"))) == 2


def test_models_are_those_published_and_those_made_here(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": UID, "clip_l14_similarity_score": 0.3}])
    assert open_pool(tmp_path).models == ("ViT-L-14/openai",)
    folder = tmp_path / "embeddings" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"format": 1, "model": "tiny"}))
    pool = open_pool(tmp_path)
    assert pool.models == ("ViT-L-14/openai", "tiny")
    assert pool.embedded == {"tiny": "tiny"}
    one = np.zeros((1, 4), np.float16)
    np.savez(tmp_path / "metadata" / f"{'0' * 32}.npz", b32_img=one, b32_txt=one)
    pool = open_pool(tmp_path)
    assert pool.models == ("ViT-L-14/openai", "ViT-B-32/openai", "tiny")
    (folder / "model.json").write_text(json.dumps({"format": 2, "model": "tiny"}))
    with pytest.raises(InputError, match="format 2"):
        _ = open_pool(tmp_path).models


def test_forget_looks_again(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, n_shards=1)
    assert pool.n == 3
    make_pool(tmp_path, n_shards=2)
    assert pool.n == 3
    pool.forget()
    assert pool.n == 6


def test_foreign_tables_are_read_as_ours(tmp_path: Path) -> None:
    from curate.pool.adopt import adopt

    make_img2dataset(tmp_path, fails=lambda shard, row: "timeout" if row == 2 else None)
    pool = adopt(open_pool(tmp_path), workers=0)
    frame = pl.concat([pool.scan(p, ["uid", "error_code"]).collect() for p in pool.parts])
    told = dict(zip(frame["uid"], frame["error_code"], strict=True))
    assert told == {uid_of(s, r): "timeout" if r == 2 else None for s in range(2) for r in range(3)}
