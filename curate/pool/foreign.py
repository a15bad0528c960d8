"""Other people's shards read as our tables: their rows with our columns, or rows made of a tar's members."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import shards, uids
from curate.errors import PartError
from curate.fetch.messages import code_of
from curate.fetch.sniff import sniff
from curate.pool.names import ALIASES, column_in

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("curate.adopt")


def completed(table: pa.Table, keys: Sequence[str], where: Path) -> pa.Table:
    """A foreign table with `uid` and `error_code`, its rows and columns as they are.

    `keys` are those that the tar holds: a success without one is `lost`. Raises PartError where the table has
    no keys, or nothing that a uid could be made of.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if "key" not in table.column_names:
        raise PartError(str(where), f"has no column 'key' (found: {', '.join(table.column_names)})")
    held = pc.is_in(table["key"].cast(pa.string()), value_set=pa.array(keys, pa.string())).to_pylist()
    if "error_code" in table.column_names:
        codes = table["error_code"].to_pylist()
    else:
        codes = list(codes_of(table))
    codes = [code or (None if there else "lost") for code, there in zip(codes, held, strict=True)]
    lost, unknown = codes.count("lost"), len(keys) - sum(held)
    if lost or unknown:
        log.warning("%s: %d rows are not in the tar, and %d of its samples in no row", where, lost, unknown)
    return _with(_with(table, "uid", uids_of(table, where)), "error_code", pa.array(codes, pa.string()))


def codes_of(table: pa.Table) -> Iterator[str | None]:
    """The error code of each row of img2dataset's table, None where it says that the image was stored."""
    if "status" not in table.column_names:
        yield from [None] * len(table)
        return
    status = table["status"].to_pylist()
    messages = table["error_message"].to_pylist() if "error_message" in table.column_names else [None] * len(status)
    for state, message in zip(status, messages, strict=True):
        yield None if state == "success" else code_of(state, message)


def uids_of(table: pa.Table, where: Path) -> pa.Array:
    """The uids of a foreign table's rows: its own, else made of url and caption.

    Raises PartError where it has neither, or one that is not 32 hex digits.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if (name := column_in(table.column_names, "uid")) is not None:
        try:
            uids.to_pairs(table[name])
        except ValueError as error:
            raise PartError(str(where), f"column {name!r}: {error}") from error
        return pc.utf8_lower(table[name].cast(pa.string()).combine_chunks())
    url, caption = (column_in(table.column_names, c) for c in ("url", "caption"))
    if url is None:
        found = ", ".join(table.column_names)
        raise PartError(
            str(where), f"has neither 'uid' nor 'url', so its samples have no identity (found: {found})"
        )
    texts = table[caption].to_pylist() if caption else [None] * len(table)
    made = [uids.derive_uid(u or "", t) for u, t in zip(table[url].to_pylist(), texts, strict=True)]
    return pa.array(made, pa.string())


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def table_of_tar(tar: Path, index: tuple[list[str], list[int], list[int]]) -> pa.Table:
    """One row per sample of a tar that has no table, from its members, in its order.

    Texts come from `.txt`, else the `.json`'s caption; sizes are the image's own, from its header; a uid, url,
    hash or other plain value comes from the `.json` where it has one.
    """
    import pyarrow as pa

    with shards.mapped(tar) as data:
        rows = [
            _row(key, shards.sample_members(data, offset, length, str(tar)), tar.stem)
            for key, offset, length in zip(*index, strict=True)
        ]
    types: dict[str, pa.DataType] = dict.fromkeys(("width", "height"), pa.int32())
    types |= dict.fromkeys(("uid", "key", "url", "caption", "status", "error_code", "error_message"), pa.string())
    types |= dict.fromkeys(("sha256", "stored_sha256"), pa.string()) | {"stored_bytes": pa.int64()}
    names = dict.fromkeys([*types, *(name for row in rows for name in row)])
    return pa.table({n: _column([row.get(n) for row in rows], types.get(n)) for n in names})


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    import pyarrow as pa

    if kind is not None:
        return pa.array(values, kind)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # one name, several kinds of value
        return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())


def _row(key: str, sample: Mapping[str, bytes], shard: str) -> dict[str, Any]:
    said = _said(sample.get("json"))
    caption = _text(sample["txt"]) if "txt" in sample else said.get("caption")
    row = said | {"key": key, "url": said.get("url"), "caption": caption}
    row |= {"status": "success", "error_message": None, "error_code": None}
    image = shards.image_of(dict(sample))
    if image is None:
        row |= {"status": "failed_to_resize", "error_code": "not_an_image", "error_message": "no image in the tar"}
        identity = f"{shard}/{key}"
    else:
        digest = hashlib.sha256(image[1]).hexdigest()
        row |= {"stored_sha256": digest, "sha256": said.get("sha256") or digest, "stored_bytes": len(image[1])}
        identity = digest
        header = sniff(image[1])
        if header is None:
            row |= {"error_code": "not_an_image", "status": "failed_to_resize"}
        else:
            row |= {"width": header.width, "height": header.height}
    given = str(said.get("uid") or "").lower()
    row["uid"] = given if uids.is_uid(given) else uids.derive_uid(row["url"] or identity, caption)
    return row


def _said(text: bytes | None) -> dict[str, Any]:
    """The plain values of a sample's JSON under the machine's names, those that are texts as texts."""
    try:
        raw = json.loads(text or b"{}")
    except ValueError:
        return {}
    if not isinstance(raw, dict):
        return {}
    plain = {k: v for k, v in raw.items() if isinstance(v, str | int | float) and k != "key"}
    for name in ALIASES:
        if (found := column_in(plain, name)) and found != name:
            plain.setdefault(name, plain.pop(found))
    texts = ("url", "caption", "sha256", "exif")
    return {k: str(v) if k in texts else v for k, v in plain.items()}


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
