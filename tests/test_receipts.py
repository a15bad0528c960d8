"""Whole files under final names, receipts last; locks that die with their process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curate import receipts, runner, sink
from curate.disk import lock
from curate.errors import Busy, InputError, StopError
from curate.receipts import Output, Receipt, digest, read_receipt, receipt_path, sweep


def made(folder: Path, part: str = "p", text: bytes = b"words", **what: Any) -> Receipt:
    """A part with one whole file and one of clock readings."""
    output = Output("stage", 1, part, folder, what)
    output.write(f"{part}.txt", text)
    output.write(f"{part}.log", str(time.time()).encode(), varies=True)
    return output.commit({"samples": 1, "ok": 1})


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@contextmanager
def elsewhere(work: Callable[..., None], *args: Any) -> Iterator[int]:
    """The process id of another process that has begun `work` (it sends True) and is killed at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *args))
    process.start()
    try:
        assert here.poll(30)
        assert here.recv() is True
        yield process.pid or 0
    finally:
        process.kill()
        process.join()


def _hold(pipe: Any, path: Path) -> None:
    with lock(path):
        pipe.send(True)
        time.sleep(60)


def _write(pipe: Any, folder: Path, name: str) -> None:
    output = Output("stage", 1, "p", folder, {})
    sink = output.open(name)
    sink.write(b"half of it")
    sink.flush()
    pipe.send(True)
    time.sleep(60)


# --- receipts ---------------------------------------------------------------------------------------------


def test_a_receipt_is_read_as_it_was_written(tmp_path: Path) -> None:
    receipt = made(tmp_path, setting=(1, 2), digits="٣")
    assert names(tmp_path) == ["_receipts/p.json", "p.log", "p.txt"]
    found = read_receipt(tmp_path, "p")
    assert found is not None
    assert found.outputs == receipt.outputs
    assert found.counts == {"samples": 1, "ok": 1}
    assert found.fingerprint == receipt.fingerprint == digest({"digits": "٣", "setting": [1, 2]})
    assert found.outputs["p.txt"].sha256 == hashlib.sha256(b"words").hexdigest()
    assert found.outputs["p.txt"].bytes == 5
    assert receipts.receipts(tmp_path) == {"p": found}


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    one = made(tmp_path / "a")
    assert made(tmp_path / "b", other=True).identity == one.identity  # clock readings and settings aside
    assert made(tmp_path / "c", text=b"other").identity != one.identity


def test_what_is_lost_is_missed(tmp_path: Path) -> None:
    receipt = made(tmp_path)
    assert receipt.missing(tmp_path) == []
    (tmp_path / "p.txt").write_bytes(b"word")
    (tmp_path / "p.log").unlink()
    assert receipt.missing(tmp_path) == ["p.txt", "p.log"]
    assert receipt.damage(tmp_path) == {"p.txt": "has 4 of the 5 bytes that were written", "p.log": "is missing"}


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"format": 1, "outputs": {}, "new": 2}', b"null"]
)
def test_a_broken_receipt_is_none(tmp_path: Path, content: bytes) -> None:
    made(tmp_path)
    receipt_path(tmp_path, "p").write_bytes(content)
    assert read_receipt(tmp_path, "p") is None
    assert receipts.receipts(tmp_path) == {}


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    path = receipt_path(tmp_path, "p")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(InputError, match=r"format 2, this version reads up to 1") as error:
        read_receipt(tmp_path, "p")
    assert error.value.hint == "pip install --upgrade curate"


def test_changed_names_what_differs_as_json() -> None:
    assert receipts.changed({"a": (1, 2), "b": 1, "c": None}, {"a": [1, 2], "b": 2, "d": 0}) == ["b", "d"]


def test_remove_part_takes_back_all(tmp_path: Path) -> None:
    made(tmp_path)
    made(tmp_path, "q")
    receipts.remove_part(tmp_path, "p")
    receipts.remove_part(tmp_path, "p")
    assert names(tmp_path) == ["_receipts/q.json", "q.log", "q.txt"]


# --- writing ----------------------------------------------------------------------------------------------


def test_nothing_has_its_final_name_before_the_commit(tmp_path: Path) -> None:
    output = Output("stage", 1, "p", tmp_path, {})
    sink = output.open("a.bin")
    sink.write(b"x" * 10)
    assert names(tmp_path) == ["a.bin.tmp"]
    sink.close()  # as pyarrow does
    sink.write(b"y")
    output.commit({"samples": 0})
    assert (tmp_path / "a.bin").read_bytes() == b"x" * 10 + b"y"
    assert names(tmp_path) == ["_receipts/p.json", "a.bin"]


