"""`bench --peers`: a table, JSON and a page, and what cannot be done in one sentence."""

import json
from pathlib import Path

import pytest

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
        "on this machine alone, not on ssh://pi@nowhere.invalid",
    ),
    "files without peers": (("--checkpoint", "reference"), "need --peers"),
    "a page without peers": (("--report", "page.html"), "need --peers"),
    "several counts without peers": (("--threads", "1,2"), "several counts need --peers"),
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
