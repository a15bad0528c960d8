"""Whatever a URL, a host or a server does ends as a body or as an error code, in bounded time and memory."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import resource
import shutil
import socket
import ssl
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from curate.errors import ERROR_CODES
from curate.fetch.addresses import CheckedResolver
from curate.fetch.http import Fetched, Fetcher, FetchLimits
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, in_turn, raw, redirect, running, status, timed

FAST = FetchLimits(
    connect_seconds=0.5,
    idle_seconds=0.3,
    total_seconds=0.8,
    max_bytes=200_000,
    backoff_seconds=0.01,
    allow_private=True,
)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({"/ok": b"body", "/empty": b""})) as started:
        yield started


def get(url: str, limits: FetchLimits = FAST, **injected: object) -> Fetched:
    async def one() -> Fetched:
        async with Fetcher(limits, **injected) as fetcher:  # type: ignore[arg-type]
            return await fetcher.fetch(url)

    fetched = asyncio.run(one())
    code = fetched.error_code
    assert (code is None) == (fetched.body is not None)
    assert code is None or code in ERROR_CODES or code[5:].isdigit()
    return fetched


def resolver(**names: str) -> Callable[[str], object]:
    """A stand-in for the system's resolver: `a_b="1.2.3.4 5.6.7.8"` answers for the host a.b."""
    table = {name.replace("_", "."): addresses.split() for name, addresses in names.items()}

    async def lookup(host: str) -> list[str]:
        if host not in table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return table[host]

    return lookup


def test_body_and_what_is_known_of_the_answer(server: HostileServer) -> None:
    server.routes["/typed"] = answer(b"body", Content_Type="image/jpeg", ETag='"1"')
    got = get(server.url("/typed"))
    assert (got.body, got.http_status, got.content_type) == (b"body", 200, "image/jpeg")
    assert (got.address, got.tries, got.final_url) == ("127.0.0.1", 1, server.url("/typed"))
    assert got.headers == {"content-length": "4", "etag": '"1"'}
    assert 0 < got.seconds < 1
    assert server.seen["user-agent"].startswith("curate")
    get(server.url("/typed"), replace(FAST, user_agent="ours/1", contact="us@example.org"))
    assert server.seen["user-agent"] == "ours/1 (contact: us@example.org)"
    assert "cookie" not in server.seen


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "no_url"),
        (" \n", "no_url"),
        ("file:///etc/hostname", "bad_scheme"),
        ("data:image/gif;base64,R0lGOD", "bad_scheme"),
        ("ftp://127.0.0.1/x", "bad_scheme"),
        ("javascript:alert(1)", "bad_scheme"),
        ("example.com/a.jpg", "bad_url"),
        ("//example.com/a.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http:///a.jpg", "bad_url"),
        ("http://exa mple.com/", "bad_url"),
        ("http://host:99999/", "bad_url"),
        ("http://host:port/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://me:secret@127.0.0.1/", "bad_url"),
        ("http://127.0.0.1/a\r\nX-Injected: 1", "bad_url"),
        ("http://127.0.0.1/a\0b", "bad_url"),
        ("http://127.0.0.1/" + "a" * 20_000, "bad_url"),
        ("http://" + "a" * 300 + ".example/", "bad_url"),
        ("http://a..example/", "bad_url"),
        ("http://\u2024/", "bad_url"),
    ],
)
def test_urls_that_are_never_asked_for(url: str, code: str) -> None:
    got = get(url, lookup=resolver())
    assert got.error_code == code
    assert "secret" not in (got.error_message or "")


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("/a b.jpg", "/a%20b.jpg"),
        ("/\u00fc.jpg?q=\u00e9", "/%C3%BC.jpg?q=%C3%A9"),
        ("/a%20b%2Fc?x=1%262#top", "/a%20b%2Fc?x=1%262"),
        ("/100%.jpg", "/100%25.jpg"),
        ("/a%2cb%28%7E.jpg?u=http%3A%2F%2Fx%2C&s=%3D", "/a%2cb%28%7E.jpg?u=http%3A%2F%2Fx%2C&s=%3D"),  # as signed
        ("/d/../e/./f/..", "/e/"),
        ("//d/..a/.b/...?x/../y", "//d/..a/.b/...?x/../y"),
        ("/a.jpg \n", "/a.jpg"),
    ],
)
def test_urls_are_percent_encoded_as_a_browser_does(server: HostileServer, asked: str, path: str) -> None:
    server.routes[path] = b"body"
    assert get(server.url(asked)).body == b"body"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "[fe80::1]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_private_addresses_are_refused_however_they_are_written(server: HostileServer, host: str) -> None:
    got = get(server.url("/ok", host), replace(FAST, allow_private=False))
    assert got.error_code == "private_address"
    assert server.connections == 0


