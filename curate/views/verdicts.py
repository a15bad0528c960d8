"""What each rule of a selection says of one sample, also below the rule that took it: the value and the margin.

Which rule took the sample is read from the decisions. A judge's conditions are then asked again about this one row,
with the figures of the whole pool (a threshold, a mean) that the selection noted when it was made. A sampler
chooses among samples, so that only what it decided can be told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from curate.errors import CurateError, InputError
from curate.filter_api import File, Judge
from curate.plugins import blamed
from curate.pool import Part, Pool
from curate.recipe import Group, Rule, Step
from curate.selection import Selection
from curate.stages.decisions import MACHINE_RULES, pool_size
from curate.stages.joint import samples_of
from curate.views import evidence
from curate.views.evidence import RuleEvidence
from curate.views.examples import sentence

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KEEPS, DROPS, UNJUDGED = "keeps", "drops", "cannot judge"
NOT_ASKED = "not asked"
"""Of a sampler below the rule that took the sample: it chooses among what is left."""
UNKNOWN = "not known"
"""Where the numbers of a rule are not at hand."""
_NOT_AT_HAND = ("not_asked", "part_failed")
"""Error codes of rows whose score was not computed, for nobody had to know it or because that failed."""


class NotAtHand(LookupError):
    """A figure over the whole pool that the selection did not note."""


class Recalled:
    """`filter_api.Figures` as the selection noted them for one judge, instead of taken over the pool again."""

    def __init__(self, n: int, notes: Mapping[str, Any] | None) -> None:
        self._n, self._notes = n, notes
        self._asked: Counter[str] = Counter()

    @property
    def n(self) -> int:
        return self._n

    def _noted(self, name: str) -> float | None:
        self._asked[name] += 1
        if self._notes is None or self._asked[name] > 1:  # one note would stand for two answers
            raise NotAtHand(name)
        found = self._notes.get(name)
        return None if found is None else float(found)

    def reached(self, files: Sequence[File], table: File) -> npt.NDArray[np.int64]:
        from curate.vectors import reached as search

        rows = search.kept([f.sha256 for f in files], table.sha256)
        if rows is None:
            raise NotAtHand("targets' centroids")
        return rows

    def nth_largest(self, value: pl.Expr, n: int) -> float | None:
        return self._noted("threshold")

    def quantile(self, value: pl.Expr, q: float) -> float | None:
        return self._noted(f"quantile {q}")

    def mean(self, value: pl.Expr) -> float | None:
        return self._noted("mean")

    def top(self, value: pl.Expr, n: int) -> pl.Expr:
        cut = self._noted("threshold")
        if cut is None:  # all of them, or none
            return pl.when(value.is_not_null()).then(pl.lit(n > 0))
        at, last = pl.lit(cut), (self._notes or {}).get("ties kept up to uid")
        return value >= at if last is None else (value > at) | ((value == at) & (pl.col("uid") <= str(last)))


def verdict(pool: Pool, selection: Selection, part: Part, row: int) -> dict[str, Any]:
    """What became of one sample, and what each rule in turn says of it, as JSON values.

    Reads the sample's part alone. `pool` may know more; where results are joined by uid it must know the shard.
    """
    decided = selection.decisions(part.name).row(row, named=True)
    found = evidence.gather(pool, selection)
    took = next((rule for rule in found.rules if rule.name == decided["rule"]), None)
    told = [_Asked(pool, selection, part, row, decided).rule(rule, took) for rule in found.rules]
    what = "kept" if decided["rule"] is None else "dropped" if decided["reason"] is not None else "unjudged"
    return {
        "name": selection.name,
        "verdict": what,
        "copies": int(decided["copies"]),
        "by": took.line["text"] if took else None,
        "reason": decided["reason"],
        "error_code": decided["error_code"],
        "why": next((t["why"] for t, rule in zip(told, found.rules, strict=True) if rule is took), ""),
        "rules": told,
        "notes": found.notes,
    }


class _Asked:
    """One sample, and the rules that are asked about it."""

    def __init__(self, pool: Pool, selection: Selection, part: Part, row: int, decided: Mapping[str, Any]) -> None:
        self.samples, self.selection, self.part, self.row = samples_of(pool), selection, part, row
        self.decided = decided

    def rule(self, rule: RuleEvidence, took: RuleEvidence | None) -> dict[str, Any]:
        """One line: what the rule said or, below the one that took the sample, what it says now."""
        place = math.inf if took is None else took.place
        told: dict[str, Any] = {"rule": rule.line["text"], "why": ""}
        judged = list(self._members(rule, rule.step)) if rule.step and not _sampler(rule.step) else []
        if rule.place < place:
            said = KEEPS
        elif rule is took:
            said = UNJUDGED if self.decided["reason"] is None else DROPS
            told |= {"reason": self.decided["reason"], "error_code": self.decided["error_code"]}
            told["why"] = self._why(rule, self.decided["reason"], self.decided["value"])
            told["of"] = self.decided["of"].hex() if self.decided["of"] else None
        elif rule.step is None or _sampler(rule.step):
            said = NOT_ASKED if rule.step or rule.name in MACHINE_RULES else UNKNOWN
        else:
            said = _kleene(rule.step, {id(member): m["says"] for member, m in judged})
            first = next((c for _, m in judged for c in m["conditions"] if c["says"] == DROPS), None)
            if said == DROPS and isinstance(rule.step, Rule) and first:
                told["why"] = self._why(rule, first["reason"], first["value"])
        told |= {"says": said, "asked": rule.place <= place}
        if isinstance(rule.step, Group):
            told["members"] = _nested(rule.step, {id(member): m for member, m in judged})
        else:
            told["conditions"] = [c for _, m in judged for c in m["conditions"]]
        if rule is took and rule.step and _sampler(rule.step) and self.decided["value"] is not None:
            told["conditions"] = [_condition(rule, self.decided["reason"], DROPS, self.decided["value"])]
        return told

    def _why(self, rule: RuleEvidence, reason: str | None, value: float | None) -> str:
        if reason is None:
            return ""
        return sentence(self.selection, rule.name, reason, value, self.decided["of"])

    def _members(self, rule: RuleEvidence, step: Step) -> Iterator[tuple[Rule, dict[str, Any]]]:
        """Each judge of a step with what it says and by which of its conditions."""
        names = Counter(member.name for member in step.rules)
        for member in step.rules:
            notes = rule.line.get("figures", {})
            if len(step.rules) > 1:
                prefix = f"{member.name} "
                notes = {k.removeprefix(prefix): v for k, v in notes.items() if k.startswith(prefix)}
            known = names[member.name] == 1
            try:
                conditions = self._conditions(rule, member, notes if known else None, cuts=known)
                says = _all(c["says"] for c in conditions)
            except (CurateError, NotAtHand, pl.exceptions.PolarsError):
                conditions, says = [], UNKNOWN
            yield member, {"rule": member.text, "says": says, "conditions": conditions}

    def _conditions(
        self, rule: RuleEvidence, member: Rule, notes: Mapping[str, Any] | None, *, cuts: bool
    ) -> list[dict[str, Any]]:
        judge = member.filter
        assert isinstance(judge, Judge)
        with blamed(member.name, InputError):
            try:
                keep, values = judge.keep(Recalled(self._base(rule, member), notes)), judge.values()
            except NotAtHand as error:
                raise InputError(f"rule {member.name}", f"its {error} was not noted") from error
        frame = self.samples.frame(member.needs, self.part).slice(self.row, 1)
        asked = [pl.int_range(pl.len()).alias("_row")]
        asked += [condition.alias(f"keep {reason}") for reason, condition in keep.items()]
        asked += [values[r].cast(pl.Float64).alias(f"value {r}") for r in keep if r in values]
        with blamed(member.name, InputError):
            answer = frame.select(asked).collect().row(0, named=True)
        said: dict[bool | None, str] = {True: KEEPS, False: DROPS}
        if None in answer.values():
            said[None] = self._open(member)
        return [
            _condition(
                rule if cuts else None, reason, said[answer[f"keep {reason}"]], answer.get(f"value {reason}")
            )
            for reason in keep
        ]

    def _open(self, member: Rule) -> str:
        """What a condition without an answer means here: a score may not have been asked for this row."""
        code = self.samples.codes(member.needs, self.part)[self.row]
        return UNKNOWN if code in _NOT_AT_HAND else UNJUDGED

    def _base(self, rule: RuleEvidence, member: Rule) -> int:
        """What the judge's fractions were of."""
        if (member.of or member.among) == "left":
            return int(rule.line["in"])
        return pool_size(self.selection.funnel, self.selection.counts["samples"])


