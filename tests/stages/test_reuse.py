"""After a part was downloaded again: what is the same is copied, what is new is computed, nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import decoding, models, receipts
from curate.errors import InputError
from curate.models import Model
from curate.pool import Pool, open_pool
from curate.receipts import Output
from curate.recipe import compose
from curate.runner import Summary
from curate.shards import write_table
from curate.stages import embed, reuse, score
from curate.stages import filter as filtering
from curate.stages.needs import Means
from curate.stages.reuse import MADE_OF, Todo
from tests import pools
from tests.pools import Failure, make_img2dataset, make_pool, uid_of
from tests.stages.scorers import Both, Brightness, computed

ROWS = 9
TINY = models.parse("tiny")
PART = "00000000"
FIRST_FAILED = (1, 4, 5)
"""Rows of shard 0 that the first pass did not get; the second gets all but the last of them."""


def first_pass(shard: int, row: int) -> str | None:
    return "timeout" if shard == 0 and row in FIRST_FAILED else None


def second_pass(shard: int, row: int) -> str | None:
    return "http_404" if shard == 0 and row == FIRST_FAILED[-1] else None


class Seen:
    """What a model was asked for since `clear`."""

    def __init__(self) -> None:
        self.loads = self.decoded = self.images = self.texts = 0

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    @property
    def rows(self) -> tuple[int, int, int]:
        return self.decoded, self.images, self.texts


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()

    def counting(name: str, function: Callable[..., Any], rows: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(found, name, getattr(found, name) + rows(*args))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(models, "load", counting("loads", models.load, lambda *_: 1))
    monkeypatch.setattr(decoding, "decode", counting("decoded", decoding.decode, lambda *_: 1))
    monkeypatch.setattr(Model, "encode_images", counting("images", Model.encode_images, lambda _, a: len(a)))
    monkeypatch.setattr(Model, "encode_texts", counting("texts", Model.encode_texts, lambda _, a: len(a)))
    return found


@pytest.fixture(autouse=True)
def _nothing_computed() -> Iterator[None]:
    computed.clear()
    yield
    computed.clear()


def pool_of(folder: Path, fails: Failure, rows: int = ROWS) -> Pool:
    return make_pool(folder, 2, rows, fails=fails)


def embedded(pool: Pool, **settings: Any) -> Summary:
    return embed.embed(pool, TINY, device="cpu", workers=0, **settings)


def vectors(pool: Pool) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    """What shard 0 has, in memory: files that are mapped may be replaced under their names."""
    folder = pool.layout.embeddings("tiny")
    image, text = (np.load(folder / f"{PART}.{side}.npy") for side in ("image", "text"))
    return image, text, pl.read_parquet(folder / f"{PART}.parquet")


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def like_from_scratch(pool: Pool, scratch: Pool) -> None:
    """The vectors of shard 0 are those of a pool that was never embedded before, to the last bits of a float16."""
    embedded(scratch)
    for made, fresh in zip(vectors(pool)[:2], vectors(scratch)[:2], strict=True):
        assert made.shape == fresh.shape
        assert np.allclose(made, fresh, atol=1e-3)
    made_table, fresh_table = vectors(pool)[2], vectors(scratch)[2]
    assert made_table.drop("similarity").equals(fresh_table.drop("similarity"))
    one, other = (t["similarity"].fill_null(9.0).to_numpy() for t in (made_table, fresh_table))
    assert np.allclose(one, other, atol=2e-3)


# --- vectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 64])
def test_only_what_a_second_pass_brought_is_embedded(tmp_path: Path, seen: Seen, batch: int) -> None:
    pool = pool_of(tmp_path / "pool", first_pass)
    embedded(pool, batch=batch)
    before = vectors(pool)
    pool = pool_of(tmp_path / "pool", second_pass)
    assert embed.pending(pool, TINY, "cpu") == Todo(1, 2)
    seen.clear()
    summary = embedded(pool)
    assert (summary.skipped, summary.counts["failed"], summary.counts["code:http_404"]) == (1, 1, 1)
    assert seen.rows == (2, 2, 2)
    assert embed.pending(pool, TINY, "cpu") == Todo(0, 0)
    after = vectors(pool)
    kept = [r for r in range(ROWS) if r not in FIRST_FAILED]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert old[kept].tobytes() == new[kept].tobytes()
        assert not old[list(FIRST_FAILED)].any()
        assert (np.abs(new[[1, 4]].astype(np.float32)).max(axis=1) > 0).all()
        assert not new[5].any()
    assert before[2][kept].equals(after[2][kept])
    like_from_scratch(pool, pool_of(tmp_path / "scratch", second_pass))


def test_decode_processes_read_only_what_is_new(tmp_path: Path, seen: Seen) -> None:
    made = []
    for workers in (0, 2):
        pool = pool_of(tmp_path / str(workers), first_pass)
        embedded(pool)
        pool = pool_of(tmp_path / str(workers), second_pass)
        embed.embed(pool, TINY, device="cpu", workers=workers)
        made.append(files(pool.layout.embeddings("tiny")))
    assert made[0] == made[1]


@pytest.mark.parametrize("of", ["image", "caption"])
def test_a_row_of_other_bytes_or_words_is_embedded_again(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    def remade(name: str) -> Pool:
        return pool_of(tmp_path / name, second_pass)

    embedded(remade("pool"))
    jpeg, caption, uid = pools.jpeg, pools.caption_of, pools.uid_of
    if of == "image":
        monkeypatch.setattr(pools, "jpeg", lambda seed, size=(24, 16): jpeg(77 if seed == 3 else seed, size))
    else:
        same = {(s, r): uid(s, r) for s in range(2) for r in range(ROWS)}
        monkeypatch.setattr(pools, "uid_of", lambda s, r: same[s, r])
        monkeypatch.setattr(pools, "caption_of", lambda s, r: "red" if (s, r) == (0, 3) else caption(s, r))
    pool = remade("pool")
    seen.clear()
    assert embed.pending(pool, TINY, "cpu") == Todo(1, 1)
    embedded(pool)
    assert seen.rows == (1, 1, 1)
    like_from_scratch(pool, remade("scratch"))


def test_rows_that_are_gone_or_new_or_moved(tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are known by their uid and bytes: their place in the shard says nothing."""
    embedded(pool_of(tmp_path / "pool", first_pass))
    sample_of = pools.sample_of

    def turned(shard: int, row: int, size: tuple[int, int] = (24, 16), code: str | None = None) -> dict[str, Any]:
        return {**sample_of(shard, 10 - row, size, code), "key": f"{shard:08d}{row:04d}"}

    def lost(shard: int, row: int) -> str | None:
        return "reset" if row == 4 else None

    monkeypatch.setattr(pools, "sample_of", turned)
    pool = pool_of(tmp_path / "pool", lost, 8)  # rows 10 to 3 of the list: 10 and 9 are new, 6 was had and is lost
    seen.clear()
    embedded(pool)
    # shard 0: 10, 9, 5, 4 are computed (8, 7, 3 are kept); shard 1: 10 and 9
    assert seen.rows == (6, 6, 6)
    assert vectors(pool)[2]["error_code"].to_list() == [None] * 4 + ["reset"] + [None] * 3
    like_from_scratch(pool, pool_of(tmp_path / "scratch", lost, 8))


