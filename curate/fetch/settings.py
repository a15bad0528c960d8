"""What a user may set of fetching and converting: plain values, importable without aiohttp or cv2.

The defaults are those of DataComp's own download (512 px, keep_ratio_largest, only if bigger, JPEG 95).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from curate.errors import InputError, UnknownName

AGENT_TOKEN = "curate"
"""The name that an X-Robots-Tag or robots.txt addresses us by."""

RESIZE_MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
INTERPOLATIONS = ("nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4")
ENCODE_FORMATS = ("jpg", "png", "webp")
HASHES = ("md5", "sha1", "sha256", "sha512")
ON_MISMATCH = ("keep", "drop", "record")


def _choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnknownName(f"--{what.replace('_', '-')}", what.replace("_", " "), value, known)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"--{name.replace('_', '-')}", f"must be above 0 (found {value})")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise InputError(f"--{name.replace('_', '-')}", f"must not be negative (found {value})")


@dataclass(frozen=True)
class FetchLimits:
    """What one URL may cost, and what is refused. Seconds and bytes.

    `total_seconds` bounds a URL altogether: every redirect, retry and wait between retries. `max_bytes`
    bounds the body as sent and as decompressed; `min_rate` is the least number of its bytes a second, on
    average, once `idle_seconds` have passed. `per_host` is how many requests one host has at once.
    While nobody at all answers, everything waits for up to `outage_seconds` (fetch/outage.py).
    `allow_private` permits private, loopback and link-local hosts. `block_list` names a file of hashes of what
    must not be had (fetch/blocks.py). `contact` tells the hosts whom to write to.
    """

    connect_seconds: float = 5.0
    idle_seconds: float = 10.0
    total_seconds: float = 30.0
    max_bytes: int = 50_000_000
    max_redirects: int = 5
    retries: int = 2
    backoff_seconds: float = 0.5
    per_host: int = 16
    min_rate: int = 1_000
    outage_seconds: float = 1_800.0
    allow_private: bool = False
    obey_opt_out: bool = True
    obey_robots: bool = False
    block_list: str | None = None
    user_agent: str = f"{AGENT_TOKEN} (image-text dataset download; obeys X-Robots-Tag)"
    contact: str | None = None

    def __post_init__(self) -> None:
        _positive(
            connect_seconds=self.connect_seconds,
            idle_seconds=self.idle_seconds,
            total_seconds=self.total_seconds,
            max_bytes=self.max_bytes,
            per_host=self.per_host,
        )
        for flag, seconds in (
            ("connect", self.connect_seconds),
            ("idle", self.idle_seconds),
            ("total", self.total_seconds),
        ):
            if math.isinf(seconds):
                raise InputError(f"--{flag}-seconds", f"must end some day (found {seconds})")
        _not_negative(
            max_redirects=self.max_redirects,
            retries=self.retries,
            backoff_seconds=self.backoff_seconds,
            min_rate=self.min_rate,
            outage_minutes=self.outage_seconds / 60,
        )
        for flag, text in (("--user-agent", self.user_agent), ("--contact", self.contact or "-")):
            if not text.strip() or not text.isprintable() or not text.isascii():
                raise InputError(flag, f"must be printable ASCII (found {text!r})")

    @property
    def agent(self) -> str:
        """The User-Agent header: who we are, and whom to write to."""
        return f"{self.user_agent} (contact: {self.contact})" if self.contact else self.user_agent


@dataclass(frozen=True)
class ImageSettings:
    """How a downloaded image becomes a stored one; names and meanings are img2dataset's.

    `max_pixels` and `max_frames` are read from the file's header before anything is decoded; the limits of
    img2dataset (`min_image_size`, `max_image_area`, `max_aspect_ratio`) are too. `compute_hash` names the hash
    of the downloaded bytes that the table holds; `verify_hash` the one that the list gives, and `on_mismatch`
    what becomes of an image that has another: `drop` fails it, `record` keeps it and says so in the table,
    `keep` keeps it and says nothing. `draft` lets a large JPEG be decoded at a half, a quarter or an eighth of
    its size where that leaves enough pixels to resize from. `keep_exif` keeps the EXIF texts in the table,
    without places, maker notes and thumbnails.
    """

    image_size: int = 512
    resize_mode: str = "keep_ratio_largest"
    resize_only_if_bigger: bool = True
    upscale_interpolation: str = "lanczos"
    downscale_interpolation: str = "area"
    encode_format: str = "jpg"
    encode_quality: int = 95
    skip_reencode: bool = False
    min_image_size: int = 0
    max_image_area: float = float("inf")
    max_aspect_ratio: float = float("inf")
    max_pixels: int = 100_000_000
    max_frames: int = 1_000
    draft: bool = True
    keep_exif: bool = False
    compute_hash: str = "sha256"
    verify_hash: str | None = None
    on_mismatch: str = "record"

    def __post_init__(self) -> None:
        _choice("resize_mode", self.resize_mode, RESIZE_MODES)
        _choice("upscale_interpolation", self.upscale_interpolation, INTERPOLATIONS)
        _choice("downscale_interpolation", self.downscale_interpolation, INTERPOLATIONS)
        _choice("encode_format", self.encode_format, ENCODE_FORMATS)
        _choice("compute_hash", self.compute_hash, HASHES)
        if self.verify_hash is not None:
            _choice("verify_hash", self.verify_hash, HASHES)
        _choice("on_mismatch", self.on_mismatch, ON_MISMATCH)
        _positive(
            image_size=self.image_size,
            max_image_area=self.max_image_area,
            max_pixels=self.max_pixels,
            max_frames=self.max_frames,
        )
        _not_negative(min_image_size=self.min_image_size)
        if not self.max_aspect_ratio >= 1:
            raise InputError("--max-aspect-ratio", f"must be at least 1 (found {self.max_aspect_ratio})")
        low, high, meaning = (0, 9, "compression") if self.encode_format == "png" else (0, 100, "quality")
        if not low <= self.encode_quality <= high:
            raise InputError(
                "--encode-quality",
                f"{self.encode_format} takes a {meaning} of {low} to {high} (found {self.encode_quality})",
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON can say them: no infinite numbers."""
        return {k: str(v) if isinstance(v, float) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> ImageSettings:
        """The settings that `as_json` said."""
        floats = {f.name for f in fields(cls) if f.type == "float"}
        values: dict[str, Any] = {k: float(v) if k in floats else v for k, v in told.items()}
        return cls(**values)


def digest_of(body: bytes, algorithm: str) -> str:
    """The hexadecimal `algorithm` hash (one of HASHES) of `body`."""
    return hashlib.new(algorithm, body, usedforsecurity=False).hexdigest()