def test_names_are_judged_by_what_they_resolve_to(server: HostileServer) -> None:
    strict = replace(FAST, allow_private=False)
    lookup = resolver(inside_example="10.1.2.3 127.0.0.1", mixed_example="10.1.2.3 127.0.0.1")
    got = get(server.url("/ok", "inside.example"), strict, lookup=lookup)
    assert got.error_code == "private_address"
    assert "10.1.2.3" in (got.error_message or "")
    # of several addresses only a permitted one is connected to
    got = get(server.url("/ok", "mixed.example"), strict, lookup=lookup, permitted="127.0.0.1".__eq__)
    assert (got.body, got.address) == (b"body", "127.0.0.1")


@pytest.mark.parametrize("target", ["http://127.0.0.2:{port}/ok", "http://private.example:{port}/ok"])
def test_redirect_to_a_private_address_is_refused(server: HostileServer, target: str) -> None:
    server.routes["/go"] = redirect(target.format(port=server.port))
    lookup = resolver(public_example="127.0.0.1", private_example="127.0.0.2")
    got = get(
        server.url("/go", "public.example"),
        replace(FAST, allow_private=False),
        lookup=lookup,
        permitted="127.0.0.1".__eq__,
    )
    assert got.error_code == "private_address"
    assert (server.hits["/go"], server.hits["/ok"]) == (1, 0)


def test_a_second_lookup_cannot_move_the_connection(server: HostileServer) -> None:
    """DNS that answers an allowed address first and a private one next is asked once for a connection."""
    asked = []

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1" if len(asked) == 1 else "10.0.0.1"]

    server.routes["/close"] = answer(b"body", Connection="close")
    url = server.url("/close", "rebind.example")

    async def thrice() -> list[Fetched]:
        async with Fetcher(FAST, lookup=lookup, permitted="127.0.0.1".__eq__) as fetcher:
            first = [await fetcher.fetch(url), await fetcher.fetch(url)]
            assert len(asked) == 1
            # the answer is no longer believed
            name, answer = next(iter(fetcher._resolver._answers.items()))
            fetcher._resolver._answers[name] = answer._replace(until=0.0)
            return [*first, await fetcher.fetch(url)]

    *first, last = asyncio.run(thrice())
    assert [got.address for got in first] == ["127.0.0.1", "127.0.0.1"]
    assert (last.error_code, last.address) == ("private_address", None)
    assert (server.hits["/close"], server.connections) == (2, 2)


def test_an_address_in_an_old_form_is_asked_for_in_its_usual_one(server: HostileServer) -> None:
    for host in ("2130706433", "0x7f.1", "127.1"):
        got = get(server.url("/ok", host))
        assert (got.body, got.final_url) == (b"body", server.url("/ok"))


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: HostileServer, code: int) -> None:
    server.routes["/dir/go"] = redirect("../ok?\u00e9", code)
    got = get(server.url("/dir/go"))
    assert (got.body, got.final_url) == (b"body", server.url("/ok?%C3%A9"))


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("file:///etc/passwd", "bad_scheme"),
        ("data:image/gif;base64,R0lGOD", "bad_scheme"),
        ("ftp://127.0.0.1/x", "bad_scheme"),
        ("http://me:secret@127.0.0.1/", "bad_url"),
        ("http://[::1", "bad_url"),
        ("", "too_many_redirects"),
        ("/loop", "too_many_redirects"),
    ],
)
def test_redirects_are_held_to_the_same_rules(server: HostileServer, location: str, code: str) -> None:
    server.routes["/loop"] = redirect(location)
    assert get(server.url("/loop")).error_code == code
    assert server.hits["/loop"] <= FAST.max_redirects + 1


