from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from curate import decoding
from curate.decoding import Prepare, decode
from curate.errors import PartError, SampleError
from curate.pixels import Decoders, PixelBatch
from curate.pool import Shard
from curate.shards import BLOCK
from tests.pools import jpeg, make_pool

ROOT = Path(__file__).resolve().parents[1]
ORIENTED = ROOT.parent / "shared" / "data" / "exif-orientation"
ROWS = 41


# --- what decode processes run (they import it from here) -------------------------------------------------


def whole(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image)


def centre(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image.getpixel((image.width // 2, image.height // 2)), dtype=np.float32)


def picky(image: Image.Image) -> npt.NDArray[np.float32]:
    colour = centre(image)
    if colour[0] < 128:
        raise SampleError("too_small", "not red enough")
    return colour


def broken(image: Image.Image) -> npt.NDArray[Any]:
    raise KeyError("nothing here")


def ragged(image: Image.Image) -> npt.NDArray[Any]:
    return np.zeros(random.Random(image.tobytes()).randint(1, 3))


def objects(image: Image.Image) -> npt.NDArray[Any]:
    return np.array([object()])


def greedy(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.getpixel((0, 0))[0] < 128:  # type: ignore[index]
        return np.empty(2 * decoding.WORKER_BYTES, dtype=np.uint8)[:1]
    return np.ones(1, dtype=np.uint8)


@dataclass(frozen=True)
class Deadly:
    """Kills its process at one image, `times` times."""

    folder: Path
    victim: bytes
    times: int

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        deaths = sorted(self.folder.iterdir())
        if image.tobytes() == self.victim and len(deaths) < self.times:
            (self.folder / str(len(deaths))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.asarray(image)


# --- helpers ----------------------------------------------------------------------------------------------


def fails(shard: int, row: int) -> str | None:
    return "http_404" if row % 7 == 3 else None


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_pool(tmp_path_factory.mktemp("pixels") / "pool", 1, ROWS, fails=fails).shards[0]


@pytest.fixture(scope="module")
def crew() -> Iterator[Decoders]:
    with Decoders(2) as decoders:
        yield decoders


def taken(decoders: Decoders, shard: Shard, prepare: Prepare = whole, rows: int = 16) -> list[PixelBatch]:
    return list(decoders.batches(shard, prepare, rows=rows))


def equal(one: list[PixelBatch], other: list[PixelBatch]) -> bool:
    return len(one) == len(other) and all(
        a.start == b.start
        and (a.ok == b.ok).all()
        and a.images.tobytes() == b.images.tobytes()
        and (a.images.shape, a.images.dtype) == (b.images.shape, b.images.dtype)
        and (a.codes, a.messages) == (b.codes, b.messages)
        for a, b in zip(one, other, strict=True)
    )


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes whose header names side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# --- one image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode in "IF" else "PNG"
    image = decode(encoded(Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode), form))
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_cmyk_becomes_rgb() -> None:
    image = decode(encoded(Image.new("CMYK", (5, 3), (0, 0, 0, 0)), "JPEG"))
    assert (image.mode, image.getpixel((2, 1))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    path = ORIENTED / f"Landscape_{orientation}.jpg"
    if not path.is_file():
        pytest.skip("no photos with EXIF orientations in ../shared")
    small = decode(path.read_bytes()).resize((60, 40))
    upright = Image.open(ORIENTED / "Landscape_1.jpg").convert("RGB").resize((60, 40))
    difference = np.abs(np.asarray(small, dtype=float) - np.asarray(upright, dtype=float)).mean()
    assert difference < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_costs_the_orientation_only() -> None:
    data = encoded(Image.new("RGB", (5, 3)), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert decode(data).size == (5, 3)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not_an_image"),
        (jpeg(1)[:-20], "bad_image"),
        (jpeg(1, (400, 300))[:900], "bad_image"),
        (encoded(Image.effect_noise((50, 50), 90), "PNG")[:900], "bad_image"),
        (huge_png(20_000), "too_many_pixels"),
        (huge_png(11_000), "too_many_pixels"),
    ],
    ids=["empty", "html", "cut at the end", "cut early", "cut PNG", "bomb", "over the limit"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images_have_a_code(data: bytes, code: str) -> None:
    with pytest.raises(SampleError) as caught:
        decode(data)
    assert caught.value.code == code


# --- a shard ----------------------------------------------------------------------------------------------


def test_batches_are_cut_at_fixed_rows(shard: Shard, crew: Decoders) -> None:
    batches = taken(crew, shard)
    assert [(b.start, len(b.ok)) for b in batches] == [(0, 16), (16, 16), (32, 9)]
    for batch in batches:
        rows = range(batch.start, batch.start + len(batch.ok))
        assert [fails(0, r) for r in rows] == batch.codes
        assert batch.messages == [None] * len(rows)
        assert list(batch.ok) == [fails(0, r) is None for r in rows]
        expected = [np.asarray(Image.open(io.BytesIO(jpeg(r)))) for r in rows if not fails(0, r)]
        assert (batch.images == np.stack(expected)).all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_nothing_depends_on_the_number_of_workers(shard: Shard, crew: Decoders, workers: int) -> None:
    with Decoders(workers) as other:
        assert equal(taken(other, shard, rows=20), taken(crew, shard, rows=20))


@pytest.mark.parametrize("workers", [0, 2])
def test_only_wanted_rows_are_read(shard: Shard, crew: Decoders, workers: int) -> None:
    """Batches are cut after as many images, wherever these lie; row 38 and its like had failed before."""
    (every,) = taken(crew, shard, rows=ROWS)
    wanted = np.zeros(ROWS, dtype=bool)
    wanted[[2, 3, 5, 6, 7, 29, 39]] = True
    with Decoders(workers) as decoders:
        batches = list(decoders.batches(shard, whole, rows=2, wanted=wanted))
    assert [(b.start, len(b.ok)) for b in batches] == [(0, 6), (6, 23), (29, 12)]
    ok = np.concatenate([b.ok for b in batches])
    assert np.flatnonzero(ok).tolist() == [2, 5, 6, 7, 29, 39]
    assert np.concatenate([b.images for b in batches]).tobytes() == every.images[ok[every.ok]].tobytes()
    assert [code for b in batches for code in b.codes] == every.codes
    (none,) = crew.batches(shard, whole, rows=2, wanted=np.zeros(ROWS, dtype=bool))
    assert (len(none.ok), none.ok.any(), none.codes) == (ROWS, False, every.codes)


def test_arrays_may_have_any_form(shard: Shard, crew: Decoders) -> None:
    batch = taken(crew, shard, centre, rows=ROWS)[0]
    assert (batch.images.shape, batch.images.dtype) == ((int(batch.ok.sum()), 3), np.float32)


def test_prepare_may_refuse_an_image(shard: Shard, crew: Decoders) -> None:
    (batch,) = taken(crew, shard, picky, rows=ROWS)
    refused = [i for i, code in enumerate(batch.codes) if code == "too_small"]
    assert refused
    assert [batch.messages[i] for i in refused] == ["not red enough"] * len(refused)
    assert batch.ok.sum() == batch.codes.count(None) == len(batch.images)
    assert (batch.images[:, 0] >= 128).all()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("prepare", "what"),
    [
        (broken, r"broken failed \(KeyError: 'nothing here'\)"),
        (ragged, "array of another form"),
        (objects, "gave Python objects"),
    ],
)
def test_prepare_may_not_break(shard: Shard, prepare: Prepare, what: str, workers: int) -> None:
    with Decoders(workers) as decoders, pytest.raises(PartError, match=what) as caught:
        taken(decoders, shard, prepare)
    assert str(shard.tar) in caught.value.where


def test_a_monstrous_image_costs_its_row(shard: Shard, crew: Decoders) -> None:
    (batch,) = taken(crew, shard, greedy, rows=ROWS)
    assert 0 < batch.codes.count("too_many_pixels") < ROWS
    assert batch.ok.any()


def test_a_shard_without_images(tmp_path: Path, crew: Decoders) -> None:
    shard = make_pool(tmp_path / "pool", 1, 5, fails=lambda s, r: "dns").shards[0]
    (batch,) = taken(crew, shard)
    assert not batch.ok.any()
    assert batch.codes == ["dns"] * 5
    assert len(batch.images) == 0


def test_no_rows_at_a_time_is_refused(shard: Shard, crew: Decoders) -> None:
    with pytest.raises(ValueError, match="rows must be at least 1"):
        taken(crew, shard, rows=0)


def test_leaving_early_leaves_nothing_behind(shard: Shard) -> None:
    with Decoders(1) as decoders:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        batches = decoders.batches(shard, whole, rows=4)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
        assert len(taken(decoders, shard)) == 3


# --- bytes that are not there -----------------------------------------------------------------------------


def own_shard(folder: Path) -> Shard:
    return make_pool(folder / "pool", 1, 6).shards[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cut_tar_fails_the_part(tmp_path: Path, workers: int) -> None:
    shard = own_shard(tmp_path)
    os.truncate(shard.tar, 4 * 1024)
    with Decoders(workers) as decoders, pytest.raises(PartError, match=r"cut short \(sample \d+ has") as caught:
        taken(decoders, shard)
    assert caught.value.where == str(shard.tar)
    assert caught.value.exit_code == 3


def test_zeros_in_a_tar_fail_the_part(tmp_path: Path) -> None:
    shard = own_shard(tmp_path)
    shard.tar.write_bytes(bytes(shard.tar.stat().st_size))
    with Decoders(0) as decoders, pytest.raises(PartError, match="does not hold sample 000000000000 where"):
        taken(decoders, shard)


def test_an_index_of_another_tar_fails_the_part(tmp_path: Path) -> None:
    shard = own_shard(tmp_path)
    shard.index.write_bytes(make_pool(tmp_path / "other", 2, 6).shards[1].index.read_bytes())
    with Decoders(0) as decoders, pytest.raises(PartError, match="does not hold sample 000000000000, which"):
        taken(decoders, shard)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_tar_fails_the_part(tmp_path: Path, workers: int) -> None:
    shard = own_shard(tmp_path)
    shard.tar.unlink()
    with Decoders(workers) as decoders, pytest.raises(PartError, match="No such file"):
        taken(decoders, shard)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(bytes(5000)), "is not a readable Parquet file"),
        (lambda path: path.write_bytes((ROOT / "LICENSE").read_bytes()[:0]), "is not a readable Parquet file"),
    ],
)
@pytest.mark.parametrize("which", ["table", "index"])
def test_a_lost_table_fails_the_part(tmp_path: Path, which: str, spoil: Any, what: str) -> None:
    shard = own_shard(tmp_path)
    spoil(getattr(shard, which))
    with Decoders(0) as decoders, pytest.raises(PartError, match=what):
        taken(decoders, shard)


def test_a_sample_without_an_image_is_lost(tmp_path: Path) -> None:
    shard = own_shard(tmp_path)
    data = bytearray(shard.tar.read_bytes())
    end = data.index(b".jpg", 0, BLOCK)
    data[end : end + 4] = b".xyz"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    shard.tar.write_bytes(data)
    with Decoders(0) as decoders:
        (batch,) = taken(decoders, shard)
    assert batch.codes == ["lost", None, None, None, None, None]
    assert batch.messages[0] == "the tar has no image for it (found: xyz, txt, json)"


# --- processes that die -----------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_process_is_replaced(
    tmp_path: Path, shard: Shard, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    victim = np.asarray(Image.open(io.BytesIO(jpeg(9)))).tobytes()
    with Decoders(2) as decoders, caplog.at_level(logging.WARNING):
        killed = taken(decoders, shard, Deadly(tmp_path, victim, times))
        calm = taken(decoders, shard)
    assert equal(killed, calm)
    assert caplog.text.count("died at samples") == times
    assert "SIGKILL" in caplog.text


def test_a_process_that_dies_always_costs_the_part(tmp_path: Path, shard: Shard) -> None:
    victim = np.asarray(Image.open(io.BytesIO(jpeg(9)))).tobytes()
    with Decoders(1) as decoders:
        with pytest.raises(PartError, match=r"died 3 times at samples \d+ to \d+ \(signal SIGKILL\)") as caught:
            taken(decoders, shard, Deadly(tmp_path, victim, 99))
        assert caught.value.where == str(shard.tar)
        assert "fewer --workers" in (caught.value.hint or "")
        assert len(taken(decoders, shard)) == 3


def test_one_killed_between_shards_is_replaced(shard: Shard, caplog: pytest.LogCaptureFixture) -> None:
    with Decoders(1) as decoders:
        first = taken(decoders, shard)
        victim = decoders._crew[0].process
        victim.kill()
        victim.join()
        assert equal(taken(decoders, shard), first)


def test_a_dead_parent_leaves_no_process(shard: Shard) -> None:
    script = (
        "import sys, time; from curate.pixels import Decoders\n"
        "decoders = Decoders(2); decoders.start()\n"
        "print(*(h.process.pid for h in decoders._crew), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, children))


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
