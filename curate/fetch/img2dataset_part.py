"""One part fetched by img2dataset's own download, and taken in like our own crawler's: `--fetcher img2dataset`.

It runs in a child process, on a list of rows and URLs, into a folder that goes with it. What it says is not
believed: every row is looked up in its table and its tar, and every image's header is read. Nothing is left to
its options that it has not: what would break a promise is refused, the rest is in docs/decisions.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from curate import shards
from curate.disk import disk, same_file
from curate.errors import ERROR_CODES, InputError, PartError, SampleError
from curate.fetch.http import Fetched
from curate.fetch.images import Converted
from curate.fetch.img2dataset_child import FAILED, Job
from curate.fetch.messages import code_of, http_status
from curate.fetch.settings import AGENT_TOKEN, FetchLimits, ImageSettings
from curate.fetch.sniff import sniff
from curate.fetch.urls import parse_url

if TYPE_CHECKING:
    from curate.fetch.crawl import News, Outcome, Target

log = logging.getLogger("curate.img2dataset")

WHERE = "--fetcher img2dataset"
STALLED_SECONDS = 600.0
"""Without a row that comes to an end, the part has failed; a row takes 10 seconds where nothing answers."""

_VERSION = "1.47."
_SHARD = "00000"
_FORMATS = {"jpg": "jpeg", "png": "png", "webp": "webp"}
_LINES = 30
_MESSAGE = 200
_PRIVATE = re.compile(r"GPS|MakerNote|Thumbnail")


def check(images: ImageSettings, limits: FetchLimits, *, blurs: bool = False) -> None:
    """Raise InputError where img2dataset cannot run here or would break what the settings promise.

    `blurs`: whether there are faces to blur.
    """
    if sys.version_info >= (3, 13):
        raise InputError(WHERE, f"img2dataset 1.47 needs Python below 3.13 (found {sys.version.split()[0]})")
    try:
        found = metadata.version("img2dataset")
    except metadata.PackageNotFoundError:
        found = "none"
    if not found.startswith(_VERSION):
        raise InputError(
            WHERE, f"is written for img2dataset 1.47 (found {found})", hint="pip install 'img2dataset==1.47.*'"
        )
    plain = FetchLimits()
    refused = {
        "has no block list (--block-list)": limits.block_list is not None,
        "reads no robots.txt (--robots)": limits.obey_robots,
        "names itself in its own words (--user-agent, --contact)": limits.agent != plain.agent,
        "keeps EXIF and places in images that it does not encode (--skip-reencode)": images.skip_reencode,
        "gives one hash, and the table's is sha256 (--compute-hash, --verify-hash)": {
            images.compute_hash,
            images.verify_hash or "sha256",
        }
        != {"sha256"},
        "blurs faces less than DataComp did (--blur-faces)": blurs,
    }
    for what, asked in refused.items():
        if asked:
            raise InputError(WHERE, f"img2dataset {what}", hint="leave --fetcher out, or what stands in brackets")


def fetch(
    targets: Mapping[int, Target],
    spool: BinaryIO,
    *,
    images: ImageSettings,
    limits: FetchLimits,
    folder: Path,
    threads: int = 64,
    done: News,
    stalled_seconds: float = STALLED_SECONDS,
) -> dict[int, Outcome]:
    """The outcome of every target, by its number, in their order; images are appended to `spool`.

    `folder` is on the disk to work on: a folder of ours in it holds img2dataset's files meanwhile. `done` is told
    of rows while they come, and of what became of them otherwise at the end. Raises InputError as `check` does,
    and for files of this machine; PartError where img2dataset fails, dies or stalls; OSError for a full disk.
    """
    check(images, limits, blurs=any(target.boxes for target in targets.values()))
    if any(target.file for target in targets.values()):
        raise InputError(WHERE, "fetches URLs only (found files of this machine)", hint="leave --fetcher out")
    asked, refused = _sorted_out(targets)
    done(len(refused), len(refused), {})
    part = _Part(targets, asked, spool, images)
    if asked:
        seen = _Seen(done)
        with _workplace(folder) as place:
            _write_list(place / "list.parquet", list(asked))
            options = _options(place, len(asked), images, limits, threads)
            _run(place, options, limits, seen, stalled_seconds)
            part.take_in(place / "out")
        lost = sum(o.error_code is not None for o in part.outcomes.values())
        done(len(part.outcomes) - seen.rows, lost - seen.failed, {})
    return {number: refused.get(number) or part.outcomes[number] for number in targets}


def _sorted_out(targets: Mapping[int, Target]) -> tuple[dict[str, list[int]], dict[int, Outcome]]:
    """The distinct URLs to ask for, percent-encoded, and who wants each; the outcomes of what is no such URL."""
    from curate.fetch.crawl import Outcome

    asked: dict[str, list[int]] = {}
    refused: dict[int, Outcome] = {}
    for number, target in targets.items():
        try:
            asked.setdefault(str(parse_url(target.url)), []).append(number)
        except SampleError as error:
            said = Fetched(target.url, error_code=error.code, error_message=error.what)
            refused[number] = Outcome(said, error_code=error.code, error_message=error.what)
    return asked, refused


# --- the child --------------------------------------------------------------------------------------------


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder in `folder`, gone at the end; locked, so that the runner's sweep takes it after a crash only."""
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            place = Path(tempfile.mkdtemp(prefix="img2dataset-", suffix=".tmp", dir=folder))
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if same_file(fd, place):
                break
            os.close(fd)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(fd)


