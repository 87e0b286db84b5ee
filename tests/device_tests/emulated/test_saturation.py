"""INT8 towers are the same on x86 with and without VNNI, and where they would not be it is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mllm_export.bundle import Bundle
from mllm_export.device_tests.distributions import cosines
from mllm_export.runtimes.machine import architecture, cpu_features
from tests.conftest import Build
from tests.device_tests.emulated.conftest import ArmBuild

HASWELL = ("qemu-x86_64", "-cpu", "Haswell")
"""AVX2 without VNNI: products of u8 by s8 are summed in 16 bits that saturate."""

TOWER = """\
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
tower = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pixels = np.load(sys.argv[2])["pixels-0"]
np.save(sys.argv[3], tower.run(None, {tower.get_inputs()[0].name: pixels})[0])
"""


def embeds(bundle: Bundle, out: Path, emulator: tuple[str, ...]) -> np.ndarray:
    golden = bundle.folder / "golden" / "values.npz"
    words = (sys.executable, "-c", TOWER, bundle.path("tower"), golden, out)
    subprocess.run([*emulator, *map(str, words)], check=True)
    return np.load(out).reshape(-1, np.load(out).shape[-1])


def worst(bundle: Bundle, folder: Path) -> float:
    here = embeds(bundle, folder / "here.npy", ())
    there = embeds(bundle, folder / "there.npy", HASWELL)
    return float(cosines(here, there).min())


@pytest.mark.skipif(architecture() != "x86_64", reason="plays another x86")
def test_the_tower_of_an_avx2_target_is_the_same_without_vnni(
    reference_bundle: Build, tmp_path: Path
) -> None:
    assert worst(reference_bundle("int8"), tmp_path) > 0.999999


@pytest.mark.skipif("avx512_vnni" not in (cpu_features() or ()), reason="needs VNNI to differ")
def test_a_tower_stored_for_other_cpus_saturates_there_which_this_sees(
    arm_bundle: ArmBuild, tmp_path: Path
) -> None:
    assert worst(arm_bundle("int8"), tmp_path) < 0.9999