def test_a_redirect_is_followed_letter_by_letter(server: HostileServer) -> None:
    signed = "/a%2cb%28.jpg?u=%2F%7E&s=%3D"
    server.routes[signed] = b"body"
    server.routes |= {"/whole": redirect(server.url(signed)), "/d/part": redirect(f"..{signed}#x")}
    assert [get(server.url(path)).body for path in ("/whole", "/d/part")] == [b"body", b"body"]


def test_redirects_are_counted(server: HostileServer) -> None:
    for n in range(6):
        server.routes[f"/{n}"] = redirect(f"/{n + 1}")
    server.routes["/6"] = b"body"
    assert get(server.url("/1")).body == b"body"
    assert get(server.url("/0")).error_code == "too_many_redirects"


@pytest.mark.parametrize("code", [400, 403, 404, 410, 451, 204, 206, 304])
def test_what_will_not_change_is_asked_for_once(server: HostileServer, code: int) -> None:
    server.routes["/x"] = raw(servers.head(code, {"Content-Length": "0"}))
    got = get(server.url("/x"))
    assert (got.error_code, got.http_status, got.tries) == (f"http_{code}", code, 1)
    assert server.hits["/x"] == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_for_again(server: HostileServer, code: int) -> None:
    server.routes["/x"] = in_turn(status(code), status(code), b"body")
    got = get(server.url("/x"))
    assert (got.body, got.tries, server.hits["/x"]) == (b"body", 3, 3)
    server.routes["/never"] = status(code)
    assert get(server.url("/never"), replace(FAST, retries=1)).error_code == f"http_{code}"
    assert server.hits["/never"] == 2


def test_ten_thousand_redirects(server: HostileServer) -> None:
    server.routes["/more"] = in_turn(*(redirect(f"/more?{n}") for n in range(10_000)))
    assert get(server.url("/more")).error_code == "too_many_redirects"
    assert sum(server.hits.values()) == FAST.max_redirects + 1
    assert get(server.url("/more"), replace(FAST, max_redirects=0)).error_code == "too_many_redirects"
    assert sum(server.hits.values()) == FAST.max_redirects + 2


def test_retry_after_is_honoured(server: HostileServer) -> None:
    server.routes["/wait"] = in_turn(status(429, Retry_After="1"), b"body")
    got, seconds = timed(lambda: get(server.url("/wait"), replace(FAST, total_seconds=3)))
    assert got.body == b"body"
    assert 1 <= seconds < 2
    # longer than the URL has left: given up at once, for a later pass
    for far in ("3600", formatdate(time() + 3600, usegmt=True)):
        server.routes["/far"] = status(429, Retry_After=far)
        got, seconds = timed(lambda: get(server.url("/far")))
        assert (got.error_code, got.tries) == ("http_429", 1)
        assert seconds < 0.5
    for odd in ("soon", "-1", "1e9", "9" * 5000, "Mon, 99 Foo 2020", ""):
        server.routes["/odd"] = in_turn(status(500, Retry_After=odd), b"body")
        assert get(server.url("/odd")).error_code in (None, "http_500")


def test_deadlines(server: HostileServer) -> None:
    server.routes |= {"/silent": servers.silent(), "/drip": servers.drip()}
    server.routes["/slow-head"] = servers.drip(in_headers=True)
    got, seconds = timed(lambda: get(server.url("/silent")))
    assert (got.error_code, got.tries) == ("timeout", 2)
    assert seconds < 1.2
    for path in ("/drip", "/slow-head"):
        got, seconds = timed(lambda path=path: get(server.url(path), replace(FAST, min_rate=0)))
        assert (got.error_code, got.error_message) == ("timeout", "not done within 0.8 seconds")
        assert 0.7 < seconds < 1.2
        assert server.hits[path] == 1


