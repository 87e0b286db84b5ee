"""A figure never reads as the other side of its limit, and text is always text."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_export.report import Measurement, Report, not_run
from mllm_export.reports.figures import (
    limit_text,
    number,
    seconds_text,
    size_text,
    verdict_text,
    visible,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (0.0, None, "0"),
        (4.0, 0.0, "4"),
        (0.08432, None, "0.08432"),
        (2.4e-7, 1e-5, "2.4e-7"),
        (0.99999873, 0.99999, "0.9999987"),
        (0.99989, 0.9999, "0.99989"),
        (0.999989999, 0.99999, "0.999989999"),
        (1 - 2.2e-12, None, "1 - 2.2e-12"),
        (float("nan"), 0.5, "nan"),
    ],
)
def test_a_number_has_the_digits_that_matter(value: float, limit: float | None, text: str) -> None:
    assert number(value, limit) == text


@given(limit=FINITE, near=st.sampled_from([0.0, 1e-15, -1e-15, 1e-9, -1e-9, 1e-3, -1e-3]))
def test_no_number_is_rounded_across_or_onto_its_limit(limit: float, near: float) -> None:
    value = limit * (1 + near)
    shown = number(value, limit)
    read = 1 - float(shown[4:]) if shown.startswith("1 - ") else float(shown)
    assert (read > limit, read < limit) == (value > limit, value < limit)


@given(text=st.text(st.characters(exclude_categories=())))
def test_visible_text_is_legal_in_xml_and_encodable(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    element = ElementTree.Element("a")
    element.text = shown
    assert (ElementTree.fromstring(ElementTree.tostring(element)).text or "") == shown


def test_control_characters_are_seen_and_not_lost() -> None:
    assert visible("a\x00\x1b[31m\x7f\r\nb\ud800") == "a\u2400\u241b[31m\u2421\nb\ufffd"


def test_information_has_no_limit_to_show() -> None:
    assert limit_text(Measurement(name="x", value=1, unit="", limit=2)) == ""
    kept = Measurement(name="x", value=1, unit="", sense="at_most", limit=1e-5)
    assert limit_text(kept) == "≤ 1e-5"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.00 GiB")],
)
def test_sizes_are_told_in_binary_units(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.036, "0.04 s"), (3.25, "3.2 s"), (59.96, "1 min 00 s"), (75.2, "1 min 15 s")],
)
def test_times_are_told_in_seconds_and_minutes(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_the_verdict_names_the_first_failure_with_its_figures(failing: Report) -> None:
    assert verdict_text(failing) == (
        "Failed at tower: worst-token cosine 0.999989999 (at least 0.99999). Failed too: logits."
    )


def test_the_verdict_of_a_pass_tells_what_was_not_run(passing: Report) -> None:
    assert verdict_text(passing) == "Passed: 1 rung run, 1 limit kept. 1 rung could not be run."


def test_nothing_measured_is_no_pass() -> None:
    report = Report(
        model="m",
        family="f",
        target="t",
        recipe="r",
        profile="p",
        rungs=(not_run("task", "no evaluation file"),),
    )
    assert verdict_text(report).startswith("Not passed: no rung was run")
