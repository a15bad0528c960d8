"""The local engine: calls run in spawned processes of this machine, or in this one.

It knows nothing of parts or stages: it takes picklable calls, keeps every worker busy, passes on their log
records and progress, and starts a call again elsewhere when its worker dies.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from curate.errors import CurateError, PartError

TRIES = 3
"""A call whose worker dies is started at most this often."""

Tick = Callable[[int, int], None]
"""Progress: samples done, samples failed."""


@dataclass(frozen=True)
class Call:
    """A picklable function, called as `function(tick, *args)`."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    """What became of call number `index`: a value or the exception that it ended with."""

    index: int
    value: Any = None
    error: BaseException | None = None


def run(calls: Sequence[Call], *, workers: int, tick: Tick) -> Iterator[Result]:
    """The results of all calls as they end. With `workers` 0 they run here, one after the other.

    Closing the iterator early (also by an exception in its consumer) ends the workers.
    """
    if workers <= 0 or not calls:
        for index, call in enumerate(calls):
            yield _call_here(index, call, tick)
        return
    pool = _Pool(calls, min(workers, len(calls)), tick)
    try:
        yield from pool.results()
    finally:
        pool.close()


def _call_here(index: int, call: Call, tick: Tick) -> Result:
    try:
        return Result(index, call.function(tick, *call.args))
    except Exception as error:
        return Result(index, error=error)


# --- the parent's side ------------------------------------------------------------------------------------


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    index: int | None = None
    owed: int = 0
    """Progress counted for the running call, taken back if it has to start again."""
    owed_failed: int = 0


class _Pool:
    def __init__(self, calls: Sequence[Call], workers: int, tick: Tick) -> None:
        self.calls, self.tick = calls, tick
        self.waiting = deque(range(len(calls)))
        self.tries = [0] * len(calls)
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []
        for _ in range(workers):
            self.workers.append(self._start())

    def _start(self) -> _Worker:
        here, there = self.context.Pipe()
        process = self.context.Process(
            target=_serve, args=(there, os.getpid(), logging.getLogger("curate").getEffectiveLevel()), daemon=False
        )
        with main_module_hidden():
            process.start()
        there.close()
        return _Worker(process, here)

    def results(self) -> Iterator[Result]:
        for worker in self.workers:
            self._feed(worker)
        while any(w.index is not None for w in self.workers):
            ready = wait([w.pipe for w in self.workers if w.index is not None])
            for worker in [w for w in self.workers if w.pipe in ready]:
                result = self._hear(worker)
                if result is not None:
                    yield result

    def _feed(self, worker: _Worker) -> None:
        if self.waiting:
            worker.index = self.waiting.popleft()
            worker.owed = worker.owed_failed = 0
            self.tries[worker.index] += 1
            call = self.calls[worker.index]
            with suppress(BrokenPipeError):  # its death is noticed by the next wait
                worker.pipe.send((call.function, call.args))

    def _hear(self, worker: _Worker) -> Result | None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if kind == "tick":
            worker.owed += content[0]
            worker.owed_failed += content[1]
            self.tick(*content)
            return None
        if kind == "log":
            logging.getLogger(content.name).handle(content)
            return None
        index = worker.index
        assert index is not None
        worker.index = None
        self._feed(worker)
        return Result(index, content) if kind == "value" else Result(index, error=content)

    def _bury(self, worker: _Worker) -> Result | None:
        """The worker died: a new one takes its place, its call waits again or has failed."""
        worker.process.join()
        worker.pipe.close()
        index, code = worker.index, worker.process.exitcode
        assert index is not None
        self.tick(-worker.owed, -worker.owed_failed)
        fresh = self._start()
        self.workers[self.workers.index(worker)] = fresh
        name = self.calls[index].name
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if self.tries[index] < TRIES:
            logging.getLogger("curate").warning("%s: its worker died (%s); trying again", name, cause)
            self.waiting.appendleft(index)
            self._feed(fresh)
            return None
        self._feed(fresh)
        return Result(
            index,
            error=PartError(
                name,
                f"its worker died {TRIES} times ({cause})",
                hint="a worker that is killed is often out of memory: try fewer --workers",
            ),
        )

    def close(self) -> None:
        for worker in self.workers:
            if worker.index is None:
                with suppress(BrokenPipeError, OSError):
                    worker.pipe.send(None)
            else:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


class main_module_hidden:  # noqa: N801 - used as a statement
    """Spawn without running the parent's script again in the child: it has nothing that a call needs.

    The child is born deaf to Ctrl-C, which a terminal sends to it too: it would die of it with a traceback while
    it still imports, and the parent decides what an interrupt means.
    """

    def __enter__(self) -> None:
        resource_tracker.ensure_running()  # would hear the signal again
        self.heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.main = sys.modules["__main__"]
        self.file = getattr(self.main, "__file__", None)
        self.spec = getattr(self.main, "__spec__", None)
        if self.file is not None:
            del self.main.__file__
        self.main.__spec__ = None

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.main.__file__ = self.file
        self.main.__spec__ = self.spec
        signal.pthread_sigmask(signal.SIG_SETMASK, self.heard)


# --- the worker's side ------------------------------------------------------------------------------------


class _Forward(logging.Handler):
    """Sends log records to the parent."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        self.pipe.send(("log", record))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux), also by SIGKILL."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _serve(pipe: Connection, parent: int, level: int) -> None:
    die_with_parent(parent)
    root = logging.getLogger()
    root.handlers[:] = [_Forward(pipe)]
    logging.getLogger("curate").setLevel(level)
    while True:
        try:
            work = pipe.recv()
        except (EOFError, OSError):
            return
        if work is None:
            return
        function, args = work
        try:
            answer = ("value", function(lambda done, failed=0: pipe.send(("tick", (done, failed))), *args))
        except Exception as error:
            answer = ("error", portable(error))
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


def portable(error: BaseException) -> BaseException:
    """`error` as something that survives pickling, its traceback kept as a note in the text."""
    if isinstance(error, CurateError):
        return error
    import traceback

    return UnexpectedError("".join(traceback.format_exception(error)).rstrip())


class UnexpectedError(Exception):
    """A bug in a worker: its text is the worker's traceback."""
