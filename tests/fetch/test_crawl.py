"""The crawl: one station for all parts of a process, each URL fetched once, no part held up by another."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from curate.errors import InputError, StopError
from curate.fetch import crawl, decoders, outage
from curate.fetch.budget import Budget
from curate.fetch.crawl import Effort
from curate.fetch.http import Fetched, Fetcher
from curate.fetch.local_file import LocalFile
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.fetch.targets import Outcome, Target
from curate.fetch.turns import Turns
from tests import pools
from tests.fetch import flaky, servers
from tests.fetch.servers import HostileServer, answer, running, slow, status

IMAGES = ImageSettings(image_size=32)
LIMITS = FetchLimits(
    connect_seconds=0.5, idle_seconds=2.0, total_seconds=4.0, backoff_seconds=0.01, allow_private=True, min_rate=0
)
ONE = Effort(connections=8, threads=1)


jpeg = partial(pools.jpeg, size=(60, 40))


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n)) for n in range(20)})) as s:
        yield s


@pytest.fixture(autouse=True)
def station() -> Iterator[None]:
    yield
    crawl.close()


class News:
    """What was told."""

    def __init__(self) -> None:
        self.done = self.failed = 0
        self.told: Counter[str] = Counter()

    def __call__(self, done: int, failed: int, news: Mapping[str, float]) -> None:
        self.done += done
        self.failed += failed
        self.told.update({name: int(n) for name, n in news.items() if not name.startswith("seconds:")})


def run(
    targets: Mapping[int, Target],
    *,
    spool: io.BytesIO | None = None,
    news: News | None = None,
    limits: FetchLimits = LIMITS,
    effort: Effort = ONE,
) -> dict[int, Outcome]:
    return crawl.crawl(
        targets, spool or io.BytesIO(), images=IMAGES, limits=limits, effort=effort, done=news or News()
    )


@pytest.mark.parametrize("processes", [0, 2])
def test_each_image_lies_in_the_spool_where_its_outcome_says(server: HostileServer, processes: int) -> None:
    spool, news = io.BytesIO(b"before"), News()
    spool.seek(6)
    targets = {n: Target(server.url(f"/{n}.jpg")) for n in range(20)} | {20: Target(server.url("/none.jpg"))}
    found = run(targets, spool=spool, news=news, effort=Effort(8, processes))
    assert sorted(found) == list(range(21))
    for number in range(20):
        outcome = found[number]
        assert outcome.image is not None
        stored = spool.getvalue()[outcome.offset : outcome.offset + outcome.length]
        assert hashlib.sha256(stored).hexdigest() == outcome.image.stored_sha256
        assert outcome.image.sha256 == hashlib.sha256(jpeg(number)).hexdigest()
    assert (found[20].error_code, found[20].image) == ("http_404", None)
    assert (news.done, news.failed) == (21, 1)
    host = f"127.0.0.1:{server.port}"
    assert news.told["code:http_404"] == news.told[f"host:{host}"] == 1
    assert news.told["received"] == sum(len(jpeg(n)) for n in range(20))
    assert news.told["stored"] == len(spool.getvalue()) - 6


def test_a_url_that_stands_in_many_rows_is_fetched_once(server: HostileServer) -> None:
    url, spool, news = server.url("/3.jpg"), io.BytesIO(), News()
    found = run({n: Target(f" {url} " if n % 2 else url) for n in range(10)}, spool=spool, news=news)
    assert server.hits["/3.jpg"] == 1
    assert len({(o.offset, o.length) for o in found.values()}) == 1
    assert [o.repeat for o in found.values()] == [False] + [True] * 9
    assert news.done == 10
    assert news.told["received"] == len(jpeg(3))


def test_rows_of_one_url_may_want_different_images(server: HostileServer) -> None:
    right = hashlib.sha256(jpeg(1)).hexdigest()
    settings = ImageSettings(image_size=32, verify_hash="sha256", on_mismatch="drop")
    url = server.url("/1.jpg")
    targets = {0: Target(url, "0" * 64), 1: Target(url, right), 2: Target(url, "0" * 64), 3: Target(url, right)}
    found = crawl.crawl(targets, io.BytesIO(), images=settings, limits=LIMITS, effort=ONE, done=News())
    assert [found[n].error_code for n in range(4)] == ["hash_mismatch", None, "hash_mismatch", None]
    assert server.hits["/1.jpg"] == 1


def test_the_slow_host_of_one_part_does_not_hold_up_the_next(server: HostileServer) -> None:
    server.routes["/slow.jpg"] = slow(0.8, jpeg())
    ended: list[str] = []

    def part(name: str, paths: list[str]) -> None:
        found = run({n: Target(server.url(path)) for n, path in enumerate(paths)})
        assert [o.error_code for o in found.values()] == [None] * len(paths)
        ended.append(name)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(part, "first", ["/slow.jpg", "/1.jpg"])
        time.sleep(0.1)
        second = threads.submit(part, "second", [f"/{n}.jpg" for n in range(20)])
        second.result()
        assert not first.done()
        first.result()
    assert ended == ["second", "first"]


def test_parts_one_after_the_other_share_their_connections(server: HostileServer) -> None:
    for first in (0, 5, 10, 15):
        run({n: Target(server.url(f"/{n}.jpg")) for n in range(first, first + 5)}, effort=Effort(2))
    assert server.connections <= 2


def test_a_host_that_asks_for_a_rest_holds_up_nobody(server: HostileServer) -> None:
    with running(HostileServer({"/busy.jpg": servers.in_turn(status(429, Retry_After="1"), jpeg())})) as busy:
        targets = {n: Target(busy.url(f"/busy.jpg?{n}")) for n in range(4)}
        targets |= {n + 4: Target(server.url(f"/{n}.jpg")) for n in range(20)}
        when: dict[int, float] = {}
        began = time.monotonic()

        class Timed(News):
            def __call__(self, done: int, failed: int, news: Mapping[str, float]) -> None:
                super().__call__(done, failed, news)
                when[self.done] = time.monotonic() - began

        limits = FetchLimits(total_seconds=5, backoff_seconds=0.01, allow_private=True, per_host=2)
        found = run(targets, news=Timed(), limits=limits, effort=Effort(4))
    assert [o.error_code for o in found.values()] == [None] * 24
    assert when[20] < 0.9 < when[24]


def test_bytes_of_the_block_list_are_neither_decoded_nor_kept(server: HostileServer, tmp_path: Path) -> None:
    listed = tmp_path / "blocked.txt"
    urls = [server.url(f"/{n}.jpg") for n in range(4)]
    lines = [
        hashlib.md5(jpeg(0), usedforsecurity=False).hexdigest(),
        hashlib.sha1(jpeg(1), usedforsecurity=False).hexdigest(),
        hashlib.sha256(urls[2].encode()).hexdigest(),
    ]
    listed.write_text("\n".join(lines) + "\n")
    spool, news = io.BytesIO(), News()
    limits = FetchLimits(allow_private=True, block_list=str(listed))
    found = run({n: Target(url) for n, url in enumerate(urls)}, spool=spool, news=news, limits=limits)
    assert [found[n].error_code for n in range(4)] == ["blocked", "blocked", "blocked", None]
    assert server.hits["/2.jpg"] == 0
    for number in range(3):
        outcome = found[number]
        assert (outcome.error_message, outcome.received, outcome.image, outcome.length) == (None, None, None, 0)
        assert (outcome.fetched.final_url, outcome.fetched.address, outcome.fetched.headers) == (None, None, {})
    assert len(spool.getvalue()) == found[3].length
    assert not [name for name in news.told if name.startswith("host:")]


@pytest.mark.parametrize("prepared", [False, True])
def test_what_ends_the_station_at_its_start_is_told_to_who_waits(tmp_path: Path, prepared: bool) -> None:
    listed = tmp_path / "blocked.txt"
    listed.write_text("no digest\n")
    limits = replace(LIMITS, block_list=str(listed))
    if prepared:
        crawl.prepare(IMAGES, limits, ONE)
    with ThreadPoolExecutor(1) as thread:  # it must not wait for ever
        told = thread.submit(run, {0: Target("http://127.0.0.1:9/")}, limits=limits)
        with pytest.raises(InputError, match="line 1 is no digest"):
            told.result(10)


def test_parts_with_other_settings_wait_for_those_that_are_under_way(server: HostileServer) -> None:
    server.routes |= {f"/{n}.jpg": slow(0.3, jpeg(n)) for n in range(8)}
    digest = hashlib.sha256(jpeg(0)).hexdigest()

    def part(number: int) -> dict[int, Outcome]:
        images = replace(IMAGES, verify_hash="sha256" if number % 2 else None)
        targets = {n: Target(server.url(f"/{n}.jpg"), digest) for n in (number, number + 4)}
        return crawl.crawl(targets, io.BytesIO(), images=images, limits=LIMITS, effort=ONE, done=News())

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(part, range(4)))
    images = [outcome.image for outcomes in found for outcome in outcomes.values()]
    assert [image and image.hash_ok for image in images] == [None, None, False, False] * 2


def test_a_file_whose_url_is_blocked_is_not_read(tmp_path: Path) -> None:
    listed, size = tmp_path / "blocked.txt", len(jpeg())
    (tmp_path / "a.jpg").write_bytes(jpeg())
    listed.write_text("url:" + hashlib.sha256(b"http://one.example/1.jpg").hexdigest() + "\n")
    file = LocalFile(tmp_path / "a.jpg", 0, size)
    targets = {
        n: Target(f"http://one.example/{n}.jpg" if n else "", file=replace(file, length=size - n)) for n in range(2)
    }
    found = run(targets, limits=FetchLimits(block_list=str(listed)))
    assert [found[n].error_code for n in range(2)] == [None, "blocked"]
    assert found[1].fetched == Fetched("", error_code="blocked")


def test_files_of_this_machine_are_held_to_the_same_limits(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"xx" + jpeg(5) + b"yy")
    (tmp_path / "big").write_bytes(bytes(2000))
    os.mkfifo(tmp_path / "pipe")
    size = len(jpeg(5))
    limits = FetchLimits(max_bytes=1999)
    targets = {
        0: Target("", file=LocalFile(tmp_path / "a.jpg", 2, size)),
        1: Target("", file=LocalFile(tmp_path / "none.jpg", 0, 9)),
        2: Target("", file=LocalFile(tmp_path / "big", 0, 2000)),
        3: Target("", file=LocalFile(tmp_path / "a.jpg", size, 500)),
        4: Target("", file=LocalFile(tmp_path / "a.jpg", 0, 0)),
        5: Target("", file=LocalFile(tmp_path / "pipe", 0, 10)),
    }
    found = run(targets, limits=limits)
    assert found[0].image is not None
    assert found[0].image.sha256 == hashlib.sha256(jpeg(5)).hexdigest()
    codes = [found[n].error_code for n in range(1, 6)]
    assert codes == ["no_file", "too_large", "no_file", "empty", "no_file"]


def test_an_image_that_decodes_on_one_try_of_three_is_stored(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "serve", flaky.serve)
    counter = tmp_path / "deaths"
    server.routes["/flaky.jpg"] = answer(jpeg(0)[:2] + flaky.die(2, counter, jpeg(0)))
    targets = {n: Target(server.url(f"/{n}.jpg")) for n in range(19)} | {19: Target(server.url("/flaky.jpg"))}
    found = run(targets, effort=Effort(8, 2))
    assert [o.error_code for o in found.values()] == [None] * 20
    assert counter.read_text() == "xxx"


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A line that can be cut: names are resolved to 127.0.0.1 while it is `up`."""
    state = {"up": True}

    class Named(Fetcher):
        def __init__(self, limits: FetchLimits) -> None:
            async def lookup(host: str) -> list[str]:
                if not state["up"]:
                    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
                return ["127.0.0.1"]

            super().__init__(limits, lookup=lookup)

    monkeypatch.setattr(crawl, "Fetcher", Named)
    monkeypatch.setattr(outage, "SECONDS", 0.2)
    monkeypatch.setattr(outage, "ROWS", 20)
    monkeypatch.setattr(crawl, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(crawl, "HEARTBEAT", 0.02)

    async def connects(address: str, port: int) -> bool:
        assert address == "127.0.0.1"
        return state["up"] and state.get("knocks", True)

    monkeypatch.setattr(outage, "connects", connects)
    return state


def named(server: HostileServer, count: int) -> dict[int, Target]:
    return {n: Target(f"http://host{n}.test:{server.port}/{n % 20}.jpg") for n in range(count)}


IMPATIENT = FetchLimits(allow_private=True, retries=0, backoff_seconds=0.01, min_rate=0, outage_seconds=30)


def test_a_line_that_is_down_for_a_while_costs_time_and_no_sample(
    server: HostileServer, line: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    line["up"] = False
    threading.Timer(1.0, lambda: line.update(up=True)).start()
    found = run(named(server, 300), limits=IMPATIENT)
    assert {o.error_code for o in found.values()} == {None}
    assert "is the network down? Waiting for it, up to 30 s" in caplog.text
    assert "the network is back after" in caplog.text


def test_a_line_that_stays_down_stops_the_run(server: HostileServer, line: dict[str, bool]) -> None:
    line["up"] = False
    with pytest.raises(StopError, match="no host and no name server has answered for") as caught:
        run(named(server, 300), limits=replace(IMPATIENT, outage_seconds=0.5))
    assert "run the same command again" in str(caught.value.hint)


def test_hosts_that_are_silent_while_others_answer_have_failed(
    server: HostileServer, line: dict[str, bool]
) -> None:
    line["up"] = False
    targets = named(server, 60) | {n: Target(server.url(f"/{n % 20}.jpg?{n}")) for n in range(60, 80)}
    found = run(targets, limits=IMPATIENT)
    assert [found[n].error_code for n in range(80)] == ["dns"] * 60 + [None] * 20


def test_hosts_that_never_said_a_word_are_no_sign_of_a_line_that_is_down(
    server: HostileServer, line: dict[str, bool]
) -> None:
    server.routes = {f"/{n}.jpg": servers.silent() for n in range(20)}
    limits = replace(IMPATIENT, idle_seconds=0.3, total_seconds=1.0)
    found = run(named(server, 60), limits=limits, effort=Effort(64))
    assert {o.error_code for o in found.values()} == {"timeout"}


def test_hosts_that_fall_silent_all_at_once_are_a_sign_of_it(server: HostileServer, line: dict[str, bool]) -> None:
    server.routes = {
        f"/{n}.jpg": servers.in_turn(answer(jpeg(n)), servers.silent(), answer(jpeg(n))) for n in range(30)
    }
    limits = replace(IMPATIENT, idle_seconds=0.3, total_seconds=1.0)
    line["knocks"] = False
    for _ in range(2):
        targets = {n: Target(f"http://host{n}.test:{server.port}/{n}.jpg") for n in range(30)}
        found = run(targets, limits=limits, effort=Effort(64))
        assert {o.error_code for o in found.values()} == {None}


def test_many_dead_names_at_the_end_are_not_a_line_that_is_down(
    server: HostileServer, line: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connects(address: str, port: int) -> bool:
        assert (address, port) == ("127.0.0.1", server.port)
        return True

    monkeypatch.setattr(outage, "connects", connects)
    run({n: Target(server.url(f"/{n}.jpg")) for n in range(20)}, limits=IMPATIENT)
    time.sleep(0.1)  # for the next heartbeat
    line["up"] = False
    began = time.monotonic()
    found = run(named(server, 200), limits=IMPATIENT)
    assert {o.error_code for o in found.values()} == {"dns"}
    assert time.monotonic() - began < 5


def test_a_line_that_goes_down_midway_is_noticed_at_once(
    server: HostileServer, line: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    run({n: Target(server.url(f"/{n}.jpg")) for n in range(20)}, limits=IMPATIENT)
    time.sleep(0.1)
    line["up"] = False
    threading.Timer(0.7, lambda: line.update(up=True)).start()
    found = run(named(server, 300), limits=IMPATIENT)
    assert {o.error_code for o in found.values()} == {None}
    assert "is the network down?" in caplog.text


def test_who_answered_last_is_knocked_at(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(address: str, port: int) -> bool:
        await asyncio.sleep(10)
        return True

    async def scene() -> list[bool | None]:
        known = outage.Acquaintances(most=2)
        found = [await known.answer(1.0)]
        for port in (1, 2, server.port):
            known.met(Fetched("", final_url=f"http://127.0.0.1:{port}/", address="127.0.0.1"))
        found.append(await known.answer(1.0))
        monkeypatch.setattr(outage, "connects", nobody)
        return [*found, await known.answer(0.1)]

    assert asyncio.run(scene()) == [None, True, False]


def test_a_few_silent_hosts_at_the_end_are_not_waited_for(server: HostileServer, line: dict[str, bool]) -> None:
    line["up"] = False
    began = time.monotonic()
    found = run(named(server, 10) | {n: Target(f"http://host0.test/{n}") for n in (10, 11)}, limits=IMPATIENT)
    assert [found[n].error_code for n in range(12)] == ["dns"] * 12
    assert time.monotonic() - began < 3


def test_nobody_waits_who_does_not_want_to(server: HostileServer, line: dict[str, bool]) -> None:
    line["up"] = False
    found = run(named(server, 200), limits=replace(IMPATIENT, outage_seconds=0))
    assert {o.error_code for o in found.values()} == {"dns"}


def test_a_fault_of_ours_is_raised_and_the_station_lives_on(server: HostileServer) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    targets = {n: Target(server.url(f"/{n}.jpg")) for n in range(20)}
    with pytest.raises(OSError, match="No space left"):
        run(targets, spool=Full())
    assert len(run(targets)) == 20


def test_nothing_of_a_station_is_left_when_it_is_closed(server: HostileServer) -> None:
    before = threading.active_count()
    run({0: Target(server.url("/1.jpg"))}, effort=Effort(8, 1))
    hands = crawl._standing.decoder._hands  # type: ignore[union-attr]
    pids = [hand.process.pid for hand in hands]
    crawl.close()
    assert threading.active_count() == before
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_memory_is_bounded_by_the_budget() -> None:
    async def scene() -> list[int]:
        budget = Budget(100)
        most = []

        async def body(holder: int) -> None:
            for _ in range(4):
                await budget.grow(holder, 50)
                most.append(budget.used)
                await asyncio.sleep(0)
            budget.release(holder)

        await asyncio.gather(*(body(n) for n in range(5)))
        assert budget.used == 0
        return most

    used = asyncio.run(scene())
    assert len(used) == 20
    # the one that began first may always go on, so one body goes beyond
    assert max(used) <= 100 + 4 * 50


def test_hosts_are_asked_in_turn_and_parked_while_they_rest() -> None:
    rows = [(0, "a"), (1, "a"), (2, "a"), (3, "b"), (4, ""), (5, "c")]
    turns = Turns(rows)
    assert [turns.next(lambda *_: 0.0) for _ in range(7)] == [
        (0, "a"),
        (3, "b"),
        (4, ""),
        (5, "c"),
        (1, "a"),
        (2, "a"),
        None,
    ]
    turns = Turns(rows)
    resting = {"a"}
    wait = lambda number, host: 0.02 if host in resting else 0.0  # noqa: E731
    assert [turns.next(wait) for _ in range(4)] == [(3, "b"), (4, ""), (5, "c"), None]
    assert turns.soonest is not None
    resting.clear()
    time.sleep(0.03)
    assert [turns.next(wait) for _ in range(4)] == [(0, "a"), (1, "a"), (2, "a"), None]


def test_a_host_is_asked_again_as_soon_as_one_of_its_requests_ends() -> None:
    turns = Turns([(0, "a"), (1, "a")])
    assert turns.next(lambda *_: 60.0) is None
    assert turns.next(lambda *_: 0.0) is None
    turns.unpark("b")
    turns.unpark("a")
    assert [turns.next(lambda *_: 0.0) for _ in range(3)] == [(0, "a"), (1, "a"), None]
    assert turns.soonest is None
