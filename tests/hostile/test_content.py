"""What servers send for a picture: of each answer either the picture is stored, as it is to be seen, or nothing.

The rows are those of a probe of img2dataset 1.47 (its outcomes: pixels that are not upright, 16-bit pictures
stored as white, ...), all fetched in one download with decode processes.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from curate.stages import retry
from curate.stages.download import DownloadSettings
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, in_turn, raw, redirect, running, status
from tests.hostile.web import (
    LIMITS,
    LOSSLESS,
    Case,
    Found,
    Pixels,
    Web,
    books,
    closed_port,
    crawl,
    each,
    encoded,
    jpeg,
    photo,
    settings,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def like(picture: Image.Image, most: float = 4.0, **told: Any) -> Callable[[Found], None]:
    """A look that sees `picture`, by the mean difference of its samples, and these values in the table."""

    def look(found: Found) -> None:
        expected = np.asarray(picture).astype(int)
        assert found.pixels.shape == expected.shape
        assert np.abs(found.pixels - expected).mean() <= most
        assert {name: found.row[name] for name in told} == told

    return look


def all_of(*samples: int, most: int = 0, **told: Any) -> Callable[[Found], None]:
    """A look that sees one colour everywhere (one number: a picture of one channel), and these values."""

    def look(found: Found) -> None:
        assert found.pixels.ndim == (2 if len(samples) == 1 else 3)
        assert np.abs(found.pixels.astype(int) - np.array(samples)).max() <= most
        assert {name: found.row[name] for name in told} == told

    return look


def told(**values: Any) -> Callable[[Found], None]:
    """A look at the table alone."""

    def look(found: Found) -> None:
        assert {name: found.row[name] for name in values} == values

    return look


def tries(count: int) -> Callable[[Found], None]:
    """A look at how often it was asked for."""

    def look(found: Found) -> None:
        assert found.ledger["tries"] == count

    return look


# --- pictures ---------------------------------------------------------------------------------------------


def kinds() -> Iterator[Case]:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "GIF", "JPEG2000"):
        options = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
        known = {"JPEG2000": "jp2"}.get(kind, kind.lower())
        look = like(photo(), 12.0 if kind == "GIF" else 4.0, original_format=known, original_frames=1)
        yield Case(f"plain {kind}", encoded(photo(), kind, **options), look=look)


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (32, 24), colour) for colour in (RED, BLUE, (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


def turned() -> bytes:
    """Red on the left and blue on the right; EXIF says that it is to be seen with the left side up."""
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, :150], pixels[:, 150:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels), "JPEG", quality=95, exif=exif.tobytes())


def upright(found: Found) -> None:
    assert found.pixels.shape == (300, 100, 3)
    assert np.abs(found.pixels[10:140].astype(int) - RED).max() < 10
    assert np.abs(found.pixels[160:290].astype(int) - BLUE).max() < 10
    row = found.row
    assert (row["original_width"], row["original_height"], row["original_orientation"]) == (100, 300, 6)
    assert row["exif"] is None


def sixteen(channels: int, value: int = 20_000) -> bytes:
    pixels = np.full((20, 30, channels), value, np.uint16)
    if channels == 4:
        pixels[..., 3] = 65_535
    done, body = cv2.imencode(".png", pixels)
    assert done
    return bytes(body)


def palette() -> bytes:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([0, 0, 0, *RED])
    picture.paste(0, (0, 0, 16, 8))
    return encoded(picture, "PNG", transparency=0)


def over_white(found: Found) -> None:
    assert (found.pixels[:8] == 255).all()
    assert (found.pixels[8:] == RED).all()
    assert found.row["original_mode"] == "palette"


FIRST = {"original_frames": 3, "original_width": 32, "original_height": 24}
SCALED = round(20_000 / 257)
PICTURES = [
    *kinds(),
    Case("animated GIF", animation("GIF"), look=all_of(*RED, most=2, original_format="gif", **FIRST)),
    Case("animated WEBP", animation("WEBP"), look=all_of(*RED, most=2, original_format="webp", **FIRST)),
    Case("animated PNG", animation("PNG"), look=all_of(*RED, original_format="png", **FIRST)),
    Case(
        "CMYK",
        encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"),
        look=all_of(254, 0, 0, most=2, original_mode="cmyk"),
    ),
    Case("orientation 6", turned(), look=upright),
    Case(
        "gray JPEG",
        encoded(photo().convert("L"), "JPEG", quality=95),
        look=like(photo().convert("L"), original_mode="gray"),
    ),
    Case("16-bit gray", sixteen(1), look=all_of(SCALED, original_mode="gray16")),
    Case("16-bit RGB", sixteen(3), look=all_of(SCALED, SCALED, SCALED, original_mode="rgb16")),
    Case("16-bit RGBA", sixteen(4), look=all_of(SCALED, SCALED, SCALED, original_mode="rgba16")),
    Case("LA", encoded(Image.new("LA", (8, 8), (0, 128)), "PNG"), look=all_of(127, 127, 127, original_mode="la")),
    Case(
        "RGBA",
        encoded(Image.new("RGBA", (8, 8), (*RED, 128)), "PNG"),
        look=all_of(255, 127, 127, original_mode="rgba"),
    ),
    Case("palette with transparency", palette(), look=over_white),
    Case("a single pixel", encoded(Image.new("RGB", (1, 1), RED), "GIF"), look=all_of(*RED, most=2)),
]

# --- bodies -----------------------------------------------------------------------------------------------

BODY = jpeg()
PNG = encoded(photo(), "PNG")
SAME = like(Image.open(io.BytesIO(BODY)), 1.0)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/referred'/></svg>"
LATER = jpeg(1)


def sent(body: bytes, length: int | None = None, *, then: bytes = b"") -> servers.Reply:
    """A 200 whose announced length, if any, is not that of its body; the connection ends after it."""
    headers = {"Connection": "close"} if length is None else {"Content-Length": str(length)}
    return raw(servers.head(200, headers) + body + then)


def kept_open(body: bytes, length: int) -> servers.Reply:
    """A body shorter than announced, and a server that waits for nothing."""

    async def reply(writer: Any) -> None:
        writer.write(servers.head(200, {"Content-Length": str(length)}) + body)
        await writer.drain()
        await servers.silent()(writer)

    return reply


BODIES = [
    Case("half a JPEG", BODY[: len(BODY) // 2], "bad_image"),
    Case("a JPEG's header", BODY[: BODY.index(b"\xff\xda")], "bad_image"),
    Case("half a PNG", PNG[: len(PNG) // 2], "bad_image"),
    Case("closed early", sent(BODY[:-200], len(BODY)), "reset", look=tries(2)),
    Case("longer announced", sent(BODY, len(BODY) + 999), "reset"),
    Case("longer announced, kept open", kept_open(BODY, len(BODY) + 999), "timeout"),
    Case("closed early, no length", sent(BODY[:-200]), "bad_image"),
    Case("shorter announced", sent(BODY, len(BODY) - 200), "bad_response"),
    Case("more after the end", sent(BODY, len(BODY), then=b"HTTP/1.1 200 x\r\n\r\nforged"), look=SAME),
    Case("empty", b"", "empty"),
    Case("HTML", answer(b"<!DOCTYPE html><title>gone</title>", Content_Type="image/jpeg"), "not_an_image"),
    Case("SVG", answer(SVG, Content_Type="image/svg+xml"), "not_an_image"),
    Case("PDF", b"%PDF-1.7\n" + bytes(400), "not_an_image"),
    Case("another type named", answer(BODY, Content_Type="text/html"), look=SAME),
    Case("gzip", answer(gzip.compress(BODY), Content_Encoding="gzip"), look=SAME),
    Case("deflate", answer(zlib.compress(BODY), Content_Encoding="deflate"), look=SAME),
    Case("gzip in name only", answer(BODY, Content_Encoding="gzip"), "bad_response"),
    Case("gzip cut short", answer(gzip.compress(BODY)[:-30], Content_Encoding="gzip"), "reset"),
    Case("unknown encoding", answer(b"\x1b" + BODY, Content_Encoding="br"), "not_an_image"),
    Case("one byte at a time", servers.in_pieces(BODY[:40], count=60, interval=0.05), "timeout"),
    Case("never an end", servers.drip(0.1), "timeout"),
    Case("never a beginning", servers.silent(), "timeout", look=tries(2)),
    Case("never an end of the headers", servers.drip(0.1, in_headers=True), "timeout"),
    Case("a picture and a second one", BODY + LATER, look=SAME),
]

# --- answers ----------------------------------------------------------------------------------------------

ANSWERS = [
    *(Case(str(code), status(code), f"http_{code}", look=tries(1)) for code in (400, 401, 403, 404, 410, 451)),
    Case("500", status(500), "http_500", look=tries(2)),
    Case("500 once", in_turn(status(500), BODY), look=tries(2)),
    Case("404 with a picture", answer(BODY, code=404, Content_Type="image/jpeg"), "http_404"),
    Case("204", raw(servers.head(204, {})), "http_204"),
    Case("206", answer(BODY, code=206), "http_206"),
    Case("reset", raw(b"", reset=True), "reset"),
    Case("reset once", in_turn(raw(b"", reset=True), BODY), look=SAME),
    Case("refused", url=f"http://127.0.0.1:{closed_port()}/x.jpg", code="refused"),
    Case("no HTTP", raw(b"SSH-2.0-OpenSSH_9\r\n"), "bad_response"),
    Case("moved", redirect("/moved-here?\u00e9", 303), look=SAME),
    Case("opted out", answer(BODY, X_Robots_Tag="noai"), "opted_out"),
    Case("opted out of others", answer(BODY, X_Robots_Tag="otherbot: noai"), look=SAME),
]
PAUSES = [
    *(Case(str(code), status(code), f"http_{code}", look=tries(2)) for code in (429, 503)),
    *(Case(f"{code} once", in_turn(status(code), BODY), look=tries(2)) for code in (429, 503)),
]
"""Answers after which a whole host is left alone for a while: they have a download of their own."""
FIVE = [Case(f"the same URL {n}", url=lambda server: server.url("/five.jpg")) for n in range(5)]

CASES = [*PICTURES, *BODIES, *ANSWERS, *FIVE]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    routes: dict[str, Any] = {"/moved-here": BODY, "/five.jpg": jpeg(5), "/referred": PNG}
    with running(HostileServer(routes)) as server:
        yield crawl(tmp_path_factory.mktemp("content") / "pool", server, CASES)


@each([*PICTURES, *BODIES, *ANSWERS])
def test_a_row(web: Web, case: Case) -> None:
    case.check(web.found[case.name])


def test_nothing_that_a_picture_refers_to_is_asked_for(web: Web) -> None:
    assert web.server.hits["/SVG"] == 1
    assert web.server.hits["/referred"] == 0


def test_one_url_in_five_rows_is_fetched_once_and_stored_for_each(web: Web) -> None:
    found = [web.found[case.name] for case in FIVE]
    assert web.server.hits["/five.jpg"] == 1
    assert len({one.row["stored_sha256"] for one in found}) == 1
    assert len({one.row["uid"] for one in found}) == 5  # the captions differ
    assert [one.members["txt"].decode() for one in found] == [case.name for case in FIVE]
    assert [one.ledger["tries"] for one in found] == [1, 0, 0, 0, 0]
    assert {one.row["same_bytes"] for one in found} == {1}


@pytest.mark.parametrize("case", PAUSES, ids=lambda case: case.name)
def test_a_host_that_has_enough(tmp_path: Path, case: Case) -> None:
    with running(HostileServer()) as server:
        case.check(crawl(tmp_path / "pool", server, [case], workers=0).found[case.name])


def test_a_server_that_sends_it_whole_the_third_time(tmp_path: Path) -> None:
    """A broken picture is not transient, for most stay broken; who asks for it is asked again."""
    half = BODY[: len(BODY) // 2]
    cases = [Case("sound", LATER), Case("third time lucky", in_turn(half, half, BODY)), Case("broken", half)]
    pool = tmp_path / "pool"
    with running(HostileServer()) as server:
        before = crawl(pool, server, [Case(c.name, c.reply) for c in cases], workers=0).found
        assert [found.row["error_code"] for found in before.values()] == [None, "bad_image", "bad_image"]
        assert retry.plan(pool, [], DownloadSettings(LOSSLESS, LIMITS)).rows == 0
        for mended in (0, 1):
            planned = retry.plan(pool, ["bad_image"], DownloadSettings(LOSSLESS, LIMITS))
            summary = retry.retry(planned, workers=0)
            assert (summary.counts["asked_again"], summary.counts["mended"]) == (2, mended)
            found = books(pool, 3)
        assert server.hits == {"/sound": 1, "/third-time-lucky": 3, "/broken": 3}
    assert [one.row["error_code"] for one in found] == [None, None, "bad_image"]
    SAME(found[1])
    assert found[0].members == before["sound"].members


def test_the_default_format_keeps_gray_gray(tmp_path: Path) -> None:
    from curate.fetch.settings import ImageSettings

    gray = encoded(photo(0, (900, 600)).convert("L"), "JPEG", quality=95)
    with running(HostileServer()) as server:
        cases = [Case("gray", gray), Case("deep", sixteen(1))]
        found = crawl(tmp_path / "pool", server, cases, settings(ImageSettings()), workers=0).found
    pixels: Pixels = found["gray"].pixels
    assert (pixels.shape, list(found["gray"].members)) == ((341, 512), ["jpg", "txt", "json"])
    assert np.abs(found["deep"].pixels.astype(int) - SCALED).max() <= 1
