"""A worker process's side of the local engine: it is sent calls and tells of progress, records and ends.

With one lane a call runs in the process's main thread. With more, each lane is a thread that lives as long as the
process: a child process that a call starts, which the kernel ties to the thread that started it, outlives the call.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from curate.errors import CurateError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Of glibc's malloc.h."""

_call: ContextVar[int | None] = ContextVar("_call", default=None)
"""Number of the call that runs here; a task that it hands to an event loop elsewhere carries it along."""


def serve(pipe: Connection, parent: int, level: int, lanes: int) -> None:
    """Do what comes as `(index, function, args)`, up to `lanes` at once, until None or the end of the pipe.

    Answers are `(kind, index, content)`: any number of `tick` and `log`, then one `value` or `error`.
    """
    die_with_parent(parent)
    line = _Line(pipe)
    logging.getLogger().handlers[:] = [_Forward(line)]
    logging.getLogger("curate").setLevel(level)
    todo: queue.SimpleQueue[tuple[int, Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()

    def lane() -> None:
        try:
            while _answer(line, *todo.get()):
                pass
        finally:  # a call that leaves takes the process along, as it does from the main thread
            os._exit(1)

    for number in range(lanes if lanes > 1 else 0):
        threading.Thread(target=lane, name=f"lane-{number}", daemon=True).start()
    while True:
        try:
            work = pipe.recv()
        except (EOFError, OSError):
            return
        if work is None:
            return
        if lanes > 1:
            todo.put(work)
        elif not _answer(line, *work):
            return


def _answer(line: _Line, index: int, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Run one call and send what became of it; False if nobody listens any more."""

    def tick(done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        line.send("tick", index, (done, failed, dict(news) if news else None))

    before = _call.set(index)
    try:
        kind, content = "value", function(tick, *args)
    except Exception as error:
        kind, content = "error", portable(error)
    finally:
        _call.reset(before)
    try:
        try:
            line.send(kind, index, content)
        except ConnectionError:
            raise
        except Exception as error:  # it cannot be pickled
            line.send("error", index, portable(error))
    except ConnectionError:
        return False
    return True


class _Line:
    """The pipe to the parent, for any thread; also for a finalizer that logs in the middle of a send."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.lock = threading.RLock()
        self.sending = False
        self.later: deque[Any] = deque()

    def send(self, kind: str, index: int | None, content: Any) -> None:
        self.later.append(ForkingPickler.dumps((kind, index, content)))
        with self.lock:
            if self.sending:  # by this very thread, further up
                return
            self.sending = True
            try:
                while self.later:
                    self.pipe.send_bytes(self.later.popleft())
            finally:
                self.sending = False


class _Forward(logging.Handler):
    """Sends log records to the parent."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.line = line

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        self.line.send("log", _call.get(), record)


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed for what comes next (glibc), instead of giving it to the kernel.

    For a process that makes arrays of some hundred kB over and over: most of the time that they take is the
    kernel's, which clears every page of them anew. Arrays above 32 MB are given back as before.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_TOP_PAD, 4 << 20)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux), also by SIGKILL."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def portable(error: BaseException) -> BaseException:
    """`error` as something that survives pickling, its traceback kept as a note in the text."""
    if isinstance(error, CurateError):
        return error
    import traceback

    return UnexpectedError("".join(traceback.format_exception(error)).rstrip())


class UnexpectedError(Exception):
    """A bug in a worker: its text is the worker's traceback."""
