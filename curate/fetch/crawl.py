"""Many URLs to many images: fetched at once, decoded in other processes, kept in a file until their turn.

A process has one *station*: an event loop in a thread, whose connections, look-ups and decode processes serve
all parts that the process works on, several at a time, so that the last slow hosts of one part hold up nobody.
Memory holds what is in flight and nothing else: bodies are counted against a budget as they grow, and images go
to the part's spool file in the order in which they come.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import util
from typing import BinaryIO

from curate.errors import SampleError
from curate.fetch import blocks, decoders
from curate.fetch.budget import Budget
from curate.fetch.decoders import Boxes, Picture
from curate.fetch.http import Fetched, Fetcher
from curate.fetch.local_file import read_file
from curate.fetch.outage import PROBE_SECONDS, PROBES, Acquaintances, Outage
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.fetch.targets import News, Outcome, Part, Target
from curate.fetch.tuner import INTERVAL, Look, Tuner

HEARTBEAT = 0.25
"""Seconds between two looks at what holds the crawl up."""
SILENCE = 60.0
"""Seconds without an answer from anybody after which no sign of life is given any more."""
HEAVY = 1 << 20
"""Bytes that are not hashed between two events of the loop."""
NO_REPLY = frozenset({"timeout", "dns"})
"""Codes that too many fetches at once can cause."""


@dataclass(frozen=True)
class Effort:
    """How hard one process works: fetches at once (None: as many as make it faster), decode processes (0:
    `threads` of this one), bytes of bodies in memory."""

    connections: int | None = None
    processes: int = 0
    threads: int = 1
    body_bytes: int = 192 << 20


def crawl(
    targets: Mapping[int, Target],
    spool: BinaryIO,
    *,
    images: ImageSettings,
    limits: FetchLimits,
    effort: Effort,
    done: News,
) -> dict[int, Outcome]:
    """The outcome of every target, by its number; images are appended to `spool`.

    Several threads may call this at once: their targets share the process's station, the first come first; who
    comes with other settings waits until the others have ended. Raises what is a fault of ours, of the disk or of
    the block list, never what a URL or a server causes.
    """
    if not targets:
        return {}
    part = Part(targets, spool, done)
    with _gate:
        while (station := _station(images, limits, effort)) is None:
            done(0, 0, {})
            _gate.wait(HEARTBEAT)
        station.callers += 1
    try:
        return station.crawl(part)
    finally:
        with _gate:
            station.callers -= 1
            _gate.notify_all()


_gate = threading.Condition()
_standing: _Station | None = None


def _station(images: ImageSettings, limits: FetchLimits, effort: Effort) -> _Station | None:
    """The station of this process, whose `_gate` is held; None while one with other settings is at work."""
    global _standing
    wanted = (images, limits, effort)
    if _standing is not None and (_standing.settings != wanted or not _standing.thread.is_alive()):
        if _standing.callers:
            return None
        _standing.close()
        _standing = None
    if _standing is None:
        _standing = _Station(*wanted)
        util.Finalize(None, close, exitpriority=100)  # a worker process runs no atexit functions
    return _standing


def prepare(images: ImageSettings, limits: FetchLimits, effort: Effort) -> None:
    """Have the station begin to start, while its first part's rows are still read."""
    with _gate:
        _station(images, limits, effort)


def idle() -> bool:
    """Whether no target of any part is waited for."""
    return _standing is None or not _standing.parts


def close() -> None:
    """End this process's station, where it has one: connections, decode processes and all."""
    global _standing
    with _gate:
        if _standing is not None:
            _standing.close()
        _standing = None


Variant = tuple["str | None", Boxes]


@dataclass(frozen=True)
class _Held:
    """A URL's answer that may not be its host's fault."""

    part: Part
    number: int
    host: str
    fetched: Fetched


