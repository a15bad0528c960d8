"""robots.txt is asked for once, under the rules of any other URL, and obeyed as RFC 9309 has it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from curate.fetch import robots
from curate.fetch.http import Fetched, Fetcher, FetchLimits
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, in_turn, raw, redirect, running, status

POLITE = FetchLimits(
    connect_seconds=0.5,
    idle_seconds=0.2,
    total_seconds=0.5,
    backoff_seconds=0.01,
    allow_private=True,
    obey_robots=True,
)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    routes = {path: answer(b"body") for path in ("/ok", "/private/a", "/private/open")}
    with running(HostileServer({**routes})) as started:
        yield started


async def here(host: str) -> list[str]:
    if host.startswith("gone"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return ["127.0.0.1"]


def fetch(
    *urls: str, limits: FetchLimits = POLITE, permitted: Callable[[str], bool] | None = None
) -> list[Fetched]:
    """All at once, so that they share what is asked for."""

    async def every() -> list[Fetched]:
        async with Fetcher(limits, lookup=here, permitted=permitted) as fetcher:
            return await asyncio.gather(*map(fetcher.fetch, urls))

    return asyncio.run(every())


def codes(server: HostileServer, rules: bytes, *paths: str) -> list[str | None]:
    server.routes["/robots.txt"] = answer(rules)
    for path in paths:
        server.routes[path] = b"body"
    return [got.error_code for got in fetch(*map(server.url, paths))]


def test_it_is_read_only_if_wanted(server: HostileServer) -> None:
    server.routes["/robots.txt"] = b"User-agent: *\nDisallow: /"
    (got,) = fetch(server.url("/ok"), limits=replace(POLITE, obey_robots=False))
    assert got.body == b"body"
    assert server.hits["/robots.txt"] == 0
    (got,) = fetch(server.url("/ok"))
    assert (got.error_code, got.tries, got.http_status) == ("robots", 0, None)
    assert got.error_message == "robots.txt asks not to fetch it"
    assert server.hits["/ok"] == 1


@pytest.mark.parametrize(
    ("rules", "path", "code"),
    [
        (b"", "/a", None),
        (b"User-agent: *\nDisallow:", "/a", None),
        (b"User-agent: *\nDisallow: /private/\n", "/private/a", "robots"),
        (b"User-agent: *\nDisallow: /private/\n", "/privates", None),
        # the longest match wins, wherever it stands
        (b"User-agent: *\nDisallow: /private/\nAllow: /private/open", "/private/open", None),
        (b"User-agent: *\nAllow: /\nDisallow: /private/", "/private/a", "robots"),
        (b"User-agent: *\nDisallow: /a\nAllow: /a", "/a", None),
        # wildcards and ends
        (b"User-agent: *\nDisallow: /*.jpg$", "/x/y.jpg", "robots"),
        (b"User-agent: *\nDisallow: /*.jpg$", "/x/y.jpg?size=2", None),
        (b"User-agent: *\nDisallow: /*?*size=", "/x/y.jpg?a&size=2", "robots"),
        # our own group instead of everybody's; another's is not ours
        (b"User-agent: *\nDisallow: /\n\nUser-agent: CURATE\nDisallow: /b", "/a", None),
        (b"User-agent: *\nDisallow: /\n\nUser-agent: curate\nDisallow: /b", "/b", "robots"),
        (b"User-agent: other\nDisallow: /", "/a", None),
        (b"User-agent: other\nUser-agent: curate\nDisallow: /", "/a", "robots"),
        (b"User-agent: curate\nDisallow: /a\n\nUser-agent: curate\nDisallow: /b", "/b", "robots"),
        # spellings
        (b"user-AGENT : *  # all\r\nDISALLOW:/a # this", "/a", "robots"),
        (b"\xef\xbb\xbfUser-agent: *\nDisallow: /a", "/a", "robots"),
        (b"User-agent: *\nDisallow: /%C3%BC", "/\u00fc", "robots"),
        (b"User-agent: *\nDisallow: /\xc3\xbc", "/%c3%bc", "robots"),
        (b"<!doctype html><p>Disallow: /", "/a", None),
        (b"\xff\xfe\0\1" * 100, "/a", None),
    ],
)
def test_its_rules(server: HostileServer, rules: bytes, path: str, code: str | None) -> None:
    server.routes["/%C3%BC"] = server.routes["/%c3%bc"] = b"body"
    assert codes(server, rules, path) == [code]


def test_it_is_asked_for_once_an_origin(server: HostileServer) -> None:
    server.routes["/robots.txt"] = servers.slow(0.05, b"User-agent: *\nDisallow: /private")
    found = fetch(*[server.url("/ok"), server.url("/private/a")] * 10, server.url("/ok", "other.example"))
    assert [got.error_code for got in found] == [None, "robots"] * 10 + [None]
    assert server.hits["/robots.txt"] == 2
    assert server.hits["/private/a"] == 0


def test_a_host_is_not_ready_while_it_is_asked_for(server: HostileServer) -> None:
    server.routes["/robots.txt"] = servers.slow(0.1, b"")

    async def one() -> None:
        async with Fetcher(POLITE) as fetcher:
            fetching = asyncio.ensure_future(fetcher.fetch(server.url("/ok")))
            await asyncio.sleep(0.05)
            assert fetcher.ready(server.url("/ok")) > 0
            assert fetcher.ready("http://other.example/") == 0
            assert (await fetching).body == b"body"
            assert fetcher.ready(server.url("/ok")) == 0

    asyncio.run(one())


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (status(404), None),
        (status(403), None),
        (b"", None),
        (redirect("/robots.txt"), None),
        (status(500), "robots"),
        (status(503), "robots"),
        (status(429), "robots"),
        (in_turn(status(503), b"User-agent: *\nDisallow: /private"), None),
        (servers.silent(), "timeout"),
        (raw(b"", reset=True), "reset"),
        (redirect("file:///etc/hostname"), "bad_scheme"),
        (redirect("http://gone.example/robots.txt"), "no_such_host"),
    ],
)
def test_a_robots_txt_that_cannot_be_had(server: HostileServer, reply: servers.Reply, code: str | None) -> None:
    server.routes["/robots.txt"] = reply
    (got,) = fetch(server.url("/ok"), limits=replace(POLITE, retries=1))
    assert got.error_code == code
    assert server.hits["/ok"] == (code is None)
    if code is not None:
        assert (got.error_message or "").startswith("robots.txt")
        assert got.tries == 0


def test_a_host_that_is_gone_fails_with_its_own_code() -> None:
    (got,) = fetch("http://gone.example/a.jpg")
    assert got.error_code == "no_such_host"


def test_it_is_held_to_the_rules_of_any_other_url(server: HostileServer) -> None:
    server.routes["/robots.txt"] = redirect(server.url("/rules", "127.0.0.2"))
    (got,) = fetch(server.url("/ok"), permitted="127.0.0.1".__eq__)
    assert (got.error_code, server.hits["/rules"], server.hits["/ok"]) == ("private_address", 0, 0)
    (got,) = fetch(server.url("/ok", "127.0.0.2"), permitted="127.0.0.1".__eq__)
    assert got.error_code == "private_address"
    assert server.hits["/robots.txt"] == 1


def test_redirects_of_a_robots_txt_speak_for_the_host_that_was_asked(server: HostileServer) -> None:
    server.routes["/robots.txt"] = redirect("/rules")
    server.routes["/rules"] = b"User-agent: *\nDisallow: /private"
    found = fetch(server.url("/private/a"), server.url("/ok"))
    assert [got.error_code for got in found] == ["robots", None]


def test_every_hop_is_checked(server: HostileServer) -> None:
    server.routes["/robots.txt"] = b"User-agent: *\nDisallow: /private"
    server.routes["/go"] = redirect("/private/a")
    (got,) = fetch(server.url("/go"))
    assert (got.error_code, got.http_status, got.tries) == ("robots", 302, 1)
    assert (server.hits["/go"], server.hits["/private/a"]) == (1, 0)


def test_only_its_beginning_is_read(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robots, "MOST_BYTES", 100_000)
    begin = b"User-agent: *\nDisallow: /private\n"
    server.routes["/robots.txt"] = answer(begin + b"#" * 300_000 + b"\nDisallow: /ok\n")
    found = fetch(server.url("/private/a"), server.url("/ok"), limits=replace(POLITE, max_bytes=1000))
    assert [got.error_code for got in found] == ["robots", None]


def test_what_could_not_be_had_is_asked_for_again_later(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robots, "RETRIED_SECONDS", 0.2)
    server.routes["/robots.txt"] = in_turn(status(500), b"User-agent: *\nDisallow: /private")

    async def later() -> list[str | None]:
        async with Fetcher(replace(POLITE, retries=0)) as fetcher:
            found = [(await fetcher.fetch(server.url("/ok"))).error_code for _ in range(3)]
            await asyncio.sleep(0.25)
            return [*found, *[(await fetcher.fetch(server.url("/ok"))).error_code for _ in range(2)]]

    assert asyncio.run(later()) == ["robots"] * 3 + [None, None]
    assert server.hits["/robots.txt"] == 2


def test_an_opt_out_header_on_robots_txt_is_not_ours(server: HostileServer) -> None:
    server.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /private", X_Robots_Tag="noindex")
    found = fetch(server.url("/private/a"), server.url("/ok"))
    assert [got.error_code for got in found] == ["robots", None]
