"""One part fetched by img2dataset's own download, and taken in like our own crawler's: `--fetcher img2dataset`.

It runs in a child process, on a list of rows and URLs, into a folder that goes with it. What it says is not
believed: every row is looked up in its table and its tar, and every image's header is read. Nothing is left to
its options that it has not: what would break a promise is refused, the rest is in docs/decisions.md.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from curate import shards
from curate.errors import ERROR_CODES, InputError, PartError, SampleError
from curate.fetch.converted import Converted
from curate.fetch.http import Fetched
from curate.fetch.img2dataset_run import Seen, run, workplace
from curate.fetch.messages import code_of, http_status
from curate.fetch.settings import AGENT_TOKEN, FetchLimits, ImageSettings
from curate.fetch.sniff import sniff
from curate.fetch.urls import parse_url

if TYPE_CHECKING:
    from curate.fetch.targets import News, Outcome, Target

WHERE = "--fetcher img2dataset"
STALLED_SECONDS = 600.0
"""A row takes 10 seconds by default where nothing answers."""

_VERSION = "1.47."
_SHARD = "00000"
_FORMATS = {"jpg": "jpeg", "png": "png", "webp": "webp"}
_MESSAGE = 200
_PRIVATE = re.compile(r"GPS|MakerNote|Thumbnail")


def check(images: ImageSettings, limits: FetchLimits, *, blurs: bool = False, local: bool = False) -> None:
    """Raise InputError where img2dataset cannot run here or would break what the settings promise.

    `blurs`: whether there are faces to blur; `local`: whether files of this machine are to be read.
    """
    if local:
        raise InputError(WHERE, "fetches URLs only (found files of this machine)", hint="leave --fetcher out")
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
    stalled_seconds: float | None = None,
) -> dict[int, Outcome]:
    """The outcome of every target, by its number, in their order; images are appended to `spool`.

    `folder` is on the disk to work on: a folder of ours in it holds img2dataset's files meanwhile. `done` is told
    of rows while they come, and of what became of them otherwise at the end. `stalled_seconds` without a row that
    comes to an end are too many (None: ten minutes, more where the limits are patient). Raises InputError as
    `check` does, and for files of this machine; PartError where img2dataset fails, dies or stalls; OSError for a
    full disk.
    """
    check(
        images,
        limits,
        blurs=any(target.boxes for target in targets.values()),
        local=any(target.file for target in targets.values()),
    )
    asked, refused = _sorted_out(targets)
    done(len(refused), len(refused), _news(refused.values()))
    part = _Part(targets, asked, spool, images)
    if asked:
        seen = Seen(done)
        with workplace(folder) as place:
            _write_list(place / "list.parquet", list(asked))
            options = _options(place, len(asked), images, limits, threads)
            patience = stalled_seconds or max(STALLED_SECONDS, 2 * options["timeout"] * (1 + limits.retries))
            run(place, options, limits, seen, patience)
            part.take_in(place / "out")
        lost = sum(o.error_code is not None for o in part.outcomes.values())
        done(len(part.outcomes) - seen.rows, lost - seen.failed, _news(part.outcomes.values()))
    return {number: refused.get(number) or part.outcomes[number] for number in targets}


def _news(outcomes: Collection[Outcome]) -> Counter[str]:
    """The figures of outcomes that add up: failures by code, bytes stored."""
    news = Counter(f"code:{o.error_code}" for o in outcomes if o.error_code)
    news["stored"] = sum(o.length for o in outcomes)
    return news


def _sorted_out(targets: Mapping[int, Target]) -> tuple[dict[str, list[int]], dict[int, Outcome]]:
    """The distinct URLs to ask for, percent-encoded, and who wants each; the outcomes of what is no such URL."""
    from curate.fetch.targets import Outcome

    asked: dict[str, list[int]] = {}
    refused: dict[int, Outcome] = {}
    for number, target in targets.items():
        try:
            asked.setdefault(str(parse_url(target.url)), []).append(number)
        except SampleError as error:
            said = Fetched(target.url, error_code=error.code, error_message=error.what)
            refused[number] = Outcome(said, error_code=error.code, error_message=error.what)
    return asked, refused


# --- what it is asked -------------------------------------------------------------------------------------


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
        from curate.fetch.targets import Outcome

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
        from curate.fetch.targets import Outcome

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
