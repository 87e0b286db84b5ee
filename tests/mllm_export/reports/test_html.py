"""The page is whole, fetches nothing, and no text in a report can become markup."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mllm_export.report import ArtifactSize, Example, Measurement, Report, Rung, TensorRow
from mllm_export.reports._charts import limit_bar
from mllm_export.reports.figures import visible
from mllm_export.reports.html import to_html

ANY_TEXT = st.text(st.characters(exclude_categories=()))
HOSTILE = (
    '"><script>alert(1)</script>',
    "' onload='x",
    "</style></title><img src=http://h/x.png onerror=alert(1)>",
    "<!-- ]]> &lt; &#x3c; <![CDATA[",
    "\x00\x0b\x1b\ud800\uffff\r",
)
TAGS = re.compile(
    "html|head|meta|title|style|body|main|header|section|nav|div|p|span|small|b|i|em|mark|h[1-4]|"
    "ul|li|dl|dt|dd|a|table|thead|tbody|tr|th|td|data|svg|rect|circle|line|text|figure|figcaption|"
    "details|summary|code|article|img"
)


class Tags(HTMLParser):
    """Start tags as a browser's tokenizer sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def parsed(report: Report) -> Element:
    return ElementTree.fromstring(to_html(report).removeprefix("<!DOCTYPE html>\n"))


def text_of(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def hostile(function: Callable[..., None]) -> Callable[..., None]:
    for text in HOSTILE:
        function = example(text=text)(function)
    return given(text=ANY_TEXT)(function)


@hostile
def test_any_text_leaves_the_page_well_formed_and_adds_no_tag(
    filled_report: Callable[..., Report], text: str
) -> None:
    report = filled_report(text)
    root = parsed(report)
    as_xml = [element.tag for element in root.iter()]
    tags = Tags()
    tags.feed(to_html(report))
    assert [tag for tag, _ in tags.seen] == as_xml
    assert all(TAGS.fullmatch(tag) for tag in as_xml)
    for _, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/").startswith("data:image/")


@hostile
def test_any_text_is_shown_as_it_is(filled_report: Callable[..., Report], text: str) -> None:
    root = parsed(filled_report(text))
    assert "".join(root.find(".//h1").itertext()) == visible(text)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "image",
    [
        "http://example.org/x.png",
        "javascript:alert(1)",
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        'data:image/png;base64,AAAA" onerror="x',
        "data:image/png;base64,AAAA\n",
        "data:image/png;base64,",
    ],
)
def test_only_pictures_held_in_the_page_are_shown(
    filled_report: Callable[..., Report], image: str
) -> None:
    root = parsed(filled_report("x", image))
    assert root.find(".//img") is None
    assert "picture left out" in text_of(root)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_thumbnail_is_shown(filled_report: Callable[..., Report], kind: str) -> None:
    image = f"data:image/{kind};base64,AAAA"
    found = parsed(filled_report("x", image)).find(".//img")
    assert found is not None
    assert found.get("src") == image