def _write_list(path: Path, urls: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"url": urls, "row": pa.array(range(len(urls)), pa.int64())}), path)


def _options(place: Path, rows: int, images: ImageSettings, limits: FetchLimits, threads: int) -> dict[str, Any]:
    """The arguments of img2dataset.download: one shard in WebDataset form."""
    return {
        "url_list": str(place / "list.parquet"),
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": ["row"],
        "output_folder": str(place / "out"),
        "output_format": "webdataset",
        "number_sample_per_shard": max(rows, 10),
        "processes_count": 1,
        "thread_count": min(threads, rows),
        "timeout": math.ceil(max(limits.connect_seconds, limits.idle_seconds)),
        "retries": limits.retries,
        "max_shard_retry": 0,
        "enable_wandb": False,
        "user_agent_token": AGENT_TOKEN,
        "disallowed_header_directives": None if limits.obey_opt_out else [],
        "image_size": images.image_size,
        "resize_mode": images.resize_mode,
        "resize_only_if_bigger": images.resize_only_if_bigger,
        "upscale_interpolation": images.upscale_interpolation,
        "downscale_interpolation": images.downscale_interpolation,
        "encode_format": images.encode_format,
        "encode_quality": images.encode_quality,
        "min_image_size": images.min_image_size,
        "max_image_area": min(images.max_image_area, images.max_pixels),
        "max_aspect_ratio": images.max_aspect_ratio,
        "compute_hash": "sha256",
        "extract_exif": images.keep_exif,
    }


@dataclass
class _Seen:
    """Rows that img2dataset said were done."""

    done: News
    rows: int = 0
    failed: int = 0

    def add(self, marks: bytes) -> None:
        rows, failed = len(marks), marks.count(FAILED)
        self.rows += rows
        self.failed += failed
        self.done(rows, failed, {})