class _Station:
    """The event loop of this process, and all that outlives a part."""

    def __init__(self, images: ImageSettings, limits: FetchLimits, effort: Effort) -> None:
        self.settings = (images, limits, effort)
        self.images, self.limits, self.effort = images, limits, effort
        self.loop = asyncio.new_event_loop()
        self.parts: list[Part] = []
        self.callers = 0
        """Calls of `crawl` that are under way; guarded by the `_gate`."""
        self.door = threading.Lock()
        self.asked: set[Part] = set()
        self.over: BaseException | None = None
        """Why nothing is done any more; this and `asked` are guarded by the `door`."""
        self.open = False
        self.ended = asyncio.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.run(),), name="station")
        self.thread.daemon = True
        self.thread.start()

    def crawl(self, part: Part) -> dict[int, Outcome]:
        """Called from any thread but the loop's; returns when all of the part has ended.

        Raises what ended the station, before or meanwhile.
        """
        with self.door:
            if self.over is not None:
                raise self.over
            self.asked.add(part)
        self.loop.call_soon_threadsafe(self.add, part)
        try:
            return part.done.result()
        except BaseException:
            self.loop.call_soon_threadsafe(self.forget, part)
            raise
        finally:
            with self.door:
                self.asked.discard(part)

    def close(self) -> None:
        """End everything that is under way."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join()
        self.loop.close()

    # --- on the loop --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of the station's life; what ends it is told to those who wait, and not raised."""
        try:
            await self.work()
        except BaseException as error:
            self.fail(error)
        else:
            self.fail(RuntimeError("the station was closed"))

    async def work(self) -> None:
        self.budget = Budget(self.effort.body_bytes)
        self.tuner = Tuner(self.effort.connections)
        self.tasks: set[asyncio.Task[None]] = set()
        self.fetching = 0
        self.answers = self.troubled = 0
        self.saturated = self.held_up = False
        self.looked = self.alive = time.monotonic()
        self.wake: asyncio.TimerHandle | None = None
        self.outage: Outage[_Held] = Outage(self.limits.outage_seconds)
        self.acquaintances = Acquaintances()
        self.answered: Fetched | None = None
        self.looking: asyncio.Task[None] | None = None
        self.next_probe = 0.0
        self.decoder: decoders.Processes | decoders.Threads
        if self.effort.processes:
            self.decoder = decoders.Processes(self.effort.processes, self.images)
        else:
            self.decoder = decoders.Threads(self.effort.threads, self.images)
        self.most_waiting = 16 + 4 * self.decoder.count
        self.block_list = blocks.load(self.limits.block_list) if self.limits.block_list else None
        try:
            async with Fetcher(self.limits) as self.fetcher:
                self.open = True
                self.fill()
                heart = asyncio.ensure_future(self.beat())
                try:
                    await self.ended.wait()
                finally:
                    self.open = False
                    rest = [heart, *self.tasks]
                    for task in rest:
                        task.cancel()
                    await asyncio.gather(*rest, return_exceptions=True)
        finally:
            self.decoder.close()

    def fail(self, error: BaseException) -> None:
        """Nothing is done any more: who waits, and who comes yet, is told why."""
        with self.door:
            self.over = error
            for part in self.asked:
                if not part.done.done():
                    part.done.set_exception(error)
        self.parts.clear()

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.alive = time.monotonic()
        self.fill()

    def forget(self, part: Part) -> None:
        """Nobody waits for this part any more; what is under way for it ends by itself."""
        if part in self.parts:
            self.parts.remove(part)
        part.turns.clear()

    def fill(self) -> None:
        """Start as many fetches as may be under way."""
        while self.parts and self.open:
            self.held_up = self.decoder.backlog >= self.most_waiting
            self.saturated = self.fetching >= (PROBES if self.outage.down else self.tuner.limit)
            if self.held_up or self.saturated:
                return
            if self.outage.down and time.monotonic() < self.next_probe:
                self.wake_at(self.next_probe)
                return
            chosen = self.choose()
            if chosen is None:
                return
            self.fetching += 1
            task = self.loop.create_task(self.one(*chosen))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def choose(self) -> tuple[Part, int, str] | None:
        """The next target: of the part that came first, of a host that may be asked now."""
        soonest = None
        for part in self.parts:
            found = part.turns.next(partial(self.wait_for, part))
            if found is not None:
                return part, *found
            if part.turns.soonest is not None:
                soonest = min(part.turns.soonest, soonest or float("inf"))
        if soonest is not None:
            self.wake_at(soonest)
        elif not self.fetching:
            if self.outage.likely:
                self.look_at_line(settled=True)
            else:
                self.settle_held(self.outage.rest())
        return None

    def wake_at(self, when: float) -> None:
        """Look again for something to fetch then, if nothing else makes us."""
        if self.wake is not None:
            self.wake.cancel()
        self.wake = self.loop.call_later(max(0.005, when - time.monotonic()), self.fill)

    def wait_for(self, part: Part, number: int, host: str) -> float:
        return self.fetcher.ready(part.targets[number].url) if host else 0.0

    async def one(self, part: Part, number: int, host: str) -> None:
        """One URL for all rows that have it, from its fetch to the last of its images."""
        numbers = part.numbers(number)
        holder = (id(part), number)
        try:
            try:
                fetched = await self.body(part.targets[number], holder)
            finally:
                self.fetching -= 1
                self.answers += 1
                self.alive = time.monotonic()
                for waiting in self.parts:
                    waiting.turns.unpark(host)
                self.fill()
            self.troubled += fetched.error_code in NO_REPLY
            if not self.held_back(_Held(part, number, host, fetched)):
                self.settle(part, await self.outcomes(part, numbers, fetched), host)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not part.done.done():
                part.done.set_exception(error)
            self.forget(part)
        finally:
            self.budget.release(holder)
            self.fill()

    def held_back(self, held: _Held) -> bool:
        """Whether it is not known yet if a failure is the host's or our line's."""
        fetched = held.fetched
        if not fetched.offline:
            if fetched.tries and held.host:
                self.answered = fetched
                self.line_is_up()
            return False
        if not self.outage.silent(held.host, held):
            return False
        if self.outage.down:
            self.probe_again()
        elif self.outage.likely:
            self.look_at_line()
        return True

    def line_is_up(self) -> None:
        was_down = self.outage.down
        self.settle_held(self.outage.alive())
        if was_down:
            self.fetcher.forgive()

    def look_at_line(self, *, settled: bool = False) -> None:
        """See if those who answered last still do; `settled` where nothing else is under way that could tell."""
        if self.looking is None or self.looking.done():
            self.looking = self.loop.create_task(self.look(settled))
            self.tasks.add(self.looking)
            self.looking.add_done_callback(self.tasks.discard)

    async def look(self, settled: bool) -> None:
        up = await self.acquaintances.answer(self.limits.connect_seconds)
        if up:
            self.line_is_up()
        elif up is False or settled or self.outage.long:
            self.outage.declare()
            self.probe_again()
        else:
            await asyncio.sleep(HEARTBEAT)
        self.fill()

    def probe_again(self) -> None:
        """The line is down: what is held back is asked for once more, slowly, and acquaintances are knocked at."""
        now = time.monotonic()
        if now >= self.next_probe:
            self.next_probe = now + PROBE_SECONDS
            self.look_at_line()
        self.wake_at(self.next_probe)
        self.fetcher.forgive()
        for one in self.outage.again():
            one.part.turns.put_back(one.number, one.host)

    def settle_held(self, held: Iterable[_Held]) -> None:
        """These failures were their hosts' own."""
        for one in held:
            if one.part.done.done():
                continue
            rows = one.part.numbers(one.number)
            self.settle(one.part, Outcome.failed(one.fetched).shared(rows, rows[0]), one.host)

    def settle(self, part: Part, outcomes: Mapping[int, Outcome], host: str) -> None:
        """These rows have ended, and their part too if they were the last."""
        part.settle(outcomes, host)
        if part.done.done():
            self.forget(part)

    async def body(self, target: Target, holder: tuple[int, int]) -> Fetched:
        grow = partial(self.budget.grow, holder)
        if target.file is None:
            return await self.fetcher.fetch(target.url, grow)
        if self.block_list is not None and target.url and self.block_list.has_url(target.url):
            return Fetched("", error_code="blocked")
        return await read_file(target.file, self.limits.max_bytes, grow)

    async def outcomes(self, part: Part, numbers: list[int], fetched: Fetched) -> dict[int, Outcome]:
        """What all rows of one body come to; rows that want the same image share it."""
        body, fetched = fetched.body, replace(fetched, body=None)
        variants: dict[Variant, list[int]] = defaultdict(list)
        for number in numbers:
            variants[part.targets[number].expected, part.targets[number].boxes].append(number)
        found: dict[int, Outcome] = {}
        for (expected, boxes), rows in variants.items():
            outcome = await self.outcome(part, Picture(body, expected, boxes) if body else None, fetched)
            found |= outcome.shared(rows, numbers[0])
        return found

    async def outcome(self, part: Part, picture: Picture | None, fetched: Fetched) -> Outcome:
        if picture is None:
            return Outcome.failed(fetched)
        size = len(picture.body)
        if self.block_list is not None and await self.blocked(picture.body):
            return Outcome(Fetched(fetched.url, error_code="blocked"), error_code="blocked")
        try:
            image = await self.decoder.convert(picture)
        except SampleError as error:
            return Outcome(fetched, size, error_code=error.code, error_message=error.what)
        return part.keep(image, fetched, size)

    async def blocked(self, body: bytes) -> bool:
        """Whether the block list has these bytes; hashing many takes a while, and not on the loop."""
        assert self.block_list is not None
        if len(body) < HEAVY:
            return self.block_list.has_bytes(body)
        return await self.loop.run_in_executor(None, self.block_list.has_bytes, body)

    async def beat(self) -> None:
        """Look now and then at what holds the crawl up, tell it, and tune."""
        while True:
            await asyncio.sleep(HEARTBEAT)
            now = time.monotonic()
            if self.answered is not None:
                self.acquaintances.met(self.answered)
                self.answered = None
            if self.parts and now - self.alive < SILENCE:
                limit = "decode" if self.decoder.backlog >= max(2, self.decoder.count) else "network"
                self.parts[0].news(0, 0, {f"seconds:{limit}": HEARTBEAT})
                for part in self.parts[1:]:
                    part.news(0, 0, {})  # it waits, and that is no reason to worry
            if now - self.looked >= INTERVAL:
                share = self.troubled / max(1, self.answers)
                rate = self.answers / (now - self.looked)
                self.tuner.look(Look(rate, share, self.saturated, self.held_up))
                self.answers = self.troubled = 0
                self.looked = now
                self.fill()
