"""`check --device`, `bench` and `device` on this machine itself, and what cannot be done."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm_export.bundle import open_bundle
from mllm_export.commands.opening import reference_evaluation
from mllm_export.device_tests.device import Completed, Settings, open_device
from mllm_export.device_tests.visit import Outcome, Visit
from mllm_export.errors import DeviceError, DeviceLostError
from mllm_export.progress import silent
from mllm_export.runtimes.job import Asked, Job
from tests.conftest import Build
from tests.mllm_export.commands.conftest import Run


@pytest.fixture
def home(tmp_path: Path) -> tuple[str, ...]:
    return ("--device-home", str(tmp_path / "home"))


@pytest.fixture
def bundle(reference_bundle: Build) -> Path:
    return reference_bundle("int8").folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(folder: Path, **keys: object) -> None:
    file = folder / "bundle.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**data, **keys}), encoding="utf-8")


def test_this_machine_agrees_with_itself(command: Run, bundle: Path, home: tuple[str, ...]) -> None:
    asked = ("--evaluation", reference_evaluation(), "--questions", 3, "--json")
    outcome = command("check", bundle, "--device", "local", *home, *asked)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    (rung,) = report["rungs"]
    assert rung["name"] == "device"
    values = {one["name"]: one["value"] for one in rung["measurements"]}
    peak = values.pop("peak memory")
    assert 20 < peak < 4000
    assert values == {
        "pixels, largest difference": 0,
        "tower, worst-token cosine": pytest.approx(1, abs=1e-6),
        "decoder, mean KL": pytest.approx(0, abs=1e-9),
        "decoder, largest KL": pytest.approx(0, abs=1e-9),
        "same greedy answers": 1,
    }
    assert rung["samples"] == 3 + 3 + 6
    assert "0 files were there already" in report["notes"][0]
    again = json.loads(command("check", bundle, "--device", "local", *home, "--json").out)
    assert again["notes"][0].startswith("sent: 0 files")


def test_bench_tells_every_stage_and_what_the_machine_tells(
    command: Run, bundle: Path, home: tuple[str, ...]
) -> None:
    asked = ("--repeats", 2, "--max-tokens", 3, "--threads", 1)
    outcome = command("bench", bundle, *asked, *home, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    stages = {one["stage"]: one for one in found["stages"]}
    assert list(stages) == [
        *("load", "preprocess", "tower", "prefill", "first token", "decode per token")
    ]
    for one in stages.values():
        assert 0 < one["low_ms"] <= one["median_ms"] <= one["high_ms"]
        assert one["repeats"] == 2
    assert found["prefill_positions"] > 144
    assert found["peak_memory_bytes"] > 20 << 20
    shown = command("bench", bundle, *asked, *home).out
    for word in ("decode per token", "governor", "temperature", "throttling", "peak memory"):
        assert word in shown


STOPS = """\
import subprocess, sys, time
words = [sys.executable, *sys.argv[1:]]
if sys.argv[2] != "run":
    sys.exit(subprocess.call(words))
runner = subprocess.Popen(words, stderr=subprocess.PIPE)
for line in runner.stderr:
    sys.stderr.buffer.write(line)
    sys.stderr.flush()
    if b"2 of 6 questions" in line:
        runner.kill()
        {ending}
"""
"""A Python on the device with which something happens while the job runs."""


def stopping(folder: Path, ending: str) -> tuple[str, ...]:
    script = folder / "stops.py"
    script.write_text(STOPS.format(ending=ending), encoding="ascii")
    asked = ("--evaluation", reference_evaluation(), "--questions", 3)
    return (*map(str, asked), "--device-python", f"{sys.executable} {script}")


def test_a_runner_that_is_killed_is_told_with_what_it_had_done(
    command: Run, bundle: Path, home: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("--device", "local", *home, *stopping(tmp_path, "sys.exit(137)"))
    outcome = command("check", bundle, *words)
    assert outcome.code == 2
    assert "the runner ended with 137: it printed nothing" in outcome.error
    assert "(it had done: 2 of 6 questions answered)" in outcome.error
    assert "has the device too little memory?" in outcome.error


def test_a_device_that_is_lost_is_told_with_what_it_had_done(
    bundle: Path, home: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a wire is cut in the middle of a job is shown on the played boards."""
    *_, python = stopping(tmp_path, "sys.exit(99)")
    link = open_device("local", Settings(home=home[1], python=python), silent)
    real_shell = link.shell

    def shell(line: str, timeout_s: float, data: bytes = b"") -> Completed:
        done = real_shell(line, timeout_s, data)
        if done.code == 99:
            raise DeviceLostError("local: closed by remote host", done.err)
        return done

    monkeypatch.setattr(link, "shell", shell)
    visit = Visit(link, 60, silent)
    remote, _ = visit.push(open_bundle(bundle))
    pictures = {file.name: file for file in (bundle / "golden").glob("*.png")}
    job = Job(threads=1, asked=(Asked(picture=min(pictures), question="How many?"),) * 6)
    with pytest.raises(DeviceError) as lost:
        visit.run(remote, job, pictures)
    assert str(lost.value) == (
        "local: closed by remote host (the bundle is on the device and stays there; of the job it "
        "had done: 2 of 6 questions answered)"
    )


