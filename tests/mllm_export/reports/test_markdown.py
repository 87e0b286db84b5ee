"""The summary stays a table and a few lists whatever stands in the report."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_export.report import Latency, Report
from mllm_export.reports.html import to_html
from mllm_export.reports.markdown import to_markdown

UNESCAPED_PIPE = re.compile(r"(?<!\\)(?:\\\\)*\|")


def shape(text: str) -> list[tuple[str, int]]:
    """How each line begins, and its cells."""
    return [(line[:2].strip(), len(UNESCAPED_PIPE.findall(line))) for line in text.split("\n")]


def structure(text: str) -> list[int]:
    return [cells for _, cells in shape(text)]


@given(text=st.text(st.characters(exclude_categories=()), min_size=1).filter(str.strip))
def test_any_text_leaves_the_lines_and_cells_as_they_are(
    filled_report: Callable[..., Report], text: str
) -> None:
    assert structure(to_markdown(filled_report(text))) == structure(to_markdown(filled_report("x")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("`code`", r"\`code\`"),
        (r"back\slash", r"back\\slash"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("&lt;", "&amp;lt;"),
        ("two\n# lines", "two # lines"),
        ("# title", r"\# title"),
        ("1. one", r"1\. one"),
        ("- item", r"\- item"),
        ("[x](y)", r"\[x\](y)"),
        ("0.9974", "0.9974"),
        ("-0.2 points", "-0.2 points"),
    ],
)
def test_text_is_shown_as_it_is(
    filled_report: Callable[..., Report], text: str, shown: str
) -> None:
    assert f"\n- {shown}\n" in to_markdown(filled_report(text))


def test_neither_names_nor_addresses_become_links(filled_report: Callable[..., Report]) -> None:
    text = to_markdown(filled_report("@everyone http://example.org"))
    assert "@everyone" not in text
    assert "http://" not in text


def test_broken_measurements_are_bold_and_the_failing_rung_is_told(failing: Report) -> None:
    text = to_markdown(failing)
    assert "| **worst-token cosine** | **0.999989999** | ≥ 0.99999 |" in text
    assert "### tower failed" in text
    assert "limit ≥ 0.99999: profile default, f16: only the order of sums differs" in text
    assert "| logits | **failed** |  | the engine refused the batch | | |" in text


def test_a_pass_has_no_bold_figure_and_no_details(passing: Report) -> None:
    text = to_markdown(passing)
    assert "| tower | passed | 18 | worst-token cosine | 0.999998 | ≥ 0.99999 |" in text
    assert "| task | not run |  | no evaluation file | | |" in text
    assert "###" not in text


def test_no_picture_is_carried(filled_report: Callable[..., Report]) -> None:
    assert "data:image" not in to_markdown(filled_report("x"))


def test_the_yardstick_is_no_stage_of_the_summary_and_is_explained_on_the_page(
    failing: Report,
) -> None:
    def timed(stage: str, median_ms: float) -> Latency:
        return Latency(
            stage=stage, median_ms=median_ms, low_ms=1.0, high_ms=99.0, repeats=5, threads=1
        )

    plain = replace(failing, latency=(timed("prefill", 12.5),), device="cpu")
    report = replace(plain, latency=(*plain.latency, timed("yardstick", 9.5)))
    assert "no verdict: prefill 12.5 ms (medians)" in to_markdown(report)
    assert "yardstick" not in to_markdown(report)
    assert "The yardstick is a fixed calculation" in to_html(report)
    assert "yardstick" not in to_html(plain)
