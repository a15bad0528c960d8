"""Retry: another attempt at what a download could not have, a part at a time and without its list.

Everything that the attempt needs stands in the part's own table. Tar, table, ledger and index are written anew
and take the place of the old ones together; what was stored is copied, bytes checked. Later stages see from the
table which samples have new bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import disk, receipts, runner
from curate.errors import ERROR_CODES, InputError, PartError, UnknownName, is_transient
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.pool.layout import DOWNLOAD_STAGE, Layout
from curate.progress import plural, size
from curate.receipts import Receipt
from curate.stages import download_part as fetching
from curate.stages import sources
from curate.stages.download_part import LANES, VERSION, Job
from curate.stages.download_settings import DownloadSettings
from curate.stages.shard_files import TABLE, Record, kept_name, our_columns, write_shard

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.receipts import Output

ATTEMPT = "attempt"
"""In what a receipt stands for: the number of the attempt that its part has seen, where it has seen one."""

_KEPT_LIMITS = ("max_bytes", "obey_opt_out", "obey_robots")
"""Limits that decide what is stored."""

NEVER = frozenset({"blocked", "duplicate_url", "no_url", "bad_url", "bad_scheme", "bad_caption", "bad_metadata"})
"""What no attempt may or can mend."""


@dataclass(frozen=True)
class Retry:
    """An attempt that may begin: the parts with something to ask for again."""

    layout: Layout
    number: int
    """1 for the first attempt after the download."""
    codes: frozenset[str]
    """Error codes to ask for again; empty: all that are transient."""
    parts: Mapping[str, Receipt]
    limits: FetchLimits
    """Deadlines and manners; what decides what is stored is as it was at the download."""

    @property
    def rows(self) -> int:
        """Samples that will be asked for again."""
        return sum(_matching(receipt, self.codes) for receipt in self.parts.values())


def plan(root: Path, codes: Sequence[str], settings: DownloadSettings) -> Retry:
    """What another attempt at `codes` (none: what is transient) would ask for; nothing is written.

    An attempt that was broken off is gone on with by the same codes; else a new one begins. Of `settings` the
    deadlines and manners hold; what decides what is stored is as it was. Raises InputError where that is said
    otherwise than it was, and where the pool has no download of ours.
    """
    layout = Layout(root, root)
    for code in codes:
        _check_code(code)
    if not (layout.shards / receipts.RECEIPTS).is_dir():
        raise InputError(
            str(root), "has no download of curate's to go over again", hint="curate download --pool DIR"
        )
    for folder in (layout.root, layout.shards):
        receipts.sweep(folder)
    made = _fetched(layout)
    for receipt in made.values():
        _check_settings(root, receipt, settings)
    number, wanted = _attempt(layout, codes)
    parts = {
        part: receipt
        for part, receipt in made.items()
        if receipt.what.get(ATTEMPT, 0) < number and _matching(receipt, wanted)
    }
    return Retry(layout, number, wanted, parts, settings.limits)


def check_space(planned: Retry, workers: int) -> None:
    """Raise InputError where the disk has no room for the parts that are written anew at once, beside the old."""
    at_once = LANES * max(1, fetching.shares(workers, len(planned.parts), planned.limits, None)[0])
    sizes = sorted(sum(w.bytes for w in receipt.outputs.values()) for receipt in planned.parts.values())
    needed = 2 * sum(sizes[-at_once:])  # the new images wait in a file of their own
    free = disk.free(planned.layout.root)
    if needed > free:
        shards = plural(min(at_once, len(sizes)), "shard")
        raise InputError(
            str(planned.layout.root),
            f"writing {shards} anew takes up to {size(needed)}, and {size(free)} are free there "
            f"({needed:,} and {free:,} bytes)",
            hint="make room, fewer --workers, or --no-space-check",
        )


def retry(planned: Retry, *, workers: int, connections: int | None = None, **options: Any) -> runner.Summary:
    """Ask again, and write the parts anew; `options` are the runner's.

    Counts, over the parts that were gone over: those of a download, `asked_again` and `mended`.
    """
    from curate.fetch import crawl

    layout = planned.layout
    if planned.parts:
        _remember(planned, done=False)
    fetchers, effort = fetching.shares(workers, len(planned.parts), planned.limits, connections)
    tasks = [_task(planned, part, receipt, effort) for part, receipt in planned.parts.items()]
    try:
        summary = runner.run(
            DOWNLOAD_STAGE, VERSION, tasks, workers=fetchers, lanes=LANES, keep_outdated=True, **options
        )
    finally:
        crawl.close()
    if planned.parts or _broken_off(layout, planned.number):
        _remember(planned, done=True)
    for part, receipt in receipts.receipts(layout.shards).items():
        if receipt.what.get(ATTEMPT) == planned.number and part not in planned.parts and receipt.counts:
            summary.counts.update(receipt.counts)  # of the same attempt, before it was broken off
            summary.parts += 1
    summary.counts.setdefault("asked_again", 0)
    summary.counts.setdefault("mended", 0)
    return summary


def matches(code: str, codes: Collection[str]) -> bool:
    """Whether samples that failed with `code` are asked for again."""
    if code in NEVER:
        return False
    return code in codes if codes else is_transient(code)


def _matching(receipt: Receipt, codes: Collection[str]) -> int:
    found = ((name.removeprefix("code:"), n) for name, n in receipt.counts.items() if name.startswith("code:"))
    return sum(n for code, n in found if matches(code, codes))


def _check_code(code: str) -> None:
    http = code.startswith("http_") and code.removeprefix("http_").isdigit() and len(code) == len("http_404")
    if code in NEVER:
        raise InputError("--codes", f"{code} is never tried again ({ERROR_CODES[code]})", hint="leave it out")
    if not http and code not in ERROR_CODES:
        raise UnknownName("--codes", "error code", code, ERROR_CODES)


def _fetched(layout: Layout) -> dict[str, Receipt]:
    """The receipts of all shards that were fetched; files of this machine are not asked for again."""
    folders = [entry for entry in sources.read(layout) if entry.kind == "folder"]
    return {
        part: receipt
        for part, receipt in receipts.receipts(layout.shards).items()
        if not any(entry.first_shard <= int(part) < entry.last_shard for entry in folders)
    }


def _check_settings(root: Path, receipt: Receipt, settings: DownloadSettings) -> None:
    """Refuse settings that are neither those of the download nor what they are where nobody says anything."""
    then, now, usual = receipt.what, settings.described(), DownloadSettings().described()
    if then["block_list"] != now["block_list"]:
        raise InputError(
            "--block-list",
            f"is not that of the download (its sha256 is {then['block_list'] or 'none'} then, "
            f"{now['block_list'] or 'none'} now)",
            hint="--block-list FILE as it was, or none where there was none",
        )
    now["images"]["verify_hash"] = then["images"]["verify_hash"]
    usual["images"]["verify_hash"] = then["images"]["verify_hash"]
    wrong = [name for name in now if now[name] not in (then[name], usual[name])]
    if wrong:
        before, here = ({name: told[name] for name in wrong} for told in (then, now))
        raise InputError(
            str(root),
            f"was downloaded with other settings ({sources.differences(before, here)}; "
            f"{receipts.digest(before)[:12]} then, {receipts.digest(here)[:12]} now)",
            hint="an attempt takes the settings of the download: leave the flags out",
        )


# --- attempts ---------------------------------------------------------------------------------------------


def _made(layout: Layout) -> list[dict[str, Any]]:
    """The attempts made so far, in their order."""
    return list(receipts.read_json(layout.attempts)["attempts"]) if layout.attempts.is_file() else []


def _attempt(layout: Layout, codes: Sequence[str]) -> tuple[int, frozenset[str]]:
    """The number and codes of the attempt that is due: the last one, where it was broken off."""
    try:
        made = _made(layout)
        last = made[-1] if made else None
    except (PartError, KeyError, TypeError, AttributeError):
        raise InputError(
            str(layout.attempts), "cannot be read", hint="take it away: a new attempt begins"
        ) from None
    if last and not last["done"] and sorted(codes) == last["codes"]:
        return last["number"], frozenset(codes)
    return (last["number"] if last else 0) + 1, frozenset(codes)


def _broken_off(layout: Layout, number: int) -> bool:
    return any(attempt["number"] == number and not attempt["done"] for attempt in _made(layout))


def _remember(planned: Retry, *, done: bool) -> None:
    layout = planned.layout
    with disk.lock(layout.attempts.with_suffix(".lock"), wait=True):
        told = [t for t in _made(layout) if t["number"] != planned.number]
        told.append({"number": planned.number, "codes": sorted(planned.codes), "done": done})
        receipts.write_json(layout.attempts, {"format": receipts.FORMAT, "attempts": told})


# --- a part -----------------------------------------------------------------------------------------------


def _task(planned: Retry, part: str, receipt: Receipt, effort: Mapping[str, Any]) -> runner.Task:
    what = receipt.what
    job = Job(
        ImageSettings.from_json(what["images"]),
        key_digits=0,
        verify_column=what["verify_column"],
        bbox_column=what["bbox_column"],
        placeholder_urls=what["placeholder_urls"],
        fetcher=what["fetcher"],
        **effort,
    )
    # that all are silent is no sign of a line that is down: they are those that were silent before
    limits = replace(job.limits, **{name: what[name] for name in _KEPT_LIMITS}, outage_seconds=0.0)
    job = replace(job, limits=limits)
    args = (planned.layout.shards, part, planned.codes, planned.number, receipt.counts["received_bytes"], job)
    return runner.Task(
        part,
        planned.layout.shards,
        {**what, ATTEMPT: planned.number},
        retry_part,
        args,
        _matching(receipt, planned.codes),
    )


def retry_part(
    output: Output,
    tick: Tick,
    folder: Path,
    part: str,
    codes: Collection[str],
    attempt: int,
    received_before: int,
    job: Job,
) -> Mapping[str, int]:
    """Ask again for one part's samples that failed with `codes`, and write all its files anew."""
    import pyarrow.parquet as pq

    from curate.fetch.http import Fetched
    from curate.fetch.targets import Outcome
    from curate.shards import mapped

    began = time.time()
    fetching.allow_many_sockets()
    table = pq.read_table(folder / f"{part}.parquet")
    old_ledger = pq.read_table(folder / f"{part}_ledger.parquet").to_pylist()
    rows = [row for row, code in enumerate(table["error_code"].to_pylist()) if code and matches(code, codes)]
    asked_for = _as_list(table, job)
    with (
        disk.disk(output.folder / f"{part}.tar"),
        fetching.spool_in(output.folder) as spool,
        mapped(folder / f"{part}.tar") as tar,
    ):
        found = fetching.fetch_rows(asked_for, rows, spool, job, output.folder, tick)
        blank = Outcome(Fetched(""))
        outcomes = [found.get(row, blank) for row in range(len(table))]
        records = _records(table, found, job)
        stored = _Stored(folder / f"{part}.tar", tar, folder / f"{part}.index.parquet")
        boxes = kept_name(job.bbox_column, job.images.compute_hash) if job.bbox_column else None
        others = fetching.kept_columns(_others(table, job), outcomes, boxes)
        with fetching.told_as_disk(tick):
            counts = write_shard(
                output,
                part,
                records,
                others,
                [
                    fetching.ledger_row(record["key"], found[row], attempt) if row in found else old_ledger[row]
                    for row, record in enumerate(records)
                ],
                image=lambda row: (
                    fetching.spooled(spool, found[row]) if row in found else stored.image(records[row])
                ),
                compute_hash=job.images.compute_hash,
                placeholder_urls=job.placeholder_urls,
                began=began,
            )
    mended = sum(1 for outcome in found.values() if outcome.error_code is None)
    received = received_before + fetching.received(list(found.values()))
    return {**counts, "received_bytes": received, "asked_again": len(found), "mended": mended}


