"""A list of URLs from strangers, and servers that mean harm: nothing here is read, reached, filled up or believed.

The rows are those of a probe of img2dataset 1.47 (`file://` in the dataset, redirects to private addresses, 10 GB
for one picture), and what else such a list may try.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from curate.fetch import addresses, http
from curate.fetch.settings import FetchLimits, ImageSettings
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, in_turn, redirect, running, status
from tests.hostile.web import (
    LIMITS,
    Case,
    Found,
    Web,
    closed_port,
    crawl,
    each,
    encoded,
    fetch,
    jpeg,
    photo,
    running_at,
    settings,
)

STRICT = replace(LIMITS, allow_private=False)
SECRET = b"a file of this machine that no list may have"
AS_IS = ImageSettings(resize_mode="no", skip_reencode=True)
"""As near as can be to bytes that are stored as they come."""


@contextmanager
def listening(says: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """A port of 127.0.0.1 whose server answers anything with `says`, and what was said to it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                    heard.append(peer.recv(1 << 16))
                    peer.sendall(says)
                    peer.close()
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)


def never_in(pool: Path, *texts: bytes) -> None:
    """No file of the pool holds any of these."""
    for path in pool.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [text for text in texts if text in data], path


# --- what a list may not name -----------------------------------------------------------------------------

