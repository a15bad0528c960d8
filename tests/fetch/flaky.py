"""Decode processes that die, hang or do not start, as the bytes they are given say."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from curate.fetch import decoders
from curate.fetch.settings import ImageSettings

MARK = b"\xff\xfeflaky "
_serve = decoders.serve


def die(times: int, counter: Path, then: bytes) -> bytes:
    """An image whose first `times` decoders are killed; `counter` is a file that counts them."""
    return MARK + f"{times} {counter}\n".encode() + then


def hang() -> bytes:
    """An image that no decoder ever finishes."""
    return MARK + b"hang -\n"


def serve(pipe: Connection, parent: int, settings: ImageSettings, turns: str) -> None:
    """A decode process of the real kind, but for images that `die` or `hang` made."""
    from curate.fetch import images

    convert = images.convert

    def flaky(body: bytes, *rest: object) -> object:
        if MARK in body:
            told, _, body = body.partition(MARK)[2].partition(b"\n")
            times, counter = told.decode().split(" ", 1)
            if times == "hang":
                time.sleep(600)
            with Path(counter).open("a") as file:
                file.write("x")
            if Path(counter).stat().st_size <= int(times):
                os.kill(os.getpid(), signal.SIGKILL)
        return convert(body, *rest)  # type: ignore[arg-type]

    images.convert = flaky  # type: ignore[assignment]
    _serve(pipe, parent, settings, turns)


def never_ready(pipe: Connection, parent: int, settings: ImageSettings, turns: str) -> None:
    """A process that ends before it can do anything."""
    os._exit(3)
