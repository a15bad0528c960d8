"""One download of many hostile rows: what is asked for, what became of each row, and whether the books agree.

A file of tests lists its rows as `Case`s, has them downloaded together once, and looks at each `Found`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.fetch.settings import FetchLimits, ImageSettings
from curate.receipts import file_sha256, receipts
from curate.shards import read_index
from curate.stages.download import DownloadSettings, download, plan
from curate.stages.shard_files import RESIZE_CODES
from tests.fetch.servers import HostileServer, Reply, running

Pixels = npt.NDArray[Any]
Where = Callable[[HostileServer], str]
"""The URL of a row, where it is not that of the path that its reply is under."""

LIMITS = FetchLimits(
    connect_seconds=2.0, idle_seconds=0.8, total_seconds=2.5, retries=1, backoff_seconds=0.01, allow_private=True
)
"""Short, so that what hangs ends soon; long enough for a busy machine."""
LOSSLESS = ImageSettings(resize_mode="no", encode_format="png", encode_quality=1)


@dataclass(frozen=True)
class Found:
    """What became of a row: its place in table, ledger and tar."""

    row: dict[str, Any]
    ledger: dict[str, Any]
    members: dict[str, bytes]
    """By extension; empty where nothing is stored."""

    @property
    def pixels(self) -> Pixels:
        """The stored picture, decoded by another library than the one that wrote it."""
        (image,) = (data for extension, data in self.members.items() if extension not in ("txt", "json"))
        return np.asarray(Image.open(io.BytesIO(image)))


@dataclass(frozen=True)
class Case:
    """One row of a list: how the server answers, and what is expected of it.

    `code` is its error code, None where an image is stored; `look` is given what was found.
    """

    name: str
    reply: bytes | Reply | None = None
    code: str | None = None
    look: Callable[[Found], object] | None = None
    url: str | Where | None = None

    @property
    def path(self) -> str:
        return "/" + "".join(c if c.isalnum() else "-" for c in self.name)

    def where(self, server: HostileServer) -> str:
        if self.url is None:
            return server.url(self.path)
        return self.url if isinstance(self.url, str) else self.url(server)

    def check(self, found: Found) -> None:
        row = found.row
        assert row["error_code"] == self.code, (self.name, row["error_code"], row["error_message"])
        if self.code is None:
            assert row["status"] == "success"
        else:
            resized = self.code in RESIZE_CODES
            assert row["status"] == ("failed_to_resize" if resized else "failed_to_download")
            assert found.members == {}
        if self.look is not None:
            self.look(found)


@dataclass
class Web:
    """A pool that was downloaded, the server it came from, and the most memory that each process had."""

    pool: Path
    server: HostileServer
    found: dict[str, Found]
    peaks: dict[int, int] = field(default_factory=dict)


def settings(
    images: ImageSettings = LOSSLESS, limits: FetchLimits = LIMITS, samples_per_shard: int = 1000, **more: Any
) -> DownloadSettings:
    return DownloadSettings(images, limits, samples_per_shard, **more)


def fetch(pool: Path, records: Sequence[dict[str, Any]], given: DownloadSettings, *, workers: int) -> list[Found]:
    """Download a list of these records to its end, and check the books."""
    source = pool.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(list(records)), source)
    summary = download(plan(pool, source, given), workers=workers, connections=32)
    assert not summary.failed
    assert summary.counts["samples"] == len(records)
    return books(pool, len(records))


def crawl(
    pool: Path,
    server: HostileServer,
    cases: Sequence[Case],
    given: DownloadSettings | None = None,
    *,
    workers: int = 2,
) -> Web:
    """Have all the cases downloaded at once from a server that runs; two processes decode, unless told."""
    server.routes |= {case.path: case.reply for case in cases if case.reply is not None}
    records = [{"url": case.where(server), "text": case.name} for case in cases]
    assert len({case.name for case in cases}) == len(cases)
    with watched() as peaks:
        found = fetch(pool, records, given or settings(), workers=workers)
    return Web(pool, server, dict(zip((case.name for case in cases), found, strict=True)), peaks)


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """A test for each case."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


# --- the books --------------------------------------------------------------------------------------------


