"""Errors, named by their consequence, and the codes of samples that failed.

CurateError                  has a place, a message and perhaps a hint; never a traceback for the user
|-- InputError        2      the caller's input is wrong; nothing was written
|   |-- UnknownName   2      a name that is not there; says what is, and the nearest match
|   `-- Busy          2      another process holds what would be written
|-- PartError         3      costs one part; the run goes on and names it at the end
|-- StopError         1      the machine stops the run: full disk, no memory, a dead dependency
`-- SampleError       -      costs one row: becomes its error code, never reaches the user as an exception
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

_NAMED = 20
"""So many names are listed where one was not found."""
_BESIDE = 1000
"""So many neighbours of a missing path are looked at."""


class CurateError(Exception):
    """Base of all errors of this package: *where: what is wrong*, and a hint that mends it.

    `exit_code` is what the command line exits with.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(where, what)
        self.where = where
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def __reduce__(self) -> tuple[Any, ...]:
        # pickled across processes: keyword-only arguments would be lost by the default
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(cls: type[CurateError], state: dict[str, Any]) -> CurateError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["where"], state["what"])
    error.__dict__.update(state)
    return error


class InputError(CurateError):
    """The caller's input is wrong; nothing was written."""

    exit_code = 2


class UnknownName(InputError):
    """A name that is not there; the message lists what is, the hint names the nearest."""

    def __init__(self, where: str, kind: str, name: str, known: Iterable[str], *, hint: str | None = None) -> None:
        found = sorted(known)
        close = nearest(name, found)
        super().__init__(
            where,
            f"no {kind} {name!r} (found: {_listed(found)})",
            hint=f"did you mean {close!r}?" if close else hint,
        )


class Busy(InputError):
    """Another process holds what this command would write."""


class PartError(CurateError):
    """Costs one part; the run goes on, names it at the end and exits 3."""

    exit_code = 3


class StopError(CurateError):
    """The machine stops the run: a full disk, no memory, a worker that cannot start."""


class SampleError(CurateError):
    """Costs one row: `code` becomes the sample's error code, `what` its error message."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(code, what)
        self.code = code


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that is most like `name`, or None where nothing is near."""
    names = list(known)
    folded = {n.casefold(): n for n in names}
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=0.55)
    return folded[close[0]] if close else None


def no_such(
    path: Path, kind: str, *, like: Callable[[Path], bool] = Path.is_file, hint: str | None = None
) -> InputError:
    """The error for a path that is not there: the message lists what lies in its place, the hint names the nearest.

    `like` tells which neighbours could have been meant.
    """
    folder = path.parent
    if path.is_dir():
        return InputError(str(path), f"is a folder, not a {kind}", hint=hint)
    if path.parts and path.parts[0].endswith(":"):  # a path has lost one slash of `https://`
        return InputError(str(path), f"is a URL, and no {kind} here", hint="fetch it first, then name the file")
    if not folder.is_dir():
        return InputError(str(path), f"no such {kind} (there is no folder {folder})", hint=hint)
    try:
        beside = sorted(p.name for p in islice(folder.iterdir(), _BESIDE) if p.name[0] != "." and like(p))
    except OSError:
        beside = []
    close = nearest(path.name, beside)
    return InputError(
        str(path),
        f"no such {kind} (found there: {_listed(beside)})",
        hint=f"did you mean {str(folder / close)!r}?" if close else hint,
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "") or "none"


ERROR_CODES: dict[str, str] = {
    # asking for it
    "no_url": "the list has no URL for this sample",
    "bad_url": "the URL cannot be parsed",
    "bad_scheme": "the URL is neither http nor https",
    "private_address": "the host, or one it redirects to, has a private, loopback or link-local address",
    "duplicate_url": "an earlier row of the list has the same URL (--dedup-urls)",
    "blocked": "on the block list: not stored, and nothing more is said of it",
    "robots": "the host's robots.txt asks not to fetch it (--robots)",
    "no_file": "the file of a local source cannot be read",
    # reaching it
    "dns": "no name server answered for the host",
    "no_such_host": "there is no host of this name",
    "tls": "the certificate or the TLS handshake was refused",
    "refused": "the host refused the connection or could not be reached",
    "reset": "the connection broke before the body was complete",
    "bad_response": "the answer is not valid HTTP",
    "timeout": "a connect, idle or total deadline passed",
    "too_many_redirects": "more redirects than allowed",
    "http_NNN": "the server answered with this status",
    "opted_out": "the server asks not to be used for training (X-Robots-Tag)",
    # what came
    "too_large": "more bytes than the limit",
    "empty": "a body of zero bytes",
    "hash_mismatch": "the bytes are not those the list names",
    "not_an_image": "no image format known to the decoder",
    "bad_image": "an image that does not decode to its end",
    "decoder_died": "the process that decoded it died or hung, three times",
    "too_many_pixels": "more pixels than the limit, read from the header",
    "too_many_frames": "more frames than the limit, read from the header",
    "too_small": "the shorter side is under --min-image-size",
    "bad_aspect": "the aspect ratio is over --max-aspect-ratio",
    "encode_failed": "the resized image could not be encoded",
    # the caption
    "no_caption": "the sample has no caption",
    "bad_caption": "the caption's bytes are not UTF-8",
    # another tool's download
    "download_failed": "another tool could not fetch it, and its message says no more",
    # where a score is wanted
    "lost": "the table says that it was stored, but the tar does not hold it",
    "part_failed": "the part that holds it failed in an earlier stage",
    "not_downloaded": "the image is not in this pool",
    "not_in_pool": "a uid list names it, and it is no sample of this pool",
    "no_value": "the column is null or NaN for this sample",
    "not_asked": "the score was asked for other rows only",
    "bad_metadata": "a metadata value that the stage needs is missing or of the wrong kind",
}
"""Every error code a table may hold, and its meaning (`http_NNN` stands for http_404 and its kin)."""


TRANSIENT = frozenset(
    {"dns", "timeout", "reset", "refused", "bad_response", "empty", "decoder_died"}
    | {"http_408", "http_425", "http_429"}
)
"""Error codes, beside those of a server that fails (http_5NN), that another attempt may mend."""


def is_transient(code: str) -> bool:
    """Whether another attempt may mend a sample that failed with `code`; else it is taken for dead."""
    return code in TRANSIENT or code.startswith("http_5")
