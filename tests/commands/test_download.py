"""`curate download` as it is typed: results on stdout, errors with hints, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.fetch.settings import FetchLimits, ImageSettings
from curate.stages.download import DownloadSettings, download, plan
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, running, status
from tests.stages.test_download import jpeg, stored

QUICK = ("--allow-private-hosts", "--idle-seconds", "0.5", "--total-seconds", "1", "--image-size", "32")


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n)) for n in range(30)})) as started:
        yield started


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", "from curate.cli import main; main()", "download", *map(str, words)]


def curate(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def listed(server: HostileServer, folder: Path, count: int = 6) -> Path:
    path = folder / "list.csv"
    path.write_text("url,text\n" + "".join(f"{server.url(f'/{n}.jpg')},photo {n}\n" for n in range(count)))
    return path


def test_a_list_becomes_a_pool(server: HostileServer, tmp_path: Path) -> None:
    server.routes["/1.jpg"] = status(404)
    server.routes["/2.jpg"] = b"<html>"
    source = listed(server, tmp_path)
    done = curate("--source", source, *QUICK, "--workers", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pool" / "shards" / "00000000.tar").is_file()
    lines = [line.split()[:3] for line in done.stdout.splitlines()]
    assert lines[:3] == [["downloaded", "4", "66.7%"], ["http_404", "1", "16.7%"], ["not_an_image", "1", "16.7%"]]
    assert "Traceback" not in done.stderr
    again = curate("--source", source, *QUICK, "--workers", "0", "--json", cwd=tmp_path)
    told = json.loads(again.stdout)
    assert (told["samples"], told["ok"], told["failed"]) == (6, 4, 2)
    assert told["codes"] == {"http_404": 1, "not_an_image": 1}
    other = curate("--source", source, *QUICK, "--image-size", "64", cwd=tmp_path)
    assert other.returncode == 2
    assert "image-size was 32, is 64" in other.stderr
    assert "hint: " in other.stderr


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--source", "gone.csv"], "gone.csv: no such file or folder", "--source"),
        (["--source", "list.csv", "--url-col", "ulr"], "has no column 'ulr' (found: url, text)", "--url-col url"),
        (["--source", "list.csv", "--resize-mode", "keep"], "no resize mode 'keep'", "keep_ratio"),
        (["--source", "list.csv", "--encode-format", "webq"], "no encode format 'webq'", "webp"),
        (["--source", "list.csv", "--samples-per-shard", "0"], "must be above 0 (found 0)", None),
        (["--source", "list.csv", "--idle-seconds", "inf"], "--idle-seconds: must end some day (found inf)", None),
        (["--source", "list.csv", "--workers", "999999"], "--workers: is more than", None),
        (["--retry-failed", "--codes", " ,"], "--codes: names no error code (found ' ,')", "--codes dns,timeout"),
        (["--selection", "latest", "--yes"], "has no selection yet", "curate filter --rule clipscore"),
        (["--selection", "best", "--yes"], "no selection 'best' (found: none)", "curate filter makes one"),
        (["--source", "list.csv", "--scale", "small"], "are two sources", None),
        (["--scale", "smal", "--yes"], "no scale 'smal'", "small"),
        ([], "12,800,000 rows", "--yes"),
        (["--scale", "medium"], "128,000,000 rows", "curate download --scale medium --yes"),
        (["--scale", "small", "--sample", "0.1"], "1,280,000 rows", "--yes"),
        (["--scale", "small", "--sample", "0.1", "--metadata-only"], "in whole files", "leave out --metadata-only"),
        (["--source", "list.csv", "--bbox-col", "faces", "--no-blur-faces"], "--no-blur-faces leaves them", None),
    ],
)
def test_what_is_wrong_is_refused(
    server: HostileServer, tmp_path: Path, words: list[str], message: str, hint: str | None
) -> None:
    listed(server, tmp_path)
    done = curate(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert hint is None or any(line.startswith("hint: ") and hint in line for line in done.stderr.splitlines())
    assert not (tmp_path / "pool").exists()
    assert done.stdout == ""


def test_an_attempt_that_forgets_the_private_network_says_so(server: HostileServer, tmp_path: Path) -> None:
    server.routes["/1.jpg"] = status(404)
    assert curate("--source", listed(server, tmp_path), *QUICK, "--workers", "0", cwd=tmp_path).returncode == 0
    server.routes["/1.jpg"] = answer(jpeg(1))
    words = ("--retry-failed", "--image-size", "32", "--workers", "0", "--codes")
    done = curate(*words, "http_404", cwd=tmp_path)
    assert (done.returncode, "1 failed again" in done.stdout) == (0, True)
    hint = "curate download --retry-failed --codes private_address --allow-private-hosts --pool pool"
    assert hint in done.stderr
    again = curate(*words, "private_address", "--allow-private-hosts", cwd=tmp_path)
    assert "1 are stored now, 0 failed again" in again.stdout
    assert again.stderr == ""


def test_rows_of_metadata_are_begun_with_after_a_yes(server: HostileServer, tmp_path: Path) -> None:
    source = listed(server, tmp_path)
    assert curate("--source", source, "--metadata-only", cwd=tmp_path).returncode == 0
    asked = curate(*QUICK, "--workers", "0", cwd=tmp_path)
    assert asked.returncode == 2
    assert "6 rows of the pool's metadata, about " in asked.stderr
    assert "hint: --yes fetches them; --selection NAME" in asked.stderr
    assert not (tmp_path / "pool" / "shards").exists()
    assert "all samples  6" in curate("--yes", *QUICK, "--workers", "0", cwd=tmp_path).stdout


def test_a_pool_of_a_list_takes_no_metadata(server: HostileServer, tmp_path: Path) -> None:
    assert curate("--source", listed(server, tmp_path), *QUICK, "--workers", "0", cwd=tmp_path).returncode == 0
    other = curate("--scale", "small", "--yes", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert other.returncode == 2
    assert "pool: was downloaded from already, and its samples are its shards'" in other.stderr
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "00000.tar").write_bytes(b"")
    theirs = curate("--pool", "theirs", "--yes", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert theirs.returncode == 2
    assert "theirs: holds shards that others made (00000.tar)" in theirs.stderr


def test_no_network_is_said_with_the_hosts_name(tmp_path: Path) -> None:
    done = curate("--yes", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:1", HF_HUB_OFFLINE="0")
    assert done.returncode == 1
    assert "curate: 127.0.0.1:1: mlfoundations/datacomp_small cannot be had from there" in done.stderr
    assert "--source FILE_OR_FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(server: HostileServer, tmp_path: Path, blow: signal.Signals) -> None:
    source = listed(server, tmp_path, 20)
    options = ("--source", source, *QUICK, "--samples-per-shard", "4", "--workers", "2", "--concurrency", "4")
    settings = DownloadSettings(ImageSettings(image_size=32), FetchLimits(allow_private=True), 4)
    download(plan(tmp_path / "whole", source, settings), workers=0)
    for n in range(10, 20):
        server.routes[f"/{n}.jpg"] = servers.slow(0.3, jpeg(n))
    process = subprocess.Popen(command(*options, "--pool", "broken"), cwd=tmp_path, stderr=subprocess.DEVNULL)
    shards = tmp_path / "broken" / "shards"
    patience = time.monotonic() + 30
    while not list((shards / "_receipts").glob("*.json")) and time.monotonic() < patience:
        time.sleep(0.02)
    process.send_signal(blow)
    assert process.wait(20) == (130 if blow is signal.SIGINT else -signal.SIGKILL)
    finished = {p.stem for p in (shards / "_receipts").glob("*.json")}
    assert finished
    assert len(finished) < 5
    again = curate(*options, "--pool", "broken", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert stored(tmp_path / "broken") == stored(tmp_path / "whole")
    assert not list(shards.glob("*.tmp"))
