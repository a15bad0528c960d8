"""Sinks: whatever way the bytes take, they are all there, in order, and hashed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from curate import sink
from curate.errors import StopError
from curate.sink import STAGED, Sink, Write


def opened(path: Path, write: Write = os.write, *, past_cache: bool) -> Sink:
    return Sink(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), path, write, past_cache=past_cache)


def pieces(total: int, largest: int, seed: int = 0) -> list[bytes]:
    chance = Random(seed)
    found = []
    while total:
        size = min(total, chance.randint(1, largest))
        found.append(chance.randbytes(size))
        total -= size
    return found


def poured(path: Path, data: list[bytes], *, past_cache: bool, write: Write = os.write) -> Sink:
    """A sink that took the data, settled and closed."""
    raw = opened(path, write, past_cache=past_cache)
    at = 0
    for piece in data:
        assert raw.write(piece) == len(piece)
        at += len(piece)
        assert raw.tell() == at
    raw.settle()
    assert raw.size == at
    raw.close()
    return raw


TOTALS = [0, 1, sink.AT_ONCE, STAGED - 1, STAGED, STAGED + 1, 2 * STAGED + 4097]


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("total", TOTALS)
def test_all_bytes_arrive_in_order(tmp_path: Path, total: int, past_cache: bool) -> None:
    data = pieces(total, 3_000_000)
    raw = poured(tmp_path / "a.bin", data, past_cache=past_cache)
    whole = b"".join(data)
    assert (tmp_path / "a.bin").read_bytes() == whole
    assert raw.hash.hexdigest() == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_buffered_writer_in_front(tmp_path: Path, past_cache: bool) -> None:
    data = pieces(STAGED + 12345, 40_000)
    raw = opened(tmp_path / "a.bin", past_cache=past_cache)
    writer = io.BufferedWriter(raw, 1 << 20)
    for piece in data:
        writer.write(piece)
    assert writer.tell() == STAGED + 12345
    writer.flush()
    raw.settle()
    writer.close()
    assert (tmp_path / "a.bin").read_bytes() == b"".join(data)


def test_whole_stages_go_past_the_cache_and_the_rest_does_not(tmp_path: Path) -> None:
    ways = []

    def write(fd: int, data: memoryview) -> int:
        ways.append((len(data), bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)))
        return os.write(fd, data)

    poured(tmp_path / "a.bin", [b"x" * (2 * STAGED + 100)], past_cache=True, write=write)
    if not ways[0][1]:
        pytest.skip("this file system has no way past its cache")
    assert ways == [(STAGED, True), (STAGED, True), (100, False)]


@pytest.mark.parametrize("short", [7, 4096, STAGED // 2])
def test_short_writes_are_finished(tmp_path: Path, short: int) -> None:
    """The kernel may take less than it is given, and then refuse what is not at a multiple of a block."""
    data = pieces(STAGED + 50_000, 3_000_000)
    first = [True]

    def write(fd: int, given: memoryview) -> int:
        if first.pop() if first else False:
            given = given[:short]
            if short % 4096:  # as if it had written so little of what it was given
                flags = fcntl.fcntl(fd, fcntl.F_GETFL)
                fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
                done = os.write(fd, given)
                fcntl.fcntl(fd, fcntl.F_SETFL, flags)
                return done
        return os.write(fd, given)

    poured(tmp_path / "a.bin", data, past_cache=True, write=write)
    assert (tmp_path / "a.bin").read_bytes() == b"".join(data)


def test_a_file_system_that_cannot_is_written_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, what: int, flags: int = 0) -> int:
        if what == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, what, flags)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    data = pieces(2 * STAGED + 10, 3_000_000)
    poured(tmp_path / "a.bin", data, past_cache=True)
    assert (tmp_path / "a.bin").read_bytes() == b"".join(data)


def test_one_that_only_says_that_it_can(tmp_path: Path) -> None:
    def write(fd: int, data: memoryview) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.write(fd, data)

    data = pieces(2 * STAGED + 10, 3_000_000)
    poured(tmp_path / "a.bin", data, past_cache=True, write=write)
    assert (tmp_path / "a.bin").read_bytes() == b"".join(data)


@pytest.mark.parametrize("past_cache", [False, True])
def test_other_errors_are_told(tmp_path: Path, past_cache: bool) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    raw = opened(tmp_path / "a.bin", full, past_cache=past_cache)
    with pytest.raises(StopError, match="no space left"):
        raw.write(b"x" * STAGED)
    raw.close()


def test_what_nobody_wants_is_taken_and_not_written(tmp_path: Path) -> None:
    raw = opened(tmp_path / "a.bin", past_cache=True)
    raw.dropped = True
    assert raw.write(b"x" * (STAGED + 1)) == STAGED + 1
    raw.close()
    assert (tmp_path / "a.bin").read_bytes() == b""