def _condition(rule: RuleEvidence | None, reason: str, says: str, value: float | None) -> dict[str, Any]:
    cut = rule.cuts.get(reason) if rule else None
    known = cut is not None and value is not None and math.isfinite(value)
    return {
        "reason": reason,
        "says": says,
        "value": value,
        "cut": cut.at if cut else None,
        "cut_label": cut.label if cut else None,
        "margin": value - cut.at if known and cut and value is not None else None,
    }


def _sampler(step: Step) -> bool:
    return isinstance(step, Rule) and not isinstance(step.filter, Judge)


def _all(said: Iterator[str] | Sequence[str]) -> str:
    """`all` over three values and what is not known: a drop decides."""
    answers = list(said)
    return next((answer for answer in (DROPS, UNKNOWN, UNJUDGED) if answer in answers), KEEPS)


def _nested(group: Group, told: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the members of a group say, from what its judges say (by identity); groups in it have members too."""
    said = {judge: m["says"] for judge, m in told.items()}
    return [
        {"rule": m.text, "how": m.how, "says": _kleene(m, said), "members": _nested(m, told)}
        if isinstance(m, Group)
        else told[id(m)]
        for m in group.members
    ]


def _kleene(step: Step, said: Mapping[int, str]) -> str:
    """What a step says, from what its judges say (by identity)."""
    if isinstance(step, Rule):
        return said[id(step)]
    members = [_kleene(member, said) for member in step.members]
    if step.how == "all":
        return _all(members)
    if step.how == "any":
        return next((answer for answer in (KEEPS, UNKNOWN, UNJUDGED) if answer in members), DROPS)
    every = _all(members)
    return {KEEPS: DROPS, DROPS: KEEPS}.get(every, every)
