"""Faults planted in a Core ML tower of the reference, each caught by the rung it belongs to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mllm_export.bundle import Bundle, open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.opening import REFERENCE, open_checkpoint
from mllm_export.device_tests.parity import check
from mllm_export.export.artifact import part_reader
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_package import read_spec, write_spec
from mllm_export.export.family import read_spec as read_model
from mllm_export.export.formats.coreml import write_tower
from mllm_export.export.mil_program import WEIGHTS_FILE
from mllm_export.report import Report

pytestmark = pytest.mark.slow

_MATRIX = "vision_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Bundle:
    out = tmp_path_factory.mktemp("coreml") / "bundle"
    build("macos-arm64", "f16", out)
    return open_bundle(out)


def build(target: str, recipe: str, out: Path) -> None:
    command = ["build", REFERENCE, "--target", target, "--recipe", recipe, "--no-check"]
    done = subprocess.run(
        [sys.executable, "-m", "mllm_export", *command, "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return open_checkpoint(REFERENCE, None)


@pytest.fixture
def copied(honest, tmp_path) -> Bundle:
    """A copy to plant a fault in; its hashes are not looked at."""
    return Bundle(Path(shutil.copytree(honest.folder, tmp_path / "bundle")), honest.manifest)


def climb(bundle: Bundle, original: Checkpoint) -> Report:
    return check(bundle, original, rungs=["tower", "weights"])


def failed(report: Report) -> dict[str, set[str]]:
    """Rung to what broke its limit there."""
    return {
        rung.name: {m.name for m in rung.measurements if m.passed is False}
        for rung in report.rungs
        if rung.status == "failed"
    }


def rewrite(bundle, original, *, encoder=None, read=None, image_input=False) -> None:
    """The tower once more, from something that is not the original."""
    reading = read_model(original)
    tower = part_reader(original, reading.weights.part("tower"))
    write_tower(
        bundle.path("tower"),
        replace(reading.spec, encoders=(encoder or reading.spec.encoders[0],)).vision,
        read(tower) if read else tower,
        part_reader(original, reading.weights.part("projector")),
        CoremlOptions(deployment="macOS15", image_input=image_input),
    )


def test_an_honest_tower_passes(honest, original):
    assert failed(climb(honest, original)) == {}


def test_a_flipped_weight_byte_is_found_in_its_tensor(copied, original):
    weights = copied.path("tower") / WEIGHTS_FILE
    stored = bytearray(weights.read_bytes())
    at = len(stored) // 2 | 1  # the upper half of a float16: sign, exponent
    stored[at] ^= 0x10
    weights.write_bytes(stored)
    report = climb(copied, original)
    assert failed(report)["weights"] == {"values that are not the source's, rounded"}
    rung = next(rung for rung in report.rungs if rung.name == "weights")
    tower = [row for row in rung.tensors if row.name.startswith(("tower.", "projector."))]
    worst = min(row.sqnr_db for row in tower if row.sqnr_db is not None)
    assert sum(row.sqnr_db == worst for row in tower) == 1


def test_a_transposed_matrix_is_caught_in_weights_and_tower(copied, original):
    def turned(read):
        return lambda name: read(name).T if name == _MATRIX else read(name)

    rewrite(copied, original, read=turned)
    report = climb(copied, original)
    assert {"weights", "tower"} <= set(failed(report))
    rung = next(rung for rung in report.rungs if rung.name == "weights")
    worst = min((r for r in rung.tensors if r.sqnr_db is not None), key=lambda r: r.sqnr_db)
    assert worst.name == f"tower.{_MATRIX}"


def test_mean_and_std_swapped_inside_the_program_are_caught_in_the_tower_alone(copied, original):
    encoder = read_model(original).spec.encoders[0]
    image = replace(encoder.image, mean=encoder.image.std, std=encoder.image.mean)
    rewrite(copied, original, encoder=replace(encoder, image=image), image_input=True)
    assert set(failed(climb(copied, original))) == {"tower"}


def test_the_same_program_with_mean_and_std_in_place_passes(copied, original):
    rewrite(copied, original, image_input=True)
    assert "weights" not in failed(climb(copied, original))


def test_a_select_layer_off_by_one_is_caught_by_its_missing_tensors(copied, original):
    encoder = read_model(original).spec.encoders[0]
    rewrite(copied, original, encoder=replace(encoder, select_layer=encoder.run_layers - 1))
    broken = failed(climb(copied, original))
    assert broken["weights"] == {"tensors missing"}
    assert "tower" in broken


def mistake_gelu(package: Path, was: str, becomes: str) -> int:
    """Every GELU of one kind as another; how many there were."""
    spec = read_spec(package)
    main = spec.mlProgram.functions["main"]
    changed = 0
    for operation in main.block_specializations[main.opset].operations:
        if operation.type != "const":
            continue
        strings = operation.attributes["val"].immediateValue.tensor.strings
        if list(strings.values) == [was]:
            strings.values[0] = becomes
            changed += 1
    write_spec(package, spec)
    return changed


@pytest.mark.parametrize(
    ("was", "becomes", "count"),
    [
        ("SIGMOID_APPROXIMATION", "EXACT", 3),
        ("SIGMOID_APPROXIMATION", "TANH_APPROXIMATION", 3),
        ("EXACT", "SIGMOID_APPROXIMATION", 1),
        ("EXACT", "TANH_APPROXIMATION", 1),
    ],
    ids=[
        "erf in the tower",
        "tanh in the tower",
        "quick in the projector",
        "tanh in the projector",
    ],
)
def test_a_wrong_gelu_is_caught_in_the_tower_alone(copied, original, was, becomes, count):
    """CLIP's is the quick one, the projector's is by the error function."""
    assert mistake_gelu(copied.path("tower"), was, becomes) == count
    found = failed(climb(copied, original))
    assert set(found) == {"tower"}
    assert "program in float32, on its own weights: relative error" in found["tower"]


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_compression_does_not_hide_a_wrong_gelu(original, tmp_path, recipe):
    """On its own weights a compressed tower is held as tightly as one in float16."""
    out = tmp_path / "bundle"
    build("macos-arm64", recipe, out)
    bundle = open_bundle(out)
    assert failed(climb(bundle, original)) == {}
    assert mistake_gelu(bundle.path("tower"), "EXACT", "TANH_APPROXIMATION") == 1
    name = "program in float32, on its own weights: relative error"
    assert name in failed(climb(bundle, original))["tower"]
