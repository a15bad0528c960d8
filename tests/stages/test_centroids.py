"""`curate centroids`: faiss's k-means over what was asked for, in whatever order it lies; refusals in good time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from curate import recipe as recipes
from curate.errors import InputError, PartError
from curate.pool import Pool, open_pool
from curate.stages import centroids as stage
from curate.stages.centroids import Request, train
from curate.stages.needs import Means, Work
from tests.commands import cli as command
from tests.pools import make_metadata

faiss = pytest.importorskip("faiss")

SHARED = Path(__file__).resolve().parents[3] / "shared"
LID = SHARED / "data" / "fasttext-lid" / "lid.176.ftz"
needs_lid = pytest.mark.skipif(not LID.exists(), reason="no fastText model in ../shared")
DIM, CLUSTERS = 16, 8

Array = npt.NDArray[Any]


def never(work: Work) -> None:
    raise AssertionError(work)


def vectors(rows: int, seed: int) -> Array:
    """float16 unit vectors around a few centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((CLUSTERS, DIM))
    x = centres[rng.integers(0, CLUSTERS, rows)] + 0.3 * rng.standard_normal((rows, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def uid_of(file: int, row: int) -> str:
    return f"{(file * 7919 + row * 104729) % 65521:032x}"


def make_pool(folder: Path, *, files: int = 3, rows: int = 150, caption: str = "a red bicycle") -> Pool:
    """DataComp's metadata with npz; every fifth caption is too short for its image-based filter."""
    for file in range(files):
        name = f"{file:032x}"
        table = [
            {"uid": uid_of(file, row), "url": f"u{row}", "text": "red" if row % 5 == 0 else caption}
            for row in range(rows)
        ]
        make_metadata(folder, table, name)
        arrays = {a: vectors(rows, file + 10 * i) for i, a in enumerate(("b32_img", "b32_txt", "l14_txt"), 1)}
        np.savez(
            folder / "metadata" / f"{name}.npz",
            **arrays,
            l14_img=vectors(rows, file),
            dedup=np.zeros(rows, np.int32),
        )
    return open_pool(folder)


def in_uid_order(files: int = 3, rows: int = 150) -> tuple[list[str], Array]:
    uids = [uid_of(file, row) for file in range(files) for row in range(rows)]
    order = np.argsort(uids, kind="stable")
    return [uids[i] for i in order], np.concatenate([vectors(rows, f) for f in range(files)])[order]


def faiss_alone(points: Array, k: int, *, seed: int = 0, iterations: int = 20) -> Array:
    """k-means by faiss in one call, as DataComp calls it, on the CPU."""
    clustering = faiss.Clustering(points.shape[1], k)
    clustering.niter, clustering.seed = iterations, seed
    clustering.max_points_per_centroid = 10_000_000
    clustering.min_points_per_centroid = 1
    clustering.train(points.astype(np.float32), faiss.IndexFlatL2(points.shape[1]))
    return np.asarray(faiss.vector_to_array(clustering.centroids).reshape(k, -1))


def run(pool: Pool, out: Path, **settings: Any) -> Array:
    trained = train(pool, Request(out, **{"k": CLUSTERS, **settings}), allow=never)
    return np.asarray(np.load(trained.path, allow_pickle=False))


def test_it_is_faisss_k_means_of_all_vectors_in_uid_order(tmp_path: Path) -> None:
    found = run(make_pool(tmp_path / "pool"), tmp_path / "c.npy", seed=3)
    assert found.dtype == np.float32
    assert np.array_equal(found, faiss_alone(in_uid_order()[1], CLUSTERS, seed=3))
    assert np.linalg.norm(found, axis=1).max() < 0.999, "centroids are means, not normalised"


def test_what_it_was_made_of_stands_beside_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    trained = train(pool, Request(tmp_path / "c.npy", k=4, sample=100, iterations=3), allow=never)
    about = json.loads((tmp_path / "c.json").read_text())
    assert about == trained.about
    assert (about["format"], about["rows"], about["dim"]) == (1, 4, DIM)
    counts = {"samples": 450, "kept_by_rules": 450, "with_vectors": 450, "not_finite": 0, "points": 100}
    assert about["counts"] == counts
    what = about["what"]
    assert (what["model"], what["k"], what["sample"], what["iterations"], what["seed"]) == (
        "ViT-L-14/openai",
        4,
        100,
        3,
        0,
    )
    assert (what["pool"], what["recipe"]) == (pool.identity(), None)
    assert str(tmp_path) not in json.dumps(about)
    assert about["objective"] > 0


def test_a_sample_is_without_replacement_and_of_no_order(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    found = run(pool, tmp_path / "c.npy", sample=200, seed=5)
    metadata = tmp_path / "pool" / "metadata"
    for path in sorted(metadata.iterdir(), reverse=True):
        path.rename(path.with_name("f" * 8 + f"{9 - int(path.stem, 16)}{path.suffix}"))
    assert np.array_equal(run(open_pool(tmp_path / "pool"), tmp_path / "again.npy", sample=200, seed=5), found)
    assert not np.array_equal(run(pool_again(tmp_path), tmp_path / "other.npy", sample=200, seed=6), found)
    everything = Request(tmp_path / "x.npy", k=1)
    pairs = np.array([(int(u[:16], 16), int(u[16:], 16)) for u in in_uid_order()[0]], np.dtype("u8,u8"))
    few = stage._sampled(pairs, Request(tmp_path / "x.npy", sample=50))
    more = stage._sampled(pairs, Request(tmp_path / "x.npy", ratio=0.29))
    assert len(set(few.tolist())) == 50
    assert set(few.tolist()) <= set(more.tolist())
    assert len(more) == 450 * 29 // 100
    assert len(stage._sampled(pairs, everything)) == 450
    assert len(stage._sampled(pairs, Request(tmp_path / "x.npy", sample=10_000))) == 450


def pool_again(tmp_path: Path) -> Pool:
    return open_pool(tmp_path / "pool")


def test_the_same_again_is_read_back_and_another_is_refused(tmp_path: Path) -> None:
    pool, out = make_pool(tmp_path / "pool"), tmp_path / "c.npy"
    first = train(pool, Request(out, k=CLUSTERS), allow=never)
    written = out.stat().st_mtime_ns
    assert not first.reused
    again = train(pool_again(tmp_path), Request(out, k=CLUSTERS), allow=never)
    assert again.reused
    assert again.about == first.about
    assert out.stat().st_mtime_ns == written
    with pytest.raises(InputError) as caught:
        train(pool, Request(out, k=CLUSTERS, seed=1), allow=never)
    assert str(caught.value) == f"{out}: is there already, made with another seed"
    assert caught.value.hint == "name another file, or remove it"
    (tmp_path / "c.json").unlink()
    with pytest.raises(InputError, match="is there already, not by this"):
        train(pool, Request(out, k=CLUSTERS), allow=never)


def test_killed_between_its_two_files_it_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, out = make_pool(tmp_path / "pool"), tmp_path / "new" / "c.npy"
    out.parent.mkdir()

    class Killed(BaseException): ...

    def die(path: Path, data: bytes) -> None:
        if path.suffix == ".npy":
            raise Killed
        path.write_bytes(data)

    monkeypatch.setattr(stage.receipts, "write_file", die)
    with pytest.raises(Killed):
        run(pool, out)
    monkeypatch.undo()
    assert [p.name for p in out.parent.iterdir()] == ["c.json"]
    assert np.array_equal(run(pool_again(tmp_path), out), run(pool_again(tmp_path), tmp_path / "c.npy"))
    assert train(pool_again(tmp_path), Request(out, k=CLUSTERS), allow=never).reused


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path / "pool")
    monkeypatch.setattr(stage.os, "access", lambda path, mode: False)
    monkeypatch.setattr(stage, "_kmeans", lambda points, request: pytest.fail("it began"))
    with pytest.raises(InputError, match="cannot be written to"):
        run(pool, tmp_path / "c.npy")


def test_a_file_in_the_place_of_the_folder_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path / "pool", files=1)
    (tmp_path / "file").touch()
    monkeypatch.setattr(stage, "_kmeans", lambda points, request: pytest.fail("it began"))
    with pytest.raises(InputError, match="file: cannot be written to"):
        run(pool, tmp_path / "file" / "c.npy")


def test_a_refusal_leaves_no_folder(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", files=1)
    with pytest.raises(InputError, match="fewer points than centroids"):
        train(pool, Request(tmp_path / "new" / "c.npy", k=10_000), allow=never)
    assert not (tmp_path / "new").exists()


def test_a_gpu_that_faiss_has_not_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(tmp_path / "pool", files=1)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    train(pool, Request(tmp_path / "c.npy", k=3, means=Means("cuda:1")), allow=never)
    assert "this faiss finds no GPU, so --device cuda:1 is not for it" in caplog.text


def test_vectors_that_are_not_finite_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(tmp_path / "pool", files=1)
    npz = next((tmp_path / "pool" / "metadata").glob("*.npz"))
    arrays = dict(np.load(npz))
    arrays["l14_img"][[3, 70], 0] = np.nan, np.inf
    np.savez(npz, **arrays)
    trained = train(pool_again(tmp_path), Request(tmp_path / "c.npy", k=3), allow=never)
    assert (trained.about["counts"]["points"], trained.about["counts"]["not_finite"]) == (148, 2)
    assert "2 samples left out: the vector holds NaN or infinity" in caplog.text
    assert pool.n == 150


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"k": 451}, "has fewer points than centroids (450 for 451)", "at most --k 11, or a larger sample"),
        (
            {"k": 50, "sample": 20},
            "has fewer points than centroids (20 for 50)",
            "at most --k 1, or a larger sample",
        ),
        (
            {"model": "RN50/openai"},
            "has no image vectors of RN50/openai (found: ViT-L-14/openai, ViT-B-32/openai)",
            "curate embed --pool {pool} --model RN50/openai",
        ),
    ],
)
def test_what_the_pool_cannot_give(tmp_path: Path, settings: dict[str, Any], message: str, hint: str) -> None:
    pool = make_pool(tmp_path / "pool")
    with pytest.raises(InputError) as caught:
        run(pool, tmp_path / "c.npy", **settings)
    assert caught.value.what == message
    assert caught.value.hint == hint.format(pool=tmp_path / "pool")
    assert not list(tmp_path.glob("c.*"))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"k": 0}, "--k"),
        ({"sample": 0}, "--sample"),
        ({"iterations": 0}, "--iterations"),
        ({"ratio": 0.0}, "--sample-ratio"),
        ({"ratio": 1.5}, "--sample-ratio"),
        ({"ratio": 0.5, "sample": 3}, "--sample"),
    ],
)
def test_numbers_that_cannot_be(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        Request(Path("c.npy"), **settings)
    assert caught.value.where == where


def test_only_npy_is_written() -> None:
    with pytest.raises(InputError, match=r"centroids are written as \.npy"):
        Request(Path("c.pt"))


def test_more_than_the_machine_can_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path / "pool")
    monkeypatch.setattr(stage.os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 6400)
    with pytest.raises(InputError) as caught:
        run(pool, tmp_path / "c.npy")
    assert caught.value.what == "450 vectors are 29 kB, and this machine has 6.4 kB of memory"
    assert caught.value.hint == "--sample 50"