def test_an_image_that_does_not_decode_is_not_tried_again(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg = pools.jpeg
    monkeypatch.setattr(pools, "jpeg", lambda seed, size=(24, 16): jpeg(seed, size)[: -40 if seed == 2 else None])
    embedded(pool_of(tmp_path / "pool", first_pass))
    pool = pool_of(tmp_path / "pool", second_pass)
    seen.clear()
    summary = embedded(pool)
    assert summary.counts["code:bad_image"] == 1
    assert seen.rows == (2, 2, 2)
    like_from_scratch(pool, pool_of(tmp_path / "scratch", second_pass))


def test_where_nothing_is_computed_no_model_is_loaded(tmp_path: Path, seen: Seen) -> None:
    pool = pool_of(tmp_path / "pool", first_pass)
    first = embedded(pool)
    assert seen.loads == 1
    assert embedded(pool).counts == first.counts
    pool = pool_of(tmp_path / "pool", lambda s, r: "dns" if first_pass(s, r) else None)  # as little as before
    assert embed.pending(pool, TINY, "cpu") == Todo(1, 0)
    assert embedded(pool).counts["code:dns"] == 3
    assert vectors(pool)[2]["error_code"].drop_nulls().to_list() == ["dns"] * 3
    assert seen.loads == 1
    assert embed.pending(pool, TINY, "cpu") == Todo(0, 0)


def test_what_is_not_known_without_the_model_is_asked_of_it(tmp_path: Path, seen: Seen) -> None:
    """Other weights, another batch or precision, and weights that are only known once they are made."""
    pool = pool_of(tmp_path / "pool", first_pass)
    embedded(pool)
    pool_of(tmp_path / "pool", second_pass)
    seen.clear()
    embedded(open_pool(tmp_path / "pool"), batch=3)
    assert (seen.loads, seen.images) == (1, 2 * ROWS - 1)
    assert models.identity(models.parse("ViT-B-32/random:1")) is None


def test_vectors_of_another_device_are_not_added_to(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", first_pass)
    embedded(pool)
    pool = pool_of(tmp_path / "pool", second_pass)
    assert embed.pending(pool, TINY, "cuda") == Todo(2, 2 * ROWS)


def test_nothing_is_taken_from_files_that_are_hurt(
    tmp_path: Path, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(tmp_path / "pool", first_pass)
    embedded(pool)
    path = pool.layout.embeddings("tiny") / f"{PART}.image.npy"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    pool = pool_of(tmp_path / "pool", second_pass)
    seen.clear()
    with caplog.at_level(logging.WARNING):
        embedded(pool)
    assert f"{path} is not as it was written: nothing is taken over from it" in caplog.text
    assert seen.images == ROWS - 1
    like_from_scratch(pool, pool_of(tmp_path / "scratch", second_pass))


def test_vectors_of_before_there_were_digests(tmp_path: Path, seen: Seen) -> None:
    """They stand as they are until their shard changes; then they are made again."""
    pool = pool_of(tmp_path / "pool", first_pass)
    embedded(pool)
    folder = pool.layout.embeddings("tiny")
    receipt = receipts.read_receipt(folder, PART)
    assert receipt is not None
    output = Output(receipt.stage, receipt.version, PART, folder, receipt.what)
    for side in ("image", "text"):
        output.write(f"{PART}.{side}.npy", (folder / f"{PART}.{side}.npy").read_bytes())
    write_table(output, f"{PART}.parquet", vectors(pool)[2].drop(MADE_OF).to_arrow())
    output.commit(receipt.counts)
    assert embedded(pool).skipped == 2
    pool = pool_of(tmp_path / "pool", second_pass)
    assert embed.pending(pool, TINY, "cpu") == Todo(1, ROWS)
    seen.clear()
    embedded(pool)
    assert seen.images == ROWS - 1
    assert vectors(pool)[2][MADE_OF].null_count() == 1


def test_stopped_in_the_middle_it_goes_on_from_what_stood(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Model.encode_images

    def stop(model: Model, images: Any) -> Any:
        if seen.images == 1:
            raise KeyboardInterrupt
        return encode(model, images)

    done = {}
    for name in ("whole", "broken"):
        pool = pool_of(tmp_path / name, first_pass)
        embedded(pool, batch=1)
        before = files(pool.layout.embeddings("tiny"))
        pool = pool_of(tmp_path / name, second_pass)
        seen.clear()
        if name == "broken":
            monkeypatch.setattr(Model, "encode_images", stop)
            with pytest.raises(KeyboardInterrupt):
                embedded(pool)
            monkeypatch.setattr(Model, "encode_images", encode)
            assert files(pool.layout.embeddings("tiny")) == before
            seen.clear()
        embedded(pool)
        assert seen.images == 2
        done[name] = files(pool.layout.embeddings("tiny"))
    assert done["whole"] == done["broken"]


def test_tars_alone_know_their_bytes_and_img2dataset_s_do_not(tmp_path: Path, seen: Seen) -> None:
    for name, rows in (("tars", 2), ("img2dataset", 8)):
        folder, work = tmp_path / name, tmp_path / f"{name}.work"
        for fails in (first_pass, second_pass):
            make_img2dataset(folder, 1, ROWS, fails=fails)
            if name == "tars":
                (folder / "00000.parquet").unlink()
            seen.clear()
            embedded(open_pool(folder, work))
        assert seen.images == rows


# --- scores over pixels -----------------------------------------------------------------------------------


def scored(pool: Pool, scorer: Any) -> tuple[Summary, pl.DataFrame]:
    summary = score.score(pool, scorer, device="cpu", workers=1)
    return summary, pl.read_parquet(score.results(pool, scorer).folder / f"{PART}.parquet")


def test_only_what_a_second_pass_brought_is_scored(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", first_pass)
    _, before = scored(pool, Brightness())
    pool = pool_of(tmp_path / "pool", second_pass)
    assert score.pending(pool, Brightness()) == Todo(1, 2)
    computed.clear()
    summary, after = scored(pool, Brightness())
    assert computed == [uid_of(0, 1), uid_of(0, 4)]
    assert (summary.skipped, summary.counts["failed"]) == (1, 1)
    kept = [r for r in range(ROWS) if r not in FIRST_FAILED]
    assert before[kept].equals(after[kept])
    assert after["error_code"].to_list() == [None] * 5 + ["http_404"] + [None] * 3
    assert after.equals(scored(pool_of(tmp_path / "scratch", second_pass), Brightness())[1])
    assert score.pending(pool, Brightness()) == Todo(0, 0)


def test_a_score_of_an_image_that_was_refused_is_kept_with_its_code(tmp_path: Path) -> None:
    scorer = Brightness(widest=20.0)
    scored(pool_of(tmp_path / "pool", first_pass), scorer)
    pool = pool_of(tmp_path / "pool", second_pass)
    assert score.pending(pool, scorer) == Todo(1, 2)
    _, after = scored(pool, scorer)
    assert after["error_code"].to_list() == ["bad_aspect"] * 5 + ["http_404"] + ["bad_aspect"] * 3
    assert after.equals(scored(pool_of(tmp_path / "scratch", second_pass), scorer)[1])


def test_a_score_over_other_columns_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(pool_of(tmp_path / "pool", second_pass), Brightness())
    caption, same = pools.caption_of, {(s, r): pools.uid_of(s, r) for s in range(2) for r in range(ROWS)}
    monkeypatch.setattr(pools, "uid_of", lambda s, r: same[s, r])
    # row 2 gets other words, row 3 none
    words = {(0, 2): "red", (0, 3): None}
    monkeypatch.setattr(pools, "caption_of", lambda s, r: words.get((s, r), caption(s, r)))
    pool = pool_of(tmp_path / "pool", second_pass)
    computed.clear()
    _, after = scored(pool, Brightness())
    assert computed == [same[0, 2]]
    assert after["error_code"].to_list() == [None] * 3 + ["no_caption", None, "http_404"] + [None] * 3
    assert after.equals(scored(pool_of(tmp_path / "scratch", second_pass), Brightness())[1])


def test_scores_over_pixels_and_vectors(tmp_path: Path) -> None:
    """Vectors that were kept are the same bytes, so what is made of them is kept too."""
    pool = pool_of(tmp_path / "pool", first_pass)
    embedded(pool)
    scored(pool, Both())
    pool = pool_of(tmp_path / "pool", second_pass)
    embedded(pool)
    pool.forget()
    computed.clear()
    assert score.pending(pool, Both()) == Todo(1, 2)
    _, after = scored(pool, Both())
    assert computed == [uid_of(0, 1), uid_of(0, 4)]
    assert after["words"].to_list()[1] == pools.caption_of(0, 1).split()
    assert after["pixels"].is_null().to_list() == [r == 5 for r in range(ROWS)]
    assert list(after.columns) == ["uid", "pixels", "words", "error_code", MADE_OF]


def test_a_part_of_which_all_is_kept_does_not_open_the_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(pool_of(tmp_path / "pool", first_pass), Brightness())

    def refuse(self: Brightness, device: str) -> Any:
        raise InputError("a test", "no weights")

    monkeypatch.setattr(Brightness, "open", refuse)
    monkeypatch.setattr(score, "_opened", {})
    pool = pool_of(tmp_path / "pool", lambda s, r: "dns" if first_pass(s, r) else None)
    assert score.pending(pool, Brightness()) == Todo(1, 0)
    assert scored(pool, Brightness())[1]["error_code"].drop_nulls().to_list() == ["dns"] * 3
    with pytest.raises(InputError, match="no weights"):
        scored(pool_of(tmp_path / "pool", second_pass), Brightness())


# --- what is announced ------------------------------------------------------------------------------------


def test_what_filter_announces_is_what_is_computed(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", first_pass)
    recipe, means = compose(["clipscore:model=tiny,min=0"], []), Means("cpu", 0)
    work, _ = filtering.dry_run(pool, recipe, means)
    assert [(w.describe(), w.pixels) for w in work] == [(f"embed tiny on {2 * ROWS} samples", True)]
    embedded(pool)
    pool = pool_of(tmp_path / "pool", second_pass)
    work, _ = filtering.dry_run(pool, recipe, means)
    assert [(w.describe(), w.pixels) for w in work] == [("embed tiny on 2 samples", True)]
    # without a new image there is no pass over pixels to ask for, but the codes are brought up to date
    pool = pool_of(tmp_path / "pool", lambda s, r: "dns" if first_pass(s, r) else None)
    work, _ = filtering.dry_run(pool, recipe, means)
    assert [(w.describe(), w.pixels, w.measure()) for w in work] == [("embed tiny on 0 samples", False, 0.0)]


# --- digests ----------------------------------------------------------------------------------------------


def test_digests_tell_all_values_apart() -> None:
    rows = [("a", None), ("a", "None"), ("a", ""), ("b", None), ("a", "b\0c"), ("a", 1.0), ("a", 1), ("a", [1, 2])]
    made = reuse.digests([r[0] for r in rows], [r[1] for r in rows])
    assert made.dtype == pl.Binary
    assert made.n_unique() == len(rows)
    assert {len(d) for d in made} == {16}
    assert reuse.digests([None, "a"], ["x", "\ud800"]).is_null().to_list() == [True, False]
