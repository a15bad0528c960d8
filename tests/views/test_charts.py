"""Charts: where bars, ticks and marks stand, and numbers for people."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from curate.views.charts import BINS, Mark, bins, histogram, number, share, ticks


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_bins_count_every_finite_value_once() -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    made = bins(np.append(values, floats(np.nan, np.inf)), values[:700])
    assert made is not None
    assert (made.before.sum(), made.after.sum()) == (5000, 700)
    assert len(made.before) == len(made.edges) - 1 == BINS
    assert (np.diff(made.edges) > 0).all()
    assert made.edges[0] <= values.min()
    assert (made.under, made.over) == (False, False)


def test_an_outlier_does_not_squeeze_the_axis() -> None:
    made = bins(np.append(np.arange(1000.0) / 1000, 1e6).astype(np.float32), floats())
    assert made is not None
    assert made.edges[-1] < 2
    assert made.over
    assert not made.under
    assert made.before.sum() == 1001


def test_few_whole_numbers_have_a_bar_each() -> None:
    made = bins(floats(1, 1, 2, 5), floats(5))
    assert made is not None
    assert made.edges.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert made.before.tolist() == [2, 1, 0, 0, 1]
    assert made.after.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "values", [floats(0.3), floats(0.3, 0.3), floats(0), floats(1e-9, 2e-9), floats(-1e30, 1e30)]
)
def test_any_range_can_be_drawn(values: np.ndarray) -> None:
    made = bins(values, values[:1])
    assert made is not None
    svg = ElementTree.fromstring(histogram(made, [Mark(float(values[0]), "min")], "about"))
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode")
    assert made.before.sum() == len(values)


def test_no_value_no_chart() -> None:
    assert bins(floats(), floats()) is None
    assert bins(floats(np.nan, np.inf), floats()) is None


def test_a_mark_is_on_the_axis_and_its_words_are_escaped() -> None:
    marks = [Mark(5.0, "min <5>"), Mark(-1.0, "a & b")]
    made = bins(floats(0, 1, 2.5), floats(), marks)
    assert made is not None
    assert (made.edges[0], made.edges[-1]) == (-1, 5)
    svg = ElementTree.fromstring(histogram(made, marks, 'says "<script>"'))
    assert svg.get("aria-label") == 'says "<script>"'
    assert [e.text for e in svg.iter("text") if e.get("class") == "mark"] == ["a & b", "min <5>"]


def test_a_lonely_sample_is_still_seen() -> None:
    made = bins(np.append(np.zeros(10_000), 1).astype(np.float32), floats())
    assert made is not None
    (path,) = [
        e for e in ElementTree.fromstring(histogram(made, [], "")).iter("path") if e.get("class") == "before"
    ]
    assert "V165.0" in path.attrib["d"]  # one above the axis, at 166


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.95, 1, [0.95, 0.96, 0.97, 0.98, 0.99, 1]),
        (-3, 9, [-2, 0, 2, 4, 6, 8]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


def test_numbers_for_people() -> None:
    assert [number(v) for v in (None, float("nan"), 3.0, 1234567.0, 0.123456, 12345.6)] == [
        "\u2013",
        "\u2013",
        "3",
        "1,234,567",
        "0.12346",
        "12,346",
    ]
    assert [number(v, 0.002) for v in (0.9712, 1)] == ["0.971", "1.000"]
    assert number(1234.5, 100) == "1,234"
    assert [share(*p) for p in ((0, 0), (0, 9), (9, 9), (1, 9), (1, 10**6), (10**6 - 1, 10**6))] == [
        "\u2013",
        "0 %",
        "100 %",
        "11.1 %",
        "<0.1 %",
        ">99.9 %",
    ]
