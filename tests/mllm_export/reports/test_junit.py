"""CI systems can read the report whatever stands in it."""

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hypothesis import given
from hypothesis import strategies as st

from mllm_export.report import Report, not_run
from mllm_export.reports.figures import visible
from mllm_export.reports.junit import to_junit


def suite(report: Report) -> Element:
    root = ElementTree.fromstring(to_junit(report).encode("utf-8"))
    (found,) = root.findall("testsuite")
    return found


def test_one_case_for_each_rung_and_the_counts_are_right(passing: Report, failing: Report) -> None:
    assert [case.get("name") for case in suite(passing).findall("testcase")] == ["tower", "task"]
    counts = [
        [suite(report).get(key) for key in ("tests", "failures", "skipped", "errors")]
        for report in (replace(passing, rungs=(*passing.rungs, not_run("device", "none"))), failing)
    ]
    assert counts == [["3", "0", "2", "0"], ["2", "2", "0", "0"]]


def test_a_rung_that_was_not_run_is_skipped_with_its_reason(passing: Report) -> None:
    skipped = suite(passing).find("testcase[@name='task']/skipped")
    assert skipped is not None
    assert skipped.get("message") == "no evaluation file"


def test_a_failure_tells_the_rungs_reason_and_where_the_limit_comes_from(failing: Report) -> None:
    failures = suite(failing).findall("testcase/failure")
    assert [failure.get("message") for failure in failures] == [
        "worst-token cosine 0.99999 (at least 0.99999)",
        "the engine refused the batch",
    ]
    assert failures[0].text == (
        "worst-token cosine 0.999989999 (at least 0.99999); "
        "profile default, f16: only the order of sums differs"
    )


def test_measurements_stand_in_the_output(passing: Report) -> None:
    text = suite(passing).findtext("testcase[@name='tower']/system-out")
    assert text == (
        "against PyTorch float32, 18 samples\nkept: worst-token cosine 0.999998 (at least 0.99999)"
    )


@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text_gives_valid_xml_that_says_the_same(
    filled_report: Callable[..., Report], text: str
) -> None:
    found = suite(filled_report(text))
    assert len(found.findall("testcase")) == 3
    skipped = found.find("testcase/skipped")
    assert skipped is not None
    assert skipped.get("message") == visible(text)


def test_the_same_report_gives_the_same_bytes(filled_report: Callable[..., Report]) -> None:
    assert to_junit(filled_report("x")) == to_junit(filled_report("x"))
