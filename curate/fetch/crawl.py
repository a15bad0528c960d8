"""Many URLs to many images: fetched at once, decoded in threads meanwhile, kept in a file until their turn.

Memory holds what is in flight and nothing else: bodies are counted against a budget as they grow, and the
images go to a spool file in the order in which they come. So a slow host holds up nobody, hosts can be asked
in turn, and a reader of the spool still gets them in the order of the list.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO
from urllib.parse import urlsplit

from curate.errors import SampleError
from curate.fetch.http import Fetched, Fetcher
from curate.fetch.images import Converted, convert
from curate.fetch.settings import FetchLimits, ImageSettings


@dataclass(frozen=True)
class Target:
    """A URL to fetch; `expected` is the hash that its bytes must have, where hashes are verified."""

    url: str
    expected: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a target: an image in the spool at `offset`, or an error code.

    `fetched` and `image` have lost their bytes; `received` counts those of the body.
    """

    fetched: Fetched
    received: int | None = None
    image: Converted | None = None
    offset: int = 0
    length: int = 0
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True)
class Effort:
    """How hard one process works: fetches at once, decoding threads, bytes of bodies in memory."""

    connections: int = 64
    threads: int = 1
    body_bytes: int = 256 << 20


def crawl(
    targets: Mapping[int, Target],
    spool: BinaryIO,
    *,
    images: ImageSettings,
    limits: FetchLimits,
    effort: Effort,
    done: Callable[[int, int], None],
) -> dict[int, Outcome]:
    """The outcome of every target, by its number; images are appended to `spool`.

    `done(samples, failed)` is called as they come. Raises what is a fault of ours or of the disk, never what a
    URL or a server causes.
    """
    return asyncio.run(_Crawl(targets, spool, images, limits, effort, done).run())


class _Crawl:
    def __init__(
        self,
        targets: Mapping[int, Target],
        spool: BinaryIO,
        images: ImageSettings,
        limits: FetchLimits,
        effort: Effort,
        done: Callable[[int, int], None],
    ) -> None:
        self.targets, self.spool, self.images, self.limits = targets, spool, images, limits
        self.effort, self.done = effort, done
        self.outcomes: dict[int, Outcome] = {}
        self.position = spool.tell()
        self.waiting = hosts_in_turn({number: target.url for number, target in targets.items()})

    async def run(self) -> dict[int, Outcome]:
        self.budget = Budget(self.effort.body_bytes)
        count = min(self.effort.connections, len(self.targets))
        with ThreadPoolExecutor(self.effort.threads, thread_name_prefix="decode") as self.threads:
            async with Fetcher(self.limits) as fetcher:
                lanes = [asyncio.ensure_future(self.lane(fetcher)) for _ in range(count)]
                try:
                    await asyncio.gather(*lanes)
                finally:
                    for lane in lanes:
                        lane.cancel()
                    await asyncio.gather(*lanes, return_exceptions=True)
        return self.outcomes

    async def lane(self, fetcher: Fetcher) -> None:
        """One fetch after the other, until none is left for any lane."""
        for number in self.waiting:
            outcome = await self.one(fetcher, number)
            self.outcomes[number] = outcome
            self.done(1, int(outcome.error_code is not None))

    async def one(self, fetcher: Fetcher, number: int) -> Outcome:
        target = self.targets[number]
        try:
            fetched = await fetcher.fetch(target.url, lambda size: self.budget.grow(number, size))
            body, fetched = fetched.body, replace(fetched, body=None)
            if body is None:
                return Outcome(fetched, error_code=fetched.error_code, error_message=fetched.error_message)
            loop = asyncio.get_running_loop()
            try:
                image = await loop.run_in_executor(self.threads, convert, body, self.images, target.expected)
            except SampleError as error:
                return Outcome(fetched, len(body), error_code=error.code, error_message=error.what)
            return self.kept(fetched, len(body), image)
        finally:
            self.budget.release(number)

    def kept(self, fetched: Fetched, received: int, image: Converted) -> Outcome:
        self.spool.write(image.data)
        offset, length = self.position, len(image.data)
        self.position += length
        return Outcome(fetched, received, replace(image, data=b""), offset, length)


class Budget:
    """Bytes that growing bodies may hold together; the one that began first may always go on.

    So it is exceeded by at most one body, and nobody waits for ever.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self._held: dict[int, int] = {}
        self._freed = asyncio.Event()

    async def grow(self, holder: int, size: int) -> None:
        """Take `size` more bytes for `holder`, when there is room."""
        self._held.setdefault(holder, 0)
        while self.used + size > self.most and next(iter(self._held)) != holder:
            self._freed.clear()
            await self._freed.wait()
        self.used += size
        self._held[holder] += size

    def release(self, holder: int) -> None:
        """Give back all that `holder` took."""
        self.used -= self._held.pop(holder, 0)
        self._freed.set()


def hosts_in_turn(urls: Mapping[int, str]) -> Iterator[int]:
    """The numbers of `urls`, one of each host in turn, so that no host is asked in bursts."""
    by_host: dict[str, list[int]] = defaultdict(list)
    for number, url in urls.items():
        by_host[_host(url)].append(number)
    turns: Sequence[Iterator[int]] = [iter(numbers) for numbers in by_host.values()]
    while turns:
        left = []
        for turn in turns:
            for number in turn:
                yield number
                left.append(turn)
                break
        turns = left


def _host(url: str) -> str:
    try:
        return urlsplit(url.strip()).netloc.lower()
    except ValueError:
        return ""


def default_threads(workers: int) -> int:
    """Decoding threads for each of `workers` processes that share this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, workers))
