"""Charts as inline SVG: colours come from the page's style sheet, so that both colour schemes and print fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WIDTH, HEIGHT = 480, 190
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 26, 24
BINS = 48
REACH = 1.0
"""How far beyond the middle nine tenths of the values the axis goes at most, in their width."""


@dataclass(frozen=True)
class Mark:
    """A vertical line at a threshold."""

    at: float
    label: str


@dataclass(frozen=True)
class Bins:
    """Counts before and after over equal bins; values beyond the outermost edges count in the outermost bins."""

    edges: npt.NDArray[np.float64]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    under: bool
    """Whether values lie under the first edge, and `over` whether some lie over the last."""
    over: bool


def bins(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], marks: Sequence[Mark] = ()
) -> Bins | None:
    """Both sets of values over bins that hold nearly all of `before` and every mark; None without values."""
    import numpy as np

    held = before[np.isfinite(before)].astype(np.float64)
    if not len(held):
        return None
    low, high = (float(q) for q in np.quantile(held, (0.05, 0.95)))
    reach = REACH * (high - low)
    low, high = max(float(held.min()), low - reach), min(float(held.max()), high + reach)
    if (held == np.round(held)).all() and held.max() - held.min() < BINS:
        low, high = float(held.min()) - 0.5, float(held.max()) + 0.5
    for mark in marks:
        low, high = min(low, mark.at), max(high, mark.at)
    if high <= low:
        reach = max(abs(low) * 0.05, 1e-3)
        low, high = low - reach, high + reach
    whole = low % 1 == 0.5 and high % 1 == 0.5 and high - low <= BINS
    edges = np.linspace(low, high, (round(high - low) if whole else BINS) + 1)
    kept = after[np.isfinite(after)].astype(np.float64)
    counts = [np.histogram(np.clip(values, low, high), edges)[0] for values in (held, kept)]
    return Bins(edges, counts[0], counts[1], bool(held.min() < low), bool(held.max() > high))


def histogram(shown: Bins, marks: Sequence[Mark], about: str) -> str:
    """An SVG of both counts on one scale, a dashed line at each mark; `about` is read out in its place."""
    edges, top = shown.edges, max(int(shown.before.max()), 1)
    low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    floor = HEIGHT - BOTTOM
    pieces = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">',
        f'<path class="before" d="{_steps(shown.before, edges, x, floor, top)}"/>',
        f'<path class="after" d="{_steps(shown.after, edges, x, floor, top)}"/>',
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>',
    ]
    marked = ticks(low, high)
    step = marked[1] - marked[0] if len(marked) > 1 else high - low
    for tick in marked:
        at = x(tick)
        pieces.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        anchor = "start" if at < LEFT + 12 else "end" if at > WIDTH - RIGHT - 12 else "middle"
        pieces.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{number(tick, step)}</text>')
    for row, mark in enumerate(sorted(marks, key=lambda m: m.at)):
        at, height = x(mark.at), 11 + 11 * (row % 2)
        side, nudge = ("end", -5) if at > WIDTH / 2 else ("start", 5)
        pieces.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{floor}"/>')
        pieces.append(
            f'<text class="mark" x="{at + nudge:.1f}" y="{height}" text-anchor="{side}">{escape(mark.label)}</text>'
        )
    return "".join([*pieces, "</svg>"])


def _steps(
    counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64], x: Callable[[float], float], floor: int, top: int
) -> str:
    at, path = floor, f"M{x(float(edges[0])):.1f} {floor}"
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        # a bin with anything in it is seen, however small its share
        height = floor - max((floor - TOP) * count / top, 1.0 if count else 0.0)
        if height != at:
            path += f"H{x(left):.1f}V{height:.1f}"
            at = height
        path += f"H{x(right):.1f}" if right == edges[-1] else ""
    return f"{path}V{floor}Z"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers inside [low, high], at most `most` or one more, a step of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + k) * step, 12) for k in range(math.floor(high / step + 1e-9) - first + 1)]


def number(value: float | None, step: float | None = None) -> str:
    """A number for people, with separators and no more decimals than tell values a `step` apart."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if step is None:
        return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:.5g}"
    decimals = min(max(0, -math.floor(math.log10(step) + 1e-9)), 12) if step > 0 else 0
    return f"{value:,.{decimals}f}"


def share(part: int, whole: int) -> str:
    """A percentage that is 0 % or 100 % only where it is exactly that."""
    if not whole:
        return "\u2013"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"
