"""Other people's text made harmless to look at: captions and URLs as plain, short, visible characters."""

from __future__ import annotations

import unicodedata
from urllib.parse import urlsplit

CAPTION_CHARACTERS = 280
URL_CHARACTERS = 100

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows them, also beyond an isolating element."""


def inert(text: str, limit: int = CAPTION_CHARACTERS) -> str:
    """`text` in one line of at most `limit` characters and an ellipsis.

    White space is one blank, control characters and lone surrogates are U+FFFD, marks of direction are shown by
    their number. It is still to be escaped for HTML.
    """
    shown = "".join(_visible(c) for c in " ".join(text[: limit + 1].split()))
    return shown if len(text) <= limit else shown[:limit].rstrip() + "\u2026"


def _visible(character: str) -> str:
    if character in _BIDI:
        return f"\u27e8U+{ord(character):04X}\u27e9"
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cs") else character


def plain_url(url: str, limit: int = URL_CHARACTERS) -> str:
    """The host and path of `url`: no user, password, query or fragment, which may hold secrets."""
    try:
        pieces = urlsplit(url[:16_384])
        host = pieces.hostname or ""
        port = f":{pieces.port}" if pieces.port else ""
    except ValueError:
        return inert("(not a URL)", limit)
    return inert(host + port + pieces.path, limit)
