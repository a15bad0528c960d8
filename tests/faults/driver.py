"""Stops a stage at each of its calls that change the disk, runs it again, and tells what was wrong.

    python -m tests.faults.driver STAGE FOLDER

Every run is a fork of this process, which itself never works, so that no thread is lost in a fork; it imports
what the first run has imported, so that the others need not. A stop is `os._exit` before the n-th call, or in the
middle of the n-th write: what a SIGKILL leaves. Prints JSON: the calls of an unbroken run, and a list of problems
a stopping point.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from curate import receipts
from tests.faults.stages import STAGES, Stage, serve

CALLS = ("_create", "_write", "_fsync", "_rename", "_fsync_folder")
KILLED = 9
AT_ONCE = 2


# --- in a forked child ------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> int:
    """The process id of a child that does `work`; it exits with 0, or 1 after printing a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    return status_of(forked(work))


def watch(at: Callable[[int, str, tuple[Any, ...]], None]) -> None:
    """Have `at(number, name, arguments)` called before each of the five calls."""
    made = 0

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal made
            at(made, name, args)
            made += 1
            return real(*args)

        return call

    for name in CALLS:
        setattr(receipts, name, watched(name, getattr(receipts, name)))


def run_and_trace(stage: Stage, folder: Path, trace: Path) -> None:
    """An unbroken run; the calls that it made and the modules that it loaded go to `trace`."""
    seen: list[tuple[str, str]] = []

    def note(number: int, name: str, args: tuple[Any, ...]) -> None:
        where = args[0] if isinstance(args[0], Path) else Path(f"/proc/self/fd/{args[0]}").readlink()
        seen.append((name, where.relative_to(folder).as_posix()))

    watch(note)
    stage.run(folder)
    trace.write_text(json.dumps([seen, list(sys.modules)]))


def run_and_stop(stage: Stage, folder: Path, stop: int, *, torn: bool) -> None:
    """A run that ends before its call number `stop`, or with `torn` in the middle of that write."""

    def end(number: int, name: str, args: tuple[Any, ...]) -> None:
        if number == stop:
            if torn:
                os.write(args[0], args[1][: max(len(args[1]) // 2, 1)])
            os._exit(KILLED)

    watch(end)
    stage.run(folder)


# --- what lies on disk ------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    """File to a digest of all in it that may not depend on the run: clock readings are left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if "/logs/" in name:
            continue
        found[name] = _digest(path)
    return found


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.parent.name == receipts.RECEIPTS and path.suffix == ".json":
        raw = json.loads(data)
        del raw["made"]
        for written in raw["outputs"].values():
            if written["varies"]:
                del written["bytes"], written["sha256"]
        return receipts.digest(raw)
    if path.name == "sources.json":
        raw = json.loads(data)
        for entry in raw["sources"]:
            del entry["path"]  # every run has a folder of its own
        return receipts.digest(raw)
    if path.name.endswith(("_stats.json", "_ledger.parquet")):
        return "clock"
    return hashlib.sha256(data).hexdigest()


def half_made(folder: Path, before: dict[str, str], whole: dict[str, str], markers: frozenset[str]) -> list[str]:
    """Final names with anything but their old or their final content, and receipts of what is not there."""
    problems = []
    for name, digest in contents(folder).items():
        if name.endswith((".tmp", ".lock", ".replaced")) or Path(name).name in markers:
            continue
        if digest not in (before.get(name), whole.get(name)):
            problems.append(f"half-made: {name}")
    for path in folder.rglob(f"{receipts.RECEIPTS}/*.json"):
        receipt = receipts.read_receipt(path.parent.parent, path.stem)
        if receipt is None:
            problems.append(f"unreadable receipt: {path.name}")
            continue
        for name, written in receipt.outputs.items():
            output = path.parent.parent / name
            if not output.is_file() or receipts.file_sha256(output) != written.sha256:
                problems.append(f"the receipt {path.name} stands for another {name}")
    return problems


def finished(folder: Path, whole: dict[str, str]) -> dict[str, bytes]:
    """The receipts that are the final ones, with the time at which they were made."""
    names = [n for n, digest in contents(folder).items() if digest == whole.get(n)]
    return {n: (folder / n).read_bytes() for n in names if Path(n).parent.name == receipts.RECEIPTS}


# --- one stopping point -----------------------------------------------------------------------------------


def check(name: str, base: Path, whole: dict[str, str], stop: int, torn: bool) -> list[str]:
    """What is wrong after a stop, and after the same command again."""
    stage, folder = STAGES[name], base / "run" / f"{stop}{'torn' if torn else ''}" / "data"
    shutil.copytree(base / "start", folder)
    before = contents(folder)
    code = in_child(lambda: run_and_stop(stage, folder, stop, torn=torn))
    if code != KILLED:
        return [f"the run that was to be stopped ended with {code}"]
    problems = half_made(folder, before, whole, stage.markers) + stage.problems(folder)
    done = finished(folder, whole)
    if code := in_child(lambda: stage.run(folder)):
        return [*problems, f"the run after it ended with {code}"]
    after = contents(folder)
    problems += [f"{n} is not as after an unbroken run" for n in whole if after.get(n) != whole[n]]
    problems += [f"{n} is left over" for n in after if n not in whole]
    problems += [f"{n} was done a second time" for n in done if (folder / n).read_bytes() != done[n]]
    if not problems:
        shutil.rmtree(folder.parent)
    return problems


def check_into(answer: Path, *args: Any) -> None:
    """`check`, its answer as a file."""
    answer.write_text(json.dumps(check(*args)))


def stops(calls: list[tuple[str, str]]) -> Iterator[tuple[int, bool]]:
    """Every call, and every write a second time, half done."""
    for number, (name, _) in enumerate(calls):
        yield number, False
        if name == "_write":
            yield number, True


def check_all(name: str, base: Path, whole: dict[str, str], calls: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Problems a stopping point, a few points at a time, each in processes of its own."""
    running: dict[int, Path] = {}
    found: dict[str, list[str]] = {}

    def harvest() -> None:
        pid, _ = os.wait()
        answer = running.pop(pid)
        found[answer.stem] = json.loads(answer.read_text()) if answer.is_file() else ["the check itself failed"]

    for stop, torn in stops(calls):
        call, where = calls[stop]
        label = f"{stop} {call} {where}{' torn' if torn else ''}".replace("/", ":")
        answer = base / f"{label}.json"
        running[forked(partial(check_into, answer, name, base, whole, stop, torn))] = answer
        while len(running) >= AT_ONCE:
            harvest()
    while running:
        harvest()
    return found


def main(name: str, base: Path) -> None:
    """Check one stage under the empty folder `base`."""
    start, whole, www = base / "start", base / "whole", base / "www"
    start.mkdir()
    www.mkdir()
    server = forked(lambda: serve(www))
    try:
        print(json.dumps(found(name, base, start, whole)))
    finally:
        os.kill(server, signal.SIGKILL)
        status_of(server)


def found(name: str, base: Path, start: Path, whole: Path) -> dict[str, Any]:
    """The calls of an unbroken run, and the problems of each stop."""
    if in_child(lambda: STAGES[name].prepare(start)):
        raise SystemExit("the start could not be prepared")
    shutil.copytree(start, whole)
    trace = base / "trace.json"
    if in_child(lambda: run_and_trace(STAGES[name], whole, trace)):
        raise SystemExit("the unbroken run failed")
    calls, modules = json.loads(trace.read_text())
    for module in modules:
        with suppress(Exception):  # some are made up at run time
            importlib.import_module(module)
    return {"calls": calls, "problems": check_all(name, base, contents(whole), calls)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
