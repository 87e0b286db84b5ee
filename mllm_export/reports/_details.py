"""What the HTML page shows below the ladder: tensors, and the samples that differ most."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mllm_export.report import Example, Report, Rung, TensorRow
from mllm_export.reports._charts import scheme_colours, sqnr_chart
from mllm_export.reports._ladder import badge
from mllm_export.reports._markup import NOTHING, Markup, element
from mllm_export.reports.figures import count_text

_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
"""A page that fetches nothing takes only pictures that it holds itself."""


def tensor_section(rung: Rung) -> Markup:
    """Plot and table of the tensors of one rung; nothing where there are none."""
    if not rung.tensors:
        return NOTHING
    suffix = ": least SQNR"
    limits = {
        m.name.removesuffix(suffix): m.limit
        for m in rung.measurements
        if m.name.endswith(suffix) and m.limit is not None
    }
    return element(
        "section",
        element("h2", "What storing each tensor lost"),
        sqnr_chart(rung.tensors, limits),
        _tensor_table(rung.tensors),
    )


def _tensor_table(tensors: Sequence[TensorRow]) -> Markup:
    colours = scheme_colours(tensors)
    ordered = sorted(enumerate(tensors), key=lambda pair: (_loss_key(pair[1]), pair[0]))
    rows = [
        element(
            "tr",
            element("td", element("code", tensor.name), _note(tensor)),
            element("td", element("i", class_=f"key {colours[tensor.scheme]}"), tensor.scheme),
            element("td", _loss(tensor), class_="num"),
        )
        for _, tensor in ordered
    ]
    head = element(
        "thead",
        element(
            "tr",
            element("th", "tensor", scope="col"),
            element("th", "scheme", scope="col"),
            element("th", "SQNR", scope="col", class_="num"),
        ),
    )
    summary = element("summary", f"Table of {count_text(len(tensors), 'tensor')}, most lost first")
    return element(
        "details", summary, element("table", head, element("tbody", *rows), class_="tensors")
    )


def _loss_key(tensor: TensorRow) -> float:
    if tensor.sqnr_db is None:
        return math.inf
    return -math.inf if math.isnan(tensor.sqnr_db) else tensor.sqnr_db


def _loss(tensor: TensorRow) -> str:
    return "equal" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f} dB"


def _note(tensor: TensorRow) -> Markup:
    return element("small", tensor.note) if tensor.note else NOTHING


def example_section(report: Report) -> Markup:
    """The worst samples of every rung, both answers side by side."""
    groups = [_examples(rung) for rung in report.rungs if rung.examples]
    if not groups:
        return NOTHING
    return element("section", element("h2", "Samples that differ most"), *groups)


def _examples(rung: Rung) -> Markup:
    return element(
        "div",
        element("h3", rung.name, " ", badge(rung)),
        element("div", *(_example(one) for one in rung.examples), class_="examples"),
    )


def _example(example: Example) -> Markup:
    parts = [element("h4", example.name)] if example.name else []
    if example.reference or example.export:
        parts.append(_sides(example))
    if example.note:
        parts.append(element("p", example.note, class_="soft"))
    return element("article", _picture(example), element("div", *parts), class_="example")


def _sides(example: Example) -> Markup:
    """Both answers; what follows their common beginning is marked."""
    common = _common_length(example.reference, example.export)
    sides = [
        element("div", element("dt", title), element("dd", *_marked(text, common)))
        for title, text in (("original", example.reference), ("export", example.export))
    ]
    return element("dl", *sides)


def _common_length(one: str, other: str) -> int:
    """Characters of the common beginning, cut back to the end of a word."""
    if one == other:
        return len(one)
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), shorter)
    cut = [found.end() for found in re.finditer(r"\s", one[:same])]
    return cut[-1] if cut else 0


def _marked(text: str, common: int) -> tuple[str, ...]:
    if not text:
        return (element("em", "empty"),)
    if len(text) <= common:
        return (text,)
    return text[:common], element("mark", text[common:])


def _picture(example: Example) -> Markup:
    if not example.image:
        return NOTHING
    if not _PICTURE.fullmatch(example.image):
        return element("p", "picture left out: neither PNG nor JPEG data", class_="soft no-picture")
    return element("img", src=example.image, alt=f"picture of {example.name}")
