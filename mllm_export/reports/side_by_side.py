"""Engines side by side, or ours alone: as Markdown, and as one HTML page with plots."""

from __future__ import annotations

from mllm_export.reports._markup import Markup, element
from mllm_export.reports._side_by_side_charts import bars, stacked
from mllm_export.reports.figures import number, size_text
from mllm_export.reports.html import page
from mllm_export.reports.markdown import escaped
from mllm_export.side_by_side import DECODE, AtThreads, Bandwidth, Cell, SideBySide, Stage


def to_markdown(found: SideBySide) -> str:
    """A table for each number of threads."""
    lines = [f"{escaped(_title(found))}. {found.told}"]
    for run in found.runs:
        lines += [
            "",
            f"| {_threads(run)} | " + " | ".join(one.name for one in found.engines) + " |",
            "| --- |" + " ---: |" * len(found.engines),
        ]
        lines += [
            f"| {one.name}, {one.unit} | " + " | ".join(map(cell_text, one.cells)) + " |"
            for one in run.stages
        ]
        lines += ["", escaped(run_text(run))]
    return "\n".join(lines) + "\n"


def cell_text(cell: Cell | None) -> str:
    """The median, and ours over it."""
    if cell is None:
        return ""
    ratio = "" if cell.ratio is None else f" ({cell.ratio:.2f})"
    return f"{number(cell.median)}{ratio}"


def run_text(run: AtThreads) -> str:
    """What the table does not say: decoding beside memory, the second question beside the first."""
    share = run.second_over_first
    second = "" if share is None else f" The second question takes {share:.3f} of the first's time."
    return f"{_bandwidth_text(run.bandwidth)}{second}"


def _bandwidth_text(found: Bandwidth) -> str:
    return (
        f"Decoding reads {size_text(found.token_bytes)} a token, {found.decode_gb_s:.1f} GB/s: "
        f"{found.of_copy:.0%} of what a copy moves ({found.copy_gb_s:.1f} GB/s, read and written), "
        f"{found.of_read:.0%} of what reading alone gives ({found.read_gb_s:.1f} GB/s)."
    )


def to_html(found: SideBySide) -> str:
    """The whole page, also well-formed XML; the same figures give the same bytes."""
    sections = [_header(found), *(_section(found, run) for run in found.runs)]
    beside = "" if found.alone else " beside other engines"
    return page(f"{found.model}: {found.recipe}{beside}", sections)


def _title(found: SideBySide) -> str:
    return (
        f"{found.model}, {found.recipe}, for {found.target}, on {found.machine}: {found.rounds} "
        f"rounds, a prompt of {found.prompt_positions} positions, {found.tokens} tokens after the "
        "first"
    )


def _threads(run: AtThreads) -> str:
    return f"{run.threads} thread{'' if run.threads == 1 else 's'}"


def _header(found: SideBySide) -> Markup:
    engines = [
        element("div", element("dt", one.name), element("dd", one.title)) for one in found.engines
    ]
    return element(
        "header",
        element("p", "Times" if found.alone else "Side by side", class_="eyebrow"),
        element("h1", found.model),
        element("p", f"{_title(found)}.", class_="facts-line"),
        element("p", found.told, class_="soft"),
        element("dl", *engines, class_="tools"),
    )


def _section(found: SideBySide, run: AtThreads) -> Markup:
    names = [one.name for one in found.engines]
    return element(
        "section",
        element("h2", _threads(run)),
        element("h3", "Time to the first token"),
        stacked(names, run),
        element("h3", "Decoding, per token"),
        bars(names, run.stage(DECODE)),
        element("p", run_text(run), class_="soft"),
        _table(names, run),
    )


def _table(names: list[str], run: AtThreads) -> Markup:
    heads = [element("th", text, scope="col") for text in ("stage", *names)]
    body = [
        element(
            "tr",
            element("td", f"{stage.name}, {stage.unit}"),
            *(_cell(stage, cell) for cell in stage.cells),
        )
        for stage in run.stages
    ]
    return element(
        "table",
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        class_="latency",
    )


def _cell(stage: Stage, cell: Cell | None) -> Markup:
    if cell is None:
        return element("td", "", class_="num")
    spread = f"{number(cell.low)} to {number(cell.high)} {stage.unit}"
    return element("td", element("span", cell_text(cell), title=spread), class_="num")
