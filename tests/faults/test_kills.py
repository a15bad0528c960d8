"""The real commands, stopped from outside at any moment: the same command again ends in the same bytes.

`test_crash` stops a stage at every call to the disk; here whole commands with all their processes meet SIGKILL,
SIGINT, the death of a worker, a second command, a full disk.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from curate.demo import scenes
from curate.demo.blemishes import encoded
from curate.demo.server import Behaviour, serve_apart, write_behaviours
from tests.faults.driver import contents, half_made
from tests.programs import PATIENCE, living, run, start

PHOTOS, PER_SHARD = 90, 30
SLOW = 0.3
"""Seconds that some of the pictures take: a download then lasts long enough to be hit."""


@dataclass(frozen=True)
class Stage:
    """One command, and the folder whose appearance says that it has begun to write."""

    words: tuple[str, ...]
    begins: str
    markers: frozenset[str] = field(default_factory=frozenset)
    """Whole files that say what is under way, and so may differ from the end's."""


STAGES: Mapping[str, Stage] = {
    "download": Stage(
        (
            *("download", "--source", "list.csv", "--allow-private-hosts", "--image-size", "160"),
            *("--samples-per-shard", str(PER_SHARD), "--workers", "2"),
        ),
        "pool/shards",
    ),
    "embed": Stage(("embed", "--model", "tiny"), "pool/embeddings", frozenset({"model.json"})),
    "filter": Stage(
        ("filter", "--rule", "clipscore:top=0.8", "--rule", "dedup:model=tiny", "--rule", "concepts:target=9"),
        "pool/scores",
    ),
    "subset": Stage(
        ("subset", "--scale", "debug", "--samples-per-shard", "20", "--workers", "2"),
        "subset",
        frozenset({"subset.json"}),
    ),
}
EMBED = pytest.param("embed", marks=pytest.mark.slow)
"""Seconds of start-up alone, each time."""


@dataclass(frozen=True)
class Unbroken:
    """What a stage starts from, what it ends with when nothing happens, and for how long it writes."""

    stage: Stage
    start: Path
    before: dict[str, str]
    whole: dict[str, str]
    seconds: float

    def copy(self, folder: Path) -> Path:
        """A folder to run the stage in."""
        shutil.copytree(self.start, folder, dirs_exist_ok=True)
        return folder

    def check_nothing_half_made(self, folder: Path) -> None:
        assert half_made(folder, self.before, self.whole, self.stage.markers) == []

    def check_again(self, folder: Path) -> None:
        """The same command ends well, and leaves what an unbroken run leaves."""
        done = run(*self.stage.words, cwd=folder)
        assert done.returncode == 0, done.stderr
        self.check_whole(folder)

    def check_whole(self, folder: Path) -> None:
        after = contents(folder)
        assert sorted(after) == sorted(self.whole)
        assert [name for name in after if after[name] != self.whole[name]] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Unbroken]]:
    """Every stage run once, each on what the one before it left; the pictures are served all the while."""
    base = tmp_path_factory.mktemp("kills")
    web, folder = base / "web", base / "run"
    web.mkdir()
    folder.mkdir()
    captions = draw(web)
    with serve_apart(web) as hosts:
        lines = [f"{hosts[0]}/{n}.jpg,{caption}\n" for n, caption in enumerate(captions)]
        (folder / "list.csv").write_text("url,text\n" + "".join(lines))
        yield run_unbroken(STAGES, folder)


def run_unbroken(stages: Mapping[str, Stage], folder: Path) -> dict[str, Unbroken]:
    """Every stage run once in `folder`, each on what the one before it left; what each started from lies beside."""
    found = {}
    for name, stage in stages.items():
        before = folder.with_name(f"before-{name}")
        shutil.copytree(folder, before)
        process, began = begun(stage, folder)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        last = max(p.stat().st_mtime for p in folder.rglob("*") if p.is_file())
        found[name] = Unbroken(stage, before, contents(before), contents(folder), max(last - began, 0.0))
    return found


def draw(web: Path) -> list[str]:
    """Pictures for the server, some of them slow, gone or no pictures; their captions."""
    captions = []
    does = {}
    for number in range(PHOTOS):
        picture, scene = scenes.render(number, (100, 240))
        (web / f"{number}.jpg").write_bytes(encoded(picture, 90))
        captions.append(scene.caption.replace(",", ""))
        if number % 10 == 3:
            does[f"/{number}.jpg"] = Behaviour(delay=SLOW)
    does["/7.jpg"] = Behaviour(status=404)
    (web / "40.jpg").write_bytes(b"<html>no picture</html>")
    write_behaviours(web, does)
    return captions


def begun(stage: Stage, folder: Path) -> tuple[subprocess.Popen[str], float]:
    """The stage's command as soon as it writes, or is at its end; and the time."""
    process = start(*stage.words, cwd=folder)
    while not (folder / stage.begins).exists() and process.poll() is None:
        time.sleep(0.002)
    return process, time.time()


