"""A file of this machine in the place of a URL: its bytes are held to the limits of any other's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from curate.fetch.http import Fetched


@dataclass(frozen=True)
class LocalFile:
    """A range of bytes of a file of this machine, in the place of a URL."""

    path: Path
    offset: int
    length: int


async def read_file(file: LocalFile, most: int, grow: Callable[[int], Awaitable[None]]) -> Fetched:
    """The bytes of a file of this machine, as if they had been fetched."""
    if file.length > most:
        return Fetched("", error_code="too_large", error_message=f"more than {most} bytes", tries=1)
    if not file.length:
        return Fetched("", error_code="empty", error_message="a file of zero bytes", tries=1)
    await grow(file.length)
    began = time.monotonic()
    try:
        body = await asyncio.get_running_loop().run_in_executor(None, _read, file)
    except OSError as error:
        reason = error.strerror or str(error)
        return Fetched("", error_code="no_file", error_message=f"cannot be read: {reason}", tries=1)
    return Fetched("", body, tries=1, seconds=time.monotonic() - began)


def _read(file: LocalFile) -> bytes:
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # never waits for a fifo
    try:
        body = os.pread(fd, file.length, file.offset)
    finally:
        os.close(fd)
    if len(body) < file.length:
        raise OSError(0, "it is shorter than it was")
    return body