def test_a_body_slower_than_the_least_rate_is_given_up(server: HostileServer) -> None:
    server.routes |= {"/drip": servers.drip(), "/slow": servers.in_pieces(b"x" * 500, count=4, interval=0.15)}
    got, seconds = timed(lambda: get(server.url("/drip")))
    assert (got.error_code, got.error_message) == ("timeout", "slower than 1000 bytes/s")
    assert 0.25 < seconds < 0.7
    assert server.hits["/drip"] == 1
    assert get(server.url("/slow")).body == b"x" * 2000


@pytest.mark.parametrize("sent", ["cut", "bomb"])
def test_what_came_of_a_body_that_breaks_is_let_go_at_once(server: HostileServer, sent: str) -> None:
    """Without waiting for the garbage collector, which counts objects and not their bytes."""
    server.routes["/cut"] = raw(b"HTTP/1.1 200 x\r\nContent-Length: 190000\r\n\r\n" + bytes(180_000))
    server.routes["/bomb"] = answer(gzip.compress(bytes(400_000)), Content_Encoding="gzip")

    async def several() -> int:
        async with Fetcher(replace(FAST, retries=0)) as fetcher:
            assert (await fetcher.fetch(server.url(f"/{sent}"))).error_code in ("reset", "too_large")
            tracemalloc.start()
            for _ in range(10):
                await fetcher.fetch(server.url(f"/{sent}"))
            return tracemalloc.get_traced_memory()[0]

    gc.disable()
    try:
        assert asyncio.run(several()) < 500_000
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_caller_that_cancels_is_not_told_of_a_timeout(server: HostileServer) -> None:
    server.routes["/silent"] = servers.silent()

    async def cancelled() -> None:
        async with Fetcher(FAST) as fetcher:
            task = asyncio.ensure_future(fetcher.fetch(server.url("/silent")))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not len(fetcher._hosts)

    asyncio.run(cancelled())