def _run(place: Path, options: dict[str, Any], limits: FetchLimits, seen: _Seen, stalled_seconds: float) -> None:
    """Run the child to its end. Raises PartError where it fails or stalls, OSError where its disk was full."""
    marks, there = os.pipe()
    job = Job(options, there, str(place), limits.allow_private, limits.max_redirects)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "curate.fetch.img2dataset_child", job.as_argument()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=place,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"},
            pass_fds=(there,),
            start_new_session=True,  # a terminal's Ctrl-C is for us to understand
        )
    except BaseException:
        os.close(marks)
        raise
    finally:
        os.close(there)
    assert child.stdin is not None
    assert child.stdout is not None
    said = _Said(child.stdout)
    try:
        _watch(marks, seen, stalled_seconds)
        code = child.wait(stalled_seconds)
    except (TimeoutError, subprocess.TimeoutExpired):
        raise PartError(
            "img2dataset",
            f"no row came to an end in {stalled_seconds:g} seconds ({seen.rows:,} had before)",
            hint="leave --fetcher out: ours has a deadline for every URL",
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        os.close(marks)
        said.close()
    if said.full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
    if code:
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise PartError("img2dataset", f"ended with {cause}{said.last}", hint="leave --fetcher out")


def _watch(marks: int, seen: _Seen, stalled_seconds: float) -> None:
    """Count what the child tells until it ends. Raises TimeoutError where it tells nothing for so long."""
    poll = select.poll()
    poll.register(marks, select.POLLIN)
    while poll.poll(stalled_seconds * 1000):
        told = os.read(marks, 1 << 16)
        if not told:
            return
        seen.add(told)
    raise TimeoutError


class _Said:
    """What the child prints: to the log at debug level, the last of it kept."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.full = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.stream:
            if text := line.rstrip():
                log.debug("img2dataset: %s", text)
                self.lines.append(text)
                self.full = self.full or os.strerror(errno.ENOSPC) in text

    def close(self) -> None:
        """Wait for the last line; nobody holds the other end any more."""
        self.thread.join()
        self.stream.close()

    @property
    def last(self) -> str:
        """The last line, behind a colon, where there is one."""
        return f": {self.lines[-1][:200]}" if self.lines else ""


# --- what it left -----------------------------------------------------------------------------------------


class _Part:
    """Outcomes of the targets that were asked for, made of a shard's tar and table."""

    def __init__(
        self, targets: Mapping[int, Target], asked: Mapping[str, list[int]], spool: BinaryIO, images: ImageSettings
    ) -> None:
        self.targets, self.asked, self.images, self.spool = targets, asked, images, spool
        self.position = spool.tell()
        self.outcomes: dict[int, Outcome] = {}

    def take_in(self, out: Path) -> None:
        """Every row's outcome, in the order of the list. Raises PartError for a tar or table that is not whole."""
        rows = _table(out / f"{_SHARD}.parquet")
        tar = out / f"{_SHARD}.tar"
        places = {key: (offset, length) for key, offset, length in zip(*shards.read_index(tar), strict=True)}
        with shards.mapped(tar) as data:
            for row, numbers in enumerate(self.asked.values()):
                told = rows.get(row, {})
                try:
                    place = _place_of(told, places)
                    image, body = self._image(told, shards.sample_members(data, *place, str(tar)))
                except SampleError as error:
                    self._failed(numbers, error, http_status(told.get("error_message")))
                else:
                    self._stored(numbers, image, body)

    def _image(self, told: Mapping[str, Any], members: dict[str, bytes]) -> tuple[Converted, bytes]:
        """What the table will say of an image, and its bytes. Raises SampleError where it is not what they say."""
        body = members.get(self.images.encode_format)
        if body is None:
            raise SampleError("lost", "img2dataset's tar has no image for it")
        header = sniff(body)
        if header is None or header.format != _FORMATS[self.images.encode_format]:
            raise SampleError("not_an_image", f"what img2dataset stored is no {self.images.encode_format}")
        if header.flaw or (header.width, header.height) != (told["width"], told["height"]):
            raise SampleError("bad_image", "what img2dataset stored is not what its table says")
        image = Converted(
            data=b"",
            extension=self.images.encode_format,
            width=told["width"],
            height=told["height"],
            original_width=told["original_width"],
            original_height=told["original_height"],
            exif=_harmless(told.get("exif")),
            sha256=told["sha256"],
            digest=told["sha256"],
            stored_sha256=sha256(body).hexdigest(),
            original_format="",
            original_mode="",
            original_frames=0,
            original_orientation=0,
            hash_ok=None,
            boxes=(),
        )
        return image, body

    def _stored(self, numbers: list[int], image: Converted, body: bytes) -> None:
        """The image in the spool, once for all rows that have its URL, unless it is none that they expect."""
        from curate.fetch.crawl import Outcome

        fates = {number: self._hash_ok(number, image) for number in numbers}
        dropped = [n for n, ok in fates.items() if ok is False and self.images.on_mismatch == "drop"]
        self._failed(dropped, SampleError("hash_mismatch", "the sha256 is not the one in the list"))
        kept = [n for n in numbers if n not in dropped]
        if not kept:
            return
        self.spool.write(body)
        for number in kept:
            said = Fetched(self.targets[number].url)
            of_row = replace(image, hash_ok=None if self.images.on_mismatch == "keep" else fates[number])
            self.outcomes[number] = Outcome(said, None, of_row, self.position, len(body), repeat=number != kept[0])
        self.position += len(body)

    def _hash_ok(self, number: int, image: Converted) -> bool | None:
        expected = (self.targets[number].expected or "").strip().lower()
        return image.sha256 == expected if self.images.verify_hash and expected else None

    def _failed(self, numbers: list[int], error: SampleError, status: int | None = None) -> None:
        from curate.fetch.crawl import Outcome

        for number in numbers:
            said = Fetched(
                self.targets[number].url, error_code=error.code, error_message=error.what, http_status=status
            )
            self.outcomes[number] = Outcome(said, error_code=error.code, error_message=error.what)


def _table(path: Path) -> dict[int, dict[str, Any]]:
    """Its table's rows, by our number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
        return {row["row"]: row for row in rows}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise PartError("img2dataset", f"left no table that can be read ({error})") from error


def _place_of(told: Mapping[str, Any], places: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Where the tar has a row's sample. Raises SampleError where its table says or means that there is none."""
    if told.get("status") not in (None, "success"):
        message = told["error_message"]
        code = code_of(told["status"], message)
        raise SampleError(code, " ".join((message or ERROR_CODES[code]).split())[:_MESSAGE])
    if told.get("key") not in places:
        raise SampleError("lost", "img2dataset has it neither in its tar nor among its failures")
    return places[told["key"]]


def _harmless(exif: str | None) -> str | None:
    """Its EXIF texts without places, maker notes and thumbnails."""
    if exif is None:
        return None
    return json.dumps({name: text for name, text in json.loads(exif).items() if not _PRIVATE.search(name)})
