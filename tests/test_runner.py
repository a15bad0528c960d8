"""The runner: what is skipped, redone, counted, waited for and named, over tasks of two small files."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curate import receipts, runner
from curate.disk import lock
from curate.engines.local import Tick
from curate.errors import InputError, PartError, StopError
from curate.receipts import Output, read_receipt, receipt_path
from curate.runner import Summary, Task

VERSION = 1


def write(output: Output, tick: Tick, part: str, deeds: Mapping[str, str]) -> Mapping[str, int]:
    """Two files; `deeds` says of a part what goes wrong with it."""
    output.write(f"{part}.txt", f"{part}\n".encode() * 3)
    output.write(f"{part}.log", str(os.getpid()).encode(), varies=True)
    tick(3, 1)
    deed = deeds.get(part)
    if deed == "broken":
        raise PartError(part, "is broken", hint="mend it")
    if deed == "wrong":
        raise InputError("the setting", "is wrong")
    if deed == "bug":
        raise ZeroDivisionError("a bug")
    if deed == "killed":
        os._exit(9)
    return {"samples": 3, "ok": 1 if deed == "lost" else 2, "failed": 1, "bytes": 6}


def tasks(folder: Path, count: int = 3, *, deeds: Mapping[str, str] | None = None, **what: Any) -> list[Task]:
    names = [f"{n:08d}" for n in range(count)]
    return [Task(n, folder, {"color": "red", **what}, write, (n, deeds or {}), 3) for n in names]


def run(todo: list[Task], workers: int = 0) -> Summary:
    return runner.run("stage", VERSION, todo, workers=workers)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def whole(*parts: str) -> list[str]:
    """The files of these parts, and nothing else."""
    return sorted(n for p in parts for n in (f"_receipts/{p}.json", f"{p}.log", f"{p}.txt"))


# --- skipping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_all_parts_are_done_and_counted(tmp_path: Path, workers: int) -> None:
    summary = run(tasks(tmp_path), workers)
    assert dict(summary.counts) == {"samples": 9, "ok": 6, "failed": 3, "bytes": 18}
    assert (summary.parts, summary.skipped, summary.failed) == (3, 0, {})
    assert names(tmp_path) == whole("00000000", "00000001", "00000002")


def test_what_is_done_is_skipped_and_still_counted(tmp_path: Path) -> None:
    first = run(tasks(tmp_path, 2))
    stamps = {n: (tmp_path / n).stat().st_mtime_ns for n in names(tmp_path)}
    second = run(tasks(tmp_path, 3))
    assert second.skipped == 2
    assert dict(second.counts) == {k: v * 3 // 2 for k, v in first.counts.items()}
    assert list(second.receipts) == ["00000000", "00000001", "00000002"]
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in stamps} == stamps


@pytest.mark.parametrize("loss", ["00000001.txt", "00000001.log", "_receipts/00000001.json"])
def test_what_is_lost_is_done_again(tmp_path: Path, loss: str) -> None:
    run(tasks(tmp_path))
    (tmp_path / loss).unlink()
    assert [t.part for t in runner.pending("stage", VERSION, tasks(tmp_path))] == ["00000001"]
    assert run(tasks(tmp_path)).skipped == 2
    assert len(names(tmp_path)) == 9


def test_what_was_cut_is_done_again(tmp_path: Path) -> None:
    run(tasks(tmp_path))
    (tmp_path / "00000001.txt").write_bytes(b"half")
    assert run(tasks(tmp_path)).skipped == 2
    assert (tmp_path / "00000001.txt").read_bytes() == b"00000001\n" * 3


def test_changed_settings_are_said_aloud_and_redone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tasks(tmp_path))
    with caplog.at_level(logging.WARNING):
        summary = run(tasks(tmp_path, color="blue", size=[1, 2]))
    assert summary.skipped == 0
    assert caplog.messages == ["stage: 3 parts are redone, because these changed: color, size"]
    caplog.clear()
    assert run(tasks(tmp_path, color="blue", size=(1, 2))).skipped == 3  # a tuple is a list once it is written
    assert caplog.messages == []


@pytest.mark.parametrize(("stage", "version"), [("stage", 2), ("other", 1)])
def test_another_stage_or_version_is_redone(tmp_path: Path, stage: str, version: int) -> None:
    run(tasks(tmp_path))
    assert runner.run(stage, version, tasks(tmp_path), workers=0).skipped == 0


def test_neither_place_nor_order_nor_number_count(tmp_path: Path) -> None:
    run(tasks(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert run(list(reversed(tasks(tmp_path / "b")))).skipped == 3
    assert run(tasks(tmp_path / "b", 1)).skipped == 1


def test_leftovers_are_swept(tmp_path: Path) -> None:
    run(tasks(tmp_path))
    for name in ("00000001.txt.tmp", "_receipts/00000001.json.tmp", "_receipts/00000001.lock"):
        (tmp_path / name).write_bytes(b"half")
    run(tasks(tmp_path))
    assert len(names(tmp_path)) == 9


def test_a_receipt_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    run(tasks(tmp_path))
    path = receipt_path(tmp_path, "00000001")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    with pytest.raises(InputError, match="format 9"):
        run(tasks(tmp_path))


# --- failing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failed_part_is_named_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    summary = run(tasks(tmp_path, deeds={"00000001": "broken"}), workers)
    assert summary.counts["samples"] == 6
    assert {n: str(e) for n, e in summary.failed.items()} == {"00000001": "00000001: is broken"}
    assert names(tmp_path) == whole("00000000", "00000002")
    with pytest.raises(PartError, match=r"stage: 1 of 3 parts failed \(00000001\)") as error:
        summary.raise_failed()
    assert (error.value.exit_code, error.value.hint) == (3, "mend it")
    assert run(tasks(tmp_path)).counts["samples"] == 9


def test_a_part_that_fails_again_keeps_nothing_of_before(tmp_path: Path) -> None:
    run(tasks(tmp_path))
    summary = run(tasks(tmp_path, color="blue", deeds={"00000001": "broken"}))
    assert list(summary.failed) == ["00000001"]
    found = read_receipt(tmp_path, "00000001")
    assert found is None or found.what["color"] == "red"  # never the old files under the new settings


def test_counts_that_do_not_add_up_fail_the_part(tmp_path: Path) -> None:
    summary = run(tasks(tmp_path, deeds={"00000002": "lost"}))
    assert str(summary.failed["00000002"]) == ("stage 00000002: lost track of samples (3 in, 1 ok + 1 failed out)")
    assert names(tmp_path) == whole("00000000", "00000001")


def test_a_worker_that_dies_costs_its_part(tmp_path: Path) -> None:
    summary = run(tasks(tmp_path, deeds={"00000001": "killed"}), workers=2)
    assert list(summary.failed) == ["00000001"]
    assert "its worker died 3 times (exit code 9)" in str(summary.failed["00000001"])
    assert [n for n in names(tmp_path) if not n.endswith((".tmp", ".lock"))] == whole("00000000", "00000002")
    assert run(tasks(tmp_path)).skipped == 2
    assert names(tmp_path) == whole("00000000", "00000001", "00000002")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_error_ends_the_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match="the setting: is wrong"):
        run(tasks(tmp_path, deeds={"00000001": "wrong"}), workers)
    assert names(tmp_path) == whole("00000000")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_ends_the_run_with_its_traceback(tmp_path: Path, workers: int) -> None:
    with pytest.raises(Exception, match="a bug"):
        run(tasks(tmp_path, deeds={"00000001": "bug"}), workers)
    assert names(tmp_path) == whole("00000000")


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Wherever the disk is found full, the parts before are whole, and the run goes on from them."""
    real, left = receipts._write, [stop]

    def filling(fd: int, data: memoryview) -> int:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(receipts, "_write", filling)
    with pytest.raises(StopError, match="no space left on the device") as error:
        run(tasks(tmp_path))
    assert error.value.exit_code == 1
    assert not [n for n in names(tmp_path) if n.endswith((".tmp", ".lock"))]
    for receipt in receipts.receipts(tmp_path).values():
        assert receipt.missing(tmp_path) == []
    monkeypatch.setattr(receipts, "_write", real)
    done = (stop - 1) // 3  # three writes a part: two files and the receipt
    assert run(tasks(tmp_path)).skipped == done
    assert len(names(tmp_path)) == 9


