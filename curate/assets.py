"""Published files that scorers need (classifier heads, a language model): found or fetched, never unchecked.

Each has a pinned digest: a file that is not byte for byte the published one is refused wherever it came from.
Another file than the published one is given by path, in the filter's own setting.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from curate.errors import InputError, UnknownName

__all__ = ["REGISTRY", "Asset", "find"]

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 30.0
_MAX_BYTES = 1 << 30
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Asset:
    """A published file: where it is, what it must be, on what terms."""

    name: str
    file: str
    """Its file name, in the cache and in `$CURATE_ASSETS`."""
    url: str
    digest: str
    """`sha256:HEX`, or `git:HEX`, the git blob id, where the publisher's repository is the only witness."""
    licence: str
    source: str


REGISTRY: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "fasttext-lid",
            "lid.176.bin",
            "https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.bin",
            "sha256:7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e",
            "CC BY-SA 3.0",
            "fastText language identification, 176 languages; the file and digest of DataComp's basic filter",
        ),
        Asset(
            "nsfw-vit-l-14",
            "clip_autokeras_binary_nsfw.zip",
            "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/"
            "d6bb8fe31fd4aecbfed7dfb62df4fe5858bfc014/clip_autokeras_binary_nsfw.zip",
            "sha256:905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a",
            "MIT",
            "LAION-AI/CLIP-based-NSFW-Detector, head on CLIP ViT-L/14 image embeddings",
        ),
        Asset(
            "nsfw-vit-b-32",
            "clip_autokeras_nsfw_b32.zip",
            "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/"
            "d6bb8fe31fd4aecbfed7dfb62df4fe5858bfc014/clip_autokeras_nsfw_b32.zip",
            "sha256:78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b",
            "MIT",
            "LAION-AI/CLIP-based-NSFW-Detector, head on CLIP ViT-B/32 image embeddings",
        ),
        Asset(
            "watermark",
            "watermark_model_v1.pt",
            "https://github.com/LAION-AI/LAION-5B-WatermarkDetection/raw/"
            "d8786e32b8a46bd1c254826dae51f54ab5b1e9e4/models/watermark_model_v1.pt",
            "git:09db4ad1b059bccc2be67380d321b67f0e9288e9",
            "MIT",
            "LAION-AI/LAION-5B-WatermarkDetection, EfficientNet-B3 state dict",
        ),
    )
}


def find(name: str) -> tuple[Path, str]:
    """The asset's path and sha256, from `$CURATE_ASSETS`, else the cache, else fetched into the cache.

    Raises UnknownName for a name that is not published here, InputError where the file found is not the
    published one or none is found and its host cannot be reached.
    """
    asset = REGISTRY.get(name)
    if asset is None:
        raise UnknownName("asset", "published asset", name, REGISTRY)
    for folder in _folders():
        path = folder / asset.file
        if path.is_file():
            return path, _checked(asset, path)
    path = _folders()[-1] / asset.file
    _fetch(asset, path)
    return path, _checked(asset, path)


def _folders() -> list[Path]:
    """Where assets are looked for, in order; the last one is the cache."""
    given = os.environ.get("CURATE_ASSETS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate" / "assets"
    return [*([Path(given).expanduser()] if given else []), cache]


def _checked(asset: Asset, path: Path) -> str:
    """The sha256 of the file at `path`; InputError where it is not the published file."""
    sha256 = hashlib.sha256()
    hashes = [sha256.update]
    published = _published_hash(asset, path.stat().st_size)
    hashes.append(published.update)
    try:
        with path.open("rb") as stream:
            _pour(stream, hashes)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror or error})") from error
    want = asset.digest.partition(":")[2]
    if published.hexdigest() != want:
        raise InputError(
            str(path),
            f"is not the published {asset.name} (its {_kind(asset)} is {published.hexdigest()}, not {want})",
            hint="remove it to fetch the published file, or give your own by path in the rule's file setting",
        )
    return sha256.hexdigest()


def _kind(asset: Asset) -> str:
    return {"sha256": "sha256", "git": "git blob id"}[asset.digest.partition(":")[0]]


def _published_hash(asset: Asset, size: int) -> Any:
    """A fresh hash of the kind that the asset is pinned by, for a file of `size` bytes."""
    if _kind(asset) == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _pour(stream: IO[bytes], into: Sequence[Callable[[bytes], Any]], limit: int | None = None) -> None:
    """Read `stream` to its end in blocks, each given to all of `into`; ValueError past `limit` bytes."""
    total = 0
    while block := stream.read(_BLOCK):
        total += len(block)
        if limit is not None and total > limit:
            raise ValueError(f"more than {limit} bytes")
        for sink in into:
            sink(block)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError("redirected away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(asset: Asset, path: Path) -> None:
    """Download the asset to `path`, which appears only once it is whole and the published file."""
    _LOG.info("fetching %s (%s) from %s", asset.file, asset.licence, urlsplit(asset.url).hostname)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    request = urllib.request.Request(asset.url, headers={"User-Agent": "curate"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            with urllib.request.build_opener(_NoDowngrade).open(request, timeout=_TIMEOUT_S) as answer:
                _pour(answer, [out.write], _MAX_BYTES)
            out.flush()
            os.fsync(out.fileno())
        _checked(asset, temporary)
        temporary.replace(path)
    except InputError as error:
        raise InputError(f"asset {asset.name}", f"what {asset.url} sent {error.what}", hint=_ways(asset)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        host = urlsplit(asset.url).hostname
        raise InputError(
            f"asset {asset.name}",
            f"{asset.file} is not on this machine, and {host} did not give it "
            f"({getattr(error, 'reason', None) or error})",
            hint=_ways(asset),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _ways(asset: Asset) -> str:
    """The three ways to give the file by hand."""
    return (
        f"get {asset.url} elsewhere, then put it into the folder that $CURATE_ASSETS names, "
        f"or into {_folders()[-1]}, or name it in the rule's file setting (see `curate rules`)"
    )
