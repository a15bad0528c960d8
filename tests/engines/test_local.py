"""The local engine: every call answered once, whatever becomes of the process that runs it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from curate.engines.local import TRIES, Call, Result, UnexpectedError, run
from curate.errors import InputError, PartError
from tests.engines import calls


class Counter:
    """Progress as the runner would count it."""

    def __init__(self) -> None:
        self.done = self.failed = 0
        self.news: dict[str, float] = {}

    def __call__(self, done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        self.done += done
        self.failed += failed
        for name, count in (news or {}).items():
            self.news[name] = self.news.get(name, 0) + count


def results(todo: list[Call], workers: int, tick: Any = None) -> dict[int, Result]:
    """Index to result; every call is answered once."""
    found = list(run(todo, workers=workers, tick=tick or Counter()))
    assert sorted(r.index for r in found) == list(range(len(todo)))
    return {r.index: r for r in found}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_values_come_back_however_many_work(workers: int) -> None:
    tick = Counter()
    todo = [Call(str(n), calls.square, (n,)) for n in range(10)]
    assert {i: r.value for i, r in results(todo, workers, tick).items()} == {n: n * n for n in range(10)}
    assert (tick.done, tick.failed) == (10, 0)


def test_nothing_to_do_starts_nobody() -> None:
    assert list(run([], workers=4, tick=Counter())) == []


def test_results_come_as_they_end() -> None:
    todo = [Call("slow", calls.square, (1, 0.8)), *(Call("fast", calls.square, (n,)) for n in (2, 3))]
    order = [r.index for r in run(todo, workers=2, tick=Counter())]
    assert order[-1] == 0


def test_workers_are_other_processes_and_are_used_again() -> None:
    todo = [Call(str(n), calls.process_id, ()) for n in range(6)]
    pids = {r.value for r in results(todo, 2).values()}
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert {r.value for r in results(todo[:1], 0).values()} == {os.getpid()}


def test_log_records_come_through(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="curate"):
        results([Call("speak", calls.speak, ("hello",))], 1)
    first, second = (r for r in caplog.records if r.name == "curate.test")
    assert first.getMessage() == "hello from 7"
    assert first.levelno == logging.WARNING
    assert "ValueError: caught" in (second.exc_text or "")


# --- exceptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_our_errors_come_back_whole(workers: int) -> None:
    found = results([Call("a", calls.refuse, ("part",)), Call("b", calls.refuse, ("input",))], workers)
    part, wrong = found[0].error, found[1].error
    assert isinstance(part, PartError)
    assert (str(part), part.hint) == ("here: is broken", "mend it")
    assert isinstance(wrong, InputError)


def test_a_bug_in_a_worker_keeps_its_traceback() -> None:
    found = results([Call("a", calls.refuse, ("bug",)), Call("b", calls.square, (3,))], 1)
    assert isinstance(found[0].error, UnexpectedError)
    assert "ZeroDivisionError: a bug" in str(found[0].error)
    assert "calls.py" in str(found[0].error)
    assert found[1].value == 9
    assert isinstance(results([Call("a", calls.refuse, ("bug",))], 0)[0].error, ZeroDivisionError)


def test_a_value_that_cannot_travel_is_an_error_of_its_call() -> None:
    found = results([Call("a", calls.unpicklable, ()), Call("b", calls.square, (3,))], 1)
    assert isinstance(found[0].error, (UnexpectedError, PartError))
    assert found[1].value == 9


# --- death ------------------------------------------------------------------------------------------------


def test_a_killed_worker_s_call_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tick = Counter()
    todo = [Call("part 7", calls.die, (tmp_path / "marks", 1, 5)), Call("other", calls.square, (2,))]
    found = results(todo, 1, tick)
    assert found[0].value == "try 2"
    assert found[1].value == 4
    # what the dead worker had counted was taken back
    assert (tick.done, tick.failed) == (6, 1)
    assert "part 7: its worker died (signal SIGKILL); trying again" in caplog.text


def test_a_call_that_kills_every_worker_fails_by_name(tmp_path: Path) -> None:
    tick = Counter()
    todo = [
        Call("part 7", calls.die, (tmp_path / "marks", 99, 5)),
        *(Call(str(n), calls.square, (n,)) for n in range(4)),
    ]
    found = results(todo, 2, tick)
    error = found[0].error
    assert isinstance(error, PartError)
    assert str(error) == "part 7: its worker died 3 times (signal SIGKILL)"
    assert "out of memory" in (error.hint or "")
    assert len(list((tmp_path / "marks").iterdir())) == TRIES == 3
    assert [found[n].value for n in range(1, 5)] == [0, 1, 4, 9]
    assert (tick.done, tick.failed) == (4, 0)


def test_a_worker_that_leaves_is_dead_too() -> None:
    error = results([Call("part 7", calls.leave, ())], 1)[0].error
    assert isinstance(error, PartError)
    assert str(error) == "part 7: its worker died 3 times (exit code 4)"


def alive(marks: Path) -> list[int]:
    """The processes that left their id and still run."""
    return [int(p.name) for p in marks.iterdir() if Path("/proc", p.name).exists() and not _is_zombie(p.name)]


def _is_zombie(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def none_left(marks: Path, seconds: float = 2.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(marks):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    process = calls.parent(tmp_path)
    assert len(alive(tmp_path)) == 2
    process.kill()
    process.communicate()
    assert none_left(tmp_path)


def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    process = calls.parent(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    _, err = process.communicate(timeout=10)
    assert none_left(tmp_path)
    # the parent says so, once; the workers say nothing
    assert err.decode().count("KeyboardInterrupt") == 1


def test_a_consumer_that_stops_ends_the_workers(tmp_path: Path) -> None:
    todo = [Call("quick", calls.square, (2,)), *(Call("slow", calls.wait_for_ever, (tmp_path,)) for _ in range(2))]
    found = run(todo, workers=2, tick=Counter())
    assert next(found).value == 4
    found.close()  # type: ignore[attr-defined]
    assert none_left(tmp_path)