def check_all_ended(group: int) -> None:
    """No process outlives its parent for long."""
    patience = time.monotonic() + 10
    while living(group) and time.monotonic() < patience:
        time.sleep(0.02)
    left = living(group)
    if left:
        os.killpg(group, signal.SIGKILL)
    assert left == []


def stop(
    job: Unbroken, folder: Path, fraction: float, blow: Callable[[subprocess.Popen[str]], object]
) -> tuple[int, str]:
    """Strike the stage's command after this fraction of the time for which it writes; exit code and stderr."""
    process, _ = begun(job.stage, folder)
    time.sleep(fraction * job.seconds)
    blow(process)
    _, said = process.communicate(timeout=PATIENCE)
    check_all_ended(process.pid)
    return process.returncode, said


# --- SIGKILL of the parent --------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.3])
@pytest.mark.parametrize("name", STAGES)
def test_killed_and_run_again(unbroken: dict[str, Unbroken], tmp_path: Path, name: str, fraction: float) -> None:
    kill_and_run_again(unbroken[name], tmp_path, fraction)


SEEDED = random.Random(2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fraction", [round(SEEDED.random(), 3) for _ in range(10)])
@pytest.mark.parametrize("name", STAGES)
def test_killed_at_many_moments(unbroken: dict[str, Unbroken], tmp_path: Path, name: str, fraction: float) -> None:
    kill_and_run_again(unbroken[name], tmp_path, fraction)


def kill_and_run_again(job: Unbroken, folder: Path, fraction: float) -> None:
    for attempt in range(4):
        copy = job.copy(folder / str(attempt))
        # a run can be faster than the one that was timed: then the blow comes too late, and is tried earlier
        code, said = stop(job, copy, fraction / 2**attempt, lambda process: process.kill())
        if code == -signal.SIGKILL:
            break
        assert code == 0, said
    else:
        pytest.fail("every run ended before it was killed")
    job.check_nothing_half_made(copy)
    job.check_again(copy)


# --- Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["download", EMBED])
def test_interrupted_and_run_again(unbroken: dict[str, Unbroken], tmp_path: Path, name: str) -> None:
    job = unbroken[name]
    folder = job.copy(tmp_path)
    # a terminal sends it to all processes of the command
    code, said = stop(job, folder, 0.3, lambda process: os.killpg(process.pid, signal.SIGINT))
    assert code == 130
    assert "curate: interrupted; the same command goes on where this one stopped" in said
    assert "Traceback" not in said
    job.check_nothing_half_made(folder)
    assert not list(folder.rglob("*.tmp"))
    job.check_again(folder)


# --- death of a worker ------------------------------------------------------------------------------------


def test_a_killed_worker_costs_nothing(unbroken: dict[str, Unbroken], tmp_path: Path) -> None:
    job = unbroken["download"]
    folder = job.copy(tmp_path)
    process, _ = begun(job.stage, folder)
    patience = time.monotonic() + 20
    while not (writing := writers(process.pid, folder / "pool" / "shards")) and time.monotonic() < patience:
        time.sleep(0.002)
    os.kill(writing[0], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "its worker died (signal SIGKILL); trying again" in said
    check_all_ended(process.pid)
    job.check_whole(folder)


def writers(group: int, folder: Path) -> list[int]:
    """The processes of a group, its leader left out, that have a file of this folder open."""
    found = []
    for pid in living(group):
        try:
            opened = [descriptor.readlink() for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if pid != group and any(p.is_relative_to(folder) for p in opened):
            found.append(pid)
    return found


# --- two at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["download", EMBED, "filter", "subset"])
def test_the_same_command_twice_at_once(unbroken: dict[str, Unbroken], tmp_path: Path, name: str) -> None:
    job = unbroken[name]
    folder = job.copy(tmp_path)
    both = [start(*job.stage.words, cwd=folder) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    for code, text in zip(codes, said, strict=True):
        assert code in (0, 2), text
        assert "Traceback" not in text
        if code == 2:
            assert "is being written by process" in text
            assert "hint: wait for it to end" in text
    job.check_whole(folder)


# --- full disk --------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A disk of `size` bytes at `folder`, and what makes it another size."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(mount(folder, f"size={size}"), capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield lambda other: subprocess.run(mount(folder, f"remount,size={other}"), check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(folder: Path, options: str) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]


def blocks(folder: Path) -> int:
    """Bytes that the files of a folder take on a disk of 4 KiB pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", ["download", EMBED, "filter", "subset"])
def test_a_full_disk_stops_the_run(unbroken: dict[str, Unbroken], tmp_path: Path, name: str) -> None:
    job = unbroken[name]
    room = {"download": 400_000, "embed": 30_000, "filter": 12_000, "subset": 200_000}[name]
    with small_disk(tmp_path / "disk", blocks(job.start) + room) as resize:
        folder = job.copy(tmp_path / "disk")
        done = run(*job.stage.words, cwd=folder)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "no space left on the device" in done.stderr
        assert "hint: make room and run the same command again" in done.stderr
        assert "Traceback" not in done.stderr
        job.check_nothing_half_made(folder)
        assert not list(folder.rglob("*.tmp"))
        resize(64 << 20)
        job.check_again(folder)
