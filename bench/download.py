"""`curate download` beside img2dataset 1.47 on the same images, image settings, cores and server, in one run.

Both are whole commands, started in turn. The server answers from memory on 127.0.0.1 and shares the cores; its
own CPU time is counted for nobody. Of img2dataset the better of one and two processes counts, for each figure by
itself. *Steady* is what the shards' statistics say: images by the time from the first shard's start to the last
one's end; start-up is in the wall clock and the CPU time only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import CURATE, Figure, median
from bench.memory import pss, tree
from bench.pictures import soft
from bench.server import Server, serving

REPEATS = 3
WEB, WEB_SHARD = 2_000, 500
PHOTOS, PHOTOS_SHARD = 60, 15
DISTINCT = {"web": ((400, 300), 500), "photo": ((4000, 3000), 4)}
"""Width and height, and how many different ones are served."""
STEADY, CPU, WALL, PHOTO, SHARDS, MEMORY = 1.4, 1.6, 2.2, 2.0, 1.05, 1.0
"""The promises: at least so many times img2dataset's; small shards at most so many times the large ones'; GiB."""
LISTED, SERVED_EACH, PHOTO_EACH = 1_000_000, 10, 2_000
"""Rows of the long list, and which of them are pictures and photos: one in so many; the rest is refused."""
MEMORY_SECONDS, PLAN_SECONDS = 40, 90
"""How long the long list's fetching is looked at, and how long it may take to begin."""
LOOK_SECONDS = 0.25

THEIRS = "import json, sys, img2dataset; img2dataset.download(**json.loads(sys.argv[1]))"
THREADS = 32
"""img2dataset's 256 by default are slower here."""


@dataclass(frozen=True)
class Run:
    """One command: images a second while shards were worked on, seconds at the wall clock, CPU seconds."""

    steady: float
    wall: float
    cpu: float


@dataclass(frozen=True)
class Work:
    """Images to fetch and how to store them: `size` and `mode` as both tools name them."""

    kind: str
    count: int
    per_shard: int
    size: int
    mode: str
    list: Path


def measure(folder: Path) -> list[Figure]:
    """The ratios that are promised, and the rates that they are made of."""
    for kind, (size, count) in DISTINCT.items():
        (folder / "served" / kind).mkdir(parents=True)
        for number in range(count):
            (folder / "served" / kind / f"{number:04d}").write_bytes(picture(number, *size))
    with serving(folder / "served") as server:
        web = Work("web", WEB, WEB_SHARD, 256, "border", _list(folder, server, "web", WEB))
        photos = Work(
            "photo", PHOTOS, PHOTOS_SHARD, 512, "keep_ratio_largest", _list(folder, server, "photo", PHOTOS)
        )
        return [
            *_against(folder, server, web),
            *_photos(folder, photos),
            *_shards(folder, web),
            _memory(folder, server),
        ]


# --- the figures ------------------------------------------------------------------------------------------


def _against(folder: Path, server: Server, work: Work) -> list[Figure]:
    """The small pictures: the three ratios, then what they are made of."""
    _ours(folder, work)
    before = server.cpu_seconds()
    rounds = [_round(folder, work) for _ in range(REPEATS)]
    served = (server.cpu_seconds() - before) / (3 * REPEATS * work.count)
    ours, one, two = ([runs[n] for runs in rounds] for n in range(3))
    ms = 1000 / work.count
    told = f"curate download; img2dataset with {THREADS} threads"
    note = f"{work.count:,} of 400x300, {work.per_shard} a shard, {work.mode} {work.size}"
    steady = [a.steady / max(b.steady, c.steady) for a, b, c in rounds]
    cpu = [min(b.cpu, c.cpu) / a.cpu for a, b, c in rounds]
    wall = [min(b.wall, c.wall) / a.wall for a, b, c in rounds]
    figures = [
        median("download, images/s of img2dataset's", steady, "x", STEADY, told, at_least=True, note=note),
        median("download, img2dataset's CPU of ours", cpu, "x", CPU, told, at_least=True),
        median("download, img2dataset's wall of ours", wall, "x", WALL, told, at_least=True),
    ]
    for name, runs in (("download", ours), ("img2dataset, 1 process", one), ("img2dataset, 2 processes", two)):
        figures += [
            median(f"{name}, steady", [r.steady for r in runs], "/s", None, name),
            median(f"{name}, CPU an image", [r.cpu * ms for r in runs], "ms", None, name),
            median(f"{name}, wall clock", [r.wall for r in runs], "s", None, name),
        ]
    server_ms = Figure("the server's CPU an image", served * 1000, "ms", None, "bench.server", note="in no figure")
    return [*figures, server_ms]


def _photos(folder: Path, work: Work) -> list[Figure]:
    """Large photos made small."""
    rounds = [_round(folder, work) for _ in range(REPEATS)]
    ratios = [a.steady / max(b.steady, c.steady) for a, b, c in rounds]
    note = f"{work.count} of 4000x3000, {work.mode} {work.size}"
    return [
        median(
            "download, photos/s of img2dataset's", ratios, "x", PHOTO, "curate download", at_least=True, note=note
        ),
        median("download, photos", [a.steady for a, _, _ in rounds], "/s", None, "curate download"),
        median("img2dataset, photos", [max(b.steady, c.steady) for _, b, c in rounds], "/s", None, "img2dataset"),
    ]


