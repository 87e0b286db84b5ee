"""The page as a real browser lays it out: headless Chromium, no network."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mllm_export.report import (
    ArtifactSize,
    Example,
    Latency,
    LayerDrift,
    Report,
    Rung,
    TensorRow,
)
from mllm_export.reports.html import to_html

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="NOT LOOKED AT: no Chromium here; install it with: apt-get install chromium",
)


def browse(page: Path, *options: str) -> str:
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(
            "--hide-scrollbars",
            "--window-size=1000,2400",
            f"--user-data-dir={page.parent / 'user'}",
        ),
        *(*options, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def report(failing: Report, thumbnail: str) -> Report:
    """A failed report with every section that the page knows."""
    drift = tuple(
        LayerDrift(
            part=part,
            name=f"{part}.layers.{at}",
            mean_cosine=1 - 10.0 ** (at - 8),
            worst_cosine=1 - 10.0 ** (at - 7),
            relative_error=10.0 ** (at - 6),
        )
        for part in ("tower", "decoder")
        for at in range(5)
    )
    examples = (
        Example(name="How many?", reference="two circles", export="two cats", image=thumbnail),
    )
    tensors = tuple(TensorRow(name=f"w{at}", scheme="Q4_0", sqnr_db=20.0 + at) for at in range(9))
    weights = Rung(name="weights", status="passed", samples=9, tensors=tensors)
    text = Rung(name="text", status="failed", reason="an answer differs", examples=examples)
    return replace(
        failing,
        rungs=(*failing.rungs, weights, text),
        drift=drift,
        sizes=(ArtifactSize(path="tower.onnx", size_bytes=3 << 20),),
        latency=(
            Latency(
                stage="prefill", median_ms=12.5, low_ms=12.0, high_ms=13.0, repeats=5, threads=1
            ),
        ),
        device="a processor, 2 cores",
    )


@pytest.fixture
def page(report: Report, tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    file.write_text(to_html(report), encoding="utf-8")
    return file


def test_a_browser_finds_every_section_and_reports_no_breach(page: Path) -> None:
    dom = browse(page, "--dump-dom")
    headings = re.findall(r"<h2>(.*?)</h2>", dom)
    assert headings == [
        "The ladder",
        "What storing each tensor lost",
        "Drift, layer by layer",
        "Samples that differ most",
        "Files",
        "Latency",
    ]
    plots = re.findall(r'<svg class="strip drift".*?</svg>', dom, re.DOTALL)
    assert [plot.count("<circle") for plot in plots] == [10, 10]
    assert "two <mark>circles</mark>" in dom
    assert "two <mark>cats</mark>" in dom
    assert "12.5 ms" in dom


def test_the_page_is_painted_in_its_own_colours_and_not_blank(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(page, f"--screenshot={shot}")
    with Image.open(shot) as opened:
        picture = opened.convert("RGB")
    assert picture.size == (1000, 2400)
    # Every fifth of the page above its end holds ink: text, bars, dots.
    for top in range(0, 1500, 300):
        band = picture.crop((0, top, 1000, top + 300))
        colours = band.getcolors(maxcolors=1 << 20) or []
        ground = max(count for count, _ in colours)
        assert len(colours) > 20, top
        assert ground < 300 * 1000 * 0.995, top
