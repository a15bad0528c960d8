"""The process that img2dataset's own download of one part runs in: `python -m curate.fetch.img2dataset_child JOB`.

Nothing else imports img2dataset: it takes seconds, and hundreds of megabytes. Its reader, downloader, resizer and
writer are used as they are. Three things around them are not: its pool of processes, which loses the shard of a
worker that dies and then waits for ever; its logger process; and the way to addresses, redirects and schemes that
a list of strangers must not lead to.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

STORED, FAILED = b"+", b"-"
"""What is written to `progress` for each row that came to an end."""


@dataclass(frozen=True)
class Job:
    """The options of img2dataset.download and what it has none for.

    `progress` is a file descriptor; `folder` is removed when whoever holds the other end of stdin dies.
    """

    options: dict[str, Any]
    progress: int
    folder: str
    allow_private: bool
    max_redirects: int

    def as_argument(self) -> str:
        """The job as the command's one argument."""
        return json.dumps(asdict(self))


def main() -> int:
    """Run the job; 0 where the part has been written to its end."""
    job = Job(**json.loads(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(job.folder,), daemon=True).start()
    _use_opener(job.max_redirects)
    if not job.allow_private:
        _refuse_private()
    import img2dataset

    program: Any = sys.modules["img2dataset.main"]  # the package has a function of this name
    failed: list[Any] = []
    program.multiprocessing_distributor = _distributor(failed)
    program.LoggerProcess = _NoLogger
    program.WebDatasetSampleWriter = _telling(program.WebDatasetSampleWriter, job.progress)
    img2dataset.download(**job.options)
    return 1 if failed else 0


def _end_with_parent(folder: str) -> None:
    """Wait for the end of stdin, which is the parent's; then leave nothing behind."""
    os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _use_opener(max_redirects: int) -> None:
    """Have urllib speak HTTP only, on redirects too, and without the environment's proxies."""
    handlers: list[Any] = [
        urllib.request.ProxyHandler({}),
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ]
    urllib.request.HTTPRedirectHandler.max_redirections = max_redirects
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler() if isinstance(handler, type) else handler)
    urllib.request.install_opener(opener)


def _refuse_private() -> None:
    """Have the resolver hand on public addresses only: a connection goes to what was checked, at every hop."""
    from curate.fetch.addresses import is_public

    resolve = socket.getaddrinfo

    def checked(*args: Any, **more: Any) -> list[Any]:
        found = resolve(*args, **more)
        public = [answer for answer in found if is_public(str(answer[4][0]))]
        if not public:
            raise OSError(f"private address: {args[0]}")
        return public

    socket.getaddrinfo = checked


def _distributor(failed: list[Any]) -> Callable[..., None]:
    """What stands in for its pool of processes: each shard here, one after the other."""

    def distribute(_processes: int, download: Callable[[Any], Any], shards: Iterable[Any], *_more: Any) -> None:
        for shard in shards:
            done, _ = download(shard)
            if not done:
                failed.append(shard)

    return distribute


class _NoLogger:
    """What stands in for its logger process."""

    def __init__(self, *_settings: Any) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None:
        """Nothing is started."""

    def join(self) -> None:
        """Nothing is waited for."""

    def terminate(self) -> None:
        """Nothing is ended."""


def _telling(writer: Any, progress: int) -> type:
    """Its writer, telling of each row that it is done."""

    class Telling(writer):  # type: ignore[misc]
        def write(self, image: bytes | None, *row: Any) -> None:
            super().write(image, *row)
            os.write(progress, FAILED if image is None else STORED)

    return Telling


if __name__ == "__main__":
    sys.exit(main())
