"""The EXIF tags of an image as texts, for those who ask for them: what the camera was, not where it stood."""

from __future__ import annotations

import io
import json
import logging

_LEFT_OUT = (
    *("GPS", "Image GPSInfo", "MakerNote", "EXIF MakerNote", "Thumbnail", "JPEGThumbnail", "TIFFThumbnail"),
    *("Image ApplicationNotes", "Image IPTC/NAA"),  # XMP and IPTC name places too
)
_MOST_BYTES = 1 << 20
"""A larger directory is no camera's, and its parser is in Python."""


def texts(body: bytes, where: tuple[int, int] | None) -> str:
    """A JSON object of tag to text as img2dataset gives it, without places, maker notes and thumbnail.

    `where` the directory begins and ends is the header's word (sniff.Header.exif). An object without entries
    where there is none, or none that can be read.
    """
    import exifread  # type: ignore[import-untyped]

    if where is None or where[1] - where[0] > _MOST_BYTES:
        return "{}"
    logging.getLogger("exifread").setLevel(logging.CRITICAL)
    try:
        tags = exifread.process_file(io.BytesIO(body[slice(*where)]), details=False)
        return json.dumps(
            {
                name: str(value).strip()
                for name, value in tags.items()
                if value is not None and not name.startswith(_LEFT_OUT)
            }
        )
    except Exception:  # the parser has no error of its own: broken tags make it fail in any way
        return "{}"