PRIVATE = (
    *("127.0.0.1", "127.0.0.2", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "[::1]", "0.0.0.0"),
    *("[::ffff:127.0.0.1]", "10.0.0.1", "192.168.0.1", "172.16.0.1", "169.254.169.254", "[fe80::1]", "[fd00::1]"),
    *("100.64.0.1", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255", "[::]"),
)


def on_port(text: str) -> Callable[[HostileServer], str]:
    return lambda server: text.format(port=server.port)


DIRECT = [
    *(Case(host, code="private_address", url=on_port(f"http://{host}:{{port}}/ok.jpg")) for host in PRIVATE),
    Case("/etc/hostname", code="bad_scheme", url="file:///etc/hostname"),
    Case("/etc/passwd", code="bad_scheme", url="FILE:/etc/passwd"),
    Case("a path", code="bad_url", url="/etc/passwd"),
    Case("data", code="bad_scheme", url="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="),
    Case("javascript", code="bad_scheme", url="javascript:alert(1)"),
    Case("gopher", code="bad_scheme", url=on_port("gopher://127.0.0.1:{port}/")),
    Case("ws", code="bad_scheme", url=on_port("ws://127.0.0.1:{port}/")),
    Case("a unix socket", code="bad_scheme", url="http+unix://%2Fvar%2Frun%2Fdocker.sock/info"),
    Case("an injected header", code="bad_url", url=on_port("http://127.0.0.1:{port}/\r\nHost: other")),
    Case("a user", code="bad_url", url=on_port("http://me:hunter2@127.0.0.1:{port}/ok.jpg")),
]


def test_what_a_list_may_not_name(tmp_path: Path) -> None:
    """With default limits; what is on this machine is served and readable, but for the scheme or the address."""
    for name, body in (("secret.jpg", jpeg() + SECRET), ("secret.txt", SECRET)):
        (tmp_path / name).write_bytes(body)
    with running(HostileServer({"/ok.jpg": jpeg()})) as server, listening() as (ftp, heard):
        cases = [
            *DIRECT,
            Case("a local picture", code="bad_scheme", url=(tmp_path / "secret.jpg").as_uri()),
            Case("a local file", code="bad_scheme", url=(tmp_path / "secret.txt").as_uri()),
            Case("a local file by host", code="bad_scheme", url=f"file://localhost{tmp_path}/secret.jpg"),
            Case("ftp", code="bad_scheme", url=f"ftp://127.0.0.1:{ftp}/ok.jpg"),
        ]
        web = crawl(tmp_path / "pool", server, cases, settings(AS_IS, FetchLimits()), workers=1)
        for case in cases:
            case.check(web.found[case.name])
        assert (server.connections, heard) == (0, [])
    assert all(found.ledger["address"] is None for found in web.found.values())
    never_in(web.pool / "shards", SECRET)


# --- what a server may not send us to ---------------------------------------------------------------------


class Names:
    """In the place of the system's resolver: each look-up of a name takes its next answer, the last one for ever.

    An answer is addresses, or the error that there are none.
    """

    def __init__(self, **names: Sequence[Sequence[str] | int]) -> None:
        self.answers = {name.replace("_", ".").encode(): list(told) for name, told in names.items()}
        self.asked: list[str] = []

    def getaddrinfo(self, host: bytes, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host.decode())
        told = self.answers.get(host, [socket.EAI_NONAME])
        found = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(found, int):
            raise socket.gaierror(found, "no address for it")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A small internet: 127.0.0.1 is its one public address, all others are private."""
    made = Names(
        public_example=[["127.0.0.1"]],
        private_example=[["127.0.0.2"]],
        metadata_example=[["169.254.169.254"]],
        mixed_example=[["10.1.2.3", "127.0.0.1"]],
        rebind_example=[["127.0.0.1"], ["127.0.0.2"]],
        later_example=[socket.EAI_AGAIN, ["127.0.0.1"]],
        silent_example=[socket.EAI_AGAIN],
    )
    monkeypatch.setattr(http, "is_public", "127.0.0.1".__eq__)
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    return made


def test_where_a_server_may_not_send_us(tmp_path: Path, names: Names) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg() + SECRET)
    inner = HostileServer({"/ok.jpg": jpeg(1)})
    with running(HostileServer()) as server, running_at("127.0.0.2", inner), listening() as (ftp, heard):
        sent_to = {
            "file": ((tmp_path / "secret.jpg").as_uri(), "bad_scheme"),
            "data": ("data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs=", "bad_scheme"),
            "ftp": (f"ftp://127.0.0.1:{ftp}/x", "bad_scheme"),
            "another address": (inner.url("/ok.jpg", "127.0.0.2"), "private_address"),
            "the same as a number": (inner.url("/ok.jpg", str(0x7F000002)), "private_address"),
            "in IPv6": (inner.url("/ok.jpg", "[::ffff:127.0.0.2]"), "private_address"),
            "a private name": (inner.url("/ok.jpg", "private.example"), "private_address"),
            "the metadata service": ("http://169.254.169.254/latest/", "private_address"),
            "the metadata service's name": ("http://metadata.example/latest/", "private_address"),
            "a user": (f"http://me:hunter2@127.0.0.1:{server.port}/ok.jpg", "bad_url"),
            "nowhere": ("http://gone.example/", "no_such_host"),
            "nothing": ("", "too_many_redirects"),
        }
        cases = [Case(name, redirect(to), code) for name, (to, code) in sent_to.items()]
        cases += [Case(f"twice to {name}", redirect(f"/{name.split()[-1]}"), code) for name, code in TWICE.items()]
        server.routes |= {f"/{name.split()[-1]}": redirect(sent_to[name][0]) for name in TWICE}
        web = crawl(tmp_path / "pool", server, cases, settings(AS_IS, STRICT), workers=0)
        for case in cases:
            case.check(web.found[case.name])
        assert (inner.connections, heard) == (0, [])
    never_in(web.pool / "shards", SECRET, b"hunter2@127.0.0.1")


TWICE = {"file": "bad_scheme", "ftp": "bad_scheme", "a private name": "private_address"}
"""What the second redirect of a chain leads to."""


def test_where_a_server_may_send_us(tmp_path: Path, names: Names) -> None:
    with running(HostileServer({"/dir/ok.jpg": jpeg()})) as server:
        whole = server.url("/dir/ok.jpg", "public.example")
        cases = [
            *(Case(str(code), redirect("dir/ok.jpg", code)) for code in (301, 302, 303, 307, 308)),
            Case("another host", redirect(whole)),
            Case("no scheme", redirect(whole.removeprefix("http:"))),
            Case("five times", redirect("/4")),
            Case("six times", redirect("/5"), "too_many_redirects"),
            Case("itself", redirect("/itself"), "too_many_redirects"),
            Case("ten thousand times", in_turn(*(redirect(f"/ten-thousand-times?{n}") for n in range(10_000)))),
        ]
        cases[-1] = replace(cases[-1], code="too_many_redirects")
        server.routes |= {f"/{n}": redirect(f"/{n - 1}") for n in range(2, 6)} | {"/1": redirect("/dir/ok.jpg")}
        web = crawl(tmp_path / "pool", server, cases, settings(AS_IS, STRICT), workers=0)
        for case in cases:
            case.check(web.found[case.name])
        assert sum(n for path, n in server.hits.items() if path.startswith("/ten-")) == STRICT.max_redirects + 1
        assert server.hits["/itself"] == STRICT.max_redirects + 1
        ends = {web.found[str(code)].row["final_url"] for code in (301, 302, 303, 307, 308)}
        assert ends == {server.url("/dir/ok.jpg")}
        assert web.found["another host"].row["final_url"] == whole


def test_names_that_change_their_address(tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS says a public address first and a private one next: nobody is connected to but who was checked."""
    inner = HostileServer({"/1.jpg": jpeg(), "/2.jpg": jpeg(), "/3.jpg": jpeg()})
    closing: dict[str, Any] = {f"/{n}.jpg": answer(jpeg(n), Connection="close") for n in range(1, 4)}
    with running(HostileServer(closing)) as server:
        with socket.socket() as sock:
            sock.bind(("127.0.0.2", server.port))  # a connection to the second address would find a server
            with running(inner, sock):
                given = settings(AS_IS, replace(STRICT, per_host=1))
                records = [{"url": server.url(f"/{n}.jpg", "rebind.example"), "text": "x"} for n in (1, 2, 3)]
                found = fetch(tmp_path / "pool", records, given, workers=0)
                assert [one.ledger["address"] for one in found] == ["127.0.0.1"] * 3
                assert names.asked == ["rebind.example"]
                # and where an answer is believed for no time at all, the next one is checked like the first
                monkeypatch.setattr(addresses, "ANSWER_SECONDS", 0.0)
                names.answers[b"rebind.example"] = [["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]]
                found = fetch(tmp_path / "again", records, given, workers=0)
                assert {one.row["error_code"] for one in found} <= {None, "private_address"}
                assert found[-1].row["error_code"] == "private_address"
                assert {one.ledger["address"] for one in found} <= {None, "127.0.0.1"}
        assert inner.connections == 0


def test_names_with_several_addresses_or_none(tmp_path: Path, names: Names) -> None:
    with running(HostileServer({"/ok.jpg": jpeg()})) as server:
        cases = [
            Case("mixed.example"),
            Case("private.example", code="private_address"),
            Case("gone.example", code="no_such_host"),
            Case("later.example"),
            Case("silent.example", code="dns"),
        ]
        cases = [replace(c, url=server.url("/ok.jpg", c.name)) for c in cases]
        web = crawl(tmp_path / "pool", server, cases, settings(AS_IS, STRICT), workers=0)
        for case in cases:
            case.check(web.found[case.name])
        assert web.found["mixed.example"].ledger["address"] == "127.0.0.1"
        assert names.asked.count("gone.example") == names.asked.count("private.example") == 1
        assert names.asked.count("silent.example") == names.asked.count("later.example") == 2


# --- certificates -----------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context with a self-signed certificate for `name`, which is left in `folder`/`name`.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN={name} -keyout {name}.key -out {name}.pem"
    )
    subprocess.run(
        [*command.split(), "-addext", f"subjectAltName=DNS:{name}"], cwd=folder, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers trust one certificate, and look at the name in it."""
    contexts = {name: certificate(tmp_path, name) for name in ("localhost", "stranger")}
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    routes: dict[str, Any] = {"/ok.jpg": jpeg()}
    right, other, plain = (HostileServer(dict(routes)) for _ in range(3))
    with (
        running(right, tls=contexts["localhost"]),
        running(other, tls=contexts["stranger"]),
        running(plain),
        listening(b"HTTP/1.1 400 this is no TLS\r\n\r\n") as (no_tls, _),
    ):
        plain.routes["/down.jpg"] = redirect(f"https://127.0.0.1:{right.port}/ok.jpg")
        cases = [
            Case("right", url=f"https://localhost:{right.port}/ok.jpg"),
            Case("another's name", url=f"https://127.0.0.1:{right.port}/ok.jpg", code="tls"),
            Case("nobody's", url=f"https://localhost:{other.port}/ok.jpg", code="tls"),
            Case("none", url=f"https://localhost:{no_tls}/ok.jpg", code="tls"),
            Case("redirected", url=plain.url("/down.jpg"), code="tls"),
            Case("plain to TLS", url=right.url("/ok.jpg"), code="reset"),
        ]
        web = crawl(tmp_path / "pool", plain, cases, workers=1)
    for case in cases:
        case.check(web.found[case.name])
    assert (right.hits["/ok.jpg"], other.hits.total()) == (1, 0)
    assert all(web.found[case.name].ledger["tries"] == 1 for case in cases if case.code == "tls")


# --- what fills memory up ---------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deflated(size: int) -> bytes:
    """`size` zeros as raw deflate blocks, made in no time: a block of many of them over and over."""

    def block(length: int) -> bytes:
        pack = zlib.compressobj(wbits=-15)
        return pack.compress(bytes(length)) + pack.flush(zlib.Z_FULL_FLUSH)

    return block(1 << 20) * (size >> 20) + block(size & 0xFFFFF) + b"\x03\0"


def zeros(size: int) -> bytes:
    """`size` zeros as zlib packs them; their Adler-32 is known."""
    return b"\x78\x01" + deflated(size) + struct.pack(">HH", size % 65_521, 1)


def gzip_bomb(size: int) -> bytes:
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    return head + deflated(size) + struct.pack("<II", zlib.crc32(bytes(size)), size)


def png(width: int, height: int, depth: int, colour: int, *more: bytes) -> bytes:
    """A PNG all of whose samples are zero, with `more` chunks before its picture."""
    row = 1 + (width * depth * {0: 1, 2: 3, 6: 4}[colour] + 7) // 8
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zeros(row * height))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + data + chunk(b"IEND", b"")


def stored_size(width: int, height: int) -> Callable[[Found], None]:
    def look(found: Found) -> None:
        assert (found.row["original_width"], found.row["original_height"]) == (width, height)

    return look


BIG = 200 << 20
LARGE = zeros(BIG)
HEAVY = [
    Case("200 MB announced", servers.flood(BIG, announce=True), "too_large"),
    Case("200 MB not announced", servers.flood(BIG, announce=False), "too_large"),
    Case("200 MB in chunks", servers.chunked_flood(BIG), "too_large"),
    Case("a gzip bomb", answer(gzip_bomb(BIG), Content_Encoding="gzip"), "too_large"),
    Case("a deflate bomb", answer(LARGE, Content_Encoding="deflate"), "too_large"),
    Case("a PNG of 20000 x 20000 at 1 bit", png(20_000, 20_000, 1, 0), "too_many_pixels"),
    Case("a PNG of 12000 x 12000 with alpha", png(12_000, 12_000, 8, 6), "too_many_pixels"),
    Case("a PNG of 40000 x 40000", png(40_000, 40_000, 1, 0), "too_many_pixels"),
    Case(
        "a GIF of 2000 frames",
        encoded(photo(0, (8, 8)), "GIF", save_all=True, append_images=[photo(n, (8, 8)) for n in range(2000)]),
        "too_many_frames",
    ),
    Case("a PNG with a huge packed text", png(64, 48, 8, 2, chunk(b"zTXt", b"a\0\0" + LARGE)), None),
    Case("a PNG with a huge text", png(64, 48, 8, 2, chunk(b"tEXt", b"a\0" + bytes(20 << 20))), None),
    Case("a PNG with a huge profile", png(64, 48, 8, 2, chunk(b"iCCP", b"a\0\0" + LARGE)), None),
    Case("an ordinary picture", jpeg(0, (1200, 900)), look=stored_size(1200, 900)),
]


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    given = settings(ImageSettings(), FetchLimits(allow_private=True, total_seconds=20, retries=0))
    with running(HostileServer()) as server:
        yield crawl(tmp_path_factory.mktemp("heavy") / "pool", server, HEAVY, given)


@each(HEAVY)
def test_what_is_too_much(heavy: Web, case: Case) -> None:
    case.check(heavy.found[case.name])


def test_memory_stays_bounded(heavy: Web) -> None:
    """img2dataset's worker took 570 MB for the first of these, 10.8 GB for the PNG with alpha."""
    ordered = sorted(heavy.peaks.values())
    assert len(ordered) >= 3  # one that fetches, two that decode
    assert ordered[-1] < 700 << 20, ordered  # its limit for bodies is 256 MB
    assert ordered[-2] < 300 << 20, ordered


def test_metadata_of_the_file_is_not_stored(heavy: Web) -> None:
    for name in ("a PNG with a huge packed text", "a PNG with a huge text", "a PNG with a huge profile"):
        assert sum(map(len, heavy.found[name].members.values())) < 10_000
        assert heavy.found[name].row["original_bytes"] > 100_000


# --- hosts that hold us up --------------------------------------------------------------------------------


def test_a_host_that_asks_for_a_rest_gets_it(tmp_path: Path) -> None:
    """429 with Retry-After: nobody asks it for that long, then all are had, and no other host waits."""
    asked: list[float] = []

    def noted(reply: servers.Reply) -> servers.Reply:
        async def wrapped(writer: Any) -> None:
            asked.append(time.monotonic())
            await reply(writer)

        return wrapped

    busy = HostileServer()
    paths = [f"/{n}.jpg" for n in range(8)]
    turns = noted(in_turn(status(429, Retry_After="1"), jpeg()))
    quick = HostileServer({f"/{n}.jpg": jpeg(n) for n in range(40)})
    began: list[float] = []
    for n in range(40):
        quick.routes[f"/{n}.jpg"] = timed_into(began, jpeg(n))
    busy.routes |= dict.fromkeys(paths, turns)
    limits = replace(LIMITS, total_seconds=6.0, retries=2, per_host=2)
    with running(quick), running_at("127.0.0.2", busy):
        records = [{"url": busy.url(path, "127.0.0.2"), "text": "busy"} for path in paths]
        records += [{"url": quick.url(f"/{n}.jpg"), "text": "quick"} for n in range(40)]
        found = fetch(tmp_path / "pool", records, settings(limits=limits), workers=0)
    assert {one.row["error_code"] for one in found} == {None}
    rest, again = max((later - earlier, later) for earlier, later in pairwise(asked))
    assert rest >= 0.9
    assert len(asked) <= len(paths) + limits.per_host  # those that were under way when it said so
    assert max(began) < again


def timed_into(times: list[float], body: bytes) -> servers.Reply:
    async def reply(writer: Any) -> None:
        times.append(time.monotonic())
        await answer(body)(writer)

    return reply


def test_a_host_that_asks_for_an_hour_is_left_alone(tmp_path: Path) -> None:
    with running(HostileServer({"/x": status(429, Retry_After="3600")})) as server:
        records = [{"url": server.url(f"/x?{n}"), "text": "x"} for n in range(100)]
        start = time.monotonic()
        found = fetch(tmp_path / "pool", records, settings(), workers=0)
        assert time.monotonic() - start < 3
        assert server.hits.total() <= LIMITS.per_host
    assert {one.row["error_code"] for one in found} == {"http_429"}


@pytest.mark.parametrize("slow", ["silent", "dripping", "late"])
def test_one_slow_host_among_fast_ones(tmp_path: Path, slow: str) -> None:
    """Its rows fail or come late; those of the others come at once, also from behind it in the list."""
    reply = {"silent": servers.silent(), "dripping": servers.drip(0.1), "late": servers.slow(0.4, jpeg())}[slow]
    times: list[float] = []
    limits = replace(LIMITS, per_host=4, idle_seconds=0.6, total_seconds=1.2, retries=0)
    hosts = [HostileServer({f"/{n}.jpg": timed_into(times, jpeg(n)) for n in range(10)}) for _ in range(3)]
    last = HostileServer({"/x": reply})
    others = running(hosts[0]), running_at("127.0.0.3", hosts[1]), running_at("127.0.0.4", hosts[2])
    with others[0], others[1], others[2], running_at("127.0.0.2", last):
        records = [{"url": last.url(f"/x?{n}", "127.0.0.2"), "text": "slow"} for n in range(12)]
        for host, server in zip(("127.0.0.1", "127.0.0.3", "127.0.0.4"), hosts, strict=True):
            records += [{"url": server.url(f"/{n}.jpg", host), "text": "fast"} for n in range(10)]
        start = time.monotonic()
        found = fetch(tmp_path / "pool", records, settings(limits=limits), workers=0)
        took = time.monotonic() - start
    codes = [one.row["error_code"] for one in found]
    assert set(codes[:12]) == {None if slow == "late" else "timeout"}
    assert set(codes[12:]) == {None}
    assert max(times) < start + took / 2
    assert took < 12 / limits.per_host * limits.total_seconds + 2
    assert slow != "late" or last.together <= limits.per_host


def test_a_port_that_is_closed_costs_no_time(tmp_path: Path) -> None:
    port = closed_port()
    start = time.monotonic()
    records = [{"url": f"http://127.0.0.1:{port}/{n}.jpg", "text": "x"} for n in range(200)]
    found = fetch(tmp_path / "pool", records, settings(), workers=0)
    assert time.monotonic() - start < 3
    assert {one.row["error_code"] for one in found} == {"refused"}
