"""DataComp's baselines beside ours: the same pool, the same cores, whole commands, one run, and the same bytes.

Wants `DATACOMP`, a checkout of mlfoundations/datacomp, and `PEER_PYTHON`, a Python that can run it, with the nltk
of its environment.yml (later ones know fewer words); without them ours is measured alone. The rules over captions
want the language model, WordNet and the list of synsets, published or others:
`BENCH_ASSETS="fasttext-lid=FILE wordnet=ZIP imagenet21k-synsets=FILE"`, else they are left out. Files are in the
page cache on both sides.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench import CURATE, Figure, median, seconds
from bench.captions import captions
from bench.filter import make_metadata
from bench.memory import most
from curate.uids import UID_DTYPE, sort_order

LARGE, SMALL = 12_816_896, 1_280_000
"""Rows: DataComp's small pool, and a tenth of it. The large one is read once by each side, the small one thrice."""
FRACTION = 0.3
REPEATS = 3
TIMES_LARGE, TIMES_SMALL, OF_SCAN, MEMORY, SORTED = 7.0, 12.0, 6.0, 1.5, 4.0
BASIC_ROWS, BASIC_TIMES = 200_000, 2.5
TEXT_ROWS, TEXT_TIMES = (2_000, 22_000), 50.0
"""Few, for theirs takes a millisecond a caption; the smaller number is taken off, and start-up with it."""
OUR_TEXT_ROWS = (102_000, 902_000)
"""Both so many that processes are started."""
CAPTION_FILES = 4

CLIP = f"datacomp/clip_score:top={FRACTION}"
SCAN = (
    "import sys, polars as pl; "
    "print(pl.scan_parquet(sys.argv[1]).select('uid', 'clip_l14_similarity_score').collect().height)"
)


@dataclass(frozen=True)
class Peer:
    """DataComp's code and a Python for it."""

    checkout: Path
    python: Path

    def clip_score(self, metadata: Path, target: Path) -> float:
        """Seconds of its clip_score."""
        words = ("--name", "clip_score", "--arch", "l14", "--fraction", str(FRACTION))
        return self._seconds((self.checkout / "baselines.py", *words), metadata, target, {})

    def rule(self, name: str, metadata: Path, target: Path, files: Mapping[str, Path]) -> float:
        """Seconds of a rule over captions, with the files that it reads."""
        env = {"FILES": json.dumps({k: str(v) for k, v in files.items()}), "NLTK_DATA": str(files["nltk"])}
        driver = Path(__file__).with_name("datacomp_driver.py")
        return self._seconds((driver, "--name", name), metadata, target, env)

    def _seconds(
        self, words: tuple[str | Path, ...], metadata: Path, target: Path, env: Mapping[str, str]
    ) -> float:
        more = ("--metadata_dir", metadata, "--save_path", target, "--num_workers", len(os.sched_getaffinity(0)))
        command = [str(w) for w in (self.python, *words, *more)]
        about = {**os.environ, **env, "PYTHONPATH": str(self.checkout)}
        began = time.perf_counter()
        done = subprocess.run(command, env=about, cwd=self.checkout, capture_output=True, text=True, check=False)
        took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return took


def measure(folder: Path) -> list[Figure]:
    """clip_score at two sizes, the sort, and the rules over captions."""
    peer = _peer()
    figures = [*_clip_score_large(folder, peer), *_clip_score_small(folder, peer), *_sorting(folder, peer)]
    given = dict(word.split("=", 1) for word in os.environ.get("BENCH_ASSETS", "").split())
    if missing := {"fasttext-lid", "wordnet", "imagenet21k-synsets"} - set(given):
        _say(f"the rules over captions are left out: $BENCH_ASSETS has no {', no '.join(sorted(missing))}")
        return figures
    files = {name: Path(file).resolve() for name, file in given.items()}
    return [*figures, *_basic(folder, peer, files), *_text_based(folder, peer, files)]


def _peer() -> Peer | None:
    checkout, python = os.environ.get("DATACOMP"), os.environ.get("PEER_PYTHON")
    if checkout and python:
        # absolute, not resolved: the Python of a virtual environment is a link
        return Peer(Path(checkout).absolute(), Path(python).absolute())
    _say("what DataComp's code takes is left out: $DATACOMP and $PEER_PYTHON name its checkout and a Python for it")
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"bench.datacomp: {text}\n")