def test_two_visits_at_once_do_not_read_each_others_results(
    bundle: Path, home: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = open_device("local", Settings(home=home[1]), silent)
    visit, other = Visit(link, 60, silent), Visit(link, 60, silent)
    remote, _ = visit.push(open_bundle(bundle))
    pictures = {file.name: file for file in sorted((bundle / "golden").glob("*.png"))[:2]}
    first, second = (Job(threads=1, pictures=(name,)) for name in pictures)
    alone = visit.run(remote, first, pictures).values["embeds-0"]
    within: list[Outcome] = []
    real_shell = link.shell

    def shell(line: str, timeout_s: float, data: bytes = b"") -> Completed:
        """While the first job is about to run and before its results are fetched: the other."""
        done = real_shell(line, timeout_s, data)
        if " run " in line and not within:
            within.append(Outcome(result=None, values={}, counts=()))  # type: ignore[arg-type]
            within.append(other.run(remote, second, pictures))
        return done

    monkeypatch.setattr(link, "shell", shell)
    beside = visit.run(remote, first, pictures).values["embeds-0"]
    assert (beside == alone).all()
    assert not (within[1].values["embeds-0"] == alone).all()
    assert not [p for p in Path(home[1]).glob("jobs/*/*") if p.is_dir()], "results are taken away"


def test_device_describes_this_machine(command: Run, home: tuple[str, ...]) -> None:
    found = json.loads(command("device", "describe", "local", *home, "--json").out)
    assert found["architecture"] in {"x86_64", "arm64"}
    assert {name for name, _ in found["engines"]} == {"numpy", "onnxruntime", "llama_cpp"}
    assert found["cores"] >= 1
    assert "onnxruntime" in command("device", "describe", "local", *home).out


def changed(folder: Path) -> None:
    file = folder / "decoder.gguf"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another architecture": (
        lambda b: edit(b, arch="arm64", target="raspberry-pi-5"),
        "built for raspberry-pi-5 (arm64); build for a target of the device's architecture",
    ),
    "features the CPU lacks": (
        lambda b: edit(b, cpu_features=["avx1024"]),
        "avx1024; local has not: build for a target that fits it",
    ),
    "an older runtime": (
        lambda b: edit(b, minimum_runtime=[9, 0, 0]),
        "needs mllm-export 9.0.0 or later, local is ",
    ),
    "changed after its report": (changed, "'decoder.gguf' was changed since the bundle was writ"),
    "no golden files": (lambda b: without_golden(b), "holds no golden files"),
}


def without_golden(folder: Path) -> None:
    shutil.rmtree(folder / "golden")
    files: list[dict[str, Any]] = json.loads((folder / "bundle.json").read_text())["files"]
    edit(folder, files=[one for one in files if not one["path"].startswith("golden/")])


@pytest.mark.parametrize("case", BUNDLES)
@pytest.mark.parametrize("verb", ["check", "bench"])
def test_a_bundle_that_does_not_fit_is_refused(
    command: Run, copy: Path, home: tuple[str, ...], verb: str, case: str
) -> None:
    spoil, message = BUNDLES[case]
    spoil(copy)
    outcome = command(verb, copy, "--device", "local", *home)
    assert outcome.code == 2
    assert message in outcome.error


DEVICES: dict[str, tuple[tuple[str, ...], str]] = {
    "no such host": (("ssh://nobody@nowhere.invalid",), "nowhere.invalid"),
    "a port where nobody listens": (("ssh://nobody@127.0.0.1:9",), "Connection refused"),
    "a kind that is none": (("shh://board",), "did you mean ssh?"),
    "no Python": (
        ("local", "--device-python", "/nowhere/python3"),
        "no Python there (sh: 1: /nowhere/python3: not found); install Python 3.10 or later",
    ),
    "a Python without our packages": (
        ("local", "--device-python", "python3 -S -E"),
        "install there: pip install numpy pillow pydantic onnxruntime llama-cpp-python",
    ),
    "a device that takes too long": (
        ("local", "--device-python", "sleep 60 #", "--timeout", "1"),
        "local did not finish within 1 s; allow more with --timeout",
    ),
}


@pytest.mark.parametrize("case", DEVICES)
def test_a_device_that_cannot_be_used_is_one_line(
    command: Run, home: tuple[str, ...], case: str
) -> None:
    words, message = DEVICES[case]
    outcome = command("device", "describe", *words, *home)
    assert outcome.code == 2
    assert message in outcome.error


OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "a device and the original": (
        ("--device", "local", "--against", "reference"),
        "give one of them",
    ),
    "a home without a device": (("--device-home", "x"), "need --device"),
    "a cost without a device": (("--cost",), "--cost needs an emulated device"),
    "a cost to write nowhere": (
        ("--record-cost", "--device", "qemu:cortex-a72"),
        "name it with --cost-record",
    ),
    "a cost record that is not there": (
        ("--cost", "--device", "local", "--cost-record", "none.json"),
        "is recorded in none.json; write it with --record-cost",
    ),
    "a cost on a real device": (
        ("--record-cost", "--cost-record", "new.json", "--device", "local"),
        "instructions are counted on emulated devices only",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_contradict_each_other_are_refused(
    command: Run, bundle: Path, case: str
) -> None:
    words, message = OPTIONS[case]
    outcome = command("check", bundle, *words)
    assert outcome.code == 2
    assert message in outcome.error
