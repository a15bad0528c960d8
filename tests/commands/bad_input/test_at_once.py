"""Two commands that would write the same: the second waits, or refuses and says who holds it."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from curate import disk, receipts
from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import curate
from tests.pools import make_pool

HERE = ("--workers", "0")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_pool(Path("pool"))
    return Path("pool")


def test_a_selection_of_one_name(pool: Path) -> None:
    rule = ("filter", "--rule", "random:n=2", "--name")
    succeeded(curate(*rule, "mine"))
    folder = pool / "selections" / "mine"
    with disk.lock(folder / "selection.lock"):
        before = contents(pool)
        ran = curate(*rule, "mine")
        refused(ran, f"{folder}/selection: is being written by process {os.getpid()} on ", "wait for it to end")
        assert contents(pool) == before
        succeeded(curate(*rule, "another"))
        assert f"process {os.getpid()} on " in curate("status").out
    succeeded(curate(*rule, "mine"))


def test_a_subset_in_one_folder(pool: Path) -> None:
    succeeded(curate("filter", "--rule", "random:n=4"))
    words = ("subset", "--scale", "debug", *HERE)
    succeeded(curate(*words))
    with disk.lock(Path("subset/subset.lock")):
        before = contents(Path("subset"))
        refused(curate(*words), f"subset/subset: is being written by process {os.getpid()} on ", "wait for it")
        assert contents(Path("subset")) == before
        succeeded(curate(*words, "--out", "other"))


@pytest.mark.parametrize("command", [("embed", "--model", "tiny"), ("score", "--rule", "concepts:target=1")])
def test_a_part_is_waited_for(pool: Path, command: tuple[str, ...]) -> None:
    succeeded(curate(*command, *HERE))
    receipt = next(p for p in pool.rglob("_receipts/00000001.json") if p.parts[1] in ("embeddings", "scores"))
    before = contents(receipt.parents[1])
    receipts.remove_part(receipt.parents[1], "00000001")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with disk.lock(receipt.with_suffix(".lock")):
            held.set()
            done.wait(0.5)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(5)
    ran = curate(*command, *HERE)
    assert not done.is_set()
    done.set()
    other.join()
    succeeded(ran)
    assert "00000001: waiting for another process that is writing it" in ran.err
    after = contents(receipt.parents[1])
    assert {k: v for k, v in after.items() if "_receipts" not in k} == {
        k: v for k, v in before.items() if "_receipts" not in k
    }


def test_vectors_of_other_settings(pool: Path) -> None:
    folder = pool / "embeddings" / "tiny"
    succeeded(curate("embed", "--model", "tiny", *HERE))
    before = contents(pool)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # as an embed at work has it
        ran = curate("embed", "--model", "tiny", "--batch", "2", *HERE)
        refused(ran, f"{folder}: is being written with other settings by another process", "wait for it to end")
        assert contents(pool) == before
        succeeded(curate("embed", "--model", "tiny", *HERE))
    finally:
        os.close(fd)