def _as_list(table: pa.Table, job: Job) -> pa.Table:
    """The part's table as the list that it was: what is asked for stands under the list's names."""
    import pyarrow as pa

    listed = table.select(["uid", "url", "caption"]).append_column("list_error", pa.nulls(len(table), pa.string()))
    for name in (job.verify_column, job.bbox_column):
        if name and name not in listed.column_names:
            listed = listed.append_column(name, table[kept_name(name, job.images.compute_hash)])
    return listed


def _others(table: pa.Table, job: Job) -> pa.Table:
    ours = our_columns(job.images.compute_hash)
    return table.select([name for name in table.column_names if name not in ours])


def _records(table: pa.Table, found: Mapping[int, Any], job: Job) -> list[Record]:
    """The records of the old table, new ones in the place of those that were asked for again."""
    names = [name for name, _ in TABLE]
    columns = {name: table[name].to_pylist() for name in names}
    digests = table[job.images.compute_hash].to_pylist()
    records = []
    for row in range(len(table)):
        before: Record = {name: columns[name][row] for name in names} | {"digest": digests[row]}
        if row in found:
            records.append(fetching.record(before["key"], before, found[row]))
        else:
            records.append(before)
    return records


class _Stored:
    """The images of the tar that is replaced."""

    def __init__(self, path: Path, data: Any, index: Path) -> None:
        import pyarrow.parquet as pq

        self.path, self.data = path, data
        listed = pq.read_table(index).to_pydict()
        self.places: dict[str, tuple[int, int]] = {
            key: (offset, length)
            for key, offset, length in zip(listed["key"], listed["offset"], listed["length"], strict=True)
        }

    def image(self, record: Record) -> tuple[str, bytes]:
        """The image of a sample that was stored. Raises PartError where its bytes are not those of the table."""
        from curate.shards import image_of, sample_members

        place = self.places.get(record["key"])
        found = image_of(sample_members(self.data, place[0], place[1], str(self.path))) if place else None
        if found is None or hashlib.sha256(found[1]).hexdigest() != record["stored_sha256"]:
            raise PartError(
                str(self.path),
                f"does not hold the image of {record['key']} as it was stored; the part is left as it is",
                hint="curate verify says what else is hurt",
            )
        return found
