"""Runs DataComp's own baselines on the made pools and writes what they keep; by hand, with a checkout of its code.

    python -m tests.datacomp.reference CHECKOUT
    python -m tests.datacomp.reference CHECKOUT --language-model FILE --wordnet FOLDER --synsets FILE

The Python must have what DataComp's baselines import (numpy, pandas, torch, fasttext, gcld3, nltk, fsspec, tqdm),
best of the versions in its environment.yml. The first form takes the made-up assets, the second published ones;
each rewrites its part of `expected.json`, or with `--check` says what would change.

Nothing of what decides is replaced. What is: the download of assets (files of here), processes (threads, one after
another), the CUDA device (the CPU), and with NumPy 2 the copy that fastText asks for and no longer gets.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing.dummy
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from . import assets
from .cases import CASES, SCALE, Case
from .expected import FILE, bits, digest
from .metadata import MadePool
from .pools import MAKERS

LIBRARIES = ("numpy", "pandas", "pyarrow", "torch", "fasttext", "gcld3", "nltk")


@dataclass(frozen=True)
class Files:
    """The assets of one set of runs, as DataComp reads them."""

    language_model: Path
    wordnet: Path
    """The folder with WordNet's files."""
    synsets: Path


def main() -> int:
    """Run, then write or compare; 1 if something would change."""
    parser = argparse.ArgumentParser(prog="reference", description="Record what DataComp's code keeps.")
    parser.add_argument("checkout", type=Path, help="folder with DataComp's code")
    parser.add_argument("--language-model", type=Path, help="fastText's, published")
    parser.add_argument("--wordnet", type=Path, help="folder with the files of WordNet 3.0")
    parser.add_argument("--synsets", type=Path, help="the list of ImageNet-21k's WordNet ids")
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    chosen = parser.parse_args()
    given = (chosen.language_model, chosen.wordnet, chosen.synsets)
    if any(given) and not all(given):
        parser.error("the published assets go together: --language-model, --wordnet and --synsets")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = Files(*given) if all(given) else made_up(folder)
        made = {pool: maker() for pool, maker in MAKERS.items()}
        for pool in made.values():
            pool.write(folder / "pools" / pool.name)
        kept = run(chosen.checkout, files, made, folder, [c for c in CASES if c.asset or not all(given)])
    found = {
        name: {"count": len(uids), "sha256": digest(uids), "kept": bits(made[case.pool].uids, uids)}
        for name, (case, uids) in kept.items()
    }
    part = "published" if all(given) else "made_up"
    about = {"made_with": versions(chosen.checkout), "pools": {p.name: p.digest for p in made.values()}}
    if part == "published":
        about["sha256"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in given[::2]}
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    changed = [name for name in found if before.get(part, {}).get("kept", {}).get(name) != found[name]]
    print(f"{len(found)} runs, {len(changed)} unlike those stored", *changed, sep="\n  ")
    if not chosen.check:
        FILE.write_text(json.dumps({**before, part: {**about, "kept": found}}, indent=1) + "\n")
    return int(bool(changed and chosen.check))


def made_up(folder: Path) -> Files:
    """Our own small assets."""
    with zipfile.ZipFile(assets.wordnet(folder / "wordnet.zip")) as packed:
        packed.extractall(folder / "unpacked")
    return Files(
        assets.language_model(folder / "language.bin"),
        folder / "unpacked" / "wordnet",
        assets.synsets(folder / "synsets.txt"),
    )


def versions(checkout: Path) -> dict[str, str]:
    """The commit of DataComp and the versions of what it calls."""
    commit = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {"datacomp": commit, "python": platform.python_version()} | {n: metadata.version(n) for n in LIBRARIES}


def run(
    checkout: Path, files: Files, made: Mapping[str, MadePool], folder: Path, cases: list[Case]
) -> dict[str, tuple[Case, npt.NDArray[np.void]]]:
    """Each case's uid list as DataComp's code writes it."""
    theirs = load(checkout, files, folder)
    kept = {}
    for case in cases:
        target = folder / "kept.npy"
        arguments = SimpleNamespace(
            name=case.baseline,
            metadata_dir=str(folder / "pools" / case.pool),
            save_path=str(target),
            arch=case.arch,
            fraction=case.fraction,
            threshold=case.threshold,
            num_workers=1,
            num_gpus=1,
            batch_size=64,
            image_based_scale=SCALE if "image_based" in case.baseline else None,
        )
        died: list[Any] = []
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], mock.patch.object(threading, "excepthook", died.append):
            theirs.apply_filter(arguments)
        if died:
            raise RuntimeError(f"{case.name}: a worker died: {died[0].exc_value!r}")
        kept[case.name] = case, np.load(target)
    return kept


class Impatient(queue.Queue[Any]):
    """A queue whose readers give up soon: their loop ends when a read has timed out."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block, None if timeout is None else min(timeout, 0.1))


def load(checkout: Path, files: Files, folder: Path) -> Any:
    """DataComp's module of baselines, told where the assets are and to stay in this process and on the CPU."""
    import fasttext
    import nltk
    import torch

    sys.path.insert(0, str(checkout))
    theirs = importlib.import_module("baselines.apply_filter")
    stored = vectors(folder)
    known = {"fasttext": files.language_model, "imagenet21k_wordnet_ids": files.synsets, **stored}
    theirs.download = lambda name, root=None: str(known[name])
    theirs.worker_threadpool = in_turn
    theirs.mp = SimpleNamespace(
        set_start_method=lambda *_, **__: None, Process=multiprocessing.dummy.Process, Queue=Impatient
    )
    corpora = folder / "nltk_data" / "corpora"
    corpora.mkdir(parents=True)
    for file in files.wordnet.iterdir():
        (corpora / "wordnet").mkdir(exist_ok=True)
        (corpora / "wordnet" / file.name).write_bytes(file.read_bytes())
    nltk.data.path[:] = [str(corpora.parent)]
    nltk.download = lambda *_, **__: True
    moved, read = torch.Tensor.to, torch.load
    torch.Tensor.to = lambda self, device, *rest: moved(self, "cpu" if "cuda" in str(device) else device, *rest)
    torch.load = lambda file: read(file, weights_only=False)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        fasttext.FastText.np = SimpleNamespace(array=lambda values, copy: np.asarray(values))
    return theirs


def in_turn(worker: Callable[[Any], Any], join: Callable[[list[Any]], Any], paths: list[Any], workers: int) -> Any:
    """What their pool of processes returns, without processes."""
    return join([worker(path) for path in paths])


def vectors(folder: Path) -> dict[str, Path]:
    """Centroids and ImageNet's vectors in the files that DataComp reads."""
    import torch

    made = {f"{SCALE}_centroids": assets.centroids()}
    made |= {
        f"in1k_clip_vit_l14_{n}": {"image_features": torch.from_numpy(a)} for n, a in enumerate(assets.imagenet())
    }
    for name, held in made.items():
        torch.save(held, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in made}


if __name__ == "__main__":
    sys.exit(main())
