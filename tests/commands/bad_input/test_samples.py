"""Captions, URLs and answers from hell: each costs its own row at most, all the way from the list to the subset."""

from __future__ import annotations

import csv
import json
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetch import http
from tests.commands.bad_input.outcomes import succeeded
from tests.commands.cli import curate
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, flood, redirect, running, status
from tests.pools import jpeg

QUICK = ("--allow-private-hosts", "--idle-seconds", "0.5", "--total-seconds", "1", "--retries", "0")
HERE = ("--workers", "0")

CAPTIONS: dict[str, str | bytes | None] = {
    "plain": "a red circle on a table",
    "null": None,
    "empty": "",
    "blank": " \t ",
    "long": "word " * 200_000,
    "newlines": "two\nlines\r\nand\u2028more",
    "nul": "before\0after",
    "emoji": "\U0001f469\u200d\U0001f680 caf\u00e9 e\u0301 \u202etfel",
    "control": "\x1b[31mred\x07",
    "comma, quote": 'a "quoted", one',
    "not utf-8": b"caf\xe9 \xff\xfe",
    "half a character": "caf\u00e9".encode()[:-1],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n)) for n in range(30)})) as started:
        yield started


def as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def listed(form: str, server: HostileServer) -> Path:
    """The captions as a list in this form, each with an image of its own."""
    path = Path(f"list.{form}")
    urls = [server.url(f"/{n}.jpg") for n in range(len(CAPTIONS))]
    raw = [as_bytes(c) for c in CAPTIONS.values()]
    if form == "parquet":
        captions = pa.Array.from_buffers(  # a string column that holds what strings may not
            pa.large_string(), len(raw), pa.array(raw, pa.large_binary()).buffers()
        )
        pq.write_table(pa.table({"url": urls, "text": captions}), path)
    elif form == "csv":
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["url", "text"])
            rows.writerows(
                [u, (c or b"").decode("utf-8", "surrogateescape")] for u, c in zip(urls, raw, strict=True)
            )
    else:
        lines = []
        for url, caption in zip(urls, raw, strict=True):
            text = None if caption is None else caption.decode("utf-8", "surrogateescape")
            line = json.dumps({"url": url, "text": text}, ensure_ascii=False)
            lines.append(line.encode("utf-8", "surrogateescape"))
        path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def texts(folder: Path) -> dict[str, bytes]:
    """The caption of every sample in the tars of a folder, by uid."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            held = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for name, data in held.items():
            if name.endswith(".json"):
                uid = json.loads(data)["uid"]
                found[uid] = held[name.removesuffix("json") + "txt"]
    return found


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_captions(here: Path, server: HostileServer, form: str) -> None:
    source = listed(form, server)
    ran = curate("download", "--source", source, *QUICK, *HERE, "--json")
    succeeded(ran)
    rows = pl.read_parquet("pool/shards/00000000.parquet")
    codes = dict(zip(CAPTIONS, rows["error_code"].to_list(), strict=True))
    failed = {"not utf-8", "half a character"}
    assert codes == {name: "bad_caption" if name in failed else None for name in CAPTIONS}
    assert ran.json["ok"] == len(CAPTIONS) - len(failed)
    kept = [name for name in CAPTIONS if name not in failed]
    wanted = {}
    for name, uid, stored in rows.select(pl.Series("name", list(CAPTIONS)), "uid", "caption").iter_rows():
        if name in failed:
            continue
        caption = CAPTIONS[name]
        assert isinstance(caption, str | None)
        if form == "csv" and caption is None:
            caption = ""  # csv has no null
        assert stored == caption or (stored is None and not caption), name
        wanted[uid] = (stored or "").encode()
    assert texts(Path("pool/shards")) == wanted

    ran = curate("embed", "--model", "tiny", *HERE, "--json")
    succeeded(ran)
    assert ran.json["samples"] == len(CAPTIONS)
    without = {name for name in kept if rows["caption"][list(CAPTIONS).index(name)] is None}
    assert ran.json["codes"] == {
        code: n for code, n in (("bad_caption", len(failed)), ("no_caption", len(without))) if n
    }

    ran = curate("filter", "--rule", "clipscore:min=-1", *HERE, "--json")
    succeeded(ran)
    counts = ran.json["counts"]
    assert counts == {
        "samples": len(CAPTIONS),
        "kept": len(kept) - len(without),
        "dropped": 0,
        "unjudged": len(failed) + len(without),
    }
    ran = curate("filter", "--rule", "random:fraction=1.0", *HERE, "--json")
    succeeded(ran)
    ran = curate("subset", "--scale", "debug", *HERE, "--json")
    succeeded(ran)
    assert texts(Path("subset/shards")) == wanted
    assert len(wanted) == ran.json["kept"]
    succeeded(curate("verify", *HERE))
    assert "\x1b" not in curate("report").out


def fetched(urls: list[str], *options: str) -> list[dict[str, Any]]:
    """The rows of a download of these URLs, a good one added at the end, in the table's order."""
    with Path("list.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["url", "text"])
        rows.writerows([url, f"caption {n}"] for n, url in enumerate(urls))
    ran = curate("download", "--source", "list.csv", *options, *HERE)
    assert ran.code == 0, ran
    found: list[dict[str, Any]] = pq.read_table("pool/shards/00000000.parquet").to_pylist()
    return found


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file://{canary}", "bad_scheme"),
        ("FILE:{canary}", "bad_scheme"),
        ("data:image/png;base64,iVBORw0KGgo=", "bad_scheme"),
        ("ftp://127.0.0.1:{port}/1.jpg", "bad_scheme"),
        ("javascript:alert(1)", "bad_scheme"),
        ("{canary}", "bad_url"),
        ("http:///1.jpg", "bad_url"),
        ("http://user:secret@127.0.0.1:{port}/1.jpg", "bad_url"),
        ("", "no_url"),
        ("http://127.0.0.1:{port}/1.jpg", "private_address"),
        ("http://localhost:{port}/1.jpg", "private_address"),
        ("http://2130706433:{port}/1.jpg", "private_address"),
        ("http://0x7f.1:{port}/1.jpg", "private_address"),
        ("http://[::1]:{port}/1.jpg", "private_address"),
        ("http://[::ffff:127.0.0.1]:{port}/1.jpg", "private_address"),
        ("http://169.254.169.254/latest/meta-data", "private_address"),
    ],
)
def test_a_url_that_is_not_asked_for(here: Path, server: HostileServer, url: str, code: str) -> None:
    canary = here / "canary.jpg"
    canary.write_bytes(jpeg(1))
    accessed = canary.stat().st_atime_ns
    filled = url.format(canary=canary, port=server.port)
    row, other = fetched([filled, "gopher://x.test/1"], "--idle-seconds", "0.5", "--total-seconds", "1")
    assert (row["error_code"], row["status"]) == (code, "failed_to_download")
    assert other["error_code"] == "bad_scheme"
    assert (server.connections, canary.stat().st_atime_ns) == (0, accessed)
    with tarfile.open("pool/shards/00000000.tar") as tar:
        assert tar.getnames() == []


