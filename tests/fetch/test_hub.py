"""DataComp's metadata from a small hub on 127.0.0.1: whole or not at all, right, and never twice."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import InputError, StopError, UnknownName
from curate.fetch import hub, hub_client, hub_folder, hub_record, lists
from curate.pool import open_pool
from curate.views import inventory
from tests.fetch.hub_server import SmallHub, serving
from tests.pools import uid_of

SMALL = hub.hub_pool("small")
NAMES = ("a" * 32, "b" * 32, "c" * 32)


def table(seed: int, rows: int = 4) -> bytes:
    """A metadata file with DataComp's columns."""
    uids = [uid_of(seed, row) for row in range(rows)]
    columns = {
        "uid": uids,
        "url": [f"http://images.example/{uid}.jpg" for uid in uids],
        "text": [f"picture {row}" for row in range(rows)],
        "original_width": [64] * rows,
        "original_height": [48] * rows,
        "clip_b32_similarity_score": pa.array([0.25] * rows, pa.float32()),
        "clip_l14_similarity_score": pa.array([0.3] * rows, pa.float32()),
        "face_bboxes": pa.array([[]] * rows, pa.list_(pa.list_(pa.float64()))),
        "sha256": ["0" * 64] * rows,
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def vectors(seed: int, rows: int = 4) -> bytes:
    """The npz beside it: 2 of the 5 arrays."""
    drawn = np.random.default_rng(seed).standard_normal((rows, 768)).astype(np.float16)
    out = io.BytesIO()
    np.savez(out, l14_img=drawn, l14_txt=drawn)
    return out.getvalue()


def files(*, npz: bool = False) -> dict[str, bytes]:
    found = {f"{name}.parquet": table(n) for n, name in enumerate(NAMES)}
    found |= {f"{name}.npz": vectors(n) for n, name in enumerate(NAMES)} if npz else {}
    return {**found, "README.md": b"# a pool", ".gitattributes": b"*.npz"}


def parquet(published: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in published.items() if name.endswith(".parquet")}


def here(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != hub_record.RECORD}


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[SmallHub]:
    caplog.set_level(logging.INFO, "curate")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.devnull)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "LONGEST_WAIT", 0.01)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pool" / "metadata"


# --- the hub itself ---------------------------------------------------------------------------------------


def test_the_small_hub_is_one_to_its_own_client(small: SmallHub, tmp_path: Path) -> None:
    """What these tests rest on: huggingface_hub takes this server for a hub."""
    published = files(npz=True)
    commit = small.commit(SMALL.repository, published)
    small.page = 3
    api = huggingface_hub.HfApi(endpoint=small.url)
    assert api.dataset_info(SMALL.repository).sha == commit
    tree = api.list_repo_tree(SMALL.repository, repo_type="dataset", recursive=True)
    listed = {f.path: f for f in tree if isinstance(f, huggingface_hub.hf_api.RepoFile)}
    assert {p: f.size for p, f in listed.items()} == {p: len(d) for p, d in published.items()}
    theirs = [(f.path, f.size, f"sha256:{f.lfs.sha256}" if f.lfs else f"git:{f.blob_id}") for f in listed.values()]
    ours = hub_client.Hub(SMALL.repository, small.url).files(commit)
    assert [(f.path, f.bytes, f.digest) for f in ours] == theirs
    path = huggingface_hub.hf_hub_download(
        SMALL.repository, f"{NAMES[0]}.parquet", repo_type="dataset", local_dir=tmp_path, endpoint=small.url
    )
    assert Path(path).read_bytes() == published[f"{NAMES[0]}.parquet"]


def test_scales_are_known() -> None:
    assert hub.hub_pool("small").rows == 12_800_000
    assert hub.hub_pool("datacomp_1b").repository == "mlfoundations/datacomp_1b"
    with pytest.raises(UnknownName, match="found: datacomp_1b, large, medium, small, xlarge") as caught:
        hub.hub_pool("smal")
    assert caught.value.hint == "did you mean 'small'?"


