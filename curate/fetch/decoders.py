"""Decode and encode away from the event loop: in processes of their own, or in threads of this one.

A decoder is C code that is handed bytes from strangers. In a process of its own its crash, its hang and its
memory cost one image a retry and nothing else: what kills three processes is an error code of its row.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from curate.engines.local import die_with_parent, keep_freed_memory, main_module_hidden, portable
from curate.errors import SampleError, StopError
from curate.fetch.converted import Box
from curate.fetch.settings import ImageSettings

if TYPE_CHECKING:
    from curate.fetch.converted import Converted

TRIES = 3
"""Processes that one image may end."""
SECONDS = 120.0
"""For one image, and its turn if it is big; the largest that is allowed takes a few."""
AHEAD = 1
"""Pictures that wait in a process's pipe, so that it need not wait for us."""
PIPE_BYTES = 128 << 10
"""What a pipe takes without being read, with room to spare."""
STILLBORN = 5
"""Processes in a row that end before they are ready: then it is not for the images."""

Boxes = tuple[Box, ...]

log = logging.getLogger("curate.fetch")


@dataclass(frozen=True)
class Picture:
    """Bytes to convert; `expected` is the hash that they should have, `boxes` are the faces to blur."""

    body: bytes
    expected: str | None = None
    boxes: Boxes = ()