def test_a_redirect_to_a_private_address(
    here: Path, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "is_public", lambda address: address == "127.0.0.1")
    with socket.create_server(("127.0.0.2", 0)) as canary:
        canary.setblocking(False)
        targets = {
            "/to-private": f"http://127.0.0.2:{canary.getsockname()[1]}/1.jpg",
            "/to-name": f"http://localhost.:{canary.getsockname()[1]}/1.jpg",
            "/to-file": "file:///etc/hostname",
            "/to-data": "data:image/png;base64,iVBORw0KGgo=",
            "/to-good": "/1.jpg",
        }
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.0.2", 0))])
        server.routes |= {path: redirect(target) for path, target in targets.items()}
        rows = fetched([server.url(path) for path in targets], "--total-seconds", "2")
        with pytest.raises(BlockingIOError):
            canary.accept()
    codes = [row["error_code"] for row in rows]
    assert codes == ["private_address", "private_address", "bad_scheme", "bad_scheme", None]
    assert not any(row["stored_bytes"] for row in rows[:4])


def png_header(width: int, height: int) -> bytes:
    """A PNG that says that it is this large, and has next to no bytes."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, image, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


ANSWERS: dict[str, tuple[Any, str]] = {
    "missing": (status(404), "http_404"),
    "gone": (status(410), "http_410"),
    "page": (answer(b"<html><body>hello</body></html>", Content_Type="image/jpeg"), "not_an_image"),
    "empty": (answer(b""), "empty"),
    "cut jpeg": (answer(jpeg(3, (640, 480))[:900]), "bad_image"),
    "short body": (servers.raw(b"HTTP/1.1 200 x\r\nContent-Length: 9000\r\n\r\n" + jpeg(3)), "reset"),
    "drip": (servers.drip(), "timeout"),
    "drip of headers": (servers.drip(in_headers=True), "timeout"),
    "silence": (servers.silent(), "timeout"),
    "200 MB": (flood(200_000_000, announce=True), "too_large"),
    "200 MB unannounced": (flood(200_000_000, announce=False), "too_large"),
    "gzip bomb": (servers.bomb(60_000_000), "too_large"),
    "20000 x 20000": (answer(png_header(20_000, 20_000)), "too_many_pixels"),
    "svg": (answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not_an_image"),
    "endless redirect": (redirect("/endless%20redirect"), "too_many_redirects"),
    "no http": (servers.raw(b"hello\r\n\r\n"), "bad_response"),
}
MEASURED = """
import re, sys
from pathlib import Path
from curate.cli import main
try:
    main()
finally:  # ru_maxrss would count what this process was forked from
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


def test_answers_cost_one_row_each_in_bounded_memory_and_time(here: Path, server: HostileServer) -> None:
    server.routes |= {f"/{quote(name)}": reply for name, (reply, _) in ANSWERS.items()}
    names = [*ANSWERS, "1.jpg", "2.jpg"]
    with Path("list.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["url", "text"])
        rows.writerows([server.url(f"/{quote(name)}"), name] for name in names)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "download", "--source", "list.csv", *QUICK, *HERE, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["samples"], told["ok"]) == (len(names), 2)
    table = pq.read_table("pool/shards/00000000.parquet").to_pylist()
    assert {r["caption"]: r["error_code"] for r in table} == {
        **{name: code for name, (_, code) in ANSWERS.items()},
        "1.jpg": None,
        "2.jpg": None,
    }
    assert seconds < 30
    assert int(done.stderr.split()[-1]) < 500_000  # KiB