# --- whole ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["small", "medium", "large", "datacomp_1b"])
def test_metadata_is_what_the_hub_has(small: SmallHub, folder: Path, scale: str) -> None:
    pool, published = hub.hub_pool(scale), files(npz=True)
    commit = small.commit(pool.repository, published)
    told = hub.coming(pool, folder)
    wanted = parquet(published)
    assert (told.files, told.bytes, told.revision) == (3, sum(map(len, wanted.values())), commit)
    assert not folder.parent.exists()
    done = hub.fetch_metadata(pool, folder)
    assert here(folder) == wanted
    assert done == hub.Fetched(commit, tuple(sorted(wanted)), told.bytes, 0, True)
    assert [p.name for p in folder.parent.iterdir()] == ["metadata"]
    record = hub.read_record(folder)
    assert record is not None
    assert (record.repository, record.revision, record.whole) == (pool.repository, commit, True)
    assert record.missing(folder) == []
    name = f"{NAMES[0]}.parquet"
    raw = json.loads((folder / hub_record.RECORD).read_text())["files"][0]
    assert raw == {"path": name, "bytes": len(wanted[name]), "sha256": sha(wanted[name])}


def test_xlarge_lies_flat(small: SmallHub, folder: Path) -> None:
    pool, small.page = hub.hub_pool("xlarge"), 2
    published = {f"part_{n}/{path}": data for n, (path, data) in enumerate(sorted(files(npz=True).items()))}
    small.commit(pool.repository, published)
    hub.fetch_metadata(pool, folder, npz=True)
    flat = {p.rpartition("/")[2]: d for p, d in published.items() if p.endswith((".parquet", ".npz"))}
    assert here(folder) == flat
    assert all(p.is_file() for p in folder.iterdir())


def test_names_that_clash_are_refused(small: SmallHub, folder: Path) -> None:
    pool = hub.hub_pool("xlarge")
    small.commit(pool.repository, {"part_0/x.parquet": table(0), "part_1/x.parquet": table(1)})
    with pytest.raises(StopError, match=r"two files .* x\.parquet \(part_0/x\.parquet, part_1/x\.parquet\)"):
        hub.fetch_metadata(pool, folder)
    assert not folder.exists()


def test_the_folder_is_a_pool_and_a_list(small: SmallHub, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    small.commit(SMALL.repository, files(npz=True))
    hub.fetch_metadata(SMALL, folder, npz=True)
    pool = open_pool(folder.parent)
    assert (pool.kind, pool.n) == ("metadata", 12)
    found = inventory.take(pool)
    assert (found.foreign, found.unfinished, found.damage()) == ([], [], [])
    assert found.loose == [folder / hub_record.RECORD]
    caplog.clear()
    assert lists.open_list(folder, usual={"url": ("url",), "caption": ("text",)}).rows == 12
    assert caplog.messages == []


def test_files_of_git_are_checked_too(small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fetch.hub_server.LARGE", (".npz",))
    published = files()
    small.commit(SMALL.repository, published)
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)
    record = hub.read_record(folder)
    assert record is not None
    assert {file.digest.partition(":")[0] for file in record.files.values()} == {"git"}


# --- stopped, and gone on with ----------------------------------------------------------------------------


def test_a_cut_body_goes_on_where_it_was(small: SmallHub, folder: Path) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    name = f"{NAMES[1]}.parquet"
    small.cut = {name: [100, 0, 50]}
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)
    assert [a.range for a in small.bodies(name)] == [None, "bytes=100-", "bytes=100-", "bytes=150-"]


def test_a_body_that_crawls_is_asked_for_again(
    small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "_WINDOW", 0.2)
    published = files()
    small.commit(SMALL.repository, published)
    small.drip = {f"{NAMES[1]}.parquet"}
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)
    first, second = small.bodies(f"{NAMES[1]}.parquet")
    assert first.range is None
    assert second.range is not None


