"""The end of everything that is written: a file that is hashed on its way to the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import devices
from curate.disk import disk

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 1 << 16
"""Calls end at multiples of this: for more the kernel takes larger pages, which virtual machines get slowly."""
BESIDE = 1 << 20
"""Bytes from which another thread hashes while this one writes."""
AHEAD = 8 << 20
"""Bytes from which the disk is asked to begin."""
STAGED = 4 << 20
"""Bytes that go past the page cache at once."""

Write = Callable[[int, memoryview], int]
"""As `os.write`."""


@cache
def _hashers() -> ThreadPoolExecutor:
    from concurrent import futures

    return futures.ThreadPoolExecutor(devices.cores(), thread_name_prefix="sha256")


class Sink(io.RawIOBase):
    """An unbuffered sink that hashes what it writes and cannot seek; `settle` it before its file is synced.

    With `past_cache` all but the last few megabytes go to the disk directly, where the file system can: of files
    that are larger than memory, copying each byte into the page cache costs more than writing it.
    """

    def __init__(self, fd: int, path: Path, write: Write, *, past_cache: bool = False) -> None:
        self.fd, self.path = fd, path
        self.hash = hashlib.sha256()
        self.size = self.sent = 0
        self.dropped = False
        """Whether nobody wants it any more: then it takes bytes and writes none."""
        self._call = write
        self._stage = memoryview(mmap.mmap(-1, STAGED)) if past_cache else None
        self._staged = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size + self._staged

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.dropped:
            return len(view)
        if self._stage is None:
            self._put(view, AT_ONCE)
            self._hurry()
        else:
            self._gather(view, self._stage)
        return len(view)

    def settle(self) -> None:
        """Have what is held back written."""
        if self._stage is not None:
            self._cached()
            self._put(self._stage[: self._staged], AT_ONCE)
            self._staged = 0

    def _gather(self, view: memoryview, stage: memoryview) -> None:
        """Take bytes into the stage, whose memory a disk can be written from, and write it whenever it is full."""
        done = 0
        while done < len(view):
            piece = view[done : done + STAGED - self._staged]
            stage[self._staged : self._staged + len(piece)] = piece
            self._staged += len(piece)
            done += len(piece)
            if self._staged == STAGED:
                self._staged = 0
                self._put(stage, STAGED if self._direct() else AT_ONCE)

    def _put(self, view: memoryview, at_once: int) -> None:
        beside = _hashers().submit(self.hash.update, view) if len(view) >= BESIDE else None
        done = 0
        try:
            with disk(self.path):
                while done < len(view):
                    done += self._written(view[done : done + at_once - (self.size + done) % at_once])
        finally:
            if beside:  # also where the disk refused: the bytes are only lent, and gone when this returns
                beside.result()
        if not beside:
            self.hash.update(view)
        self.size += done

    def _written(self, view: memoryview) -> int:
        try:
            return self._call(self.fd, view)
        except OSError as error:
            # a file system that lets itself be asked to write past the cache, and then does not
            if error.errno != errno.EINVAL or not self._cached():
                raise
            return self._call(self.fd, view)

    def _direct(self) -> bool:
        """Whether writes go past the page cache from here on."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        if not flags & os.O_DIRECT:
            try:
                fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            except OSError:
                return False
        return True

    def _cached(self) -> bool:
        """Write through the page cache from here on; whether it was otherwise."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)

    def _hurry(self) -> None:
        """Have the disk begin with what is written, so that the fsync at the end has little left to wait for."""
        if self.size - self.sent >= AHEAD:
            # on Linux this starts the writing of dirty pages and waits for none
            os.posix_fadvise(self.fd, self.sent, self.size - self.sent, os.POSIX_FADV_DONTNEED)
            self.sent = self.size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self.fd)
