"""Engines side by side as a page and as Markdown: whole, on one scale, and no text is markup."""

from dataclasses import replace
from xml.etree import ElementTree

from mllm_export.reports.side_by_side import to_html, to_markdown
from mllm_export.side_by_side import AtThreads, Bandwidth, Cell, Engine, SideBySide, Stage


def cell(median: float, ratio: float | None = None) -> Cell:
    return Cell(median=median, low=median - 1, high=median + 1, ratio=ratio)


def made(name: str = "peer") -> SideBySide:
    times = {
        "preprocess": (cell(10), cell(10, 1.0), cell(10, 1.0)),
        "tower": (cell(30), cell(90, 1 / 3), cell(20, 1.5)),
        "prefill": (cell(60), cell(100, 0.6), None),
        "decode per token": (cell(5), cell(10, 0.5), None),
    }
    run = AtThreads(
        threads=2,
        stages=tuple(Stage(name=n, unit="ms", cells=cells) for n, cells in times.items()),
        bandwidth=Bandwidth(copy_gb_s=20.0, read_gb_s=16.0, token_bytes=40 << 20, decode_gb_s=8.0),
    )
    return SideBySide(
        model="model",
        target="target",
        recipe="int4",
        machine="a processor, 2 cores",
        rounds=5,
        prompt_positions=188,
        tokens=24,
        engines=tuple(Engine(name=n, title=n) for n in ("ours", name, "tower alone")),
        runs=(run,),
    )


def test_bars_of_the_first_token_stand_on_one_scale() -> None:
    page = ElementTree.fromstring(to_html(made()).removeprefix("<!DOCTYPE html>\n"))
    drawn = [svg for svg in page.iter("svg") if svg.get("role") == "img"]
    assert [svg.get("aria-label") for svg in drawn] == [
        "ours: preprocess 10 ms, tower 30 ms, prefill 60 ms",
        "peer: preprocess 10 ms, tower 90 ms, prefill 100 ms",
        "ours: decode per token 5 ms",
        "peer: decode per token 10 ms",
    ], "an engine without a decoder gives no first token"
    bars = [[(r.get("x"), r.get("width")) for r in svg.iter("rect")] for svg in drawn]
    assert bars[0] == [("0.00%", "5.00%"), ("5.00%", "15.00%"), ("20.00%", "30.00%")]
    assert bars[1][-1] == ("50.00%", "50.00%")
    assert bars[2] == [("0.00%", "50.00%")]


def test_the_page_holds_every_figure_and_the_share_of_memory() -> None:
    text = to_html(made())
    for word in ("2 threads", "100 (0.60)", "40% of what a copy moves", "50% of what reading"):
        assert word in text


def test_a_page_of_ours_alone_speaks_of_no_other_engine() -> None:
    beside = made()
    (run,) = beside.runs
    stages = tuple(replace(stage, cells=stage.cells[:1]) for stage in run.stages)
    runs = (replace(run, stages=stages),)
    alone = replace(beside, engines=beside.engines[:1], runs=runs)
    for word in ("beside other engines", "Side by side", "ratios are ours over"):
        assert word in to_html(beside)
        assert word not in to_html(alone)
    assert "ratios" not in to_markdown(alone)
    assert "| tower, ms | 30 |" in to_markdown(alone).splitlines()


def test_no_name_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>|x"
    assert "<script>" not in to_html(made(hostile))
    lines = to_markdown(made()).splitlines()
    assert "| tower, ms | 30 | 90 (0.33) | 20 (1.50) |" in lines
    assert "| prefill, ms | 60 | 100 (0.60) |  |" in lines