def test_killed_at_its_very_end(small: SmallHub, folder: Path) -> None:
    """After the folder has its name, and before the place where it arrived is gone."""
    small.commit(SMALL.repository, files())
    hub.fetch_metadata(SMALL, folder)
    place = folder.with_name("metadata.incomplete")
    place.mkdir()
    (place / "listing.json").write_text("{}")
    assert hub.begun(folder) is None
    assert hub.fetch_metadata(SMALL, folder).files == ()
    assert not place.exists()


def test_a_server_without_ranges_begins_again(small: SmallHub, folder: Path) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    small.ranges, small.cut = False, {f"{NAMES[1]}.parquet": [100]}
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)


def test_what_has_arrived_is_not_fetched_again(
    small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    monkeypatch.setattr(hub_client, "TRIES", 2)
    monkeypatch.setattr(hub_folder, "AT_ONCE", 1)
    name = f"{NAMES[1]}.parquet"
    small.cut = {name: [100] + [0] * 9}
    with pytest.raises(StopError) as caught:
        hub.fetch_metadata(SMALL, folder)
    assert caught.value.where == small.url.removeprefix("http://")
    assert name in caught.value.what
    assert "goes on where this one stopped" in (caught.value.hint or "")
    assert not folder.exists()
    assert hub.begun(folder) == "small"
    assert inventory_of(folder.parent) == ["metadata.incomplete"]
    small.cut = {}
    before = hub.coming(SMALL, folder)
    assert (before.files, before.bytes) == (2, sum(map(len, parquet(published).values())) - 100 - len(table(0)))
    done = hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)
    assert (done.here, len(done.files)) == (1, 2)
    assert len(small.bodies(f"{NAMES[0]}.parquet")) == 1
    assert small.bodies(name)[-1].range == "bytes=100-"
    assert hub.begun(folder) is None
    assert [p.name for p in folder.parent.iterdir()] == ["metadata"]


def test_killed_and_gone_on_with(small: SmallHub, folder: Path) -> None:
    name = f"{NAMES[1]}.parquet"
    published = {**files(), name: table(1, 3000)}
    small.commit(SMALL.repository, published)
    small.cut, small.holding = {name: [60_000]}, True
    arriving = folder.with_name("metadata.incomplete")
    part, whole = arriving / f"{name}.part", arriving / "files"
    code = (
        "import sys; from pathlib import Path; from curate.fetch import hub\n"
        "hub.fetch_metadata(hub.hub_pool('small'), Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "HF_ENDPOINT": small.url, "HF_HUB_OFFLINE": "0"},
    )
    try:
        until(lambda: part.is_file() and part.stat().st_size > 0 and len(list(whole.iterdir())) == 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(5)
    small.held.set()
    assert not folder.exists()
    size = part.stat().st_size
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)
    assert [a.range for a in small.bodies(name)] == [None, f"bytes={size}-"]
    assert all(len(small.bodies(f"{n}.parquet")) == 1 for n in (NAMES[0], NAMES[2]))
    assert [p.name for p in folder.parent.iterdir()] == ["metadata"]


def test_half_of_another_pool_is_not_gone_on_with(small: SmallHub, folder: Path) -> None:
    small.commit(SMALL.repository, files())
    medium = hub.hub_pool("medium")
    small.commit(medium.repository, files())
    small.gone = {f"{NAMES[1]}.parquet"}
    with pytest.raises(StopError):
        hub.fetch_metadata(medium, folder)
    assert hub.begun(folder) == "medium"
    with pytest.raises(InputError, match=r"part of mlfoundations/datacomp_medium \(asked for: .*_small\)"):
        hub.fetch_metadata(SMALL, folder)


# --- the hub changes --------------------------------------------------------------------------------------


