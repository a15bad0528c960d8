"""The child process that runs img2dataset: started, listened to, and ended with all that it made.

It has a session of its own, so that an interrupt is for its parent to understand; it ends when the parent does,
for it reads from a pipe that only the parent holds; and it tells of each row, so that a hang is seen.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from curate.disk import disk, same_file
from curate.errors import PartError
from curate.fetch.img2dataset_child import FAILED, Job

if TYPE_CHECKING:
    from curate.fetch.settings import FetchLimits
    from curate.fetch.targets import News

log = logging.getLogger("curate.img2dataset")


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A folder in `folder`, gone at the end; locked, so that the runner's sweep takes it after a crash only.

    Its path is absolute: img2dataset works in it.
    """
    folder = folder.absolute()
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            place = Path(tempfile.mkdtemp(prefix="img2dataset-", suffix=".tmp", dir=folder))
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if same_file(fd, place):
                break
            os.close(fd)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(fd)


@dataclass
class Seen:
    """Rows that img2dataset said were done."""

    done: News
    rows: int = 0
    failed: int = 0

    def add(self, marks: bytes) -> None:
        """Count the marks of rows that came to an end, and tell of them."""
        rows, failed = len(marks), marks.count(FAILED)
        self.rows += rows
        self.failed += failed
        self.done(rows, failed, {})


def run(place: Path, options: dict[str, Any], limits: FetchLimits, seen: Seen, stalled_seconds: float) -> None:
    """Run the child to its end. Raises PartError where it fails or stalls, OSError where its disk was full."""
    marks, there = os.pipe()
    job = Job(options, there, str(place), limits.allow_private, limits.max_redirects)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "curate.fetch.img2dataset_child", job.as_argument()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=place,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"},
            pass_fds=(there,),
            start_new_session=True,  # a terminal's Ctrl-C is for us to understand
        )
    except BaseException:
        os.close(marks)
        raise
    finally:
        os.close(there)
    assert child.stdin is not None
    assert child.stdout is not None
    said = _Said(child.stdout)
    try:
        _watch(marks, seen, stalled_seconds)
        code = child.wait(stalled_seconds)
    except (TimeoutError, subprocess.TimeoutExpired):
        raise PartError(
            "img2dataset",
            f"no row came to an end in {stalled_seconds:g} seconds ({seen.rows:,} had before)",
            hint="leave --fetcher out: ours has a deadline for every URL",
        ) from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        os.close(marks)
        said.close()
    if said.full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
    if code:
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise PartError(
            "img2dataset", f"ended with {cause} ({said.last or 'it said nothing'})", hint="leave --fetcher out"
        )


def _watch(marks: int, seen: Seen, stalled_seconds: float) -> None:
    """Count what the child tells until it ends. Raises TimeoutError where it tells nothing for so long."""
    poll = select.poll()
    poll.register(marks, select.POLLIN)
    while poll.poll(stalled_seconds * 1000):
        told = os.read(marks, 1 << 16)
        if not told:
            return
        seen.add(told)
    raise TimeoutError


class _Said:
    """What the child prints: to the log at debug level; its last line, and whether its disk was full, are kept."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.last = ""
        self.full = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.stream:
            if text := line.rstrip():
                log.debug("img2dataset: %s", text)
                self.last = text[:200]
                self.full = self.full or os.strerror(errno.ENOSPC) in text

    def close(self) -> None:
        """Wait for the last line; nobody holds the other end any more."""
        self.thread.join()
        self.stream.close()
