from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mllm_export.report import (
    ArtifactSize,
    Example,
    Measurement,
    Report,
    Rung,
    TensorRow,
    not_run,
    rung_of,
)
from mllm_export.reports.figures import number, size_text, used_share, verdict_text
from mllm_export.reports.html import to_html
from mllm_export.reports.junit import to_junit
from mllm_export.reports.markdown import to_markdown

NASTY = '<script>alert("x")</script> | `code` & \\ \x07\nsecond line'
PICTURE = "data:image/jpeg;base64,AAAA"


def measured(name: str, value: float, limit: float | None = None, sense="at_most") -> Measurement:
    judged = "info" if limit is None else sense
    return Measurement(
        name=name, value=value, unit="nats", sense=judged, limit=limit, limit_from="profile p: why"
    )


def report_of(*rungs: Rung) -> Report:
    return Report(
        model="MobileVLM <V2>",
        family="mobilevlm",
        target="linux-x86_64",
        recipe="int4",
        profile="default",
        rungs=rungs,
        sizes=(
            ArtifactSize(path="decoder.gguf", size_bytes=3 << 20),
            ArtifactSize(path="tower.onnx", size_bytes=5000),
        ),
        tools=(("torch", "2.9"),),
        notes=("reference: original weights",),
    )


PASSED = rung_of(
    "logits",
    reference="the original",
    samples=40,
    measurements=(measured("mean KL", 0.01, 0.2), measured("p99 KL", 0.5)),
)
FAILED = rung_of(
    "tower",
    reference="the original",
    samples=3,
    measurements=(measured("worst-token cosine", 0.8, 0.99, "at_least"),),
    examples=(
        Example(name=NASTY, reference=NASTY, export="", note=NASTY, image=PICTURE),
        Example(name="far", reference="a", export="b", image="https://example.org/x.png"),
    ),
)
WEIGHTS = replace(
    PASSED,
    name="weights",
    tensors=(
        TensorRow(name="token_embd.weight", scheme="Q4_0", sqnr_db=21.3, note="as planned"),
        TensorRow(name="blk.0.attn_norm.weight", scheme="F32", sqnr_db=None),
        TensorRow(name="<b>", scheme="<i>", sqnr_db=35.0),
    ),
)
TASK = not_run("task", "no questions with known answers")
WHOLE = report_of(FAILED, WEIGHTS, PASSED, TASK)


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "img", "br", "rect", "line", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"rect", "line", "circle"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    parser.close()
    return parser


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    text = to_html(WHOLE)
    page = read(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert "https://example.org" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert page.open == []


def test_the_page_shows_both_answers_as_text() -> None:
    text = "".join(read(to_html(WHOLE)).text)
    assert text.count('<script>alert("x")</script>') == 3
    assert "MobileVLM <V2>" in text


def test_the_page_names_the_first_failing_stage_at_the_top() -> None:
    text = to_html(WHOLE)
    verdict = text.index("Failed at tower: worst-token cosine 0.8 nats (at least 0.99)")
    assert verdict < text.index("The ladder")
    assert '<p class="verdict failed">' in text


def test_the_page_holds_every_measurement_limit_and_origin() -> None:
    text = "".join(read(to_html(WHOLE)).text)
    for rung in WHOLE.rungs:
        for one in rung.measurements:
            assert one.name in text
    assert text.count("profile p: why") == 4 + 1
    assert "no questions with known answers" in text


def test_the_page_draws_every_tensor_and_names_those_that_lost_most() -> None:
    text = to_html(WHOLE)
    assert text.count("<circle") == 3
    assert "&lt;b&gt; (&lt;i&gt;): 35.0 dB" in text
    assert "1 of 3 tensors hold their source exactly" in text


def test_a_page_without_losses_or_rungs_is_still_a_page() -> None:
    exact = replace(WEIGHTS, tensors=(TensorRow(name="a", scheme="F16", sqnr_db=None),))
    assert "no loss" in to_html(report_of(exact))
    assert "Nothing was checked" in to_html(report_of())


@pytest.mark.parametrize("form", [to_html, to_junit, to_markdown])
def test_the_same_report_gives_the_same_text(form) -> None:
    assert form(WHOLE) == form(report_of(FAILED, WEIGHTS, PASSED, TASK))


def test_light_dark_and_paper_have_their_colours() -> None:
    text = to_html(WHOLE)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_junit_has_a_case_for_each_limit_and_counts_them() -> None:
    root = ElementTree.fromstring(to_junit(WHOLE).encode())
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["tower", "weights", "logits", "task"]
    assert root.get("tests") == "4"
    assert root.get("failures") == "1"
    assert root.get("skipped") == "1"
    failure = suites["tower"].find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "worst-token cosine 0.8 nats (at least 0.99)"
    assert failure.text == "profile p: why"
    assert suites["task"].find("testcase/skipped") is not None


def test_junit_of_a_rung_that_broke_before_measuring_fails() -> None:
    broken = Rung(name="tower", status="failed", reason=f"the tower gave NaN {NASTY}")
    root = ElementTree.fromstring(to_junit(report_of(broken)).encode())
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None
    assert "the tower gave NaN" in str(failure.get("message"))
    assert "\x07" not in to_junit(report_of(broken))


def test_markdown_keeps_its_tables_whole() -> None:
    text = to_markdown(WHOLE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert bars == {7, 4, 3}
    assert "<script>" not in text.replace("`", "").replace("&lt;", "")[:0] + _outside_code(text)
    assert "**0.8 nats**" in text
    assert "Failed at tower" in text


def _outside_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.0, "3"),
        (0.99738, "0.9974"),
        (1 - 2.2e-12, "1 - 2.2e-12"),
        (1.00004, "1 + 4.0e-05"),
        (5.1234e-7, "5.123e-07"),
        (-0.2, "-0.2"),
    ],
)
def test_numbers_show_what_matters(value: float, text: str) -> None:
    assert number(value) == text


def test_the_used_share_is_over_one_exactly_when_a_limit_is_broken() -> None:
    for value in (0.0, 0.1, 0.5, 0.94, 0.96, 0.999, 1.0):
        for sense, limit in (("at_most", 0.5), ("at_least", 0.95), ("at_least", 0.2)):
            one = measured("x", value, limit, sense)
            share = used_share(one)
            assert share is not None
            assert (share <= 1 + 1e-12) == one.passed
    assert used_share(measured("x", 41.0, 35.0, "at_least")) == pytest.approx(35 / 41)
    assert used_share(measured("x", 0.0, 0.0, "equals")) == 0
    assert used_share(measured("x", 1.0)) is None


def test_sizes_and_verdicts_read_as_words() -> None:
    assert size_text(999) == "999 B"
    assert size_text(3 << 20) == "3.0 MiB"
    assert size_text(5 << 30) == "5.00 GiB"
    assert verdict_text(report_of(PASSED, TASK)) == "Passed: 1 rungs, 1 limits held"
