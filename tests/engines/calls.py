"""Calls that workers of the tests run; spawned processes import them from here."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from curate.errors import InputError, PartError

Tick = Callable[..., None]


def square(tick: Tick, number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    tick(1)
    return number * number


def process_id(tick: Tick, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    return os.getpid()


def speak(tick: Tick, word: str) -> None:
    log = logging.getLogger("curate.test")
    log.warning("%s from %d", word, 7)
    try:
        raise ValueError("caught")
    except ValueError:
        log.exception("with a trace")
    log.debug("not heard")


def die(tick: Tick, marks: Path, times: int, progress: int = 0) -> str:
    """Count `progress`, then be killed, the first `times` times."""
    marks.mkdir(exist_ok=True)
    tries = len(list(marks.iterdir()))
    (marks / str(tries)).touch()
    tick(progress, 1)
    if tries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"try {tries + 1}"


def leave(tick: Tick) -> None:
    os._exit(4)


def leave_politely(tick: Tick) -> None:
    sys.exit(5)


def thread(tick: Tick, marks: Path, present: int) -> tuple[int, bool, str]:
    """Process, whether this is its main thread, and the thread's name, once `present` calls are here at once."""
    (marks / f"{time.monotonic_ns()}-{threading.get_ident()}").touch()
    deadline = time.monotonic() + 20
    while len(list(marks.iterdir())) < present:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    here = threading.current_thread()
    return os.getpid(), here is threading.main_thread(), here.name


_present: list[str] = []
"""The calls of `crowd` that this process runs."""


def crowd(tick: Tick, marks: Path, name: str, deeds: Mapping[str, str], seconds: float = 0.3) -> int:
    """The most calls that this process ran during this one; `deeds` says who kills it, and who hangs."""
    tries = len(list(marks.glob(f"{name}.*")))
    (marks / f"{name}.{tries}").touch()
    _present.append(name)
    most, end = 1, time.monotonic() + seconds
    tick(1, 0, {f"name:{name}": 1, "all": 2})
    while time.monotonic() < end:
        most = max(most, len(_present))
        if deeds.get(name) == "kill" and end - time.monotonic() < seconds / 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        if deeds.get(name) != "hang":
            tick(0)
    if deeds.get(name) == "hang":
        time.sleep(60)
    _present.remove(name)
    return most


def chatter(tick: Tick, word: str, times: int) -> None:
    """Tick and log from two threads, `times` each."""

    def talk() -> None:
        for number in range(times):
            tick(1, 0, {word: 0.5})
            logging.getLogger("curate.test").warning("%s %d %s", word, number, "x" * 3000)

    threads = [threading.Thread(target=talk) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def hush(tick: Tick, seconds: float, marks: Path | None = None) -> str:
    """Say nothing for `seconds`, with `marks` on the first try only."""
    if marks is None or not any(marks.iterdir()):
        if marks is not None:
            (marks / "was here").touch()
        tick(3, 1, {"code:dns": 1})
        time.sleep(seconds)
    return "done"


def murmur(tick: Tick, seconds: float, aloud: bool) -> str:
    """Take `seconds`, with a sign of life now and then: a record of an event loop, or a tick of nothing."""
    import asyncio

    async def speak() -> None:
        logging.getLogger("curate.test").warning("still here")

    loop = asyncio.new_event_loop()
    other = threading.Thread(target=loop.run_forever, daemon=True)
    other.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        if aloud:
            asyncio.run_coroutine_threadsafe(speak(), loop).result()
        else:
            tick(0)
    loop.call_soon_threadsafe(loop.stop)
    other.join()
    loop.close()
    return "done"


def leave_a_child(tick: Tick) -> None:
    """Die, but leave a child for a while that holds all that was open here."""
    if os.fork() == 0:
        time.sleep(4)
    os._exit(6)


def refuse(tick: Tick, kind: str) -> None:
    if kind == "part":
        raise PartError("here", "is broken", hint="mend it")
    if kind == "input":
        raise InputError("there", "is wrong")
    if kind == "pipe":
        raise BrokenPipeError("of its own")
    raise ZeroDivisionError("a bug")


def unpicklable(tick: Tick) -> object:
    return lambda: None


def wait_for_ever(tick: Tick, marks: Path) -> None:
    """Leave this process's id and sleep."""
    (marks / str(os.getpid())).touch()
    time.sleep(60)


def main(marks: Path, workers: int, lanes: int) -> None:
    """A parent of two calls that sleep."""
    from curate.engines.local import Call, run

    calls = [Call(str(n), wait_for_ever, (marks,)) for n in range(2)]
    for _ in run(calls, workers=workers, lanes=lanes, tick=lambda *_: None):
        pass


def parent(marks: Path, workers: int = 2, lanes: int = 1) -> subprocess.Popen[bytes]:
    """`main` in a process of its own, with all of its workers at work."""
    code = f"from tests.engines import calls; calls.main(calls.Path({str(marks)!r}), {workers}, {lanes})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(marks.iterdir())) < workers:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process
