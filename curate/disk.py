"""The disk as a place that may be full, may refuse, and may be somebody else's just now.

Locks are the system's: they die with their process, and the file that carries one is gone when it is let go.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curate.errors import Busy, InputError, StopError

_FULL = {
    errno.ENOSPC: ("no space left on the device", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("a file may not grow as large there", "raise the limit (ulimit -f)"),
}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST}


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """A full disk inside becomes a StopError that names the file, a place that refuses writing an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what, mend = _FULL[error.errno]
            raise StopError(str(path), what, hint=f"{mend} and run the same command again") from error
        if error.errno in _REFUSED:
            raise InputError(
                str(path),
                f"cannot be written ({error.strerror})",
                hint="name a folder that can be written to; for a pool that is read-only, --work DIR",
            ) from error
        raise


def nearest(path: Path) -> Path:
    """`path`, or the first above it that is there: what it lies on or is to be made in."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def free(path: Path) -> int:
    """The bytes that the disk of `path`, which need not be there yet, has left."""
    return shutil.disk_usage(nearest(path)).free


def fsync_folder(path: Path) -> None:
    """Have the disk keep the names in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises InputError or StopError where the disk refuses."""
    with disk(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # a file system that has no folders to make, such as /proc
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from error


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the system's lock on `path` (made, and removed at the end), which dies with the process.

    Raises Busy naming the holder where another process has it and `wait` is false.
    """
    make_folder(path.parent)
    while True:
        with disk(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise Busy(
                str(path.with_suffix("")), f"is being written by {holder}", hint="wait for it to end"
            ) from None
        if same_file(fd, path):
            break
        os.close(fd)  # the holder before us removed the file: lock the new one
    try:
        os.ftruncate(fd, 0)
        with suppress(OSError):  # who holds it is for people; on a full disk the lock holds all the same
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()} ({_command()})".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(fd)


def _holder(fd: int) -> str:
    """What the holder of a lock wrote into it; it may have had it for no more than an instant."""
    for _ in range(20):
        if text := os.pread(fd, 400, 0):
            return text.decode("utf-8", "replace")
        time.sleep(0.01)
    return "another process"


def same_file(fd: int, path: Path) -> bool:
    """Whether the open file is the one that the name stands for now."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def _command() -> str:
    words = [Path(sys.argv[0]).name, *sys.argv[1:3]] if sys.argv and sys.argv[0] else ["python"]
    return " ".join(words)
