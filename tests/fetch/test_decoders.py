"""Decoders: images are converted elsewhere, and what happens there costs one image a retry at most."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from curate.errors import SampleError, StopError
from curate.fetch import decoders, images
from curate.fetch.converted import Converted
from curate.fetch.decoders import Picture, Processes, Threads
from curate.fetch.images import convert
from curate.fetch.settings import ImageSettings
from tests import pools
from tests.fetch import flaky

SETTINGS = ImageSettings(image_size=32)
Result = TypeVar("Result")


jpeg = partial(pools.jpeg, size=(60, 40))


def with_processes(count: int, work: Callable[[Processes], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        crew = Processes(count, SETTINGS)
        try:
            return await work(crew)
        finally:
            crew.close()

    return asyncio.run(main())


@pytest.fixture
def flaky_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "serve", flaky.serve)


def test_processes_and_threads_give_what_convert_gives() -> None:
    bodies = [jpeg(n) for n in range(20)]

    async def work(crew: Processes) -> list[Converted]:
        return list(await asyncio.gather(*(crew.convert(Picture(body)) for body in bodies)))

    async def threads() -> list[Converted]:
        crew = Threads(2, SETTINGS)
        try:
            return list(await asyncio.gather(*(crew.convert(Picture(body)) for body in bodies)))
        finally:
            crew.close()

    expected = [convert(body, SETTINGS) for body in bodies]
    assert with_processes(2, work) == expected
    assert asyncio.run(threads()) == expected


def test_a_picture_that_failed_is_let_go_at_once() -> None:
    """Without waiting for the garbage collector, which counts objects and not their bytes."""

    async def fail(crew: Processes | Threads) -> weakref.ref[Picture]:
        picture = Picture(b"<html>")
        with suppress(SampleError):
            await crew.convert(picture)
        return weakref.ref(picture)

    async def threads() -> weakref.ref[Picture]:
        crew = Threads(1, SETTINGS)
        try:
            return await fail(crew)
        finally:
            crew.close()

    gc.disable()
    try:
        assert with_processes(1, fail)() is None
        assert asyncio.run(threads())() is None
    finally:
        gc.enable()


def test_the_lock_for_big_pictures_has_no_name_and_is_held_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders.tempfile, "tempdir", str(tmp_path))

    async def work(crew: Processes) -> None:
        await crew.convert(Picture(jpeg()))
        assert list(tmp_path.iterdir()) == []
        with decoders._Turn(crew.turns):
            second = os.open(crew.turns, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(second)

    with_processes(1, work)


def test_what_is_no_image_is_the_sample_s_error() -> None:
    async def work(crew: Processes) -> str:
        with pytest.raises(SampleError) as caught:
            await crew.convert(Picture(b"<html>"))
        return caught.value.code

    assert with_processes(1, work) == "not_an_image"


@pytest.mark.usefixtures("flaky_processes")
def test_an_image_that_decodes_on_one_try_of_three_is_decoded(tmp_path: Path) -> None:
    counter = tmp_path / "deaths"

    async def work(crew: Processes) -> list[Converted]:
        pictures = [Picture(flaky.die(2, counter, jpeg(0))), *(Picture(jpeg(n)) for n in range(1, 8))]
        return list(await asyncio.gather(*(crew.convert(p) for p in pictures)))

    found = with_processes(2, work)
    assert counter.read_text() == "xxx"
    assert [image.stored_sha256 for image in found] == [convert(jpeg(n), SETTINGS).stored_sha256 for n in range(8)]


@pytest.mark.usefixtures("flaky_processes")
def test_an_image_that_kills_three_processes_fails_alone(tmp_path: Path) -> None:
    counter = tmp_path / "deaths"

    async def work(crew: Processes) -> list[Converted | BaseException]:
        pictures = [Picture(flaky.die(99, counter, jpeg(0))), *(Picture(jpeg(n)) for n in range(1, 5))]
        return list(await asyncio.gather(*(crew.convert(p) for p in pictures), return_exceptions=True))

    first, *rest = with_processes(1, work)
    assert isinstance(first, SampleError)
    assert (first.code, str(first)) == (
        "decoder_died",
        "decoder_died: 3 decode processes died on it (signal SIGKILL)",
    )
    assert counter.read_text() == "xxx"
    assert all(isinstance(image, Converted) for image in rest)


@pytest.mark.usefixtures("flaky_processes")
def test_an_image_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "SECONDS", 0.3)
    monkeypatch.setattr(decoders, "TRIES", 1)

    async def work(crew: Processes) -> str:
        with pytest.raises(SampleError) as caught:
            await crew.convert(Picture(flaky.hang()))
        return caught.value.code

    assert with_processes(1, work) == "decoder_died"


def test_processes_that_do_not_start_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "serve", flaky.never_ready)

    async def work(crew: Processes) -> str:
        with pytest.raises(StopError) as caught:
            await asyncio.gather(*(crew.convert(Picture(jpeg(n))) for n in range(3)))
        with pytest.raises(StopError):
            await crew.convert(Picture(jpeg()))
        return str(caught.value)

    assert with_processes(1, work) == "decode processes: do not start (exit code 3)"


def test_nothing_is_left_behind() -> None:
    async def work(crew: Processes) -> list[int | None]:
        await crew.convert(Picture(jpeg()))
        return [hand.process.pid for hand in crew._hands]

    for pid in with_processes(2, work):
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_of_all_processes_one_at_a_time_has_a_big_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    turns.touch()
    other = os.open(turns, os.O_RDONLY)

    def free() -> bool:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(other, fcntl.LOCK_UN)
        return True

    seen = []
    stored = images._stored

    def looking(*arguments: object) -> object:
        seen.append(free())
        return stored(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "_stored", looking)
    monkeypatch.setattr(images, "_one_big_image", images._one_big_image)
    images.take_turns(decoders._Turn(str(turns)))
    convert(jpeg(), SETTINGS)
    monkeypatch.setattr(images, "_BIG", 60 * 40 - 1)
    convert(jpeg(), SETTINGS)
    assert seen == [True, False]
    assert free()
    os.close(other)
