"""A host is never asked by too many at once, is left alone when it says so, and holds up no other."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from curate.fetch import hosts
from curate.fetch.faults import Failed, NotAsked
from curate.fetch.hosts import Hosts
from curate.fetch.http import Fetched, Fetcher, FetchLimits
from curate.fetch.urls import host_key, host_of, parse_url
from tests.fetch import servers
from tests.fetch.servers import HostileServer, in_turn, running, status

FAST = FetchLimits(
    connect_seconds=0.3, idle_seconds=0.3, total_seconds=0.6, backoff_seconds=0.01, retries=0, allow_private=True
)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({"/ok": b"body"})) as started:
        yield started


async def here(host: str) -> list[str]:
    """Every host is this machine."""
    return ["127.0.0.1"]


def fetching(task: Callable[[Fetcher], Awaitable[None]], limits: FetchLimits = FAST) -> None:
    async def run() -> None:
        async with Fetcher(limits, lookup=here) as fetcher:
            await task(fetcher)

    asyncio.run(run())


def alone(task: Callable[[Hosts], Awaitable[None]], **settings: float) -> None:
    async def run() -> None:
        given = {"backoff_seconds": 0.02, "patience_seconds": 2.0, "probe_seconds": 0.5} | settings
        await task(Hosts(per_host=int(given.pop("per_host", 2)), **given))

    asyncio.run(run())


def now() -> float:
    return asyncio.get_running_loop().time()


# --- which host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example/1.jpg", "a.example"),
        ("https://A.Example:443/1.jpg", "a.example"),
        ("http://a.example:80?x", "a.example"),
        (" http://a.example:8080#x", "a.example:8080"),
        ("http://a.example", "a.example"),
        ("https://a.example:80/", "a.example:80"),
        ("http://127.0.0.1:99/a b", "127.0.0.1:99"),
        ("http://b\u00fccher.example/", "xn--bcher-kva.example"),
        ("HtTp://a.example/", "a.example"),
        ("http://[::1]:8080/", "::1:8080"),
        ("http://localhost/", "localhost"),
        ("ftp://a.example/", ""),
        ("http://a.example:99999/", ""),
        ("nonsense", ""),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host
    if host:
        assert host_key(parse_url(url)) == host


# --- turns ------------------------------------------------------------------------------------------------


def test_turns_are_limited_in_order_and_forgotten() -> None:
    async def task(known: Hosts) -> None:
        first, second = await known.enter("a", 1), await known.enter("a", 1)
        assert known.ready("a") > 0
        assert known.ready("b") == 0
        order: list[int] = []

        async def later(number: int) -> None:
            host = await known.enter("a", 1)
            order.append(number)
            known.leave(host)

        waiting = [asyncio.ensure_future(later(n)) for n in range(4)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        assert order == []
        known.leave(first)
        await asyncio.wait(waiting)
        assert order == [0, 2, 3]
        known.leave(second)
        assert len(known) == 0

    alone(task)


def test_a_turn_that_was_promised_is_taken_for_a_moment() -> None:
    async def task(known: Hosts) -> None:
        assert [known.ready("a") == 0 for _ in range(3)] == [True, True, False]
        assert known.ready("b") == 0
        await asyncio.sleep(0)
        assert known.ready("a") == 0
        await known.enter("a", 1)
        assert known.ready("a") > 0
        await asyncio.sleep(0)
        assert [known.ready("a") == 0 for _ in range(2)] == [True, False]

    alone(task)


def test_a_turn_granted_to_one_who_is_cancelled_goes_to_the_next() -> None:
    async def task(known: Hosts) -> None:
        first = await known.enter("a", 1)
        waiting = [asyncio.ensure_future(known.enter("a", 1)) for _ in range(2)]
        await asyncio.sleep(0)
        known.leave(first)
        waiting[0].cancel()
        known.leave(await waiting[1])
        assert len(known) == 0

    alone(task, per_host=1)


def test_hosts_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "MOST_HOSTS", 100)

    async def task(known: Hosts) -> None:
        busy = await known.enter("busy", 1)
        for n in range(1_000):
            host = await known.enter(f"{n}.example", 1)
            known.silent(host, Failed("refused", "no connection"), now())
            known.leave(host)
        assert len(known) <= 101
        assert (await known.enter("busy", 1)) is busy

    alone(task)


# --- pauses -----------------------------------------------------------------------------------------------


def test_the_whole_host_pauses_as_long_as_it_asks(server: HostileServer) -> None:
    server.routes["/busy"] = in_turn(status(429, Retry_After="1"), b"body")

    async def task(fetcher: Fetcher) -> None:
        began = time.monotonic()
        got = await fetcher.fetch(server.url("/busy"))
        assert (got.error_code, got.tries) == ("http_429", 1)
        assert 0.8 < fetcher.ready(server.url("/ok")) <= 1
        # others are not concerned
        assert fetcher.ready(server.url("/ok", "other.example")) == 0
        assert (await fetcher.fetch(server.url("/ok", "other.example"))).body == b"body"
        assert time.monotonic() - began < 0.5
        hits = server.hits["/ok"]
        found = await asyncio.gather(*(fetcher.fetch(server.url("/ok")) for _ in range(5)))
        assert [got.body for got in found] == [b"body"] * 5
        assert time.monotonic() - began >= 1
        assert server.hits["/ok"] == hits + 5
        assert fetcher.ready(server.url("/ok")) == 0

    fetching(task, replace(FAST, total_seconds=2))


def test_a_url_does_not_wait_longer_than_it_may(server: HostileServer) -> None:
    server.routes["/busy"] = status(503, Retry_After="2")

    async def task(fetcher: Fetcher) -> None:
        await fetcher.fetch(server.url("/busy"))
        began = time.monotonic()
        got = await fetcher.fetch(server.url("/ok"))
        assert time.monotonic() - began < 0.3
        assert (got.error_code, got.tries, got.http_status) == ("http_503", 0, None)
        assert "the host pauses for longer" in (got.error_message or "")
        assert fetcher.ready(server.url("/ok")) > 1.5  # one that waits to begin loses nothing
        assert server.hits["/ok"] == 0

    fetching(task)


def test_a_host_that_asks_for_an_hour_is_left_alone(server: HostileServer) -> None:
    server.routes["/busy"] = status(429, Retry_After="3600")

    async def task(fetcher: Fetcher) -> None:
        await fetcher.fetch(server.url("/busy"))
        assert fetcher.ready(server.url("/ok")) == 0
        found = await asyncio.gather(*(fetcher.fetch(server.url("/ok")) for _ in range(100)))
        assert {(got.error_code, got.tries) for got in found} == {("http_429", 0)}
        assert "asks to be left alone" in (found[0].error_message or "")
        assert server.hits["/ok"] == 0

    fetching(task)


def test_a_url_whose_host_is_given_up_between_its_tries_keeps_its_answer(server: HostileServer) -> None:
    server.routes["/busy"] = in_turn(status(500), status(429, Retry_After="3600"))

    async def task(fetcher: Fetcher) -> None:
        first = asyncio.ensure_future(fetcher.fetch(server.url("/busy")))
        await asyncio.sleep(0.05)
        await fetcher.fetch(server.url("/busy"))
        got = await first
        assert (got.error_code, got.http_status, got.tries) == ("http_429", 500, 1)

    fetching(task, replace(FAST, backoff_seconds=0.3, retries=1))


def test_one_page_that_is_down_for_long_does_not_cost_the_host(server: HostileServer) -> None:
    server.routes["/down"] = status(503, Retry_After="86400")

    async def task(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(server.url("/down"))).error_code == "http_503"
        assert (await fetcher.fetch(server.url("/ok"))).body == b"body"
        # three in a row are the host's own word
        for _ in range(3):
            assert (await fetcher.fetch(server.url("/down"))).error_code == "http_503"
        assert (await fetcher.fetch(server.url("/ok"))).error_code == "http_503"

    fetching(task)


def test_pauses_double_and_end_with_giving_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "SHUT_SECONDS", (0.1, 0.15))
    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)

    async def task(known: Hosts) -> None:
        pauses = []
        for _ in range(hosts.MOST_PAUSES - 1):
            host = await known.enter("a", 9)
            known.answered(host, 429, None, now())
            known.answered(host, 429, None, 0.0)  # began before the pause: nothing new
            pauses.append(known.ready("a"))
            known.leave(host)
        assert pauses == pytest.approx([0.001 * 2**n for n in range(hosts.MOST_PAUSES - 1)], abs=0.001)
        assert host.room == 1
        host = await known.enter("a", 9)
        known.answered(host, 429, None, now())
        known.leave(host)
        with pytest.raises(NotAsked, match=r"the server answered 429 \(not asked again"):
            await known.enter("a", 9)
        await asyncio.sleep(0.12)
        # one tries again, nobody else meanwhile
        host = await known.enter("a", 9)
        with pytest.raises(NotAsked):
            await known.enter("a", 9)
        known.answered(host, 200, None, now())
        other = await known.enter("a", 9)
        for turn in (host, other):
            known.answered(turn, 200, None, now())
            known.leave(turn)
        assert len(known) == 0

    alone(task, backoff_seconds=0.001)


def test_those_who_wait_are_refused_when_the_host_is_given_up() -> None:
    async def task(known: Hosts) -> None:
        host = await known.enter("a", 9)
        waiting = [asyncio.ensure_future(known.enter("a", patience)) for patience in (0.1, 1, 9)]
        await asyncio.sleep(0)
        known.answered(host, 429, 0.5, now())
        known.leave(host)
        with pytest.raises(NotAsked, match="pauses for longer"):
            await waiting[0]
        known.answered(host, 429, 3600, now())
        for task in waiting[1:]:
            with pytest.raises(NotAsked, match="left alone"):
                await task

    alone(task, per_host=1)


# --- hosts that give no sign of life ----------------------------------------------------------------------


def test_a_host_that_cannot_be_reached_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "SHUT_SECONDS", (0.2, 1.0))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"

        async def task(fetcher: Fetcher) -> None:
            found = [await fetcher.fetch(url) for _ in range(60)]
            assert {got.error_code for got in found} == {"refused"}
            assert [got.tries for got in found] == [1] * hosts.MOST_SILENT + [0] * (60 - hosts.MOST_SILENT)
            last = found[-1].error_message or ""
            assert last.startswith("no connection:")
            assert "given up after 20 requests in a row" in last
            await asyncio.sleep(0.25)
            again = [await fetcher.fetch(url) for _ in range(3)]
            assert [got.tries for got in again] == [1, 0, 0]  # one try, then given up for twice as long
            await asyncio.sleep(0.25)
            assert (await fetcher.fetch(url)).tries == 0
            await asyncio.sleep(0.2)
            with running(HostileServer({"/": b"body"}), sock=taken.dup()):
                assert (await fetcher.fetch(url)).body == b"body"
                found = await asyncio.gather(*(fetcher.fetch(url) for _ in range(10)))
                assert {got.body for got in found} == {b"body"}

        fetching(task)


def test_an_answer_now_and_then_keeps_a_host(server: HostileServer) -> None:
    server.routes["/mute"] = servers.silent()

    async def task(fetcher: Fetcher) -> None:
        for _ in range(2):
            await asyncio.gather(*(fetcher.fetch(server.url("/mute")) for _ in range(15)))
            assert (await fetcher.fetch(server.url("/ok"))).body == b"body"
        found = await asyncio.gather(*(fetcher.fetch(server.url("/mute")) for _ in range(60)))
        assert {got.error_code for got in found} == {"timeout"}
        assert server.hits["/mute"] < 30 + 60
        assert (await fetcher.fetch(server.url("/ok"))).error_code == "timeout"

    fetching(task, replace(FAST, idle_seconds=0.1))


def test_a_name_server_that_fails_is_not_asked_by_every_row() -> None:
    asked = []

    async def failing(host: str) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def run() -> None:
        async with Fetcher(replace(FAST, backoff_seconds=1), lookup=failing) as fetcher:
            found = [await fetcher.fetch(f"http://later.example/{n}") for n in range(100)]
            assert {got.error_code for got in found} == {"dns"}
            assert asked == ["later.example"]

    asyncio.run(run())


# --- many hosts -------------------------------------------------------------------------------------------


def test_a_slow_host_holds_up_no_other(server: HostileServer) -> None:
    server.routes["/slow"] = servers.slow(0.8, b"slow")

    async def task(fetcher: Fetcher) -> None:
        slow = [asyncio.ensure_future(fetcher.fetch(server.url("/slow", "slow.example"))) for _ in range(6)]
        await asyncio.sleep(0)
        urls = [server.url("/ok", f"{n % 50}.example") for n in range(200)]
        assert [fetcher.ready(url) for url in urls[:150]] == [0] * 150
        assert fetcher.ready(server.url("/slow", "slow.example")) > 0
        fast: list[Fetched] = await asyncio.gather(*map(fetcher.fetch, urls))
        assert {got.body for got in fast} == {b"body"}
        assert not slow[-1].done()
        assert {got.body for got in await asyncio.gather(*slow)} == {b"slow"}

    fetching(task, replace(FAST, per_host=3, connect_seconds=5, idle_seconds=5, total_seconds=10))


def test_a_turn_with_one_host_is_not_kept_while_waiting_for_another(server: HostileServer) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        server.routes[f"/{one}"] = servers.redirect(server.url("/ok", f"{other}.example"))

    async def task(fetcher: Fetcher) -> None:
        urls = [server.url(f"/{name}", f"{name}.example") for name in "ab" * 10]
        found = await asyncio.gather(*map(fetcher.fetch, urls))
        assert {got.body for got in found} == {b"body"}

    fetching(task, replace(FAST, per_host=1, total_seconds=2))
