"""What a user may set of fetching and converting: plain values, importable without aiohttp or cv2.

The defaults are those of DataComp's own download (512 px, keep_ratio_largest, only if bigger, JPEG 95).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from curate.errors import InputError, UnknownName

AGENT_TOKEN = "curate"
"""The name that an X-Robots-Tag or robots.txt addresses us by."""

RESIZE_MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
INTERPOLATIONS = ("nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4")
ENCODE_FORMATS = ("jpg", "png", "webp")
HASHES = ("md5", "sha1", "sha256", "sha512")


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
    bounds the body as sent and as decompressed. `allow_private` permits private, loopback and link-local
    hosts.
    """

    connect_seconds: float = 5.0
    idle_seconds: float = 10.0
    total_seconds: float = 30.0
    max_bytes: int = 50_000_000
    max_redirects: int = 5
    retries: int = 2
    backoff_seconds: float = 0.5
    per_host: int = 16
    allow_private: bool = False
    obey_opt_out: bool = True
    user_agent: str = f"{AGENT_TOKEN} (image-text dataset download; obeys X-Robots-Tag)"

    def __post_init__(self) -> None:
        _positive(
            connect_seconds=self.connect_seconds,
            idle_seconds=self.idle_seconds,
            total_seconds=self.total_seconds,
            max_bytes=self.max_bytes,
            per_host=self.per_host,
        )
        _not_negative(max_redirects=self.max_redirects, retries=self.retries, backoff_seconds=self.backoff_seconds)
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise InputError("--user-agent", f"must be printable ASCII (found {self.user_agent!r})")


@dataclass(frozen=True)
class ImageSettings:
    """How a downloaded image becomes a stored one; names and meanings are img2dataset's.

    `max_pixels` is read from the file's header before anything is decoded; the limits of img2dataset
    (`min_image_size`, `max_image_area`, `max_aspect_ratio`) are too. `compute_hash` names the hash of the
    downloaded bytes that the table holds; `verify_hash` the one that the list gives and that must match.
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
    compute_hash: str = "sha256"
    verify_hash: str | None = None

    def __post_init__(self) -> None:
        _choice("resize_mode", self.resize_mode, RESIZE_MODES)
        _choice("upscale_interpolation", self.upscale_interpolation, INTERPOLATIONS)
        _choice("downscale_interpolation", self.downscale_interpolation, INTERPOLATIONS)
        _choice("encode_format", self.encode_format, ENCODE_FORMATS)
        _choice("compute_hash", self.compute_hash, HASHES)
        if self.verify_hash is not None:
            _choice("verify_hash", self.verify_hash, HASHES)
        _positive(
            image_size=self.image_size,
            max_image_area=self.max_image_area,
            max_pixels=self.max_pixels,
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


def digest_of(body: bytes, algorithm: str) -> str:
    """The hexadecimal `algorithm` hash (one of HASHES) of `body`."""
    return hashlib.new(algorithm, body, usedforsecurity=False).hexdigest()