# --- clip_score -------------------------------------------------------------------------------------------


def _clip_score_large(folder: Path, peer: Peer | None) -> list[Figure]:
    """Time, memory and bytes at the size of DataComp's small pool."""
    pool = folder / "large"
    make_metadata(pool / "metadata", LARGE)
    scan = (sys.executable, "-c", SCAN, pool / "metadata" / "*.parquet")
    seconds(scan)  # the files into the page cache
    command = (*CURATE, "filter", "--pool", pool, "--recipe", CLIP, "--name", "ours")
    peak = most(command)
    shutil.rmtree(pool / "selections")
    ours, bare = [], []
    for _ in range(REPEATS):
        shutil.rmtree(pool / "selections", ignore_errors=True)
        ours.append(seconds(command))
        bare.append(seconds(scan))
    said = f"curate filter --recipe {CLIP}"
    note = f"{LARGE:,} rows, decisions written"
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    figures = [
        median("clip_score 12.8M rows", ours, "s", None, said, note=note),
        median("polars scan of two columns", bare, "s", None, "pl.scan_parquet(...).collect()"),
        median("clip_score, of the scan", ratios, "x", OF_SCAN, said),
        Figure("clip_score, most memory", peak / 2**30, "GiB", MEMORY, said, note="RSS of all processes"),
    ]
    if peer:
        took = peer.clip_score(pool / "metadata", folder / "theirs.npy")
        _same(pool, "ours", folder / "theirs.npy")
        figures += _against("clip_score 12.8M rows", [took], ours, TIMES_LARGE, said)
    shutil.rmtree(pool)
    return figures


def _clip_score_small(folder: Path, peer: Peer | None) -> list[Figure]:
    """Where start-up counts."""
    pool = folder / "small"
    make_metadata(pool / "metadata", SMALL)
    command = (*CURATE, "filter", "--pool", pool, "--recipe", CLIP, "--name", "ours")
    seconds(command)
    ours, theirs = [], []
    for _ in range(REPEATS):
        shutil.rmtree(pool / "selections")
        ours.append(seconds(command))
        if peer:
            theirs.append(peer.clip_score(pool / "metadata", folder / "theirs.npy"))
            _same(pool, "ours", folder / "theirs.npy")
    shutil.rmtree(pool)
    said = f"curate filter --recipe {CLIP}"
    figures = [median("clip_score 1.28M rows", ours, "s", None, said)]
    return figures + (_against("clip_score 1.28M rows", theirs, ours, TIMES_SMALL, said) if peer else [])


def _against(name: str, theirs: list[float], ours: list[float], times: float, said: str) -> list[Figure]:
    """DataComp's seconds, and how many times ours they are: run by run, or one of theirs by our median."""
    if len(theirs) != len(ours):
        ours = [statistics.median(ours)] * len(theirs)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return [
        median(f"DataComp's {name}", theirs, "s", None, "baselines.py", note="the same bytes"),
        median(f"{name}, of DataComp's", ratios, "x", times, said, at_least=True),
    ]


def _same(pool: Path, name: str, theirs: Path) -> None:
    """Raise RuntimeError unless both wrote the same file."""
    if (pool / "selections" / name / "uids.npy").read_bytes() != theirs.read_bytes():
        raise RuntimeError(f"{pool}: the uid list of selection {name} is not that of DataComp's code")


def _sorting(folder: Path, peer: Peer | None) -> list[Figure]:
    """Sorting and writing as many uids as DataComp's small pool has, in this process."""
    rng = np.random.default_rng(0)
    drawn: npt.NDArray[np.void] = rng.integers(0, 1 << 64, (LARGE, 2), np.uint64).view(UID_DTYPE)[:, 0]
    began = time.perf_counter()
    np.save(folder / "ours.npy", drawn[sort_order(drawn)])
    ours = time.perf_counter() - began
    figures = [Figure("sorting and writing 12.8M uids", ours, "s", SORTED, "uids.sort_order")]
    if peer:
        began = time.perf_counter()
        drawn.sort()
        np.save(folder / "theirs.npy", drawn)
        figures.append(
            Figure("likewise as DataComp does", time.perf_counter() - began, "s", None, "uids.sort(); np.save")
        )
        if (folder / "ours.npy").read_bytes() != (folder / "theirs.npy").read_bytes():
            raise RuntimeError("the two sorts do not agree")
    for file in folder.glob("*.npy"):
        file.unlink()
    return figures


