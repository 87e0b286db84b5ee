"""Verdicts follow from measurements, and nothing unmeasured passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_export.errors import BundleError
from mllm_export.records import from_json, to_json
from mllm_export.report import Measurement, Report, Rung, Sense, not_run, rung_of


def measured(value: float, sense: Sense = "at_least", limit: float | None = 0.5) -> Measurement:
    return Measurement(name="cosine", value=value, unit="", sense=sense, limit=limit)


@pytest.mark.parametrize(
    ("value", "sense", "passed"),
    [
        (0.5, "at_least", True),
        (0.49, "at_least", False),
        (0.5, "at_most", True),
        (0.51, "at_most", False),
        (0.5, "equals", True),
        (0.4, "equals", False),
        (float("nan"), "at_least", False),
        (float("nan"), "at_most", False),
        (float("nan"), "equals", False),
        (9.0, "info", None),
    ],
)
def test_a_limit_holds_or_not_and_nan_never_does(
    value: float, sense: Sense, passed: bool | None
) -> None:
    assert measured(value, sense).passed is passed


def test_a_rung_that_held_nothing_against_a_limit_fails() -> None:
    rung = rung_of("tower", reference="torch", samples=3, measurements=(measured(1, "info"),))
    assert rung.status == "failed"


def test_one_broken_limit_fails_the_rung_and_is_told() -> None:
    rung = rung_of("tower", reference="x", samples=1, measurements=(measured(1), measured(0.1)))
    assert rung.status == "failed"
    assert rung.reason == "cosine 0.1 (at least 0.5)"


def report(*rungs: Rung) -> Report:
    return Report(model="m", family="f", target="t", recipe="r", profile="default", rungs=rungs)


def test_a_report_without_a_rung_that_ran_does_not_pass() -> None:
    passed = rung_of("pixels", reference="x", samples=1, measurements=(measured(1),))
    failed = rung_of("tower", reference="x", samples=1, measurements=(measured(0),))
    assert not report().passed
    assert not report(not_run("task", "no evaluation file")).passed
    assert report(passed, not_run("task", "no evaluation file")).passed
    assert not report(passed, failed).passed
    assert report(passed, failed).first_failure == failed


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(),
)
def test_a_report_goes_to_json_and_back_without_loss(
    value: float, limit: float | None, text: str
) -> None:
    rung = rung_of(
        "tower", reference=text, samples=1, measurements=(measured(value, "at_most", limit),)
    )
    whole = report(rung, not_run("task", text))
    assert from_json(Report, to_json(whole), "report.json", BundleError) == whole


def test_an_unknown_key_is_refused_with_its_place() -> None:
    text = to_json(report(not_run("task", "x"))).replace('"reason"', '"raeson"')
    with pytest.raises(BundleError, match=r"report\.json.*rungs\.0\.raeson"):
        from_json(Report, text, "report.json", BundleError)