def test_a_broken_npz_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    npz = next((tmp_path / "pool" / "metadata").glob("*.npz"))
    npz.write_bytes(npz.read_bytes()[:-30])
    with pytest.raises(PartError, match="is not a readable npz"):
        run(pool_again(tmp_path), tmp_path / "c.npy")
    assert not list(tmp_path.glob("c.*"))


# --- rules ------------------------------------------------------------------------------------------------


@needs_lid
def test_only_what_the_rules_keep_is_trained_on(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    rule = f"image_based:captions_only=true,language_model={LID}"
    found = run(pool, tmp_path / "c.npy", recipe=recipes.compose([rule], []))
    uids, points = in_uid_order()
    kept = {uid_of(file, row) for file in range(3) for row in range(150) if row % 5}
    assert np.array_equal(found, faiss_alone(points[[u in kept for u in uids]], CLUSTERS))
    assert not (tmp_path / "pool" / "selections").exists()


@needs_lid
def test_the_command_takes_datacomps_captions_unless_told(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    base = ("centroids", "--pool", tmp_path / "pool", "--k", "5", "--asset", f"fasttext-lid={LID}", "--json")
    ran = command.curate(*base, "--out", tmp_path / "c.npy")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert (said["counts"]["samples"], said["counts"]["points"]) == (450, 360)
    assert said["file"] == str(tmp_path / "c.npy")
    every = command.curate(*base, "--all", "--out", tmp_path / "all.npy")
    assert json.loads(every.out)["counts"]["points"] == 450
    both = command.curate(*base, "--all", "--rule", "basic", "--out", tmp_path / "no.npy")
    assert both.code == 2
    assert "--all: and --rule or --recipe exclude each other" in both.err
