"""The reference bundles on three arm64 cores: what this machine computes, they compute."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mllm_export.bundle import Bundle, describe_file, open_bundle, write_manifest
from mllm_export.commands.opening import reference_evaluation
from mllm_export.device_tests.device import Settings, open_device
from mllm_export.device_tests.device_report import device_report
from mllm_export.errors import BundleError, DeviceError
from mllm_export.progress import silent
from mllm_export.report import Report
from tests.device_tests.emulated.conftest import ArmBuild

CPUS = ("cortex-a72", "cortex-a76", "max")
RECIPES = ("f16", "int8", "int4")


def visit(bundle: Bundle, device: str, evaluation: Path | None = None) -> Report:
    link = open_device(device, Settings(timeout_s=300), silent)
    return device_report(
        bundle, link, evaluation=evaluation, questions=3, timeout_s=300, progress=silent
    )


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_core_computes_what_this_machine_computes(
    arm_bundle: ArmBuild, recipe: str, cpu: str
) -> None:
    report = visit(arm_bundle(recipe), f"qemu:{cpu}", reference_evaluation())
    assert report.passed, report.rungs[0].reason
    assert report.rungs[0].samples == 3 + 3 + 6


def test_a_tower_that_is_not_this_one_fails_the_rung(arm_bundle: ArmBuild, tmp_path: Path) -> None:
    """The device gets the bundle, this machine one whose tower differs in one bias."""
    original = arm_bundle("f16")
    folder = Path(shutil.copytree(original.folder, tmp_path / "copy"))
    device = open_device("qemu:cortex-a76", Settings(timeout_s=300), silent)
    tower = onnx.load(folder / "tower.onnx")
    bias = next(t for t in tower.graph.initializer if t.name.endswith("mlp.2.bias"))
    values = numpy_helper.to_array(bias) * np.float32(1.5)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    real_shell = device.shell

    def swap_after_push(command: str, timeout_s: float, data: bytes = b""):  # type: ignore[no-untyped-def]
        done = real_shell(command, timeout_s, data)
        if " run " in command:
            onnx.save(tower, folder / "tower.onnx")
            files = tuple(describe_file(folder, f.path, f.role) for f in original.manifest.files)
            write_manifest(folder, replace(original.manifest, files=files))
        return done

    device.shell = swap_after_push  # type: ignore[method-assign]
    report = device_report(
        open_bundle(folder), device, evaluation=None, questions=1, timeout_s=300, progress=silent
    )
    assert not report.passed
    assert "tower, worst-token cosine" in report.rungs[0].reason


def with_features(bundle: Bundle, folder: Path, *features: str) -> Bundle:
    copy = Path(shutil.copytree(bundle.folder, folder))
    write_manifest(copy, replace(bundle.manifest, cpu_features=features, target="raspberry-pi-5"))
    return open_bundle(copy)


def test_a_bundle_for_a_better_core_is_refused_before_it_runs(
    arm_bundle: ArmBuild, tmp_path: Path
) -> None:
    bundle = with_features(arm_bundle("int8"), tmp_path / "pi5", "asimd", "asimddp")
    with pytest.raises(BundleError, match=r"raspberry-pi-5, whose CPUs have asimddp; qemu:cortex"):
        visit(bundle, "qemu:cortex-a72")


@pytest.mark.parametrize(
    ("cpu", "libraries"), [("cortex-a72", "cortex-a76"), ("cortex-a76", "max")]
)
def test_without_the_refusal_the_process_dies_of_an_illegal_instruction(
    arm_bundle: ArmBuild, cpu: str, libraries: str
) -> None:
    """linux-arm64 asks for no dot product, so nothing refuses libraries that use them."""
    with pytest.raises(DeviceError, match="an instruction that this CPU does not have"):
        visit(arm_bundle("int8"), f"qemu:{cpu}?libraries={libraries}")