class Threads:
    """Converts in threads of this process."""

    def __init__(self, count: int, settings: ImageSettings) -> None:
        from curate.fetch.images import convert, use_one_thread

        use_one_thread()
        self.settings, self.count = settings, count
        self.backlog = 0
        self._convert = convert
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")

    async def convert(self, picture: Picture) -> Converted:
        """The converted picture. Raises SampleError."""
        loop = asyncio.get_running_loop()
        self.backlog += 1
        try:
            return await loop.run_in_executor(
                self._threads, self._convert, picture.body, self.settings, picture.expected, picture.boxes
            )
        finally:
            self.backlog -= 1

    def close(self) -> None:
        """End the threads; what they still work on is given up."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Work:
    picture: Picture
    future: asyncio.Future[Converted]
    tries: int = 0


class Processes:
    """Converts in processes; `backlog` counts the pictures that were handed in and are not done.

    Lives on one event loop, from its making to its `close`.
    """

    def __init__(self, count: int, settings: ImageSettings) -> None:
        self.settings, self.count = settings, count
        self.backlog = 0
        self.stillborn = 0
        self._hopeless: str | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Work] = deque()
        self._turns = tempfile.TemporaryFile()  # noqa: SIM115 - nameless: nothing is left after a SIGKILL
        self.turns = f"/proc/{os.getpid()}/fd/{self._turns.fileno()}"
        self._hands = [_Hand(self) for _ in range(count)]

    async def convert(self, picture: Picture) -> Converted:
        """The converted picture.

        Raises SampleError, decoder_died where it ended every process that tried; StopError where none starts.
        """
        if self._hopeless:
            raise StopError("decode processes", self._hopeless)
        work = _Work(picture, self._loop.create_future())
        self.backlog += 1
        self._waiting.append(work)
        self.feed()
        try:
            return await work.future
        finally:
            self.backlog -= 1
            del work  # an error holds this frame: it would hold itself in the future, and the picture with it

    def feed(self) -> None:
        """Give every process something to do; those with nothing at all first."""
        for ahead in range(AHEAD + 1):
            for hand in self._hands:
                while self._waiting and self._waiting[0].future.done():
                    self._waiting.popleft()  # given up by who asked
                if not self._waiting:
                    return
                if hand.ready and len(hand.works) == ahead and hand.has_room(self._waiting[0]):
                    hand.give(self._waiting.popleft())

    def unbegun(self, works: Iterable[_Work]) -> None:
        """What a process that died had not come to is given to another."""
        for work in works:
            work.tries -= 1
            self._waiting.appendleft(work)

    def again(self, work: _Work, cause: str) -> None:
        """What a process died of is tried in another, or has failed."""
        if work.tries < TRIES:
            log.warning("a decode process died (%s); its image is tried again", cause)
            self._waiting.appendleft(work)
        elif not work.future.done():
            what = f"{TRIES} decode processes died on it ({cause})"
            work.future.set_exception(SampleError("decoder_died", what))

    def give_up(self, cause: str) -> None:
        """No process starts: nothing that waits can be done."""
        self._hopeless = f"do not start ({cause})"
        for work in self._waiting:
            if not work.future.done():
                work.future.set_exception(StopError("decode processes", self._hopeless))
        self._waiting.clear()

    def close(self) -> None:
        """End the processes at once."""
        for hand in self._hands:
            hand.end()
        self._turns.close()


class _Hand:
    """One decode process, seen from the event loop: it is at the first of `works`, the others wait in its pipe."""

    def __init__(self, crew: Processes) -> None:
        self.crew = crew
        self.works: deque[_Work] = deque()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        for end in (self.pipe, there):
            with socket.socket(fileno=os.dup(end.fileno())) as of:
                of.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * PIPE_BYTES)
        self.process: BaseProcess = context.Process(
            target=serve, args=(there, os.getpid(), self.crew.settings, self.crew.turns), daemon=True
        )
        with main_module_hidden():
            self.process.start()
        there.close()
        self.deadline: asyncio.TimerHandle | None = None
        self.ready = False
        self.crew._loop.add_reader(self.pipe.fileno(), self.hear)

    def has_room(self, work: _Work) -> bool:
        """Whether sending it now would not have to wait until the process reads."""
        return not self.works or sum(len(w.picture.body) for w in (*self.works, work)) <= PIPE_BYTES

    def give(self, work: _Work) -> None:
        self.works.append(work)
        work.tries += 1
        if len(self.works) == 1:
            self.set_deadline()
        with suppress(BrokenPipeError, ConnectionResetError):  # its death is heard next
            self.pipe.send((work.picture.body, work.picture.expected, work.picture.boxes))

    def set_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = self.crew._loop.call_later(SECONDS, self.process.kill) if self.works else None

    def hear(self) -> None:
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.bury()
            return
        if kind == "ready":
            self.ready, self.crew.stillborn = True, 0
            self.crew.feed()
            return
        work = self.works.popleft()
        self.set_deadline()
        self.crew.feed()  # before the answer is looked at: the process is idle meanwhile
        if work.future.done():
            return
        if kind == "image":
            work.future.set_result(content)
        else:
            work.future.set_exception(content)

    def bury(self) -> None:
        works, self.works = self.works, deque()
        self.end()
        code = self.process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if works:
            begun = works.popleft()
            self.crew.unbegun(reversed(works))
            self.crew.again(begun, cause)
        self.crew.stillborn += not self.ready
        self.ready = False
        if self.crew.stillborn < STILLBORN:
            self.start()
            self.crew.feed()
        else:
            self.crew.give_up(cause)

    def end(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        if not self.pipe.closed:
            self.crew._loop.remove_reader(self.pipe.fileno())
            self.pipe.close()
        self.process.kill()
        self.process.join()


class _Turn:
    """The system's lock on a file, which dies with the process that holds it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)


def serve(pipe: Connection, parent: int, settings: ImageSettings, turns: str) -> None:
    """What a decode process does: pictures in, images or errors out, until the pipe closes.

    Of all processes that lock the file `turns`, one at a time has a big image in memory.
    """
    die_with_parent(parent)
    keep_freed_memory()
    from curate.fetch.images import convert, take_turns, use_one_thread

    use_one_thread()
    take_turns(_Turn(turns))
    # what libjpeg and libpng say of broken files goes past every logger, and the row says it already
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pipe.send(("ready", None))
    while True:
        try:
            body, expected, boxes = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[str, Any]
        try:
            answer = ("image", convert(body, settings, expected, boxes))
        except SampleError as error:
            answer = ("error", error)
        except MemoryError:
            os._exit(137)  # another process, with nothing else in it, may have enough
        except Exception as error:
            answer = ("error", portable(error))
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