def test_abandoned_files_leave_no_trace(tmp_path: Path) -> None:
    made(tmp_path, text=b"before")
    output = Output("stage", 1, "p", tmp_path, {})
    output.open("p.txt").write(b"after")
    output.abandon()
    output.abandon()
    assert (tmp_path / "p.txt").read_bytes() == b"before"
    assert names(tmp_path) == ["_receipts/p.json", "p.log", "p.txt"]


def replaced(folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str) -> None:
    """A part of two files that takes the place of an old one, stopped before the renaming to `stop_at`."""
    rename = receipts._rename

    def fail(source: Path, target: Path) -> None:
        if target.name == stop_at:
            raise KeyboardInterrupt
        rename(source, target)

    for text in (b"old", b"new"):
        if text == b"new":
            monkeypatch.setattr(receipts, "_rename", fail)
        output = Output("stage", 1, "p", folder, {"text": text.decode()})
        output.write("a.txt", text + b" a")
        output.write("b.txt", text + b" b")
        try:
            output.commit({"samples": 0})
        except KeyboardInterrupt:
            output.abandon()
    monkeypatch.setattr(receipts, "_rename", rename)


@pytest.mark.parametrize("stop_at", ["a.txt", "b.txt", "p.json"])
def test_a_replacement_that_was_begun_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    replaced(tmp_path, monkeypatch, stop_at)
    assert read_receipt(tmp_path, "p") is None  # the old one would stand for what has begun to change
    sweep(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("a.txt", "b.txt")] == [b"new a", b"new b"]
    receipt = read_receipt(tmp_path, "p")
    assert receipt is not None
    assert receipt.what == {"text": "new"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["_receipts", "a.txt", "b.txt", "p.json"]


def test_a_replacement_that_another_process_finishes_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(tmp_path, monkeypatch, "b.txt")
    (tmp_path / "c.txt.tmp").write_bytes(b"of nobody")
    with lock(tmp_path / "_receipts" / "p.lock"):
        sweep(tmp_path)
        assert not (tmp_path / "c.txt.tmp").exists()
        receipts.finish_replacing(tmp_path, "p")
    assert (tmp_path / "b.txt").read_bytes() == b"new b"
    receipt = read_receipt(tmp_path, "p")
    assert receipt is not None
    assert receipt.what == {"text": "new"}


def test_a_part_is_not_made_of_half_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the lock of a process that died finds the part as that would have left it."""
    replaced(tmp_path, monkeypatch, "b.txt")
    task = runner.Task("p", tmp_path, {"text": "new"}, pytest.fail)
    receipt = runner.execute(lambda *_: None, "stage", 1, task, True)
    assert receipt == read_receipt(tmp_path, "p")
    assert [(tmp_path / name).read_bytes() for name in ("a.txt", "b.txt")] == [b"new a", b"new b"]


def test_a_replacement_that_was_not_begun_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(tmp_path, monkeypatch, "p.replaced")
    sweep(tmp_path)
    receipt = read_receipt(tmp_path, "p")
    assert receipt is not None
    assert receipt.what == {"text": "old"}
    assert [(tmp_path / name).read_bytes() for name in ("a.txt", "b.txt")] == [b"old a", b"old b"]


def test_a_replacement_that_lost_a_file_stands_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(tmp_path, monkeypatch, "b.txt")
    (tmp_path / "b.txt.tmp").write_bytes(b"odd b")
    sweep(tmp_path)
    assert read_receipt(tmp_path, "p") is None
    assert not list((tmp_path / "_receipts").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["_create", "_write", "_fsync"])
def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def full(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(receipts, call, full)
    output = Output("stage", 1, "p", tmp_path, {})

    def make() -> None:
        output.write("a.bin", b"x" * (2 << 20))
        output.commit({"samples": 0})

    with pytest.raises(StopError, match=r"a\.bin(\.tmp)?: (no space left|the disk quota)") as error:
        make()
    output.abandon()
    assert error.value.exit_code == 1
    assert "make room" in (error.value.hint or "")
    assert names(tmp_path) == []


def test_a_write_that_fails_does_not_return_before_its_bytes_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are only lent: whoever wrote them may let go of them then."""
    ends = []
    failed = threading.Event()

    class Slow:
        def update(self, data: Any) -> None:
            failed.wait(5)
            ends.append(len(data))

    def full(*_: Any) -> int:
        failed.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    raw = receipts._open_temporary(tmp_path / "a.bin")
    monkeypatch.setattr(receipts, "_write", full)
    monkeypatch.setattr(raw, "hash", Slow())
    with pytest.raises(StopError):
        raw.write(b"x" * sink.BESIDE)
    assert ends == [sink.BESIDE]
    raw.close()


def test_a_place_that_refuses_is_the_users_affair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(receipts, "_create", refused)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        receipts.write_file(tmp_path / "a.json", b"{}")


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take less than it is given."""
    real = receipts._write
    monkeypatch.setattr(receipts, "_write", lambda fd, data: real(fd, data[:7]))
    receipt = made(tmp_path, text=b"0123456789" * 3)
    assert (tmp_path / "p.txt").read_bytes() == b"0123456789" * 3
    assert receipt.outputs["p.txt"].sha256 == hashlib.sha256(b"0123456789" * 3).hexdigest()


# --- two processes ----------------------------------------------------------------------------------------


def test_a_file_in_the_making_is_left_alone(tmp_path: Path) -> None:
    with elsewhere(_write, tmp_path, "a.bin") as pid:
        assert receipts.sweep(tmp_path) == 0
        output = Output("stage", 1, "q", tmp_path, {})
        with pytest.raises(Busy, match=r"a\.bin: is being written by another process"):
            output.open("a.bin")
        assert (tmp_path / "a.bin.tmp").read_bytes() == b"half of it"
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while receipts.sweep(tmp_path) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert names(tmp_path) == []


def test_of_two_writers_of_a_small_file_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second opens the first one's temporary file: it may neither empty it nor write into it."""
    target, fsync = tmp_path / "latest.json", receipts._fsync
    inside: list[bytes] = []

    def second_comes(fd: int) -> None:
        fsync(fd)
        monkeypatch.setattr(receipts, "_fsync", fsync)
        other = receipts._create(target.with_name("latest.json.tmp"))
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        inside.append(target.with_name("latest.json.tmp").read_bytes())
        os.close(other)

    monkeypatch.setattr(receipts, "_fsync", second_comes)
    receipts.write_file(target, b"first")
    assert inside == [b"first"]
    assert target.read_bytes() == b"first"
    receipts.write_file(target, b"2nd")
    assert target.read_bytes() == b"2nd"
    assert names(tmp_path) == ["latest.json"]


def _write_often(pipe: Any, path: Path, word: str, times: int) -> None:
    pipe.send(True)
    for _ in range(times):
        receipts.write_json(path, {"word": word * 1000})
    pipe.send(True)
    time.sleep(60)


def test_a_pointer_is_whole_whoever_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    receipts.write_json(path, {"word": ""})
    with elsewhere(_write_often, path, "a", 60), elsewhere(_write_often, path, "b", 60):
        for _ in range(100):
            assert json.loads(path.read_text())["word"][:1] in ("", "a", "b", "c")
            receipts.write_json(path, {"word": "c"})
            receipts.sweep(tmp_path)


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "_receipts" / "p.lock"
    with elsewhere(_hold, path) as pid:
        with pytest.raises(Busy, match=rf"_receipts/p: is being written by process {pid} on ") as error, lock(path):
            pytest.fail("two hold it")
        assert error.value.exit_code == 2
        assert receipts.sweep(tmp_path) == 0
        os.kill(pid, signal.SIGKILL)
        with lock(path, wait=True):
            assert path.exists()
    assert not path.exists()


def test_a_lock_is_held_once_the_holder_before_has_removed_it(tmp_path: Path) -> None:
    path = tmp_path / "p.lock"
    with lock(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(Busy), lock(path):
            pytest.fail("two hold it")
    with lock(path), pytest.raises(ZeroDivisionError), lock(tmp_path / "q.lock"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_sweep_takes_what_dead_processes_left(tmp_path: Path) -> None:
    made(tmp_path)
    for name in ("a.tmp", "_receipts/p.json.tmp", "_receipts/p.lock"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "b.tmp").mkdir()
    (tmp_path / "b.tmp" / "c").write_bytes(b"half")
    assert receipts.sweep(tmp_path) == 4
    assert names(tmp_path) == ["_receipts/p.json", "p.log", "p.txt"]
    assert receipts.sweep(tmp_path / "nowhere") == 0
