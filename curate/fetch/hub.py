"""DataComp's pools on the model hub: how large they are, and their metadata files.

Files arrive in a folder of another name and are moved to `metadata` when all are there, so that half a
metadata folder is never taken for a whole one; what has arrived is not fetched again.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from curate.disk import disk, lock
from curate.errors import StopError, UnknownName

log = logging.getLogger("curate.fetch")

_HUB = "https://huggingface.co"
_CLIENTS = frozenset({"huggingface_hub", "httpx", "httpx2", "httpcore", "requests"})


@dataclass(frozen=True)
class HubPool:
    """One of DataComp's pools; sizes in bytes, as its authors give them."""

    repository: str
    rows: int
    metadata_bytes: int
    image_bytes: int


POOLS: Mapping[str, HubPool] = {
    "small": HubPool("mlfoundations/datacomp_small", 12_800_000, 3 * 10**9, 450 * 10**9),
    "medium": HubPool("mlfoundations/datacomp_medium", 128_000_000, 30 * 10**9, 4_500 * 10**9),
    "large": HubPool("mlfoundations/datacomp_large", 1_280_000_000, 300 * 10**9, 45 * 10**12),
    "xlarge": HubPool("mlfoundations/datacomp_xlarge", 12_800_000_000, 3 * 10**12, 450 * 10**12),
}


def hub_pool(scale: str) -> HubPool:
    """DataComp's pool of this scale. Raises UnknownName."""
    if scale not in POOLS:
        raise UnknownName("--scale", "scale", scale, POOLS)
    return POOLS[scale]


def endpoint() -> str:
    """Where the hub is: `$HF_ENDPOINT`, else the public one."""
    return os.environ.get("HF_ENDPOINT") or _HUB


def fetch_metadata(pool: HubPool, folder: Path) -> int:
    """All Parquet files of a pool, into `folder`, which appears when they are complete; how many there are.

    Each file is checked against the hub's size of it. Raises StopError naming the host where the hub cannot be
    reached or does not have the pool; the same call goes on where this one stopped.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    arriving = folder.with_name(f"{folder.name}.incomplete")
    arriving.mkdir(parents=True, exist_ok=True)
    with lock(arriving.with_suffix(".lock")), disk(arriving):
        try:
            names = _parquet_files(huggingface_hub.HfApi(endpoint=endpoint()), pool)
            for number, name in enumerate(names, 1):
                log.info("metadata %d of %d: %s", number, len(names), name)
                huggingface_hub.hf_hub_download(
                    pool.repository, name, repo_type="dataset", local_dir=arriving, endpoint=endpoint()
                )
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _CLIENTS and not isinstance(error, OSError):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the network's
            raise _unreachable(pool, error) from error
        shutil.rmtree(arriving / ".cache", ignore_errors=True)
        for path in sorted(arriving.glob("*/*.parquet")):  # xlarge's parts are one pool
            path.rename(arriving / path.name)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        arriving.rename(folder)
    return len(names)


def _parquet_files(api: object, pool: HubPool) -> list[str]:
    listed = api.list_repo_files(pool.repository, repo_type="dataset")  # type: ignore[attr-defined]
    names = sorted(name for name in listed if name.endswith(".parquet"))
    if not names:
        raise StopError(f"{endpoint()}/datasets/{pool.repository}", "holds no Parquet file")
    return names


def _unreachable(pool: HubPool, error: Exception) -> StopError:
    host = urlsplit(endpoint()).netloc
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return StopError(
        host,
        f"{pool.repository} cannot be had from there ({reason})",
        hint="a list of your own needs no hub: curate download --source FILE_OR_FOLDER",
    )
