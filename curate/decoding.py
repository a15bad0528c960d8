"""From the bytes in a tar to arrays, one sample at a time: what a decode process does.

The process reads the byte range of each sample itself, decodes it, runs the caller's `prepare` on it, and
hands the arrays over in an anonymous file (memfd) whose descriptor travels on the socket, so that no pixel is
pickled. It must start fast and stay small: no torch, no polars here.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate.engines.local import die_with_parent, keep_freed_memory, portable
from curate.errors import CurateError, PartError, SampleError
from curate.shards import IMAGE_EXTENSIONS, members, split_name

if TYPE_CHECKING:
    from PIL.Image import Image

Prepare = Callable[["Image"], npt.NDArray[Any]]
"""Gives arrays of one shape and dtype. A SampleError costs the row, any other error the part."""

MAX_PIXELS = 100_000_000
"""An image with more is not decoded; read from its header."""
WORKER_BYTES = 2 << 30
"""What one image may take in a decode process: enough for MAX_PIXELS several times over."""

MEND = "curate verify says which samples are hurt"
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Job:
    """What the samples of one pass have in common."""

    tar: str
    prepare: bytes
    """The pickled `Prepare`."""


@dataclass(frozen=True)
class Span:
    """Where one sample's run of members lies in its tar."""

    key: str
    offset: int
    length: int


@dataclass
class Decoded:
    """What became of some samples: an array each, or the code and message of its failure."""

    arrays: list[npt.NDArray[Any]] = field(default_factory=list)
    failures: list[tuple[str, str] | None] = field(default_factory=list)
    """One a sample; None where there is an array."""


# --- one sample -------------------------------------------------------------------------------------------


