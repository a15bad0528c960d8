"""Calls that workers of the tests run; spawned processes import them from here."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def refuse(tick: Tick, kind: str) -> None:
    if kind == "part":
        raise PartError("here", "is broken", hint="mend it")
    if kind == "input":
        raise InputError("there", "is wrong")
    raise ZeroDivisionError("a bug")


def unpicklable(tick: Tick) -> object:
    return lambda: None


def wait_for_ever(tick: Tick, marks: Path) -> None:
    """Leave this process's id and sleep."""
    (marks / str(os.getpid())).touch()
    time.sleep(60)


def main(marks: Path) -> None:
    """A parent of two workers that sleep."""
    from curate.engines.local import Call, run

    calls = [Call(str(n), wait_for_ever, (marks,)) for n in range(2)]
    for _ in run(calls, workers=2, tick=lambda *_: None):
        pass


def parent(marks: Path) -> subprocess.Popen[bytes]:
    """`main` in a process of its own, with both of its workers at work."""
    command = [sys.executable, "-c", f"from tests.engines import calls; calls.main(calls.Path({str(marks)!r}))"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(marks.iterdir())) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process
