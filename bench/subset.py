"""How fast `curate subset` writes, beside `cp` and `sync` of the same kept bytes and DataComp's resharder.

A tenth of the samples, drawn at random, of 50 shards of 10,000 pictures of noise, as large as DataComp's. Both
sides read from the page cache, write to the same disk and end when all is on it; the whole command counts, start-up
included. How much is read is the kernel's own account of a run after the pool has left the page cache. Wants, for
the comparison, `DATACOMP`, a checkout of mlfoundations/datacomp, and `PEER_PYTHON`, a Python that can run it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from bench import CURATE, Figure, median, seconds
from curate.pool.layout import DOWNLOAD_STAGE
from curate.receipts import FORMAT, Output, write_json
from curate.shards import TarWriter, write_table

SHARDS, PER_SHARD, IMAGE_BYTES = 50, 10_000, 30_000
FRACTION = 0.1
REPEATS = 3
OF_COPY, OF_COPY_SHUFFLED, READS, TIMES = 70.0, 35.0, 1.2, 8.0
COPY = "mkdir '{to}' && cp '{kept}'/*.tar '{to}' && sync '{to}'/*.tar '{to}'"
SAID = "curate subset --scale debug"
ACCOUNT = (
    "import sys; from curate.cli import main; told = sys.argv.pop(1)\n"
    "try: main()\n"
    "finally: open(told, 'w').write(open('/proc/self/io').read())"
)
THEIRS = (
    "import runpy, sys; import webdataset as wds\n"
    "wds.writer.gopen.Pipe = sys.modules['webdataset.gopen'].Pipe\n"  # where the versions of its time have it
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def measure(folder: Path) -> list[Figure]:
    """The rates, each pair run back to back; what is read; the start-up; and the resharder's time of ours."""
    pool, out, kept, copy = (folder / name for name in ("pool", "subset", "kept", "copy"))
    make_pool(pool)
    filter_ = (*CURATE, "filter", "--pool", pool, "--rule")
    seconds((*filter_, "random:n=1", "--name", "one"))
    seconds((*filter_, f"random:fraction={FRACTION}", "--name", "tenth"))
    words = ("subset", "--pool", pool, "--scale", "debug", "--selection")
    tenth = (*CURATE, *words, "tenth", "--out", out)
    evict(pool)
    reads = read_of((*words, "tenth", "--out", out), folder / "io")
    (out / "shards").rename(kept)
    tars = list(kept.glob("*.tar"))
    size = sum(p.stat().st_size for p in tars) / 1e6
    bring_back(pool)

    took: dict[str, list[float]] = {"plain": [], "shuffled": [], "copy": [], "one": []}
    for number in range(REPEATS):
        for name, more in (("plain", ()), ("shuffled", ("--shuffle",))):
            shutil.rmtree(out, ignore_errors=True)
            settle(folder)
            took[name].append(seconds((*tenth, *more)))
        shutil.rmtree(out)
        settle(folder)
        took["copy"].append(seconds(("sh", "-c", COPY.format(kept=kept, to=copy))))
        shutil.rmtree(copy)
        took["one"].append(seconds((*CURATE, *words, "one", "--out", folder / f"one{number}")))
    note = f"{size:,.0f} MB kept in {len(tars)} shards, of {SHARDS} shards of {PER_SHARD:,}"
    shares = {
        name: [100 * copied / ours for ours, copied in zip(took[name], took["copy"], strict=True)]
        for name in ("plain", "shuffled")
    }
    figures = [
        median("subset against cp and sync", shares["plain"], "%", OF_COPY, SAID, at_least=True, note=note),
        median(
            "shuffled, against cp and sync",
            shares["shuffled"],
            "%",
            OF_COPY_SHUFFLED,
            f"{SAID} --shuffle",
            at_least=True,
        ),
        median("subset", [size / t for t in took["plain"]], "MB/s", None, SAID),
        median("subset, shuffled", [size / t for t in took["shuffled"]], "MB/s", None, f"{SAID} --shuffle"),
        median(
            "cp and sync", [size / t for t in took["copy"]], "MB/s", None, "cp KEPT/*.tar COPY; sync COPY/*.tar"
        ),
        Figure("read from the disk, of the kept bytes", reads[0] / size / 1e6, "times", READS, SAID),
        Figure("read by calls, of the kept bytes", reads[1] / size / 1e6, "times", READS, SAID, note="with code"),
        median("subset of one sample", took["one"], "s", None, SAID, note="start-up and plan"),
    ]
    peer = resharder(pool, folder)
    if peer is not None:
        times = [peer / ours for ours in took["plain"]]
        figures.append(
            median(
                "resharder.py, wall clock of ours", times, "times", TIMES, SAID, at_least=True, note=f"{peer:.3g} s"
            )
        )
    return figures


