"""img2dataset's own download, taken in: what it says is checked, and what ends it leaves nothing behind."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import receipts, shards
from curate.errors import InputError, PartError
from curate.fetch import img2dataset_child, img2dataset_part
from curate.fetch.crawl import Effort, crawl
from curate.fetch.images import convert
from curate.fetch.img2dataset_part import check, fetch
from curate.fetch.local_file import LocalFile
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.fetch.targets import Outcome, Target
from tests.fetch.servers import HostileServer, answer, drip, redirect, running, silent
from tests.fetch.test_images import encoded, photo, pixels_of

DECISIONS = Path(__file__).resolve().parents[2] / "docs" / "decisions.md"
IMAGES = ImageSettings(image_size=64, encode_format="png", encode_quality=6)
LIMITS = FetchLimits(allow_private=True, retries=0, connect_seconds=2, idle_seconds=2)
LARGE, SMALL, CLEAR = photo(90, 70, seed=1), photo(50, 40, seed=2), photo(80, 90, 4, seed=3)
GOOD = {"/large.jpg": encoded(LARGE, "JPEG"), "/small.png": encoded(SMALL), "/clear.png": encoded(CLEAR)}


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    routes: dict[str, Any] = {
        **GOOD,
        "/page.jpg": b"<html>not found</html>",
        "/empty.jpg": b"",
        "/noai.jpg": answer(GOOD["/small.png"], X_Robots_Tag="noai"),
        "/a%20b.jpg": GOOD["/small.png"],
        "/to_file": redirect("file:///etc/hostname"),
        "/to_ftp": redirect("ftp://127.0.0.1:9/x.jpg"),
        "/loop": redirect("/loop"),
        "/silent": silent(),
        "/drip": drip(),
    }
    with running(HostileServer(routes)) as served:
        yield served


@dataclass
class Told:
    """What `done` heard."""

    rows: int = 0
    failed: int = 0
    calls: int = 0
    news: Counter[str] = field(default_factory=Counter)

    def __call__(self, rows: int, failed: int, news: Mapping[str, float]) -> None:
        self.news.update({name: int(count) for name, count in news.items()})
        self.rows += rows
        self.failed += failed
        self.calls += 1


def codes(outcomes: Mapping[int, Outcome]) -> list[str | None]:
    return [outcome.error_code for outcome in outcomes.values()]


def in_spool(spool: io.BytesIO, outcome: Outcome) -> bytes:
    return spool.getvalue()[outcome.offset : outcome.offset + outcome.length]


def test_a_part_is_what_our_own_crawler_makes_of_it(server: HostileServer, tmp_path: Path) -> None:
    sha = {path: hashlib.sha256(body).hexdigest() for path, body in GOOD.items()}
    wanted: list[tuple[str, str | None, str | None]] = [
        # URL, the hash it should have, error code
        (server.url("/large.jpg"), sha["/large.jpg"].upper() + " ", None),
        (server.url("/missing.jpg"), None, "http_404"),
        (server.url("/small.png"), None, None),
        (server.url("/page.jpg"), None, "bad_image"),
        ("file:///etc/hostname", None, "bad_scheme"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", None, "bad_scheme"),
        (" ", None, "no_url"),
        (server.url("/clear.png"), sha["/small.png"], "hash_mismatch"),
        (server.url("/noai.jpg"), None, "opted_out"),
        (server.url("/a b.jpg"), None, None),
        (server.url("/to_file"), None, "bad_scheme"),
        (server.url("/to_ftp"), None, "bad_scheme"),
        (server.url("/loop"), None, "too_many_redirects"),
        (server.url("/empty.jpg"), None, "empty"),
        (server.url("/clear.png"), sha["/clear.png"], None),
        ("http://127.0.0.1:9/nobody.jpg", None, "refused"),
        (server.url("/large.jpg"), None, None),
    ]
    targets = {10 * n: Target(url, expected) for n, (url, expected, _) in enumerate(wanted)}
    settings = ImageSettings(**{**vars(IMAGES), "verify_hash": "sha256", "on_mismatch": "drop"})
    server.hits.clear()
    spool, told = io.BytesIO(b"before"), Told()
    spool.seek(6)
    folder = Path(os.path.relpath(tmp_path))  # as a user gives it
    got = fetch(targets, spool, images=settings, limits=LIMITS, folder=folder, done=told)
    assert list(got) == list(targets)
    assert codes(got) == [code for _, _, code in wanted]
    assert (told.rows, told.failed) == (len(wanted), sum(code is not None for _, _, code in wanted))
    assert told.calls > 2
    assert told.news == {
        **Counter(f"code:{code}" for _, _, code in wanted if code),
        "stored": sum(outcome.length for outcome in got.values()),
    }
    assert server.hits["/large.jpg"] == server.hits["/clear.png"] == 1
    assert [n for n, o in got.items() if o.repeat] == [160]
    assert list(tmp_path.iterdir()) == []
    assert got[10].fetched.http_status == 404
    assert all(o.error_message and "\n" not in o.error_message for o in got.values() if o.error_code)
    for number, path in ((0, "/large.jpg"), (20, "/small.png"), (140, "/clear.png"), (160, "/large.jpg")):
        own, theirs = convert(GOOD[path], IMAGES), got[number].image
        assert theirs is not None
        assert (pixels_of(in_spool(spool, got[number])) == pixels_of(own.data)).all()
        for name in (
            "extension",
            "width",
            "height",
            "original_width",
            "original_height",
            "sha256",
            "digest",
            "exif",
        ):
            assert getattr(theirs, name) == getattr(own, name)
        assert theirs.stored_sha256 == hashlib.sha256(in_spool(spool, got[number])).hexdigest()
    assert [got[n].image and got[n].image.hash_ok for n in (0, 20, 140)] == [True, None, True]  # type: ignore[union-attr]

    mine = crawl(targets, io.BytesIO(), images=settings, limits=LIMITS, effort=Effort(), done=Told())
    ours = Counter(o.error_code for o in mine.values())
    # what is no image has a code of its own with us; theirs is that of an image that does not decode
    assert Counter("bad_image" if c == "not_an_image" else c for c in ours.elements()) == Counter(codes(got))


def test_private_addresses_are_not_reached(server: HostileServer, tmp_path: Path) -> None:
    hosts = ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]")
    targets = {n: Target(server.url("/small.png", host)) for n, host in enumerate(hosts)}
    server.hits.clear()
    got = fetch(targets, io.BytesIO(), images=IMAGES, limits=FetchLimits(retries=0), folder=tmp_path, done=Told())
    assert set(codes(got)) == {"private_address"}
    assert not server.hits


def test_an_address_is_checked_where_it_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[(2, 1, 6, "", (a, 80)) for a in found] for found in (("8.8.8.8", "10.0.0.1"), ("10.0.0.1",))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_m: answers.pop(0))
    img2dataset_child._refuse_private()
    assert [a[4][0] for a in socket.getaddrinfo("rebinds.example", 80)] == ["8.8.8.8"]
    with pytest.raises(OSError, match=r"private address: rebinds\.example"):
        socket.getaddrinfo("rebinds.example", 80)


# --- what ends it -----------------------------------------------------------------------------------------


def child_of(parent: int) -> int:
    """The process that runs img2dataset for `parent`."""
    for _ in range(500):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                    command = (stat.parent / "cmdline").read_bytes()
                    if b"img2dataset_child" in command:
                        return int(stat.parent.name)
            except (OSError, IndexError):
                continue
        time.sleep(0.01)
    raise AssertionError("no child")


def test_a_killed_child_costs_the_part(server: HostileServer, tmp_path: Path) -> None:
    targets = {0: Target(server.url("/small.png")), 1: Target(server.url("/silent"))}
    told = Told()

    def kill() -> None:
        child = child_of(os.getpid())
        for _ in range(3000):
            if told.rows:  # the other row is under way
                break
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    limits = FetchLimits(allow_private=True, idle_seconds=60)
    with pytest.raises(PartError, match="img2dataset: ended with signal SIGKILL"):
        fetch(targets, io.BytesIO(), images=IMAGES, limits=limits, folder=tmp_path, done=told)
    thread.join()
    assert told.rows == 1
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_stalls_is_given_up(server: HostileServer, tmp_path: Path) -> None:
    targets = {0: Target(server.url("/drip"))}
    began = time.monotonic()
    with pytest.raises(PartError, match=r"no row came to an end in 0\.3 seconds"):
        fetch(
            targets,
            io.BytesIO(),
            images=IMAGES,
            limits=LIMITS,
            folder=tmp_path,
            done=Told(),
            stalled_seconds=0.3,
        )
    assert time.monotonic() - began < 3
    assert list(tmp_path.iterdir()) == []


def test_a_killed_parent_takes_its_child_along(server: HostileServer, tmp_path: Path) -> None:
    script = (
        "import io, sys\n"
        "from pathlib import Path\n"
        "from curate.fetch.targets import Target\n"
        "from curate.fetch.img2dataset_part import fetch\n"
        "from curate.fetch.settings import FetchLimits, ImageSettings\n"
        "fetch({0: Target(sys.argv[1])}, io.BytesIO(), images=ImageSettings(), folder=Path(sys.argv[2]),"
        " limits=FetchLimits(allow_private=True), done=lambda *_: None)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, server.url("/drip"), str(tmp_path)])
    child = child_of(parent.pid)
    assert len(list(tmp_path.iterdir())) == 1
    assert receipts.sweep(tmp_path) == 0
    parent.kill()
    parent.wait()
    for _ in range(1000):
        if not Path(f"/proc/{child}/fd/0").exists() and not list(tmp_path.iterdir()):
            break
        time.sleep(0.01)
    assert not Path(f"/proc/{child}/fd/0").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("OSError: [Errno 28] No space left on device", OSError, "No space left on device"),
        ("ModuleNotFoundError: No module named 'wandb'", PartError, "exit code 1 (ModuleNotFoundError: No module"),
    ],
)
def test_how_a_child_failed_is_said(
    said: str, error: type[Exception], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, folder = tmp_path / "python", tmp_path / "folder"
    program.write_text(f'#!/bin/sh\necho "{said}"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    targets = {0: Target("http://a.example/a.jpg")}
    with pytest.raises(error, match=re.escape(told)):
        fetch(targets, io.BytesIO(), images=IMAGES, limits=LIMITS, folder=folder, done=Told())
    assert list(folder.iterdir()) == []


# --- what it says is checked ------------------------------------------------------------------------------


def test_tar_and_table_are_held_against_each_other(tmp_path: Path) -> None:
    body = GOOD["/small.png"]
    rows = {
        "whole": (40, 50, body),
        "not in the tar": (40, 50, None),
        "no image": (40, 50, b"<html>"),
        "another format": (40, 50, GOOD["/large.jpg"]),
        "another size": (41, 50, body),
        "not in the table": None,
    }
    asked = {f"http://a.example/{n}": [n] for n in range(len(rows))}
    table = []
    with (tmp_path / "00000.tar").open("wb") as sink:
        tar = shards.TarWriter(sink)
        for row, said in reversed(list(enumerate(rows.values()))):
            if said is None:
                continue
            height, width, image = said
            size = {"width": width, "height": height, "original_width": width, "original_height": height}
            table.append({"row": row, "key": f"k{row}", "status": "success", "sha256": "0" * 64, **size})
            if image is not None:
                tar.add(f"k{row}", [("png", image), ("json", b"{}")])
        tar.finish()
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "00000.parquet")
    targets = {n: Target(url) for n, url in enumerate(asked)}
    part = img2dataset_part._Part(targets, asked, io.BytesIO(), IMAGES)
    part.take_in(tmp_path)
    assert codes(part.outcomes) == [None, "lost", "not_an_image", "not_an_image", "bad_image", "lost"]
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:2000])
    with pytest.raises(PartError, match="is cut short"):
        part.take_in(tmp_path)
    (tmp_path / "00000.parquet").write_bytes(b"")
    with pytest.raises(PartError, match="left no table that can be read"):
        part.take_in(tmp_path)


# --- what it is not asked to do ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "limits", "named"),
    [
        ({}, {"block_list": "list.txt"}, "--block-list"),
        ({}, {"obey_robots": True}, "--robots"),
        ({}, {"contact": "us@a.example"}, "--contact"),
        ({}, {"user_agent": "another"}, "--user-agent"),
        ({"skip_reencode": True}, {}, "--skip-reencode"),
        ({"compute_hash": "md5"}, {}, "--compute-hash"),
        ({"verify_hash": "sha1"}, {}, "--verify-hash"),
    ],
)
def test_promises_that_it_would_break_are_refused(
    images: dict[str, Any], limits: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        check(ImageSettings(**images), FetchLimits(**limits))
    assert caught.value.where == "--fetcher img2dataset"
    assert caught.value.hint


def test_faces_and_files_are_refused(tmp_path: Path) -> None:
    url = "http://a.example/a.jpg"
    faces = {0: Target(url, boxes=((0.1, 0.1, 0.2, 0.2),))}
    files = {0: Target("", file=LocalFile(tmp_path / "a.jpg", 0, 10))}
    for targets, what in ((faces, "blurs faces less"), (files, "fetches URLs only")):
        with pytest.raises(InputError, match=what):
            fetch(targets, io.BytesIO(), images=IMAGES, limits=LIMITS, folder=tmp_path, done=Told())


def test_a_python_or_version_that_it_cannot_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(img2dataset_part.metadata, "version", lambda _name: "1.48.0")
    with pytest.raises(InputError, match=r"img2dataset 1\.47 \(found 1\.48\.0\)"):
        check(IMAGES, LIMITS)
    monkeypatch.setattr(img2dataset_part.sys, "version_info", (3, 13, 0))
    with pytest.raises(InputError, match=r"needs Python below 3\.13"):
        check(IMAGES, LIMITS)


def test_a_list_of_nothing_to_fetch_starts_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    told = Told()
    got = fetch({5: Target("ftp://a/b")}, io.BytesIO(), images=IMAGES, limits=LIMITS, folder=tmp_path, done=told)
    assert codes(got) == ["bad_scheme"]
    assert (told.rows, told.failed) == (1, 1)


def options_of_img2dataset() -> set[str]:
    """The arguments of its `download`, read from its source: importing it takes seconds."""
    source = Path(str(metadata.distribution("img2dataset").locate_file("img2dataset/main.py")))
    functions = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef)]
    (download,) = [f for f in functions if f.name == "download"]
    return {argument.arg for argument in download.args.args}


def test_every_option_of_img2dataset_is_decided_on(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+) \|", DECISIONS.read_text(), re.MULTILINE)
    assert {fate for _, fate in rows} == {"kept", "renamed", "refused"}
    named = [name for names, _ in rows for name in re.findall(r"\w+", names)]
    assert Counter(named) == Counter(options_of_img2dataset())
    passed = img2dataset_part._options(tmp_path, 1, IMAGES, LIMITS, 1)
    assert set(passed) <= options_of_img2dataset()
