"""The local engine: calls run in spawned processes of this machine, or in this one.

It knows nothing of parts or stages: it takes picklable calls, keeps every worker busy, passes on their log
records and progress, starts a call again elsewhere when its worker dies, and ends a worker whose call says nothing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from curate.engines.worker import UnexpectedError, die_with_parent, keep_freed_memory, portable, serve
from curate.errors import PartError
from curate.progress import span

__all__ = [
    "TRIES",
    "Call",
    "Result",
    "Tick",
    "UnexpectedError",
    "die_with_parent",
    "keep_freed_memory",
    "main_module_hidden",
    "portable",
    "run",
]

TRIES = 3
"""A call whose worker dies is started at most this often."""

LOOK = 5.0
"""Seconds between two looks at the workers, at most."""

log = logging.getLogger("curate")


class Tick(Protocol):
    """Progress: samples done, samples failed, and numbers of any name that add up.

    A call of it is also a sign of life, with zeros too. What a call told before its worker died is taken back with
    negative numbers.
    """

    def __call__(self, done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None: ...


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


def run(
    calls: Sequence[Call],
    *,
    workers: int,
    tick: Tick,
    lanes: int = 1,
    quiet: float | None = None,
    dead: float | None = None,
    threads: int = 1,
) -> Iterator[Result]:
    """The results of all calls as they end; each worker runs up to `lanes` of them at once.

    A call that neither ticks nor logs for `quiet` seconds is named in a warning; after `dead` seconds its worker is
    killed, and it is tried again. With `workers` 0 the calls run in this process, in so many `threads`, and nobody
    watches them. Closing the iterator early (also by an exception in its consumer) ends the workers, and waits for
    threads to end the calls that they are at.
    """
    if workers <= 0 or not calls:
        yield from _in_threads(calls, threads, tick) if threads > 1 < len(calls) else _in_turn(calls, tick)
        return
    pool = _Pool(calls, min(workers, len(calls)), lanes, tick, _Watch(quiet, dead))
    try:
        yield from pool.results()
    finally:
        pool.close()


def _in_turn(calls: Sequence[Call], tick: Tick) -> Iterator[Result]:
    for index, call in enumerate(calls):
        yield _call_here(index, call, tick)


def _in_threads(calls: Sequence[Call], threads: int, tick: Tick) -> Iterator[Result]:
    turn = threading.Lock()

    def tick_in_turn(done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        with turn:
            tick(done, failed, news)

    with ThreadPoolExecutor(min(threads, len(calls))) as pool:
        ends = [pool.submit(_call_here, index, call, tick_in_turn) for index, call in enumerate(calls)]
        try:
            for end in as_completed(ends):
                yield end.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _call_here(index: int, call: Call, tick: Tick) -> Result:
    try:
        return Result(index, call.function(tick, *call.args))
    except Exception as error:
        return Result(index, error=error)


@dataclass(frozen=True)
class _Watch:
    """After how many seconds without a word a call is named, and after how many its worker is killed."""

    quiet: float | None
    dead: float | None

    @property
    def pace(self) -> float:
        """Seconds between two looks."""
        return min([LOOK, *(limit / 4 for limit in (self.quiet, self.dead) if limit is not None)])


@dataclass
class _Running:
    """A call in a worker: what it has told, to be taken back if it has to start again, and when it last spoke."""

    done: int = 0
    failed: int = 0
    news: Counter[str] = field(default_factory=Counter)
    heard: float = field(default_factory=time.monotonic)
    named: bool = False


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    calls: dict[int, _Running] = field(default_factory=dict)
    alone: bool = False
    """It runs one call that may have killed a worker before, and is given no other meanwhile."""
    stuck: int | None = None
    """The call for whose silence it was killed."""


class _Pool:
    """Workers and the calls that wait for them.

    When a worker dies with several calls running, nobody knows which one killed it: all are suspects, and each is
    tried again with a worker to itself. So a call shares at most one death that it did not cause.
    """

    def __init__(self, calls: Sequence[Call], workers: int, lanes: int, tick: Tick, watch: _Watch) -> None:
        self.calls, self.count, self.lanes, self.tick, self.watch = calls, workers, lanes, tick, watch
        self.waiting = deque(range(len(calls)))
        self.suspects: deque[int] = deque()
        self.deaths = [0] * len(calls)
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []

    def _start(self) -> _Worker:
        here, there = self.context.Pipe()
        level = log.getEffectiveLevel()
        process = self.context.Process(target=serve, args=(there, os.getpid(), level, self.lanes), daemon=False)
        with main_module_hidden():
            process.start()
        there.close()
        return _Worker(process, here)

    def results(self) -> Iterator[Result]:
        for _ in range(self.count):
            self.workers.append(self._start())
        self._feed()
        while busy := [w for w in self.workers if w.calls]:
            ready = self._listen(busy)
            for worker in busy:
                if worker.pipe in ready:
                    yield from self._hear(worker)
                elif not worker.process.is_alive() and not worker.pipe.poll():  # a child of it holds the pipe open
                    yield from self._bury(worker)
            self._check()

    def _feed(self) -> None:
        """Give calls to the workers that have room, one each in turn."""
        while sum(map(self._give, self.workers)):
            pass

    def _give(self, worker: _Worker) -> bool:
        if self.suspects and not worker.calls:
            index, worker.alone = self.suspects.popleft(), True
        elif self.waiting and len(worker.calls) < (1 if worker.alone else self.lanes):
            index, worker.alone = self.waiting.popleft(), False
        else:
            return False
        worker.calls[index] = _Running()
        call = self.calls[index]
        with suppress(BrokenPipeError):  # its death is noticed by the next wait
            worker.pipe.send((index, call.function, call.args))
        return True

    def _listen(self, busy: Sequence[_Worker]) -> list[Any]:
        """The pipes that hold a message; none when it is time for another look."""
        began, pace = time.monotonic(), self.watch.pace
        ready = wait([w.pipe for w in busy], pace)
        stopped = time.monotonic() - began - pace
        if stopped > pace:  # the whole group was (Ctrl-Z): that is nobody's silence
            for running in (r for w in busy for r in w.calls.values()):
                running.heard += stopped
        return ready

    def _hear(self, worker: _Worker) -> Iterator[Result]:
        try:
            kind, index, content = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        if index is None and len(worker.calls) == 1:
            (index,) = worker.calls
        running = worker.calls.get(index)
        if running:
            running.heard = time.monotonic()
        if kind == "tick":
            done, failed, news = content
            if running:
                running.done += done
                running.failed += failed
                running.news.update(news or {})
            self.tick(done, failed, news)
        elif kind == "log":
            logging.getLogger(content.name).handle(content)
        else:
            del worker.calls[index]
            self._feed()
            yield Result(index, content) if kind == "value" else Result(index, error=content)

    # --- death --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Name the calls that have told nothing for long, and kill the workers of those that never will."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.stuck is not None or worker.pipe.poll():
                continue  # what waits in the pipe may be a sign of life
            for index, running in worker.calls.items():
                silence = now - running.heard
                if self.watch.dead is not None and silence >= self.watch.dead:
                    worker.stuck = index
                    worker.process.kill()
                    break
                if self.watch.quiet is not None and silence >= self.watch.quiet and not running.named:
                    running.named = True
                    log.warning("%s: has told nothing for %s", self.calls[index].name, span(silence))

    def _bury(self, worker: _Worker) -> Iterator[Result]:
        """The worker died: its calls wait again or have failed, and a new one takes its place if there is work."""
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        cause, hint = (
            _cause(worker.process.exitcode),
            "a worker that is killed is often out of memory: try fewer --workers",
        )
        if worker.stuck is not None:
            cause = f"killed after {span(self.watch.dead or 0)} without a word"
            hint = "look for a disk or a network that hangs; the same command tries again what failed"
        failed = []
        for index, running in worker.calls.items():
            back = {name: -count for name, count in running.news.items()}
            self.tick(-running.done, -running.failed, back or None)
            name = self.calls[index].name
            if worker.stuck not in (None, index):
                log.warning(
                    "%s: starts again, for its worker was ended with %s", name, self.calls[worker.stuck].name
                )
                self.waiting.appendleft(index)
                continue
            self.deaths[index] += 1
            if self.deaths[index] < TRIES:
                log.warning("%s: its worker died (%s); trying again", name, cause)
                (self.suspects if self.lanes > 1 else self.waiting).appendleft(index)
            else:
                what = f"its worker died {TRIES} times ({cause})"
                failed.append(Result(index, error=PartError(name, what, hint=hint)))
        if self.waiting or self.suspects:
            self.workers.append(self._start())
        self._feed()
        yield from failed

    def close(self) -> None:
        for worker in self.workers:
            if not worker.calls:
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


def _cause(code: int | None) -> str:
    """What an exit code says of a death, for people."""
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


_HIDING = threading.RLock()


class main_module_hidden:  # noqa: N801 - used as a statement
    """Spawn without running the parent's script again in the child: it has nothing that a call needs.

    The child is born deaf to Ctrl-C, which a terminal sends to it too: it would die of it with a traceback while
    it still imports, and the parent decides what an interrupt means.
    """

    def __enter__(self) -> None:
        resource_tracker.ensure_running()  # would hear the signal again
        _HIDING.acquire()  # a process has one main module, and may have many threads that spawn
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
        _HIDING.release()
        signal.pthread_sigmask(signal.SIG_SETMASK, self.heard)
