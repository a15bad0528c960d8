"""What a fresh user does: odd paths, read-only pools, other folders to run from; and what scripts rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import curate
from tests.fetch.servers import HostileServer, running
from tests.pools import jpeg, make_img2dataset, make_pool

HERE = ("--workers", "0")
ODD = "mein \u00d6rdner \U0001f600 'q' %s {x} $HOME; rm -rf *"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": jpeg(n) for n in range(6)})) as started:
        yield started


def told(*words: object) -> dict[str, Any]:
    """The JSON of a command that ends well."""
    ran = curate(*words, "--json")
    succeeded(ran)
    found: dict[str, Any] = ran.json
    assert found["format"] == 1
    return found


def test_every_command_says_json_and_takes_any_path(here: Path, server: HostileServer) -> None:
    folder = here / ODD
    folder.mkdir()
    source, pool, out = folder / "liste, neu.csv", folder / "pool: eins", folder / "teil menge"
    source.write_text("url,text\n" + "".join(f"{server.url(f'/{n}.jpg')},bild {n}\n" for n in range(6)))
    words = folder / "w\u00f6rter, und (mehr).txt"
    words.write_text("bild\n")
    at = ("--pool", pool)
    download = ("download", "--source", source, *at, "--allow-private-hosts", *HERE)
    assert told(*download)["ok"] == 6
    assert told(*download)["ok"] == 6
    plan = told("filter", "--rule", "clipscore:model=tiny", "--dry-run", *at, *HERE)
    assert [w["samples"] for w in plan["plan"]] == [6]
    assert told("embed", "--model", "tiny", *at, *HERE)["ok"] == 6
    concepts = f'concepts:vocabulary="{words}",target=3'
    scored = told("score", "--rule", concepts, *at, *HERE)
    assert [s["samples"] for s in scored["scores"]] == [6]
    chosen = told("filter", "--rule", "clipscore:top=0.9", "--rule", concepts, *at, *HERE)
    assert chosen["counts"]["samples"] == 6
    assert told("subset", "--scale", "debug", *at, "--out", out, *HERE)["kept"] == chosen["counts"]["kept"]
    assert told("status", *at)["samples"] == 6
    assert told("verify", *at, *HERE)["clean"] is True
    assert told("verify", "--pool", out, *HERE)["clean"] is True
    report = folder / "bericht \u00e4.html"
    assert told("report", *at, "--out", report)["selection"] == chosen["name"]
    assert report.is_file()
    assert "clipscore" in told("rules")["rules"]
    assert told("rules", "clipscore")["rule"] == "clipscore"
    moved = pool.rename(folder / "p2")
    succeeded(curate("filter", "--rule", "clipscore:top=0.9", "--rule", concepts, "--pool", moved, *HERE))
    assert told("verify", "--pool", f"{moved}/../p2/", *HERE)["clean"] is True


def test_the_three_sentences_from_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pool(here / "data" / "mine")
    monkeypatch.setenv("CURATE_POOL", "data/mine")
    succeeded(curate("filter", "--rule", "random:n=4", *HERE))
    succeeded(curate("subset", "--scale", "debug", *HERE))
    assert (here / "subset" / "shards" / "00000000.tar").is_file()
    assert told("status")["selections"][0]["kept"] == 4
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.chdir("/")
    refused(curate("status"), "data/mine: no such pool", "curate download")
    assert told("status", "--pool=~/data/mine")["samples"] == 6
    monkeypatch.delenv("CURATE_POOL")
    monkeypatch.chdir(here / "data")
    refused(curate("status"), "pool: no such pool (found there: mine)", "curate download")
    assert told("status", "--pool", "mine/")["samples"] == 6


@pytest.mark.parametrize("place", ["https://x.test/pool", "s3://bucket/pool", "file:///pool"])
def test_a_url_is_no_path(here: Path, place: str) -> None:
    refused(curate("status", "--pool", place), "is a URL, and no pool here", "fetch it first")
    refused(curate("download", "--source", place), "is a URL, and no file or folder here", "fetch it first")
    assert contents(here) == {}


@pytest.mark.parametrize("make", [make_pool, make_img2dataset], ids=["ours", "crawl"])
def test_work_takes_all_that_is_written(here: Path, make: Any) -> None:
    make(here / "pool")
    before = contents(here / "pool")
    work = ("--work", "elsewhere/deep", *HERE)
    succeeded(curate("embed", "--model", "tiny", *work))
    succeeded(curate("score", "--rule", "concepts:target=2", *work))
    succeeded(curate("filter", "--rule", "clipscore:top=0.9", *work))
    succeeded(curate("subset", "--scale", "debug", *work))
    for command in ("status", "report"):
        succeeded(curate(command, "--work", "elsewhere/deep"))
    succeeded(curate("verify", *work))
    assert contents(here / "pool") == before
    assert told("status", "--work", "elsewhere/deep")["models"][0]["ok"] == 6
    assert told("status")["models"] == []


WITHOUT_PRIVILEGE = """
import ctypes, os, sys
for capability in 1, 2:  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root keeps to permissions like anybody
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-m", "curate", *sys.argv[1:]])
"""


def test_a_pool_that_cannot_be_written_to(here: Path) -> None:
    make_pool(here / "pool")
    (here / "list.csv").write_text("url,text\nhttp://127.0.0.1:1/1.jpg,one\n")
    succeeded(curate("filter", "--rule", "random:n=4", *HERE))
    before = contents(here)
    folders = [here, *(p for p in here.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        for command, place in (
            ("filter --rule random:n=2 --name other", "pool/selections/other"),
            ("score --rule concepts:target=1", "pool/scores/"),
            ("subset --scale debug", "subset"),
            ("report", "report.html"),
            ("download --source list.csv --pool new", "new"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", WITHOUT_PRIVILEGE, *command.split()],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "CURATE_WORKERS": "0"},
            )
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            said = done.stderr.splitlines()
            assert said[-2].startswith(f"curate: {place}"), said
            assert said[-2].endswith("cannot be written (Permission denied)")
            assert said[-1].startswith("hint: name a folder that can be written to")
            assert "Traceback" not in done.stderr
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert contents(here) == before


@pytest.mark.parametrize("place", ["list.csv", "list.csv/deep", "/proc/curate"])
def test_a_place_that_takes_no_files(here: Path, place: str) -> None:
    make_pool(here / "pool")
    (here / "list.csv").write_text("url,text\nhttp://127.0.0.1:1/1.jpg,one\n")
    before = contents(here)
    rule = ("filter", "--rule", "random:n=2")
    refused(curate(*rule, "--work", place), f"{place}/", "name a folder that can be written to")
    assert contents(here) == before
    succeeded(curate(*rule))
    before = contents(here)
    refused(curate("subset", "--scale", "debug", "--out", place, *HERE), f"{place}: ", "name a")
    assert contents(here) == before


def test_names_from_files_do_not_reach_the_terminal_raw(here: Path) -> None:
    make_pool(here / "pool")
    for name in ("bell\x07.txt", "escape\x1b]0;title\x07", "line\nbreak", "right\u202eleft", "odd\udcff"):
        (here / "pool" / name).write_text("x")
    for words in (("status",), ("verify", *HERE), ("status", "--pool", "pool\x1b[2J")):
        ran = curate(*words)
        shown = ran.out + ran.err
        assert all(c.isprintable() or c == "\n" for c in shown), words
        shown.encode()
    assert json.loads(curate("status", "--json").out.encode())["foreign"]
