"""Bars of engines on one scale, as SVG that fits any width."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_export.reports._markup import NOTHING, Markup, element
from mllm_export.reports.figures import number
from mllm_export.side_by_side import FIRST_TOKEN, AtThreads, Stage

_BAR_PX = 16


def stacked(names: Sequence[str], run: AtThreads) -> Markup:
    """A bar for each engine that gives a first token, a colour for each stage of it."""
    stages = [run.stage(name) for name in FIRST_TOKEN]
    rows: list[tuple[str, list[tuple[str, float]]]] = []
    for at, name in enumerate(names):
        parts = [(stage.name, cell.median) for stage in stages if (cell := stage.cells[at])]
        if len(parts) == len(stages):
            rows.append((name, parts))
    keys = [
        element("span", element("i", class_=f"key c{at}"), f"{name} ")
        for at, name in enumerate(FIRST_TOKEN)
    ]
    return element("figure", element("p", *keys), _rows(rows, "ms"))


def bars(names: Sequence[str], stage: Stage) -> Markup:
    """A bar for each engine that has the stage."""
    rows = [
        (name, [(stage.name, cell.median)])
        for name, cell in zip(names, stage.cells, strict=True)
        if cell is not None
    ]
    return element("figure", _rows(rows, stage.unit))


def _rows(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], unit: str) -> Markup:
    longest = max((sum(value for _, value in parts) for _, parts in rows), default=0.0)
    if longest <= 0:
        return NOTHING
    drawn: list[Markup] = []
    for name, parts in rows:
        total = sum(value for _, value in parts)
        drawn += [
            element("code", name),
            element("span", f"{number(total)} {unit}"),
            _bar(name, parts, longest, unit),
        ]
    grouped = [element("div", *drawn[at : at + 3]) for at in range(0, len(drawn), 3)]
    return element("div", *grouped, class_="sizes")


def _bar(name: str, parts: Sequence[tuple[str, float]], longest: float, unit: str) -> Markup:
    start, pieces, told = 0.0, [], []
    for at, (stage, value) in enumerate(parts):
        told.append(f"{stage} {number(value)} {unit}")
        pieces.append(
            element(
                "rect",
                element("title", told[-1]),
                class_=f"c{at}",
                x=f"{100 * start / longest:.2f}%",
                y=2,
                width=f"{100 * value / longest:.2f}%",
                height=_BAR_PX - 6,
            )
        )
        start += value
    label = f"{name}: {', '.join(told)}"
    return element("svg", *pieces, class_="bar", height=_BAR_PX, role="img", aria_label=label)
