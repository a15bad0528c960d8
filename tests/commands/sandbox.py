"""Where the manual's commands run: a small web, a small hub and a few files, all on this machine.

The web has sixty rendered pictures, the list's, and six more, one of which comes late. The hub has DataComp's small
pool, as two metadata files with vectors, whose rows are the list's pictures.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fetch.hub_server import serving

SCENES, MORE = 60, 6
LATE_SECONDS = 2.5
"""What the last of the further pictures takes to come."""

GUARDED = ("curate download",)
"""Commands that must be told that the small web is allowed."""


@dataclass(frozen=True)
class Sandbox:
    """The small web and the small hub, while they are served."""

    pictures: Path
    """The folder that the web serves: 0.jpg, 1.jpg, ..."""
    pairs: list[tuple[str, str]]
    """URL and caption of the list's pictures."""
    more: list[tuple[str, str]]
    hub: str

    def fill(self, folder: Path) -> None:
        """Write what a page finds in its folder: list.parquet, list.csv, more.csv, pictures/."""
        import polars as pl

        listed = pl.DataFrame(self.pairs, schema=["url", "caption"], orient="row")
        listed.write_parquet(folder / "list.parquet")
        listed.write_csv(folder / "list.csv")
        pl.DataFrame(self.more, schema=["url", "caption"], orient="row").write_csv(folder / "more.csv")
        (folder / "pictures").mkdir()
        for number in range(5):
            shutil.copy(self.pictures / f"{number}.jpg", folder / "pictures")
            (folder / "pictures" / f"{number}.txt").write_text(self.pairs[number][1], encoding="utf-8")

    def run(self, command: str, folder: Path) -> tuple[int, str]:
        """Exit code and all output of a command line in `folder`."""
        for guarded in GUARDED:
            command = re.sub(rf"\b{guarded}\b", f"{guarded} --allow-private-hosts", command)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment(folder.parent) | {"HF_ENDPOINT": self.hub},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout


def environment(home: Path) -> dict[str, str]:
    """The environment of a user with nothing set, no cache, and no network but this machine's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CURATE_", "XDG_", "HF_"))}
    dead = "http://127.0.0.1:9"
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "http_proxy": dead,
        "https_proxy": dead,
        "no_proxy": "127.0.0.1,localhost",
        "COLUMNS": "200",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@contextmanager
def sandbox(folder: Path) -> Iterator[Sandbox]:
    """The small web, served from `folder`, and the small hub, until the block ends.

    Of the list's pictures two are copies of others, one is small, one is gone.
    """
    from curate.demo import blemishes, scenes
    from curate.demo.plant import SIDES
    from curate.demo.server import Behaviour, serve
    from curate.demo.train import HELD_OUT

    captions = []
    for number in range(SCENES + MORE):
        copied = number % (SCENES - 2) if number < SCENES else number
        image, scene = scenes.render(HELD_OUT + copied, SIDES if number != 7 else (90, 120))
        if number != 11:
            (folder / f"{number}.jpg").write_bytes(blemishes.encoded(image, 90))
        captions.append(scene.caption if copied == number else f"another picture of {scene.caption}")
    late = {f"/{SCENES + MORE - 1}.jpg": Behaviour(delay=LATE_SECONDS)}
    with serve(folder, late) as base, serving() as hub:
        pairs = [(f"{base}/{number}.jpg", caption) for number, caption in enumerate(captions)]
        published: dict[str, bytes] = {}
        for first, name in ((0, "0" * 32), (SCENES // 2, "1" * 32)):
            published |= _published(name, folder, pairs[first : first + SCENES // 2])
        hub.commit("mlfoundations/datacomp_small", published)
        yield Sandbox(folder, pairs[:SCENES], pairs[SCENES:], hub.url)


def _published(name: str, folder: Path, pairs: list[tuple[str, str]]) -> dict[str, bytes]:
    """A metadata file with DataComp's columns, and the npz beside it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [folder / url.rpartition("/")[2] for url, _ in pairs]
    likeness = np.linspace(0.1, 0.4, len(pairs), dtype=np.float32)
    table = {
        "uid": [hashlib.sha256(url.rpartition("/")[2].encode()).hexdigest()[:32] for url, _ in pairs],
        "url": [url for url, _ in pairs],
        "text": [caption for _, caption in pairs],
        "original_width": [320] * len(pairs),
        "original_height": [320] * len(pairs),
        "clip_b32_similarity_score": likeness,
        "clip_l14_similarity_score": likeness,
        "face_bboxes": pa.array([[]] * len(pairs), pa.list_(pa.list_(pa.float64()))),
        "sha256": [hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest() for file in files],
    }
    parquet, npz = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table(table), parquet)
    vectors = np.eye(len(pairs), 768, dtype=np.float16)
    np.savez(npz, l14_img=vectors, l14_txt=vectors)
    return {f"{name}.parquet": parquet.getvalue(), f"{name}.npz": npz.getvalue()}
