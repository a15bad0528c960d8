"""The runner: the only loop over parts.

It skips parts whose receipt's fingerprint matches, says aloud when settings changed, hands the others to an
engine, and reads the totals back from receipts, so that a resumed run reports what an unbroken one would.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate import disk, receipts
from curate.engines import local
from curate.errors import Busy, CurateError, PartError, StopError
from curate.progress import Progress, plural, progress
from curate.receipts import Output, Receipt

log = logging.getLogger("curate.runner")

ENDS = ("ok", "failed", "unasked", "kept", "dropped", "unjudged")
"""Counts that together account for every sample of a part (`samples`)."""


@dataclass(frozen=True)
class Task:
    """One part's work: `function(output, tick, *args) -> counts`, with a picklable module-level function.

    `what` is everything that the outputs depend on, as JSON: settings, model digests, input identities.
    """

    part: str
    folder: Path
    what: Mapping[str, Any]
    function: Callable[..., Mapping[str, int]]
    args: tuple[Any, ...] = ()
    samples: int = 0
    """How many samples to expect, for the progress bar."""


@dataclass
class Summary:
    """What a stage did: totals over all parts from their receipts, and the parts that failed."""

    stage: str
    counts: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    skipped: int = 0
    failed: dict[str, CurateError] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)

    def raise_failed(self) -> None:
        """Raise one PartError that names the parts that failed, if any did."""
        if not self.failed:
            return
        for error in self.failed.values():
            log.error("%s", error)
        names = ", ".join(list(self.failed)[:8]) + (", ..." if len(self.failed) > 8 else "")
        hint = next((e.hint for e in self.failed.values() if e.hint), None)
        raise PartError(
            self.stage,
            f"{len(self.failed)} of {self.parts} parts failed ({names})",
            hint=hint or "the other parts are done; mend the cause and run the same command again",
        )


def run(
    stage: str,
    version: int,
    tasks: Sequence[Task],
    *,
    workers: int,
    title: str | None = None,
    keep_outdated: bool = False,
    lanes: int = 1,
    shown: Callable[[str, int], Progress] = Progress,
    quiet: float | None = None,
    dead: float | None = None,
    threads: int = 1,
    aloud: bool = True,
) -> Summary:
    """Do every task whose receipt does not match yet, and count all.

    A failed part is named in `Summary.failed`; a full disk or a bug in our code stops the run. A part that
    another process is writing is waited for at the end. What a part that failed now had from other settings or
    inputs is taken away, so that nobody reads it for what was asked, unless `keep_outdated`.

    A worker does up to `lanes` parts at once; with `workers` 0 this process does them, in so many `threads`.
    `shown(title, samples)` is the display of the progress. A part that says nothing for `quiet` seconds is named,
    after `dead` seconds it is taken for dead with its worker. Without `aloud` nothing is said of parts that are
    done again: they are what was asked for.
    """
    summary = Summary(stage, parts=len(tasks))
    for folder in {t.folder for t in tasks}:
        receipts.sweep(folder)
    todo = []
    changed: list[tuple[Receipt, Task]] = []
    for task in tasks:
        receipt = receipts.read_receipt(task.folder, task.part)
        if receipt and _matches(receipt, stage, version, task):
            _account(summary, task, receipt)
            summary.skipped += 1
            continue
        if receipt and receipt.fingerprint != receipts.digest(task.what):
            changed.append((receipt, task))
        todo.append(task)
    if aloud:
        _say_changes(stage, changed)
    if todo:
        try:
            effort = _Effort(workers, lanes, quiet, dead, threads)
            with progress(title or stage, sum(t.samples for t in todo), kind=shown) as display:
                _work(summary, stage, version, todo, effort, display.advance)
        except BaseException:
            for folder in {t.folder for t in todo}:
                receipts.sweep(folder)  # what workers that were ended had begun
            raise
    if not keep_outdated:
        _take_away_outdated(summary, [task for _, task in changed])
    return summary


def _take_away_outdated(summary: Summary, changed: Sequence[Task]) -> None:
    for task in changed:
        receipt = receipts.read_receipt(task.folder, task.part) if task.part in summary.failed else None
        if receipt and receipt.fingerprint != receipts.digest(task.what):
            receipts.remove_part(task.folder, task.part)


def pending(stage: str, version: int, tasks: Sequence[Task]) -> list[Task]:
    """The tasks that `run` would do: those without a matching receipt or with a missing output."""
    found = ((t, receipts.read_receipt(t.folder, t.part)) for t in tasks)
    return [t for t, receipt in found if not (receipt and _matches(receipt, stage, version, t))]


def _matches(receipt: Receipt, stage: str, version: int, task: Task) -> bool:
    same = (receipt.stage, receipt.version) == (stage, version)
    return same and receipt.fingerprint == receipts.digest(task.what) and not receipt.missing(task.folder)


def _say_changes(stage: str, changed: list[tuple[Receipt, Task]]) -> None:
    if changed:
        before, task = changed[0]
        names = receipts.changed(before.what, task.what)
        log.warning(
            "%s: %s redone, because these changed: %s",
            stage,
            plural(len(changed), "part is", "parts are"),
            ", ".join(names),
        )


@dataclass(frozen=True)
class _Effort:
    workers: int
    lanes: int
    quiet: float | None
    dead: float | None
    threads: int


def _work(summary: Summary, stage: str, version: int, tasks: list[Task], effort: _Effort, tick: local.Tick) -> None:
    calls = [local.Call(f"{stage} {t.part}", execute, (stage, version, t, False)) for t in tasks]
    held: list[Task] = []
    for result in local.run(calls, tick=tick, **vars(effort)):
        task = tasks[result.index]
        if isinstance(result.error, Busy):
            held.append(task)
        else:
            _settle(summary, task, result)
    for task in held:  # nobody watches them: they wait for their lock in silence
        log.warning("%s %s: waiting for another process that is writing it", stage, task.part)
        call = local.Call(task.part, execute, (stage, version, task, True))
        for result in local.run([call], workers=min(effort.workers, 1), tick=tick):
            _settle(summary, task, result)


def _settle(summary: Summary, task: Task, result: local.Result) -> None:
    if result.error is None:
        _account(summary, task, result.value)
    elif isinstance(result.error, StopError) or not isinstance(result.error, CurateError):
        raise result.error
    elif isinstance(result.error, PartError):
        summary.failed[task.part] = result.error
    else:  # the caller's input: the same for every part
        raise result.error


def _account(summary: Summary, task: Task, receipt: Receipt) -> None:
    summary.receipts[task.part] = receipt
    summary.counts.update(receipt.counts)


def execute(tick: local.Tick, stage: str, version: int, task: Task, wait: bool) -> Receipt:
    """One task in the process that does it: lock, work, check the sums, commit."""
    with disk.lock(receipts.receipt_path(task.folder, task.part).with_suffix(".lock"), wait=wait):
        receipts.finish_replacing(task.folder, task.part)  # of a process that died while we waited for its lock
        receipt = receipts.read_receipt(task.folder, task.part)
        if receipt and _matches(receipt, stage, version, task):
            return receipt  # another process was faster
        output = Output(stage, version, task.part, task.folder, task.what)
        try:
            counts = task.function(output, tick, *task.args)
            check_counts(f"{stage} {task.part}", counts)
            return output.commit(counts)
        finally:
            output.abandon()


def check_counts(where: str, counts: Mapping[str, int]) -> None:
    """Raise PartError unless the ends that a stage counts add up to the samples that went in."""
    ends = {k: counts[k] for k in ENDS if k in counts}
    if sum(ends.values()) != counts["samples"]:
        listed = " + ".join(f"{v} {k}" for k, v in ends.items())
        raise PartError(where, f"lost track of samples ({counts['samples']} in, {listed} out)")
