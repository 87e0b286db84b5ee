"""`bench` in rounds: a table, JSON and a page, and what cannot be done in one sentence."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mllm_export.commands.peering import require_writable
from tests.conftest import Build
from tests.mllm_export.commands.conftest import Run


def test_a_bundle_beside_llama_cpps_benchmark(
    command: Run, reference_bundle: Build, tmp_path: Path
) -> None:
    bundle, page = reference_bundle("int4").folder, tmp_path / "page.html"
    asked = ("--peers", "llama-bench", "--threads", "1,2", "--repeats", 1, "--max-tokens", 3)
    outcome = command("bench", bundle, *asked, "--report", page, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [one["threads"] for one in found["runs"]] == [1, 2]
    assert [one["name"] for one in found["engines"]] == ["ours", "llama_bench"]
    assert "Side by side" in page.read_text(encoding="utf-8")
    assert "runs" in outcome.err, "progress is drawn"


def test_ours_alone_has_a_page_with_table_and_plots(
    command: Run, reference_bundle: Build, tmp_path: Path
) -> None:
    bundle, page = reference_bundle("int4").folder, tmp_path / "page.html"
    asked = ("--threads", 1, "--repeats", 1, "--max-tokens", 3, "--pictures", 2)
    outcome = command("bench", bundle, *asked, "--report", page)
    assert outcome.code == 0, outcome.err
    assert "cold start: load, ms" in outcome.out
    drawn = ElementTree.fromstring(page.read_text("utf-8").removeprefix("<!DOCTYPE html>\n"))
    bars = [str(svg.get("aria-label")) for svg in drawn.iter("svg") if svg.get("role") == "img"]
    assert [bar.split()[:2] for bar in bars] == [["ours:", "preprocess"], ["ours:", "decode"]]
    rows = [row.findtext("td") for row in drawn.iter("tr")]
    assert {"tower, ms", "cold start: prefill, ms", "peak memory, MiB"} <= set(rows)
    for text in (outcome.out, page.read_text("utf-8")):
        assert "ours over" not in text, "there is nothing to hold it against"


def test_ours_alone_runs_with_each_number_of_threads(command: Run, reference_bundle: Build) -> None:
    asked = ("--threads", "1,2", "--repeats", 1, "--max-tokens", 3, "--pictures", 2, "--json")
    outcome = command("bench", reference_bundle("int4").folder, *asked)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [one["threads"] for one in found["runs"]] == [1, 2]
    assert [one["name"] for one in found["engines"]] == ["ours"]


NO_FILE: dict[str, tuple[str, str]] = {
    "a folder that does not exist": ("none/page.html", "No such file or directory"),
    "a folder": ("folder", "Is a directory"),
    "a file's inside": ("file/page.html", "Not a directory"),
}


@pytest.mark.parametrize("peers", [(), ("--peers", "llama_bench")], ids=["alone", "peers"])
@pytest.mark.parametrize("case", NO_FILE)
def test_a_page_that_cannot_be_written_is_told_before_anything_runs(
    command: Run,
    reference_bundle: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    peers: tuple[str, ...],
    case: str,
) -> None:
    monkeypatch.setattr(
        "mllm_export.device_tests.side_by_side.side_by_side", lambda *_, **__: pytest.fail("it ran")
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    name, why = NO_FILE[case]
    outcome = command("bench", reference_bundle("int4").folder, *peers, "--report", tmp_path / name)
    assert outcome.code == 2
    assert f"--report {tmp_path / name} cannot be written: {why}" in outcome.error


@pytest.mark.parametrize("before", [None, "an older page"])
def test_looking_whether_a_page_can_be_written_leaves_all_as_it_was(
    tmp_path: Path, before: str | None
) -> None:
    page = tmp_path / "page.html"
    if before is not None:
        page.write_text(before, encoding="utf-8")
    require_writable(page)
    assert (page.read_text("utf-8") if page.exists() else None) == before


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "a peer that is none": (("--peers", "lama.cpp"), "did you mean llama_cpp"),
    "a peer without its file": (("--peers", "llama.cpp"), "needs an mmproj file (--mmproj"),
    "torch without the original": (("--peers", "torch"), "needs the original checkpoint"),
    "a file that is not there": (
        ("--peers", "llama.cpp", "--mmproj", "none.gguf"),
        "none.gguf does not exist",
    ),
    "another device": (
        ("--peers", "llama_bench", "--device", "ssh://pi@nowhere.invalid"),
        "for this machine alone, not for ssh://pi@nowhere.invalid",
    ),
    "files without peers": (("--checkpoint", "reference"), "need --peers"),
    "a page of another device": (
        ("--report", "page.html", "--device", "ssh://pi@nowhere.invalid"),
        "for this machine alone, not for ssh://pi@nowhere.invalid",
    ),
    "several counts of another device": (
        ("--threads", "1,2", "--device", "qemu:max"),
        "for this machine alone, not for qemu:max",
    ),
    "a count that is none": (("--threads", "two"), "--threads is 'two'"),
    "no threads": (("--threads", "0"), "--threads is '0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_sentence(
    command: Run, reference_bundle: Build, case: str
) -> None:
    words, message = REFUSED[case]
    outcome = command("bench", reference_bundle("int4").folder, *words)
    assert outcome.code == 2
    assert message in outcome.error