def _shards(folder: Path, work: Work) -> list[Figure]:
    """Many small shards against few large ones."""
    small, large = replace(work, per_shard=100), replace(work, per_shard=1_000)
    pairs = [(_ours(folder, small), _ours(folder, large)) for _ in range(REPEATS)]
    ratios = [b.steady / a.steady for a, b in pairs]
    note = f"{work.count // 100} shards of 100 against {work.count // 1000} of 1,000"
    return [median("download, small shards, time an image", ratios, "x", SHARDS, "curate download", note=note)]


def _memory(folder: Path, server: Server) -> Figure:
    """The most that all processes of a download at default settings hold, of a list that is much too long."""
    listed, pool = folder / "long.parquet", folder / "pool"
    urls = [_long(server, number) for number in range(LISTED)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {n}" for n in range(LISTED)]}), listed)
    command = (*CURATE, "download", "--source", listed, "--pool", pool, "--allow-private-hosts", "--yes")
    process = _start(command, folder / "log.txt")
    peak, fetching = 0, 0.0
    began = time.monotonic()
    while process.poll() is None and fetching < MEMORY_SECONDS:
        peak = max(peak, sum(map(pss, tree(process.pid))))
        time.sleep(LOOK_SECONDS)
        if any(pool.glob("shards/*.tar*")):
            fetching += LOOK_SECONDS
        elif time.monotonic() - began > PLAN_SECONDS:
            break
    process.send_signal(signal.SIGINT)
    if (code := process.wait(60)) not in (0, 130) or not fetching:
        raise RuntimeError(
            f"{' '.join(map(str, command))} ended with {code}\n{(folder / 'log.txt').read_text()[-2000:]}"
        )
    note = f"PSS of all processes, {LISTED:,} rows listed, {time.monotonic() - began:.0f} s of it"
    shutil.rmtree(pool)
    return Figure("download, most memory", peak / 2**30, "GiB", MEMORY, "curate download", note=note)


def _long(server: Server, number: int) -> str:
    """A picture now and then; the rest are hosts, one each, that refuse the connection at once."""
    if number % SERVED_EACH == 0:
        return server.url("photo" if number % PHOTO_EACH == 0 else "web", number)
    return f"http://127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255 or 1}:9/{number}.jpg"


# --- the commands -----------------------------------------------------------------------------------------


def _round(folder: Path, work: Work) -> tuple[Run, Run, Run]:
    """Ours, img2dataset with one process and with two, one after the other."""
    return _ours(folder, work), _theirs(folder, work, 1), _theirs(folder, work, 2)


def _ours(folder: Path, work: Work) -> Run:
    pool = folder / "pool"
    words = ("--samples-per-shard", work.per_shard, "--image-size", work.size, "--resize-mode", work.mode)
    command = (*CURATE, "download", "--source", work.list, "--pool", pool, *words, "--no-resize-only-if-bigger")
    more = ("--keep-exif", "--allow-private-hosts", "--no-space-check", "--yes")
    return _run((*command, *more), folder, pool, pool / "shards", work)


def _theirs(folder: Path, work: Work, processes: int) -> Run:
    out = folder / "theirs"
    options = {
        "url_list": str(work.list),
        "input_format": "parquet",
        "caption_col": "caption",
        "output_folder": str(out),
        "output_format": "webdataset",
        "number_sample_per_shard": work.per_shard,
        "image_size": work.size,
        "resize_mode": work.mode,
        "processes_count": processes,
        "thread_count": THREADS,
    }
    return _run((sys.executable, "-c", THEIRS, json.dumps(options)), folder, out, out, work)


def _run(command: Sequence[object], folder: Path, made: Path, shards: Path, work: Work) -> Run:
    """Run a command to its end, and take away what it made. Raises RuntimeError unless it stored every image."""
    began = time.perf_counter()
    process = _start(command, folder / "log.txt")
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    stats = [json.loads(path.read_bytes()) for path in shards.glob("*_stats.json")]
    if process.returncode or sum(s["successes"] for s in stats) != work.count:
        said = (folder / "log.txt").read_text()[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}\n{said}")
    span = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    shutil.rmtree(made)
    return Run(work.count / span, wall, used.ru_utime + used.ru_stime)


def _start(command: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
    """The command, its output in a file; neither tool asks the network for newer versions of what it imports."""
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    with log.open("wb") as sink:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )


# --- the pictures -----------------------------------------------------------------------------------------


def _list(folder: Path, server: Server, kind: str, count: int) -> Path:
    path = folder / f"{kind}.parquet"
    urls = [server.url(kind, number) for number in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {n}" for n in range(count)]}), path)
    return path


def picture(seed: int, width: int, height: int) -> bytes:
    """A JPEG like a photo: soft blobs of colour under a little grain; some 38 kB at 400x300."""
    return soft(np.random.default_rng(seed), width, height, grain=7, quality=90)