# --- rules over captions ----------------------------------------------------------------------------------


def _basic(folder: Path, peer: Peer | None, files: Mapping[str, Path]) -> list[Figure]:
    """basic_filter with the language model given."""
    pool = _caption_pool(folder / "basic", BASIC_ROWS)
    ours = [_ours(pool, "basic_filter", files) for _ in range(2)][1:]
    said = "curate filter --recipe datacomp/basic_filter"
    name = f"basic_filter {BASIC_ROWS:,} rows"
    figures = [median(name, ours, "s", None, said)]
    if peer:
        took = peer.rule("basic_filter", pool / "metadata", folder / "theirs.npy", _for_peer(folder, files))
        _same(pool, "basic_filter", folder / "theirs.npy")
        figures += _against(name, [took], ours, BASIC_TIMES, said)
    return figures


def _text_based(folder: Path, peer: Peer | None, files: Mapping[str, Path]) -> list[Figure]:
    """text_based: microseconds a caption, what a small pool takes taken off."""
    took = [_ours(_caption_pool(folder / f"text{n}", n), "text_based", files) for n in OUR_TEXT_ROWS]
    ours = (took[1] - took[0]) / (OUR_TEXT_ROWS[1] - OUR_TEXT_ROWS[0])
    said = "curate filter --recipe datacomp/text_based"
    note = f"{OUR_TEXT_ROWS[1]:,} rows in {took[1]:.1f} s, {OUR_TEXT_ROWS[0]:,} in {took[0]:.1f} s"
    figures = [Figure("text_based, a caption", ours * 1e6, "us", None, said, note=note)]
    if not peer:
        return figures
    times = []
    for n in TEXT_ROWS:
        pool = _caption_pool(folder / f"text{n}", n)
        times.append(peer.rule("text_based", pool / "metadata", folder / "theirs.npy", _for_peer(folder, files)))
        _ours(pool, "text_based", files)
        _same(pool, "text_based", folder / "theirs.npy")
    theirs = (times[1] - times[0]) / (TEXT_ROWS[1] - TEXT_ROWS[0])
    note = f"{TEXT_ROWS[1]:,} rows in {times[1]:.1f} s, {TEXT_ROWS[0]:,} in {times[0]:.1f} s; the same bytes"
    return [
        *figures,
        Figure("DataComp's text_based, a caption", theirs * 1e6, "us", None, "baselines.py", note=note),
        Figure("text_based, of DataComp's", theirs / ours, "x", TEXT_TIMES, said, at_least=True),
    ]


def _ours(pool: Path, rule: str, files: Mapping[str, Path]) -> float:
    """Seconds of a recipe over captions, nothing of it computed before."""
    for made in ("scores", "selections"):
        shutil.rmtree(pool / made, ignore_errors=True)
    known = [f"--asset={name}={file}" for name, file in files.items() if rule == "text_based" or "lid" in name]
    return seconds((*CURATE, "filter", "--pool", pool, "--recipe", f"datacomp/{rule}", "--name", rule, *known))


def _for_peer(folder: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    """The same files by DataComp's names, WordNet unpacked where NLTK looks."""
    nltk = folder / "nltk_data"
    if not nltk.exists():
        with zipfile.ZipFile(files["wordnet"]) as packed:
            packed.extractall(nltk / "corpora")
    return {
        "fasttext": files["fasttext-lid"],
        "imagenet21k_wordnet_ids": files["imagenet21k-synsets"],
        "nltk": nltk,
    }


def _caption_pool(pool: Path, rows: int) -> Path:
    """Metadata of what these rules read, in as many files as keep every core busy; made once."""
    if pool.exists():
        return pool
    (pool / "metadata").mkdir(parents=True)
    rng = np.random.default_rng(rows)
    for number, count in enumerate([rows // CAPTION_FILES] * CAPTION_FILES):
        columns = {
            "uid": [rng.bytes(16).hex() for _ in range(count)],
            "text": captions(rng, count),
            "original_width": rng.integers(100, 3000, count),
            "original_height": rng.integers(100, 3000, count),
        }
        table = pa.table({**columns, "url": [f"https://images.example/{u}.jpg" for u in columns["uid"]]})
        pq.write_table(table, pool / "metadata" / f"{number:032x}.parquet")
    return pool
