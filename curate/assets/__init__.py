"""Published files that rules need (a language model, synsets, centroids, heads): found or fetched, never unchecked.

Each has a pinned digest: a file under its name that is not byte for byte the published one is refused wherever it
came from. Another file than the published one is one that the user names (`give`): it is taken as it is, and its
own sha256 goes on in its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from curate.assets.check import checked, hashed
from curate.assets.registry import REGISTRY, Asset, PublishedFile
from curate.assets.transfer import fetch
from curate.errors import InputError, UnknownName, no_such

__all__ = ["REGISTRY", "Asset", "PublishedFile", "cache", "find", "find_all", "give", "located", "not_asked_for"]

_given: dict[str, tuple[Path, ...]] = {}
_asked: set[str] = set()


def give(named: Mapping[str, Sequence[Path]]) -> None:
    """Take these files for the assets of these names from here on, in this process; {} takes them back.

    Raises UnknownName for what is not published here, InputError for a file that cannot be read, or for several
    where one is wanted.
    """
    readable = {
        name: tuple(_readable(name, Path(p).expanduser()) for p in paths)
        for name, paths in named.items()
        if _known(name, "--asset")
    }
    for name, paths in readable.items():
        if len(paths) > 1 and REGISTRY[name].alone:
            raise InputError(f"--asset {name}", f"is one file ({len(paths)} given: {', '.join(map(str, paths))})")
    _given.clear()
    _given.update(readable)
    _asked.clear()


def not_asked_for() -> list[str]:
    """The names of the files given that nothing has asked for yet."""
    return sorted(set(_given) - _asked)


def find(name: str, variant: str | None = None) -> tuple[Path, str]:
    """The asset's path and sha256: as given, else from `$CURATE_ASSETS`, else the cache, else fetched into it.

    `variant` says which file of an asset that has several to choose among; a file given stands for all of them.
    Raises UnknownName for a name or variant that is not published here, InputError where the file found is not
    the published one or none is found and its host cannot be reached.
    """
    asset = REGISTRY[_known(name)]
    if not asset.alone:
        raise ValueError(f"{name} is {len(asset.files)} files: find_all")
    return _find(asset, () if name in _given else asset.of(variant))[0]


def find_all(name: str) -> tuple[tuple[Path, str], ...]:
    """The path and sha256 of each file of an asset whose files count as one, in their order; see `find`."""
    asset = REGISTRY[_known(name)]
    if asset.variants:
        raise ValueError(f"{name} has variants: find")
    return _find(asset, asset.files)


def located(file: PublishedFile) -> Path | None:
    """Where a published file lies on this machine, unchecked; None where it has to be fetched."""
    return next((p for folder in _folders() if (p := folder / file.file).is_file()), None)


def _find(asset: Asset, files: Sequence[PublishedFile]) -> tuple[tuple[Path, str], ...]:
    _asked.add(asset.name)
    if given := _given.get(asset.name):
        return tuple((path, hashed(path)) for path in given)
    return tuple(_published(asset, file) for file in files)


def _published(asset: Asset, file: PublishedFile) -> tuple[Path, str]:
    folder = cache()
    path = located(file) or fetch(asset, file, folder)
    return path, checked(asset, file, path, remember=path.parent == folder)


def _known(name: str, where: str = "asset") -> str:
    if name not in REGISTRY:
        raise UnknownName(where, "published asset", name, REGISTRY, hint="curate assets lists them")
    return name


def _readable(name: str, path: Path) -> Path:
    """`path`, absolute, if it can be opened as a file."""
    if path.is_dir():
        raise InputError(f"--asset {name}", f"{path} is a folder, not a file", hint=f"--asset {name}=FILE")
    try:
        with path.open("rb"):
            return path.absolute()
    except FileNotFoundError as error:
        raise no_such(path, "file") from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror or error})") from error


def _folders() -> list[Path]:
    """Where assets are looked for, in order; the last one is the cache."""
    named = os.environ.get("CURATE_ASSETS")
    if not named:
        return [cache()]
    given = Path(named).expanduser()
    if not given.is_dir():
        raise InputError("$CURATE_ASSETS", f"there is no folder {given}", hint="make it, or unset the variable")
    return [given, cache()]


def cache() -> Path:
    """The folder that assets are fetched into."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate" / "assets"