def books(pool: Path, rows: int) -> list[Found]:
    """All rows in the list's order; table, ledger, tar, index, statistics and receipts must agree on them."""
    found: list[Found] = []
    folder = pool / "shards"
    parts = receipts(folder)
    assert sorted(parts) == sorted(p.stem for p in folder.glob("*.tar"))
    for part, receipt in parts.items():
        table = pq.read_table(folder / f"{part}.parquet").to_pylist()
        ledger = pq.read_table(folder / f"{part}_ledger.parquet").to_pylist()
        members = members_of(folder / f"{part}.tar")
        stored = [row for row in table if row["error_code"] is None]
        assert [row["key"] for row in ledger] == [row["key"] for row in table]
        assert [row["error_code"] for row in ledger] == [row["error_code"] for row in table]
        assert list(members) == [row["key"] for row in stored]
        for row in stored:
            check_stored(row, members[row["key"]])
        for row in table:
            assert (row["error_code"] is None) == (row["status"] == "success") == (row["error_message"] is None)
        check_counts(folder / f"{part}_stats.json", receipt.counts, table)
        index = pq.read_table(folder / f"{part}.index.parquet").to_pydict()
        assert (index["key"], index["offset"], index["length"]) == read_index(folder / f"{part}.tar")
        for name, written in receipt.outputs.items():
            assert file_sha256(folder / name) == written.sha256
        found += [Found(row, told, members.get(row["key"], {})) for row, told in zip(table, ledger, strict=True)]
    assert len(found) == rows
    left = [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".lock", ".replaced"))]
    assert not left
    return found


def members_of(path: Path) -> dict[str, dict[str, bytes]]:
    """Key to extension to bytes, read with Python's own tarfile."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            key, _, extension = member.name.partition(".")
            found.setdefault(key, {})[extension] = stream.read()
    return found


def check_stored(row: dict[str, Any], members: dict[str, bytes]) -> None:
    """A stored sample is a picture of the size that the table says, a caption and a description, nothing else."""
    image, *others = members
    assert others == ["txt", "json"]
    data = members[image]
    assert (len(data), hashlib.sha256(data).hexdigest()) == (row["stored_bytes"], row["stored_sha256"])
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert picture.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image]
        assert picture.size == (row["width"], row["height"])
        assert not set(picture.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi"}
    assert members["txt"].decode() == (row["caption"] or "")
    told = json.loads(members["json"])
    assert all(told[name] == row[name] for name in ("url", "caption", "uid", "key", "status", "width", "sha256"))


def check_counts(stats: Path, counts: Any, table: Sequence[dict[str, Any]]) -> None:
    states = Counter(row["status"] for row in table)
    codes = Counter(row["error_code"] or "success" for row in table)
    told = json.loads(stats.read_text())
    assert told["count"] == counts["samples"] == len(table)
    assert told["successes"] == counts["ok"] == states["success"]
    assert told["failed_to_download"] == states["failed_to_download"]
    assert told["failed_to_resize"] == states["failed_to_resize"]
    assert told["status_dict"] == dict(codes)
    failed = {name.removeprefix("code:"): n for name, n in counts.items() if name.startswith("code:")}
    assert failed == {code: n for code, n in codes.items() if code != "success"}
    assert counts["failed"] == len(table) - counts["ok"]
    assert counts["stored_bytes"] == sum(row["stored_bytes"] or 0 for row in table)


# --- servers and processes --------------------------------------------------------------------------------


@contextmanager
def running_at(host: str, server: HostileServer) -> Iterator[HostileServer]:
    """The server on a free port of another of this machine's addresses, 127.0.0.2 and on: another host."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, 0))
        with running(server, sock):
            yield server


def closed_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def watched(interval: float = 0.05) -> Iterator[dict[int, int]]:
    """The most memory (VmHWM, bytes) that each process below this one has had so far, by process id."""
    peaks: dict[int, int] = {}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(interval):
            for pid in descendants(os.getpid()):
                peaks[pid] = max(peaks.get(pid, 0), high_water(pid))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def high_water(pid: int) -> int:
    """The most memory that a process has had, in bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def descendants(root: int) -> list[int]:
    """The processes that `root` and those below it have started and that live, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, todo = [], [root]
    while todo:
        todo = [child for pid in todo for child in children.get(pid, ())]
        found += todo
    return found


# --- pictures ---------------------------------------------------------------------------------------------


def photo(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth noise, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(seed: int = 0, size: tuple[int, int] = (96, 64)) -> bytes:
    return encoded(photo(seed, size), "JPEG", quality=90)
