"""What the verbs print, and their exit codes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mllm_export.commands.check import finish
from mllm_export.errors import PlanError
from mllm_export.export import llava_layout
from mllm_export.history import append, history_line
from mllm_export.plan import Plan
from mllm_export.records import from_plain, to_json
from mllm_export.report import Report, Rung
from tests.mllm_export.commands.conftest import Run


def test_inspect_tells_the_parts_as_json(command: Run, made: Path) -> None:
    outcome = command("inspect", made, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["model"]["projector"]["kind"] == "ldpv2"
    assert found["image_tokens"] == 144
    assert found["parameters"]["tower"] > 0
    assert "USER: <image>\nWhat is shown? ASSISTANT:" in found["example_prompt"]


def test_plan_is_json_that_reads_back_and_is_the_same_each_time(command: Run, made: Path) -> None:
    asked = ("plan", made, "--target", "linux-arm64", "--recipe", "int4", "--json")
    first, second = command(*asked), command(*asked)
    assert first.code == 0
    assert first.out == second.out
    plan = from_plain(Plan, json.loads(first.out), "plan", PlanError)
    assert plan.vision_preset == "arm64"
    assert {a.role: a.scheme for a in plan.artifacts} == {"tower": "w8a8", "decoder": "Q4_0"}


def test_the_planned_sizes_are_those_of_the_files(command: Run, made: Path, tmp_path: Path) -> None:
    asked = (made, "--target", "linux-x86_64", "--recipe", "int4")
    plan = json.loads(command("plan", *asked, "--json").out)
    assert command("build", *asked, "-o", tmp_path / "bundle", "--no-check").code == 0
    for artifact in plan["artifacts"]:
        planned = sum(tensor["size_bytes"] for tensor in artifact["tensors"])
        written = (tmp_path / "bundle" / artifact["path"]).stat().st_size
        # The file's own header, names and, in GGUF, the tokenizer.
        assert planned <= written < planned + 150_000


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("families", "mobilevlm"),
        ("encoders", "clip_vit"),
        ("projectors", "ldpv2"),
        ("decoders", "llama"),
        ("targets", "linux-arm64"),
        ("recipes", "int4"),
    ],
)
def test_list_names_every_catalog(command: Run, kind: str, entry: str) -> None:
    outcome = command("list", kind)
    assert outcome.code == 0
    assert entry in outcome.out


def test_a_build_that_fails_its_check_ends_with_1_and_leaves_only_the_report(
    command: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_layout, "VICUNA_SYSTEM", "A chat between a curious human and a bot.")
    out = tmp_path / "bundle"
    outcome = command("build", made, "--target", "linux-x86_64", "--recipe", "f16", "-o", out)
    assert outcome.code == 1
    assert "the prompt rung failed" in outcome.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.failed"]
    assert "prompt" in (tmp_path / "bundle.failed" / "report.html").read_text()


def test_run_says_that_a_bundle_was_never_checked(command: Run, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    asked = ("--target", "linux-x86_64", "--recipe", "f16", "-o", out, "--no-check")
    assert command("build", made, *asked).code == 0
    outcome = command("run", out, "--prompt", "Hello", "--max-tokens", "4", "--json")
    assert outcome.code == 0
    assert "never checked" in outcome.err
    answer = json.loads(outcome.out)
    assert answer["text"] == "".join(step["text"] for step in answer["steps"])


@pytest.mark.parametrize("picture", ["text", "huge", "missing"])
def test_a_bad_picture_is_one_line_and_exit_code_2(
    command: Run, unchecked: Path, tmp_path: Path, picture: str
) -> None:
    file = tmp_path / "picture.png"
    if picture == "text":
        file.write_text("not a picture")
    elif picture == "huge":
        file.write_bytes(png_header(10_001, 10_000))
    outcome = command("run", unchecked, "--prompt", "x", "--image", file)
    assert outcome.code == 2
    assert "picture.png" in outcome.error


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; nothing behind its header would ever be decoded."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_ready_ci_files_are_listed_and_printed(command: Run) -> None:
    names = command("list", "ci").out.split()
    assert names == ["parity.yml", "pre-push.sh"]
    assert "--mllm-bundle" in command("list", "ci", "parity.yml").out
    assert command("list", "ci", "pre-push.sh").out.startswith("#!/usr/bin/env bash")
    assert "unknown CI file 'parity.yaml'; did you mean parity.yml" in (
        command("list", "ci", "parity.yaml").error
    )


def test_compare_refuses_what_holds_no_report(command: Run, tmp_path: Path) -> None:
    assert "holds no report.json" in command("compare", tmp_path, tmp_path).error
    assert "or one and --history FILE" in command("compare", tmp_path).error


def test_a_bundle_is_compared_with_the_check_before_its_own(
    command: Run, unchecked: Path, tmp_path: Path
) -> None:
    words = {"model": "m", "family": "f", "target": "t", "recipe": "r", "profile": "default"}
    rung = Rung(name="tower", status="passed", seconds=1.0)
    report, history = Report(**words, rungs=(rung,)), tmp_path / "history.jsonl"
    bundle = tmp_path / "bundle"
    shutil.copytree(unchecked, bundle)
    (bundle / "report.json").write_text(to_json(report))
    checked = replace(report, rungs=(replace(rung, seconds=2.0),))
    append(history, history_line(checked, bundle, (), "now"))
    alone = command("compare", bundle, "--history", history)
    assert alone.code == 0
    assert "holds no check before this one" in alone.err
    earlier = replace(history_line(checked, bundle, (), "earlier"), bundle_sha256="0" * 64)
    history.write_text("")
    for one in (earlier, history_line(checked, bundle, (), "now")):
        append(history, one)
    for given in (bundle, bundle / "report.json"):
        found = command("compare", given, "--history", history, "--json")
        assert json.loads(found.out)["before"] == f"the check of earlier in {history}"


@pytest.mark.parametrize("as_json", [False, True])
def test_check_tells_how_a_tower_was_run(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    rung = Rung(name="tower", status="passed", reference="the original", samples=1, measurements=())
    words = {"model": "m", "family": "f", "target": "t", "recipe": "r", "profile": "default"}
    report = Report(**words, rungs=(rung,), notes=("tower: operations in float32: none",))
    finish(report, None, as_json)
    told = capsys.readouterr()
    assert "note: tower: operations in float32: none" in told.err
    assert ("operations in float32" in told.out) == as_json
