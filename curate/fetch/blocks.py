"""A list of what must not be had: digests of images and of URLs, from those who collect them.

One digest a line, in hexadecimal: 32 digits are MD5, 40 SHA-1, 64 SHA-256, of an image's bytes or of its URL
(UTF-8, as the pool's list gives it or in its normal form). `md5:`, `sha1:` or `sha256:` may stand before it,
and before that `url:` where only a URL is meant. Blank lines, and what follows a `#`, say nothing.

Nothing here logs, prints or raises a URL, or more of a digest than its beginning.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from curate.errors import InputError, SampleError, no_such
from curate.fetch.urls import parse_url

WIDTHS = {"md5": 16, "sha1": 20, "sha256": 32}
"""Bytes of a digest, by its algorithm."""

_BLOCK = 1 << 22
_BY_WIDTH = {2 * width: name for name, width in WIDTHS.items()}
_UNIFORM = {digits: re.compile(rb"(?:[0-9A-Fa-f]{%d}\r?\n)*" % digits) for digits in _BY_WIDTH}
_LINE = re.compile(r"(?P<url>url:)?\s*(?:(?P<name>md5|sha1|sha256):)?\s*(?P<digest>[0-9a-f]+)", re.IGNORECASE)

Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True, eq=False)
class BlockList:
    """Sorted digests by algorithm: those of images or URLs, and those of URLs alone. `sha256` is the file's."""

    sha256: str
    digests: dict[str, Digests]
    of_urls: dict[str, Digests]

    def __len__(self) -> int:
        return sum(len(d) for kind in (self.digests, self.of_urls) for d in kind.values())

    def has_bytes(self, body: bytes) -> bool:
        """Whether an image of these bytes must not be had."""
        return _held(body, self.digests)

    def has_url(self, url: str) -> bool:
        """Whether `url` must not be asked for, as it is written or in its normal form."""
        forms = {url, url.strip()}
        with suppress(SampleError):
            forms.add(str(parse_url(url)))
        return any(
            _held(form.encode("utf-8", "surrogatepass"), digests)
            for form in forms
            for digests in (self.digests, self.of_urls)
        )


def load(path: str) -> BlockList:
    """The list in the file `path`, read once a process unless the file changes.

    Raises InputError for a file that is not there or empty, and for a line that is no digest, naming it.
    """
    try:
        state = Path(path).stat()
    except OSError:
        raise no_such(Path(path), "block list") from None
    return _load(path, state.st_mtime_ns, state.st_size)


@lru_cache(4)
def _load(path: str, _modified: int, _size: int) -> BlockList:
    try:
        with Path(path).open("rb") as file:
            return read(file, path)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from error


def read(file: BinaryIO, where: str) -> BlockList:
    """The list in an open file; `where` names it in errors."""
    whole = hashlib.sha256()
    packed: defaultdict[tuple[bool, str], bytearray] = defaultdict(bytearray)
    number = 0
    for block in _blocks(file, whole):
        uniform = next((n for n, lines in _UNIFORM.items() if lines.fullmatch(block)), None)
        if uniform is not None:
            packed[False, _BY_WIDTH[uniform]] += bytes.fromhex(block.decode("ascii"))
            number += block.count(b"\n")
            continue
        for line in io.BytesIO(block):
            number += 1
            text = line.partition(b"#")[0].decode("utf-8", "replace").strip("\ufeff \t\r\n\f\v")
            if text:
                of_url, name, digest = _parsed(text, where, number)
                packed[of_url, name] += digest
    if not packed:
        raise InputError(where, "holds no digest", hint="one hexadecimal MD5, SHA-1 or SHA-256 a line")
    kinds: dict[bool, dict[str, Digests]] = {False: {}, True: {}}
    for (of_url, name), data in packed.items():
        kinds[of_url][name] = np.sort(np.frombuffer(data, f"S{WIDTHS[name]}"))
    return BlockList(whole.hexdigest(), kinds[False], kinds[True])


def _blocks(file: BinaryIO, whole: hashlib._Hash) -> Iterator[bytes]:
    """The file in pieces of whole lines, each with its end; `whole` is fed with the bytes."""
    while block := file.read(_BLOCK):
        block += file.readline()
        whole.update(block)
        yield block if block.endswith(b"\n") else block + b"\n"


def _parsed(text: str, where: str, number: int) -> tuple[bool, str, bytes]:
    found = _LINE.fullmatch(text)
    digits = found["digest"] if found else ""
    name = _BY_WIDTH.get(len(digits))
    if found is None or name is None or (found["name"] or name).lower() != name:
        start = text if len(text) < 8 else f"{text[:8]}..."
        raise InputError(
            where,
            f"line {number} is no digest (found {len(text)} characters, {start!r})",
            hint="32 hexadecimal digits (MD5), 40 (SHA-1) or 64 (SHA-256) a line, '#' before a remark",
        )
    return found["url"] is not None, name, bytes.fromhex(digits)


def _held(data: bytes, digests: dict[str, Digests]) -> bool:
    for name, held in digests.items():
        digest = hashlib.new(name, data, usedforsecurity=False).digest()
        at = int(np.searchsorted(held, np.bytes_(digest)))
        # as raw bytes: numpy takes the zeros off the end of a single value
        if held[at : at + 1].tobytes() == digest:
            return True
    return False