def decode(data: bytes) -> Image:
    """The upright RGB image in `data`.

    EXIF orientation is applied; transparency is dropped and deep colour cut as PIL's `convert` does, which is
    what a trainer that reads the shard sees. Raises SampleError (empty, not_an_image, too_many_pixels,
    bad_image): also for an image whose end is missing.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise SampleError("empty", "a file of zero bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise SampleError("too_many_pixels", f"{image.width} x {image.height} pixels, over {MAX_PIXELS:,}")
        image.load()
        return _upright(image).convert("RGB")
    except (CurateError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise SampleError("not_an_image", "no image format that PIL knows") from None
    except Image.DecompressionBombError as error:
        raise SampleError("too_many_pixels", str(error)) from error
    except Exception as error:  # PIL's decoders raise anything from struct.error to SyntaxError
        raise SampleError("bad_image", f"{type(error).__name__}: {error}") from error


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF costs the orientation, not the image
        return image
    how = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if how is None else image.transpose(how)


def image_bytes(run: bytes, span: Span, tar: str) -> bytes:
    """The image in a sample's run of blocks.

    Raises PartError where the run is not the sample that the index says, SampleError where it has no image.
    """
    if len(run) < span.length:
        raise PartError(
            tar, f"is cut short (sample {span.key} has {len(run):,} of {span.length:,} bytes)", hint=MEND
        )
    found: dict[str, bytes] = {}
    for member in members(run, tar):
        key, extension = split_name(member.name)
        if key != span.key:
            break
        found[extension] = run[member.offset : member.offset + member.size]
    if not found:
        raise PartError(tar, f"does not hold sample {span.key} where its index says", hint=MEND)
    for extension in IMAGE_EXTENSIONS:
        if extension in found:
            return found[extension]
    raise SampleError("lost", f"the tar has no image for it (found: {', '.join(found)})")


def decode_spans(tar: int, where: str, spans: Sequence[Span], prepare: Prepare) -> Decoded:
    """What becomes of the samples at `spans` of the open tar `tar`.

    Raises PartError where their bytes are not there or `prepare` fails with anything but SampleError.
    """
    done = Decoded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd images, row by row
        for span in spans:
            try:
                image = decode(image_bytes(os.pread(tar, span.length, span.offset), span, where))
                array = _prepared(prepare, image, f"{where} {span.key}")
                _same_form(done.arrays, array, f"{where} {span.key}")
            except SampleError as error:
                done.failures.append((error.code, error.what[:300]))
            except MemoryError:
                done.failures.append(("too_many_pixels", f"does not fit into {WORKER_BYTES >> 20} MiB of memory"))
            else:
                done.arrays.append(array)
                done.failures.append(None)
    return done


def _prepared(prepare: Prepare, image: Image, where: str) -> npt.NDArray[Any]:
    name = getattr(prepare, "__qualname__", type(prepare).__qualname__)
    try:
        array = np.ascontiguousarray(prepare(image))
    except (CurateError, MemoryError):
        raise
    except Exception as error:
        raise PartError(where, f"{name} failed ({type(error).__name__}: {error})") from error
    if array.dtype.hasobject:
        raise PartError(where, f"{name} gave Python objects, not numbers ({array.dtype})")
    return array


def _same_form(before: list[npt.NDArray[Any]], array: npt.NDArray[Any], where: str) -> None:
    if before and (before[0].shape, before[0].dtype) != (array.shape, array.dtype):
        raise different_forms(where, (before[0].shape, before[0].dtype), (array.shape, array.dtype))


def different_forms(where: str, *forms: tuple[tuple[int, ...], np.dtype[Any]]) -> PartError:
    """The error of a `prepare` whose arrays do not stack."""
    listed = ", then ".join(f"{shape} {dtype}" for shape, dtype in forms)
    return PartError(where, f"was prepared as an array of another form ({listed})")


# --- the process ------------------------------------------------------------------------------------------


def serve(pipe: Connection, parent: int, niceness: int) -> None:
    """Answer `Job` and `(number, spans)` messages until the pipe closes.

    An answer is `(number, shape, dtype, failures)`, followed by a descriptor where there are arrays; or
    `(number, exception)`.
    """
    die_with_parent(parent)
    keep_freed_memory()
    os.nice(niceness)
    worker = _Worker(pipe)
    while True:
        try:
            message = pipe.recv()
            if isinstance(message, Job):
                worker.begin(message)
            else:
                worker.answer(*message)
        except (EOFError, OSError):  # the parent is gone or wants no more
            return


class _Worker:
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.job = Job("", b"")
        self.prepare: Prepare | None = None
        self.tar = -1

    def begin(self, job: Job) -> None:
        if job.prepare != self.job.prepare:
            self.prepare = None
        if self.tar >= 0:
            os.close(self.tar)
            self.tar = -1
        self.job = job

    def answer(self, number: int, spans: Sequence[Span]) -> None:
        try:
            self._ready()
            assert self.prepare is not None
            done = decode_spans(self.tar, self.job.tar, spans, self.prepare)
        except Exception as error:
            self.pipe.send((number, portable(error)))
            return
        first = done.arrays[0] if done.arrays else np.empty(0, np.uint8)
        memory = _in_memory(done.arrays) if done.arrays else -1
        try:
            self.pipe.send((number, first.shape, first.dtype.str, done.failures))
            if memory >= 0:
                reduction.send_handle(self.pipe, memory, None)  # the pid is for Windows
        finally:
            if memory >= 0:
                os.close(memory)

    def _ready(self) -> None:
        if self.prepare is None:
            self.prepare = pickle.loads(self.job.prepare)
            _bound_memory()
        if self.tar < 0:
            self.tar = open_tar(self.job.tar)


def open_tar(path: str) -> int:
    """A descriptor to read the tar at `path`. Raises PartError where it cannot be read."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PartError(
            path, f"cannot be read ({error.strerror})", hint="curate verify says what is lost"
        ) from error


def _in_memory(arrays: Sequence[npt.NDArray[Any]]) -> int:
    """A descriptor of an anonymous file that holds the arrays' bytes one after the other."""
    memory = os.memfd_create("curate-pixels", os.MFD_CLOEXEC)
    for array in arrays:
        view = array.reshape(-1).view(np.uint8).data
        while view:
            view = view[os.write(memory, view) :]
    return memory


def _bound_memory() -> None:
    """A cap on what is allocated from now on, so that a monstrous image is a MemoryError of its own row."""
    import resource

    pages = int(open("/proc/self/statm").read().split()[5])  # noqa: SIM115, PTH123 - a line of the kernel's
    cap = pages * resource.getpagesize() + WORKER_BYTES
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (cap if most < 0 else min(cap, most), most))