def settle(folder: Path) -> None:
    """Wait until nothing of what was written before is still on its way to the disk."""
    seconds(("sync", "-f", folder))
    time.sleep(0.2)


def evict(pool: Path) -> None:
    """Have the page cache forget the pool."""
    seconds(("sync", "-f", pool))
    for path in pool.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def bring_back(pool: Path) -> None:
    """Have the page cache hold the pool, as far as it can."""
    for path in sorted((pool / "shards").glob("*.tar")):
        with path.open("rb", buffering=0) as stream:
            while stream.read(1 << 22):
                pass


def read_of(words: Sequence[str | Path], told: Path) -> tuple[int, int]:
    """Bytes that the command with these words has read: from the disk, and by calls, Python's code among them."""
    seconds((sys.executable, "-c", ACCOUNT, told, *words))
    account = dict(line.split(": ") for line in told.read_text().splitlines())
    return int(account["read_bytes"]), int(account["rchar"])


def resharder(pool: Path, folder: Path) -> float | None:
    """Seconds that DataComp's resharder takes for the same subset, or None where it is not there."""
    checkout, python = os.environ.get("DATACOMP"), os.environ.get("PEER_PYTHON")
    if not checkout or not python:
        sys.stderr.write(
            "resharder.py is left out: $DATACOMP and $PEER_PYTHON name its checkout and a Python for it\n"
        )
        return None
    out = folder / "theirs"
    out.mkdir()
    uids = pool / "selections/tenth/uids.npy"
    workers = str(len(os.sched_getaffinity(0)))
    words = (
        python,
        "-c",
        THEIRS,
        Path(checkout) / "resharder.py",
        "-i",
        pool / "shards",
        "-o",
        out,
        "-s",
        uids,
        "-j",
        workers,
    )
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    began = time.perf_counter()
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=env, check=False)
    took = time.perf_counter() - began
    written = sum(json.loads(p.read_text())["successes"] for p in out.glob("*_stats.json"))
    wanted = round(FRACTION * SHARDS * PER_SHARD)
    if written != wanted:
        raise RuntimeError(f"resharder.py wrote {written:,} of {wanted:,}\n{done.stdout}{done.stderr}")
    shutil.rmtree(out)
    return took


def make_pool(folder: Path, seed: int = 0) -> None:
    """A pool as `curate download` leaves it; the pictures do not decode."""
    chance = Random(seed)
    for shard in range(SHARDS):
        name = f"{shard:08d}"
        output = Output(DOWNLOAD_STAGE, 1, name, folder / "shards", {"bench": [shard, seed]})
        tar = TarWriter(output.open(f"{name}.tar"))
        samples = [_sample(chance, name, row) for row in range(PER_SHARD)]
        for sample in samples:
            picture = b"\xff\xd8\xff" + chance.randbytes(IMAGE_BYTES - 5) + b"\xff\xd9"
            members = [
                ("jpg", picture),
                ("txt", sample["caption"].encode()),
                ("json", json.dumps(sample, indent=4).encode()),
            ]
            tar.add(sample["key"], members)
        tar.finish()
        write_table(output, f"{name}.parquet", pa.Table.from_pylist(samples))
        write_table(output, f"{name}.index.parquet", tar.index())
        output.write(f"{name}_stats.json", json.dumps({"successes": PER_SHARD}).encode())
        output.commit({"samples": PER_SHARD, "ok": PER_SHARD, "failed": 0})
    write_json(folder / "sources.json", {"format": FORMAT, "sources": []})


def _sample(chance: Random, shard: str, row: int) -> dict[str, Any]:
    return {
        "url": f"http://images.example/{shard}/{row}.jpg",
        "caption": f"picture {row} of shard {shard}, which nobody has seen",
        "uid": chance.randbytes(16).hex(),
        "key": f"{shard}{row:04d}",
        "status": "success",
        "error_message": None,
        "width": 320,
        "height": 240,
        "original_width": 640,
        "original_height": 480,
        "error_code": None,
    }