# --- others at work ---------------------------------------------------------------------------------------


def test_a_part_that_another_process_writes_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_other_writer, args=(there, tmp_path))
    other.start()
    try:
        assert here.poll(30)
        here.recv()
        with caplog.at_level(logging.WARNING):
            summary = run(tasks(tmp_path))
    finally:
        other.join(10)
    assert caplog.messages == ["stage 00000000: waiting for another process that is writing it"]
    assert dict(summary.counts) == {"samples": 9, "ok": 6, "failed": 3, "bytes": 18}
    # the other one's work is taken as it is
    assert (tmp_path / "00000000.log").read_text() == str(other.pid)
    assert (tmp_path / "00000001.log").read_text() == str(os.getpid())


def _other_writer(pipe: Any, folder: Path) -> None:
    (task, *_) = tasks(folder)
    with lock(receipt_path(folder, task.part).with_suffix(".lock")):
        pipe.send(True)
        time.sleep(0.5)
        output = Output("stage", VERSION, task.part, folder, task.what)
        output.commit(write(output, lambda *_: None, *task.args))


def test_an_outcome_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    for workers, lanes in ((0, 1), (1, 4), (3, 1)):
        runner.run("stage", VERSION, tasks(tmp_path / str(workers), 5), workers=workers, lanes=lanes)
    found = [
        {n: (tmp_path / w / n).read_bytes() for n in names(tmp_path / w) if n.endswith(".txt")}
        for w in ("0", "1", "3")
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 5


def test_check_counts_wants_all_ends() -> None:
    runner.check_counts("here", {"samples": 3, "kept": 1, "dropped": 1, "unjudged": 1, "bytes": 99})
    runner.check_counts("here", {"samples": 0})
    with pytest.raises(PartError, match=r"lost track of samples \(3 in, 1 kept \+ 1 dropped out\)"):
        runner.check_counts("here", {"samples": 3, "kept": 1, "dropped": 1})


def test_a_task_may_be_given_other_settings(tmp_path: Path) -> None:
    (task,) = tasks(tmp_path, 1)
    run([task])
    assert runner.pending("stage", VERSION, [task, replace(task, what={"color": "blue"})]) == [
        replace(task, what={"color": "blue"})
    ]