def test_two_revisions_are_not_mixed(small: SmallHub, folder: Path) -> None:
    published = files()
    first = small.commit(SMALL.repository, published)
    small.gone = {f"{NAMES[2]}.parquet"}
    with pytest.raises(StopError):
        hub.fetch_metadata(SMALL, folder)
    small.gone = set()
    second = small.commit(SMALL.repository, {**published, f"{NAMES[2]}.parquet": table(9), "new.parquet": table(8)})
    assert hub_client.Hub(SMALL.repository, small.url).newest() == second
    assert hub.fetch_metadata(SMALL, folder).revision == first
    assert here(folder) == parquet(published)


def test_a_revision_that_is_gone_is_said(small: SmallHub, folder: Path) -> None:
    first = small.commit(SMALL.repository, files())
    small.gone = {f"{NAMES[2]}.parquet"}
    with pytest.raises(StopError):
        hub.fetch_metadata(SMALL, folder)
    small.gone = set()
    del small.commits[SMALL.repository][first]
    small.commit(SMALL.repository, {"new.parquet": table(8)})
    with pytest.raises(StopError, match=f"no longer what it was at {first}") as caught:
        hub.fetch_metadata(SMALL, folder)
    assert caught.value.hint == f"remove {folder}.incomplete to begin again, with the newest"
    shutil.rmtree(f"{folder}.incomplete")
    hub.fetch_metadata(SMALL, folder)
    assert list(here(folder)) == ["new.parquet"]


# --- wrong bytes, busy hubs, no hub -----------------------------------------------------------------------


def test_wrong_bytes_are_fetched_again(small: SmallHub, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    name = f"{NAMES[0]}.parquet"
    small.wrong = {name: [b"x" * len(published[name])]}
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)
    assert any(name in m and "sha256" in m and "again" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: b"x" * len(data), "has the sha256 {wrong}, {right} on the hub"),
        (lambda data: data[:-1], "has {less} bytes, {all} on the hub"),
        (lambda data: data + b"x", "has {more} bytes, {all} on the hub"),
    ],
    ids=["other bytes", "fewer", "more"],
)
def test_bytes_that_stay_wrong_are_refused(
    small: SmallHub, folder: Path, change: Callable[[bytes], bytes], found: str
) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    name = f"{NAMES[0]}.parquet"
    right = published[name]
    small.wrong = {name: [change(right)] * 9}
    with pytest.raises(StopError) as caught:
        hub.fetch_metadata(SMALL, folder)
    n = len(right)
    told = found.format(
        wrong=sha(change(right)), right=sha(right), less=f"{n - 1:,}", more=f"{n + 1:,}", all=f"{n:,}"
    )
    assert caught.value.what == f"{name} of {SMALL.repository} {told}, and did when it was fetched again"
    assert not folder.exists()


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "1"}, {"Retry-After": "DATE"}, {"RateLimit": '"resolvers";r=0;t=1'}],
    ids=["seconds", "date", "window"],
)
def test_a_busy_hub_is_waited_for(
    small: SmallHub, folder: Path, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    if headers.get("Retry-After") == "DATE":
        headers = {"Retry-After": formatdate(time.time() + 2, usegmt=True)}
    small.answers = {f"{NAMES[1]}.parquet": [(429, headers)]}
    began = time.monotonic()
    hub.fetch_metadata(SMALL, folder)
    assert 0.8 < time.monotonic() - began < 5
    assert here(folder) == parquet(published)
    assert any(f"{NAMES[1]}.parquet: it answers 429; again in" in m for m in caplog.messages)


def test_waits_are_capped_and_failing_servers_tried_again(
    small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "LONGEST_ASKED", 0.05)
    small.commit(SMALL.repository, files())
    small.answers = {
        "api": [(429, {"Retry-After": "86400"}), (503, {})],
        f"{NAMES[0]}.parquet": [(500, {}), (502, {}), (429, {"Retry-After": "nonsense"})],
    }
    hub.fetch_metadata(SMALL, folder)
    assert not any(small.answers.values())


def test_a_hub_that_stays_busy_is_given_up(small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "LONGEST_ASKED", 0.0)
    small.commit(SMALL.repository, files())
    small.answers = {"api": [(429, {"Retry-After": "60"})] * 99}
    with pytest.raises(StopError, match=r"datacomp_small cannot be had from there \(it answers 429\)"):
        hub.fetch_metadata(SMALL, folder)
    assert 99 - len(small.answers["api"]) == hub_client.TRIES


def test_an_address_that_has_run_out_is_signed_again(small: SmallHub, folder: Path) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    small.expired = {f"{NAMES[1]}.parquet"}
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)