def test_bodies_over_the_cap(server: HostileServer) -> None:
    server.routes["/announced"] = servers.flood(200 << 20, announce=True)
    server.routes["/endless"] = servers.flood(200 << 20, announce=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server.routes["/chunked"] = servers.chunked_flood(200 << 20)
    for path in ("/announced", "/endless", "/chunked"):
        got = get(server.url(path))
        assert (got.error_code, got.tries) == ("too_large", 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    server.routes["/most"] = bytes(FAST.max_bytes)
    assert get(server.url("/most")).body == bytes(FAST.max_bytes)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_are_decompressed_under_the_cap(server: HostileServer, encoding: str) -> None:
    small = b"body" * 1000
    packed = gzip.compress(small) if encoding == "gzip" else zlib.compress(small)
    server.routes["/packed"] = answer(packed, Content_Encoding=encoding)
    assert get(server.url("/packed")).body == small
    server.routes["/bomb"] = servers.bomb(100 << 20, encoding)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert get(server.url("/bomb")).error_code == "too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    server.routes["/garbage"] = answer(b"\xff\xfenot compressed", Content_Encoding=encoding)
    assert get(server.url("/garbage")).error_code == "bad_response"
    server.routes["/more"] = answer(packed + bytes(FAST.max_bytes // 2), Content_Encoding=encoding)
    assert get(server.url("/more")).body == small
    server.routes["/cut"] = answer(packed[:-20], Content_Encoding=encoding)
    assert get(server.url("/cut")).error_code == "reset"


def test_headers_of_any_bytes_can_be_written_down(server: HostileServer) -> None:
    headers = (
        b"Content-Type: image/\xff\r\nServer: \xfe\r\nX-Robots-Tag: noai, \xed\xa0\x80\r\nContent-Length: 0\r\n\r\n"
    )
    server.routes["/odd"] = raw(b"HTTP/1.1 200 \xff\r\n" + headers)
    got = get(server.url("/odd"))
    assert (got.error_code, got.content_type, got.headers["server"]) == ("opted_out", "image/?", "?")
    json.dumps([got.error_message, got.headers], ensure_ascii=False).encode()


def test_deflate_without_a_header_is_understood(server: HostileServer) -> None:
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(b"body" * 1000) + packer.flush()
    server.routes["/raw"] = answer(packed, Content_Encoding="deflate")
    assert get(server.url("/raw")).body == b"body" * 1000


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (raw(b""), "reset"),
        (raw(b"", reset=True), "reset"),
        (raw(b"HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nshort"), "reset"),
        (raw(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"), "reset"),
        (raw(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nshort\r\n"), "bad_response"),
        (raw(b"HTTP/1.1 200 x\r\n" + b"Header: again\r\n" * 20_000 + b"\r\n"), "bad_response"),
        (raw(b"SSH-2.0-OpenSSH_9\r\n"), "bad_response"),
        (raw(b"HTTP/1.1 200 x\r\nContent-Length: many\r\n\r\n"), "bad_response"),
        (raw(b"HTTP/1.1 200 x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"), "bad_response"),
        (b"", "empty"),
    ],
)
def test_answers_that_break(server: HostileServer, reply: servers.Reply, code: str) -> None:
    server.routes["/x"] = reply
    got = get(server.url("/x"))
    assert got.error_code == code
    assert got.tries == (3 if code == "reset" else 1)


def test_hosts_that_cannot_be_reached(server: HostileServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        got = get(f"http://127.0.0.1:{closed.getsockname()[1]}/")
    assert (got.error_code, got.tries) == ("refused", 1)
    got = get("http://gone.example/", lookup=resolver())
    assert (got.error_code, got.tries) == ("no_such_host", 1)
    got = get("http://empty.example/", lookup=resolver(empty_example=""))
    assert (got.error_code, got.tries) == ("no_such_host", 1)
    asked = []

    async def failing(host: str) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    got = get("http://later.example/", lookup=failing)
    assert (got.error_code, got.tries, len(asked)) == ("dns", 3, 3)

    async def silent(host: str) -> list[str]:
        await asyncio.sleep(30)
        return []

    got, seconds = timed(lambda: get("http://mute.example/", replace(FAST, retries=0), lookup=silent))
    assert got.error_code == "dns"
    assert seconds < 1


def test_a_dead_host_of_ten_thousand_rows_is_looked_up_once() -> None:
    asked = []

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        await asyncio.sleep(0.01)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def every() -> set[str | None]:
        async with Fetcher(FAST, lookup=lookup) as fetcher:
            rows = iter(range(10_000))

            async def lane() -> set[str | None]:
                return {(await fetcher.fetch(f"http://gone.example/{n}.jpg")).error_code for n in rows}

            return set().union(*await asyncio.gather(*(lane() for _ in range(64))))

    codes, seconds = timed(lambda: asyncio.run(every()))
    assert (codes, asked) == ({"no_such_host"}, ["gone.example"])
    assert seconds < 5


def test_lookups_are_few_at_once_and_shared() -> None:
    running, most, asked = 0, 0, []

    async def lookup(host: str) -> list[str]:
        nonlocal running, most
        asked.append(host)
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.01)
        running -= 1
        return ["127.0.0.1", "10.0.0.1"]

    async def many() -> list[tuple[str, ...]]:
        resolver = CheckedResolver("127.0.0.1".__eq__, lookup=lookup, threads=4)
        names = [f"{n % 20}.example" for n in range(60)]
        first = asyncio.ensure_future(resolver.addresses("0.example"))
        await asyncio.sleep(0)
        first.cancel()  # those who share its look-up still get the answer
        found = await asyncio.gather(*map(resolver.addresses, names))
        assert await resolver.addresses("7.example") == ("127.0.0.1",)
        await resolver.close()
        return found

    assert set(asyncio.run(many())) == {("127.0.0.1",)}
    assert (most, sorted(asked)) == (4, sorted(f"{n}.example" for n in range(20)))


def test_the_systems_resolver_is_asked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def both() -> tuple[str, ...]:
        resolver = CheckedResolver(lambda _: True)
        found = await resolver.addresses("localhost")
        monkeypatch.setattr(socket, "getaddrinfo", nobody)
        with pytest.raises(socket.gaierror, match="Temporary failure"):
            await resolver.addresses("somewhere.example")
        await resolver.close()
        return found

    assert "127.0.0.1" in asyncio.run(both())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate `c` for right.example, and its key `k`."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=right.example -keyout k -out c"
    names = ["-addext", "subjectAltName=DNS:right.example"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_trouble_has_its_code(server: HostileServer, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "c", certificate / "k")
    lookup = resolver(right_example="127.0.0.1", wrong_example="127.0.0.1")

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 this is no TLS\r\n\r\n")
        writer.close()

    async def every() -> tuple[Fetched, dict[str, Fetched]]:
        wrapped = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=context)
        unwrapped = await asyncio.start_server(plain, "127.0.0.1", 0)
        port, plain_port = (listening.sockets[0].getsockname()[1] for listening in (wrapped, unwrapped))
        async with Fetcher(FAST, lookup=lookup) as fetcher:  # type: ignore[arg-type]
            bad = {"untrusted": await fetcher.fetch(f"https://right.example:{port}/ok")}
            bad["no tls"] = await fetcher.fetch(f"https://right.example:{plain_port}/ok")
        trusting = ssl.create_default_context(cafile=certificate / "c")
        async with Fetcher(FAST, lookup=lookup, tls=trusting) as fetcher:  # type: ignore[arg-type]
            good = await fetcher.fetch(f"https://right.example:{port}/ok")
            bad["another's"] = await fetcher.fetch(f"https://wrong.example:{port}/ok")
        wrapped.close()
        unwrapped.close()
        return good, bad

    good, bad = asyncio.run(every())
    assert good.body == b"body"
    for why, got in bad.items():
        assert (got.error_code, got.tries) == ("tls", 1), (why, got)
    assert "mismatch" in (bad["another's"].error_message or "")
    assert server.hits["/ok"] == 1


@pytest.mark.parametrize(
    ("tag", "obeyed"),
    [
        ("noai", True),
        ("NoImageAI, nofollow", True),
        ("max-image-preview: large, noindex", True),
        ("curate: noimageindex", True),
        ("otherbot: noai", False),
        ("otherbot: nofollow, noai", False),
        ("nofollow, noarchive", False),
        ("", False),
    ],
)
def test_opt_outs(server: HostileServer, tag: str, obeyed: bool) -> None:
    server.routes["/x"] = answer(b"body", X_Robots_Tag=tag)
    got = get(server.url("/x"))
    assert got.error_code == ("opted_out" if obeyed else None)
    assert server.hits["/x"] == 1
    assert get(server.url("/x"), replace(FAST, obey_opt_out=False)).body == b"body"


def test_connections_are_kept_and_hosts_are_spared(server: HostileServer) -> None:
    server.routes["/slow"] = servers.slow(0.03, b"body")

    async def many(limits: FetchLimits, count: int) -> list[Fetched]:
        async with Fetcher(limits) as fetcher:
            found = await asyncio.gather(*(fetcher.fetch(server.url("/slow")) for _ in range(count)))
            assert not len(fetcher._hosts)
            return found

    found = asyncio.run(many(replace(FAST, per_host=3), 12))
    assert all(got.body == b"body" for got in found)
    assert (server.together, server.connections) == (3, 3)


def test_time_spent_waiting_for_memory_is_not_the_hosts(server: HostileServer) -> None:
    server.routes["/big"] = bytes(100_000)
    sizes = []

    async def grow(size: int) -> None:
        sizes.append(size)
        await asyncio.sleep(0.4)

    async def one() -> Fetched:
        async with Fetcher(replace(FAST, total_seconds=0.3)) as fetcher:
            return await fetcher.fetch(server.url("/big"), grow)

    assert asyncio.run(one()).body == bytes(100_000)
    assert sum(sizes) == 100_000