def test_the_page_needs_nothing_else(filled_report: Callable[..., Report]) -> None:
    page = to_html(filled_report("x"))
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    policy = parsed(filled_report("x")).find("head/meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    assert (policy.get("content") or "").startswith("default-src 'none';")


def test_the_style_sheet_can_stand_inside_the_page() -> None:
    style = (files("mllm_export.reports") / "report.css").read_text(encoding="utf-8")
    assert not set("<&") & set(style)


def test_the_same_report_gives_the_same_bytes(filled_report: Callable[..., Report]) -> None:
    assert to_html(filled_report("x")) == to_html(filled_report("x"))


def test_the_verdict_stands_on_top_with_its_figures(failing: Report) -> None:
    root = parsed(failing)
    sentence = root.find(".//p[@class='sentence']")
    assert sentence is not None
    assert text_of(sentence).startswith("Failed at tower: worst-token cosine 0.999989999")
    assert (root.findtext("head/title") or "").startswith("Failed")


def test_what_was_not_run_is_told_with_its_reason(passing: Report) -> None:
    shown = text_of(parsed(passing))
    assert "Not run, so neither passed nor failed:task: no evaluation file" in shown
    assert "nothing is claimed for it: pixels, prompt, weights" in shown


def test_every_measurement_has_a_row_with_value_limit_and_source(passing: Report) -> None:
    row = parsed(passing).find(".//tr[@class='kept']")
    assert row is not None
    cells = [text_of(cell) for cell in row.findall("td")]
    assert cells[0].startswith("worst-token cosineprofile default, f16: only the order")
    assert cells[1:3] == ["0.999998", "≥ 0.99999"]
    assert row.find(".//svg") is not None


@pytest.mark.parametrize("count", [1, 20, 800])
def test_every_lossy_tensor_is_a_dot_and_every_tensor_a_row(passing: Report, count: int) -> None:
    tensors = tuple(
        TensorRow(
            name=f"blk.{at}.w", scheme=f"S{at % 11}", sqnr_db=None if at % 5 == 4 else 20 + at
        )
        for at in range(count)
    )
    rung = Rung(name="weights", status="passed", tensors=tensors)
    root = parsed(replace(passing, rungs=(rung,)))
    figure = root.find(".//figure")
    assert figure is not None
    assert len(figure.findall(".//circle")) == sum(t.sqnr_db is not None for t in tensors)
    assert len(root.findall(".//table[@class='tensors']/tbody/tr")) == count


def test_tensors_without_any_loss_need_no_plot(passing: Report) -> None:
    rung = Rung(
        name="weights",
        status="passed",
        tensors=(TensorRow(name="w", scheme="F32", sqnr_db=None),),
    )
    root = parsed(replace(passing, rungs=(rung,)))
    assert root.find(".//figure") is None
    assert "equal" in text_of(root)


def test_a_tensor_below_its_schemes_limit_is_marked(passing: Report) -> None:
    limit = Measurement(name="Q4_0: least SQNR", value=3, unit="dB", sense="at_least", limit=14)
    tensors = tuple(TensorRow(name=f"w{db}", scheme="Q4_0", sqnr_db=db) for db in (3.0, 20.0))
    rung = Rung(name="weights", status="failed", measurements=(limit,), tensors=tensors)
    figure = parsed(replace(passing, rungs=(rung,))).find(".//figure")
    assert figure is not None
    bad = figure.findall(".//circle[@class='bad']/title")
    assert [title.text for title in bad] == ["w3.0 (Q4_0): 3.0 dB"]


@given(
    value=st.floats(),
    limit=st.floats(allow_nan=False, allow_infinity=False),
    sense=st.sampled_from(["at_least", "at_most", "equals", "info"]),
)
def test_a_bar_is_drawn_inside_its_track_whatever_the_value(
    value: float, limit: float, sense: str
) -> None:
    bar = limit_bar(
        Measurement(name="x", value=value, unit="", sense=sense, limit=limit)  # type: ignore[arg-type]
    )
    if sense == "info" or not math.isfinite(value):
        assert bar == ""
        return
    places = [float(found) for found in re.findall(r'(?:cx|x1|x2)="([^"%]+)%', bar)]
    assert places
    assert all(0 <= place <= 100 for place in places)


@pytest.mark.parametrize(
    ("sense", "limit", "value", "kept"),
    [
        ("at_most", 0.3, 0.1, True),
        ("at_most", 3.0, -0.4, True),
        ("at_least", 0.9, 0.8, False),
        ("at_least", 14.0, 20.0, True),
        ("equals", 0.0, 2.0, False),
    ],
)
def test_the_mark_stands_in_the_shaded_part_exactly_when_the_limit_is_kept(
    sense: str, limit: float, value: float, kept: bool
) -> None:
    bar = ElementTree.fromstring(
        limit_bar(
            Measurement(name="x", value=value, unit="", sense=sense, limit=limit)  # type: ignore[arg-type]
        )
    )
    room = bar.find("rect[@class='room']")
    mark = bar[-1]
    assert room is not None
    at = float((mark.get("cx") or mark.get("x1") or "").rstrip("%"))
    start = float((room.get("x") or "").rstrip("%"))
    width = float((room.get("width") or "").rstrip("%"))
    assert (start <= at <= start + width) is kept


def test_answers_are_marked_from_the_first_other_word(passing: Report) -> None:
    one = Example(name="q", reference="The red circle.", export="The real one.")
    rung = Rung(name="text", status="passed", examples=(one,))
    marks = parsed(replace(passing, rungs=(rung,))).findall(".//mark")
    assert [mark.text for mark in marks] == ["red circle.", "real one."]


def test_many_files_are_folded_and_none_is_lost(passing: Report) -> None:
    sizes = tuple(ArtifactSize(path=f"f{at}", size_bytes=at) for at in range(30))
    section = text_of(parsed(replace(passing, sizes=sizes)))
    assert "20 smaller files, 190 B together" in section
    assert all(f"f{at}" in section for at in range(30))


def test_a_budgets_frontier_is_drawn_with_a_dot_for_each_figure(
    filled_report: Callable[..., Report], passing: Report
) -> None:
    page = to_html(filled_report("Q4_K"))
    section = page[page.index("What a memory budget buys") :]
    section = section[: section.index("</section>")]
    assert section.count("<circle") == 6
    assert section.count('r="6"') == 2  # the chosen one, predicted and measured
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', section)]
    assert heights[:3] == sorted(heights[:3])  # down the page: predicted losses fall
    assert heights[3] > heights[0]  # measured is half of predicted
    assert section.count("<tr>") == 4
    assert "2.0 KiB, chosen" in section
    assert "What a memory budget buys" not in to_html(passing)