@pytest.mark.parametrize("body", [b"<html>log in", b'"hello"', b'{"sha": null}'])
def test_what_is_no_hub_is_said(small: SmallHub, folder: Path, body: bytes) -> None:
    small.portal = body
    with pytest.raises(StopError, match="does not answer as a model hub does") as caught:
        hub.fetch_metadata(SMALL, folder)
    assert "$HF_ENDPOINT" in (caught.value.hint or "")


def test_no_hub_is_said_by_its_name(small: SmallHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StopError) as caught:
        hub.fetch_metadata(SMALL, tmp_path / "metadata")
    assert caught.value.where == "127.0.0.1:1"
    assert "--source FILE_OR_FOLDER" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_offline_is_said(small: SmallHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StopError, match=r"\$HF_HUB_OFFLINE is set"):
        hub.fetch_metadata(SMALL, folder)
    assert small.asked == []


def test_private_repositories_want_a_token(
    small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small.commit(SMALL.repository, files())
    small.token = "hf_secret"
    with pytest.raises(StopError, match=r"shows no mlfoundations/datacomp_small to a visitor \(401") as caught:
        hub.fetch_metadata(SMALL, folder)
    assert "$HF_TOKEN" in (caught.value.hint or "")
    small.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(StopError, match="gated, and not open to the account of your token") as caught:
        hub.fetch_metadata(SMALL, folder)
    assert f"accept its terms at {small.url}/datasets/{SMALL.repository}" in (caught.value.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch_metadata(SMALL, folder)
    assert "hf_secret" not in caplog.text
    assert {a.token for a in small.asked if a.path.startswith("/cdn/")} == {None}
    assert not [a for a in small.asked if "harness" in a.path or "telemetry" in a.path]


# --- a part of it -----------------------------------------------------------------------------------------


def test_rows_bring_the_first_files(small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ROWS_A_FILE", 5)  # the files hold 4: the footers have the last word
    published = files(npz=True)
    small.commit(SMALL.repository, published)
    assert hub.coming(SMALL, folder, rows=5).files == 1
    assert hub.fetch_metadata(SMALL, folder, rows=4).files == (f"{NAMES[0]}.parquet",)
    record = hub.read_record(folder)
    assert record is not None
    assert not record.whole
    asked = len(small.asked)
    assert hub.fetch_metadata(SMALL, folder, rows=3).files == ()
    assert len(small.asked) == asked
    assert hub.fetch_metadata(SMALL, folder, rows=5).files == (f"{NAMES[1]}.parquet",)
    assert sorted(here(folder)) == [f"{n}.parquet" for n in NAMES[:2]]
    done = hub.fetch_metadata(SMALL, folder)
    assert (done.files, done.whole) == ((f"{NAMES[2]}.parquet",), True)
    assert here(folder) == parquet(published)
    assert all(len(small.bodies(f"{n}.parquet")) == 1 for n in NAMES)


# --- vectors ----------------------------------------------------------------------------------------------


def test_vectors_come_with_the_metadata_or_later(small: SmallHub, tmp_path: Path) -> None:
    published = files(npz=True)
    commit = small.commit(SMALL.repository, published)
    wanted = {n: d for n, d in published.items() if n.endswith((".npz", ".parquet"))}
    hub.fetch_metadata(SMALL, tmp_path / "together", npz=True)
    assert here(tmp_path / "together") == wanted
    hub.fetch_metadata(SMALL, tmp_path / "later", rows=4)
    small.commit(SMALL.repository, {**published, f"{NAMES[0]}.npz": vectors(77)})
    first = f"{NAMES[0]}.npz"
    assert hub.coming(SMALL, tmp_path / "later", npz=True, rows=4).bytes == len(published[first])
    small.cut = {first: [500]}
    done = hub.fetch_vectors(tmp_path / "later")
    assert (done.files, done.revision, done.whole, done.lacking) == ((first,), commit, False, ())
    assert (tmp_path / "later" / first).read_bytes() == published[first]
    assert small.bodies(first)[-1].range == "bytes=500-"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["later", "together"]
    assert hub.fetch_vectors(tmp_path / "later").files == ()


@pytest.mark.parametrize("listed", [True, False])
def test_a_missing_npz_costs_its_own_rows(
    small: SmallHub, folder: Path, caplog: pytest.LogCaptureFixture, listed: bool
) -> None:
    published, lost = files(npz=True), f"{NAMES[1]}.npz"
    if listed:
        small.gone = {lost}
    else:
        del published[lost]
    small.commit(SMALL.repository, published)
    done = hub.fetch_metadata(SMALL, folder, npz=True)
    assert done.lacking == (lost,)
    assert sorted(here(folder)) == sorted({*published, lost} - {lost, "README.md", ".gitattributes"})
    assert any(f"has no {lost}" in m for m in caplog.messages)


def test_vectors_for_a_folder_that_others_fetched(small: SmallHub, folder: Path) -> None:
    published = files(npz=True)
    small.commit(SMALL.repository, published)
    folder.mkdir(parents=True)
    for name in NAMES[:2]:
        (folder / f"{name}.parquet").write_bytes(published[f"{name}.parquet"])
    with pytest.raises(InputError, match="does not say which of DataComp's pools it is"):
        hub.fetch_vectors(folder)
    assert hub.coming(SMALL, folder, npz=True).files == 2
    done = hub.fetch_vectors(folder, SMALL)
    assert (done.files, done.whole) == (tuple(f"{n}.npz" for n in NAMES[:2]), False)
    assert hub.fetch_vectors(folder).files == ()


def test_vectors_that_came_by_other_means_are_looked_at(small: SmallHub, folder: Path) -> None:
    published = files(npz=True)
    small.commit(SMALL.repository, published)
    hub.fetch_metadata(SMALL, folder)
    first, second, third = (f"{n}.npz" for n in NAMES)
    (folder / first).write_bytes(published[first])
    (folder / second).write_bytes(published[second][::-1])
    assert hub.fetch_vectors(folder).files == (second, third)
    assert small.bodies(first) == []
    assert {n: here(folder)[n] for n in (first, second, third)} == {n: published[n] for n in (first, second, third)}


def test_vectors_that_came_before_an_end_are_kept(
    small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = files(npz=True)
    small.commit(SMALL.repository, published)
    hub.fetch_metadata(SMALL, folder)
    monkeypatch.setattr(hub_client, "TRIES", 2)
    monkeypatch.setattr(hub_folder, "AT_ONCE", 1)
    first, second, third = (f"{n}.npz" for n in NAMES)
    small.cut = {second: [700] + [0] * 9}
    with pytest.raises(StopError):
        hub.fetch_vectors(folder)
    assert here(folder) == parquet(published)
    small.cut = {}
    assert hub.coming(SMALL, folder, npz=True).bytes == len(published[second]) - 700 + len(published[third])
    assert hub.fetch_metadata(SMALL, folder).files == ()
    assert hub.fetch_vectors(folder).files == (second, third)
    assert (len(small.bodies(first)), small.bodies(second)[-1].range) == (1, "bytes=700-")
    assert [p.name for p in folder.parent.iterdir()] == ["metadata"]


def test_vectors_of_other_rows_are_refused(small: SmallHub, folder: Path) -> None:
    published = files(npz=True)
    small.commit(SMALL.repository, published)
    folder.mkdir(parents=True)
    name = f"{NAMES[0]}.parquet"
    (folder / name).write_bytes(published[name][::-1])
    with pytest.raises(InputError, match=f"to whose rows the vectors belong .*{sha(published[name])}"):
        hub.fetch_vectors(folder, SMALL)
    assert [p.name for p in folder.parent.rglob("*")] == ["metadata", name]


# --- a folder that is there -------------------------------------------------------------------------------


def test_what_went_missing_is_fetched(small: SmallHub, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    hub.fetch_metadata(SMALL, folder)
    small.commit(SMALL.repository, {"new.parquet": table(8)})
    asked = len(small.asked)
    assert hub.fetch_metadata(SMALL, folder).files == ()
    assert len(small.asked) == asked
    first, second = (folder / f"{n}.parquet" for n in NAMES[:2])
    first.unlink()
    second.write_bytes(b"PAR1")
    record = hub.read_record(folder)
    assert record is not None
    assert record.missing(folder) == [first.name, second.name]
    done = hub.fetch_metadata(SMALL, folder)
    assert done.files == (first.name, second.name)
    assert here(folder) == parquet(published)
    assert sum("fetching it" in m for m in caplog.messages) == 2


@pytest.mark.parametrize("text", ["{", '{"format": 1}', '{"format": 99}'])
def test_a_record_that_cannot_be_read_is_said(small: SmallHub, folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / hub_record.RECORD).write_text(text)
    with pytest.raises(InputError, match=hub_record.RECORD) as caught:
        hub.fetch_metadata(SMALL, folder)
    assert caught.value.hint


def test_a_folder_of_others_is_left_alone(small: SmallHub, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is there already") as caught:
        hub.fetch_metadata(SMALL, folder)
    assert caught.value.hint == "without --scale it is taken as it stands"
    assert here(folder) == {"x.parquet": b"PAR1"}


def test_an_empty_folder_is_no_hindrance(small: SmallHub, folder: Path) -> None:
    published = files()
    small.commit(SMALL.repository, published)
    folder.mkdir(parents=True)
    assert hub.coming(SMALL, folder).files == 3
    hub.fetch_metadata(SMALL, folder)
    assert here(folder) == parquet(published)


def test_a_folder_of_another_pool_is_said(small: SmallHub, folder: Path) -> None:
    small.commit(SMALL.repository, files())
    hub.fetch_metadata(SMALL, folder)
    with pytest.raises(InputError, match=r"is of mlfoundations/datacomp_small \(asked for: .*_medium\)"):
        hub.fetch_metadata(hub.hub_pool("medium"), folder)


def test_too_little_space_is_refused_before_a_byte(
    small: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = files(npz=True)
    small.commit(SMALL.repository, published)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    need = sum(map(len, parquet(published).values()))
    with pytest.raises(InputError, match=rf"3 files to come need .* \({need:,} and 1,000 bytes\)") as caught:
        hub.fetch_metadata(SMALL, folder)
    assert "--limit ROWS" in (caught.value.hint or "")
    assert small.bodies("") == []
    assert not folder.with_name("metadata.incomplete").exists()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def inventory_of(root: Path) -> list[str]:
    """What is left over in a pool that has something else than what is left over."""
    (root / "shards").mkdir()
    (root / "sources.json").write_text('{"format": 1, "sources": []}')
    found = inventory.take(open_pool(root))
    (root / "sources.json").unlink()
    (root / "shards").rmdir()
    assert found.foreign == []
    return [p.name for p in found.unfinished]
