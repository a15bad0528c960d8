"""Verify: every byte that a receipt stands for is read again; where none does, what can be checked is checked.

Nothing is written. A flipped byte, a cut tar, a missing or extra row in a file with a receipt is found by its
sha256, and named as closely as the rest of the part allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.engines import local
from curate.errors import PartError
from curate.pool import Pool
from curate.progress import plural, progress, size
from curate.views import inventory
from curate.views.checks import Checked, Problem, check_foreign, check_loose, check_metadata, check_part

if TYPE_CHECKING:
    from curate.engines.local import Tick


@dataclass
class Verdict:
    """The outcome for a pool: what was checked, and whether receipts stood for its shards."""

    checked: Checked
    foreign: bool
    """Whether shards or metadata are other people's: only structure, decoding and agreement were checked."""

    @property
    def grave(self) -> list[Problem]:
        """The damage."""
        return [p for p in self.checked.problems if p.grave]

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        kept = {k: v for k, v in vars(self.checked).items() if k != "problems"}
        return {
            "clean": not self.grave,
            **kept,
            "foreign": self.foreign,
            "problems": [vars(p) for p in self.checked.problems],
        }


def verify(pool: Pool, *, workers: int) -> Verdict:
    """Everything in a pool that can be checked, checked; problems in the order of the files."""
    found = inventory.take(pool)
    total = Checked()
    names: list[tuple[str, Callable[..., Checked], tuple[Any, ...]]] = []
    for folder, part, receipt in found.receipts:
        if receipt is None:
            total.wrong(receipts.receipt_path(folder, part), "is not a readable receipt")
        else:
            names.append((f"{folder.name} {part}", check_part, (folder, part, receipt)))
    foreign_shards = [s for s in pool.shards if not s.ours]
    metadata = [p for p in pool.parts if p.shard is None]
    names += [(f"shard {s.name}", check_foreign, (s,)) for s in foreign_shards]
    names += [(f"metadata {p.name}", check_metadata, (p,)) for p in metadata]
    calls = [local.Call(name, _tell, (function, args)) for name, function, args in names]
    results: dict[int, Checked] = {}
    with progress("verify", len(calls), unit="parts") as shown:
        for result in local.run(calls, workers=min(workers, len(calls)), tick=shown.advance):
            results[result.index] = _settled(calls[result.index], result)
    for index in sorted(results):
        total.add(results[index])
    check_loose(total, found.loose)
    if pool.rows:
        total.samples = pool.n  # shards and metadata both have rows for them
    if not found.running():
        if pool.awaited:
            what = f"its download is not finished, {plural(pool.awaited, 'shard')} not here: run the same again"
            total.wrong(pool.layout.sources, what)
        total.problems += [
            Problem(str(p), "is left over from a process that died; the next command takes it away", grave=False)
            for p in found.unfinished
        ]
    total.problems += [Problem(str(p), "is not curate's, and ignored", grave=False) for p in found.foreign]
    return Verdict(total, bool(foreign_shards or metadata))


def _tell(tick: Tick, function: Callable[..., Checked], args: tuple[Any, ...]) -> Checked:
    checked = function(*args)
    tick(1, bool(checked.problems))
    return checked


def _settled(call: local.Call, result: local.Result) -> Checked:
    if result.error is None:
        return result.value  # type: ignore[no-any-return]
    if not isinstance(result.error, PartError):
        raise result.error
    return Checked([Problem(call.name, str(result.error))])


def lines(verdict: Verdict) -> list[str]:
    """The verdict as text: problems first, the sum last."""
    checked = verdict.checked
    out = [f"damaged  {p}" for p in verdict.grave]
    out += [f"ignored  {p}" for p in checked.problems if not p.grave]
    if verdict.foreign:
        out.append(
            "no receipts stand for the files of others: their structure, decoding, and tables against tars were "
            "checked, no more"
        )
    decoded = f", {checked.images:,} images decoded" if checked.images else ""
    outcome = plural(len(verdict.grave), "problem") if verdict.grave else "clean"
    out.append(
        f"{outcome}: {checked.samples:,} samples, {checked.files:,} files, {size(checked.bytes)} read{decoded}"
    )
    return out
