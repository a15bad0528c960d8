"""The local engine: every call answered once, whatever becomes of the process that runs it."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from curate.engines import local, worker
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


def results(todo: list[Call], workers: int, tick: Any = None, **options: Any) -> dict[int, Result]:
    """Index to result; every call is answered once."""
    found = list(run(todo, workers=workers, tick=tick or Counter(), **options))
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


def test_a_child_of_a_dead_worker_does_not_hide_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOOK", 0.2)
    began = time.monotonic()
    (result,) = run([Call("part 7", calls.leave_a_child, ())], workers=1, tick=Counter())
    assert "exit code 6" in str(result.error)
    assert time.monotonic() - began < 4  # the time that one child takes
    # nor does another worker that has much to say
    todo = [Call("part 7", calls.leave_a_child, ()), Call("part 8", calls.murmur, (4.0, False))]
    assert [result.index for result in run(todo, workers=2, tick=Counter())] == [0, 1]


# --- several calls a worker -------------------------------------------------------------------------------


def test_one_lane_is_the_main_thread(tmp_path: Path) -> None:
    ((_, main, _),) = [r.value for r in results([Call("a", calls.thread, (tmp_path, 1))], 1).values()]
    assert main


def test_lanes_run_at_once_in_threads_of_one_process(tmp_path: Path) -> None:
    todo = [Call(str(n), calls.thread, (tmp_path, 3)) for n in range(3)]
    found = [r.value for r in results(todo, 1, lanes=3).values()]
    assert len({pid for pid, _, _ in found}) == 1
    assert not any(main for _, main, _ in found)
    assert {name for _, _, name in found} == {"lane-0", "lane-1", "lane-2"}


def test_no_more_calls_at_once_than_lanes(tmp_path: Path) -> None:
    todo = [Call(str(n), calls.crowd, (tmp_path, str(n), {}, 0.1)) for n in range(6)]
    assert max(r.value for r in results(todo, 1, lanes=2).values()) == 2


def test_workers_fill_before_lanes(tmp_path: Path) -> None:
    todo = [Call(str(n), calls.thread, (tmp_path, 2)) for n in range(2)]
    assert len({r.value[0] for r in results(todo, 2, lanes=2).values()}) == 2


def test_lanes_without_workers_are_one_after_the_other(tmp_path: Path) -> None:
    todo = [Call(str(n), calls.crowd, (tmp_path, str(n), {}, 0.02)) for n in range(2)]
    assert [r.value for r in results(todo, 0, lanes=2).values()] == [1, 1]


def test_threads_of_this_process_run_at_once_and_tick_in_turn(tmp_path: Path) -> None:
    todo = [Call(str(n), calls.thread, (tmp_path, 3)) for n in range(3)]
    found = [r.value for r in results(todo, 0, threads=3).values()]
    assert {pid for pid, _, _ in found} == {os.getpid()}
    assert not any(main for _, main, _ in found)
    told: list[int] = []

    def tick(done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        before = len(told)
        time.sleep(0.001)
        assert len(told) == before  # nobody else was here meanwhile
        told.append(done)

    squares = [Call(str(n), calls.square, (n,)) for n in range(20)]
    assert {i: r.value for i, r in results(squares, 0, tick, threads=4).items()} == {n: n * n for n in range(20)}
    assert len(told) == 20


def test_threads_end_what_they_are_at_and_begin_no_more(tmp_path: Path) -> None:
    todo = [Call(str(n), calls.crowd, (tmp_path, str(n), {}, 0.05)) for n in range(8)]
    ran = run(todo, workers=0, threads=2, tick=Counter())
    next(ran)
    ran.close()
    assert len(list(tmp_path.iterdir())) < 8


@pytest.mark.parametrize("lanes", [1, 3])
def test_many_threads_may_talk(lanes: int, caplog: pytest.LogCaptureFixture) -> None:
    tick = Counter()
    results([Call(w, calls.chatter, (w, 40)) for w in "abc"], 1, tick, lanes=lanes)
    assert tick.done == 3 * 2 * 40
    assert tick.news == {"a": 40.0, "b": 40.0, "c": 40.0}
    assert len([r for r in caplog.records if r.name == "curate.test"]) == 3 * 2 * 40


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_goes_wrong_in_a_lane_is_its_call_s_alone(lanes: int) -> None:
    todo = [
        Call("a", calls.refuse, ("bug",)),
        Call("b", calls.unpicklable, ()),
        Call("c", calls.refuse, ("pipe",)),
        Call("d", calls.square, (3,)),
    ]
    found = results(todo, 1, lanes=lanes)
    assert [str(found[n].error).splitlines()[-1].split(": ")[0] for n in (0, 2)] == [
        "ZeroDivisionError",
        "BrokenPipeError",
    ]
    assert isinstance(found[1].error, UnexpectedError)
    assert found[3].value == 9


def test_a_call_that_leaves_takes_its_process_along() -> None:
    found = results([Call("part 7", calls.leave_politely, ()), Call("b", calls.square, (3, 0.1))], 1, lanes=2)
    assert "part 7: its worker died 3 times" in str(found[0].error)
    assert found[1].value == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killer_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    """Those who ran beside it are tried again by themselves, and lose no more than one try."""
    tick, names = Counter(), [str(n) for n in range(5)]
    todo = [Call(n, calls.crowd, (tmp_path, n, {"1": "kill"})) for n in names]
    found = results(todo, workers, tick, lanes=3)
    assert str(found[1].error) == "1: its worker died 3 times (signal SIGKILL)"
    assert isinstance(found[1].error, PartError)
    others = [n for n in names if n != "1"]
    assert all(found[int(n)].error is None for n in others)
    tries = {n: len(list(tmp_path.glob(f"{n}.*"))) for n in names}
    assert tries["1"] == TRIES
    assert max(tries[n] for n in others) == 2
    assert all(found[int(n)].value == 1 for n in others if tries[n] == 2)  # by itself
    # what the dead had told was taken back, of their neighbours too
    assert tick.done == len(others)
    assert {k: v for k, v in tick.news.items() if v} == {**{f"name:{n}": 1 for n in others}, "all": 8}
    assert caplog.text.count("its worker died (signal SIGKILL); trying again") == sum(tries.values()) - 4 - 1


def test_two_killers_cost_nobody_else(tmp_path: Path) -> None:
    todo = [Call(n, calls.crowd, (tmp_path, n, {"0": "kill", "2": "kill"})) for n in "0123"]
    found = results(todo, 1, lanes=4)
    assert [type(found[n].error) for n in range(4)] == [PartError, type(None), PartError, type(None)]
    assert len(list(tmp_path.iterdir())) == 3 + 2 + 3 + 2


def test_a_record_in_the_middle_of_a_message_waits_for_its_end() -> None:
    """A finalizer may log while its thread sends."""

    class Pipe:
        sent: ClassVar[list[Any]] = []

        def send_bytes(self, data: Any) -> None:
            if not self.sent:
                self.sent.append("begun")
                line.send("log", None, "from a finalizer")
            self.sent.append(pickle.loads(data))

    line = worker._Line(Pipe())  # type: ignore[arg-type]
    line.send("tick", 4, (1, 0, None))
    assert Pipe.sent == ["begun", ("tick", 4, (1, 0, None)), ("log", None, "from a finalizer")]


# --- silence ----------------------------------------------------------------------------------------------


def test_a_silent_call_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    todo = [Call("part 7", calls.hush, (1.2,)), Call("part 8", calls.murmur, (1.2, False))]
    found = results(todo, 2, quiet=0.5)
    assert [found[n].value for n in range(2)] == ["done", "done"]
    (said,) = caplog.messages
    assert re.fullmatch(r"part 7: has told nothing for 0\.[5-9] s", said)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("aloud", [True, False])
def test_a_sign_of_life_is_enough(lanes: int, aloud: bool) -> None:
    todo = [Call(f"part {n}", calls.murmur, (1.5, aloud)) for n in range(2)]
    assert {r.value for r in results(todo, 1, lanes=lanes, dead=1.0).values()} == {"done"}


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_call_that_hangs_is_tried_again(tmp_path: Path, lanes: int, caplog: pytest.LogCaptureFixture) -> None:
    tick = Counter()
    (result,) = results([Call("part 7", calls.hush, (60, tmp_path))], 1, tick, lanes=lanes, dead=0.8).values()
    assert result.value == "done"
    assert (tick.done, tick.failed, tick.news) == (0, 0, {"code:dns": 0})
    assert caplog.messages == ["part 7: its worker died (killed after 0.8 s without a word); trying again"]


def test_a_call_that_always_hangs_fails_and_its_neighbours_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    todo = [Call(n, calls.crowd, (tmp_path, n, {"0": "hang"}, 1.5 if n == "1" else 0.1)) for n in "012"]
    found = results(todo, 1, lanes=2, dead=0.8)
    error = found[0].error
    assert isinstance(error, PartError)
    assert str(error) == "0: its worker died 3 times (killed after 0.8 s without a word)"
    assert "hangs" in (error.hint or "")
    assert (found[1].error, found[2].error) == (None, None)
    assert caplog.messages.count("1: starts again, for its worker was ended with 0") == 1
    assert "1: its worker died" not in caplog.text


def test_a_group_that_was_stopped_was_not_silent(tmp_path: Path) -> None:
    """Ctrl-Z stops the parent and its workers; whoever goes on after an hour has lost nothing."""
    code = (
        "from tests.engines import calls\n"
        "from curate.engines.local import Call, run\n"
        "import pathlib\n"
        f"marks = pathlib.Path({str(tmp_path)!r})\n"
        "todo = [Call('a', calls.crowd, (marks, 'a', {}, 3.0))]\n"
        "print([r.value for r in run(todo, workers=1, tick=lambda *_: None, dead=1.0)])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 20
    while not any(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=20)
    assert out == b"[1]\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.0"]


# --- nothing is left behind -------------------------------------------------------------------------------


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


BOTH = pytest.mark.parametrize(("workers", "lanes"), [(2, 1), (1, 2)])


@BOTH
def test_workers_die_with_a_killed_parent(tmp_path: Path, workers: int, lanes: int) -> None:
    process = calls.parent(tmp_path, workers, lanes)
    assert len(alive(tmp_path)) == workers
    process.kill()
    process.communicate()
    assert none_left(tmp_path)


@BOTH
def test_an_interrupt_ends_the_workers(tmp_path: Path, workers: int, lanes: int) -> None:
    process = calls.parent(tmp_path, workers, lanes)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    _, err = process.communicate(timeout=10)
    assert none_left(tmp_path)
    # the parent says so, once; the workers say nothing
    assert err.decode().count("KeyboardInterrupt") == 1


@pytest.mark.parametrize(("workers", "lanes"), [(2, 1), (1, 3), (2, 2)])
def test_a_consumer_that_stops_ends_the_workers(tmp_path: Path, workers: int, lanes: int) -> None:
    todo = [Call("quick", calls.square, (2,)), *(Call("slow", calls.wait_for_ever, (tmp_path,)) for _ in range(2))]
    found = run(todo, workers=workers, tick=Counter(), lanes=lanes)
    assert next(found).value == 4
    found.close()  # type: ignore[attr-defined]
    assert none_left(tmp_path)
