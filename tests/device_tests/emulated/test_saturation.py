"""INT8 towers are the same on x86 with and without VNNI, and where they would not be it is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mllm_export.bundle import Bundle
from mllm_export.device_tests.distributions import cosines
from mllm_export.device_tests.emulation.cpu import cpu_names, load_cpu
from mllm_export.device_tests.emulation.machine import set_up
from mllm_export.progress import silent
from mllm_export.runtimes.machine import cpu_features
from tests.conftest import Build
from tests.device_tests.emulated.conftest import ArmBuild

HASWELL = ("qemu-x86_64", "-cpu", "Haswell")
"""AVX2 without VNNI: products of u8 by s8 are summed in 16 bits that saturate."""

NUDGES = 8
"""Pixels about float32's own rounding, 6e-8, off the golden ones. They flip what is rounded to 8
bits as another CPU's order of sums does: measured, 1e-6 to 1.6e-4 of the worst token's cosine,
where saturation costs 6e-3."""

TOWERS = """\
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
nudges, *words = sys.argv[1:]
for golden, tower, out in zip(words[0::3], words[1::3], words[2::3]):
    session = onnxruntime.InferenceSession(tower, options, providers=["CPUExecutionProvider"])
    pixels = np.load(golden)["pixels-0"]
    draw = np.random.default_rng(0)
    given = [pixels]
    for _ in range(int(nudges)):
        given.append((pixels * (1 + 1e-7 * draw.standard_normal(pixels.shape))).astype(np.float32))
    name = session.get_inputs()[0].name
    np.save(out, np.stack([session.run(None, {name: one})[0] for one in given]))
"""


def embeds(
    bundles: list[Bundle], folder: Path, python: tuple[str, ...], nudges: int = 0
) -> list[np.ndarray]:
    """Each f[1 + nudges, T, D]; one process for all: starting it takes longer than a tower."""
    folder.mkdir()
    outs = [folder / f"{at}.npy" for at in range(len(bundles))]
    words = ["-c", TOWERS, str(nudges)]
    for bundle, out in zip(bundles, outs, strict=True):
        golden = bundle.folder / "golden" / "values.npz"
        words += [str(golden), str(bundle.path("tower")), str(out)]
    done = subprocess.run([*python, *words], capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr.decode()[-500:])
    arrays = [np.load(out) for out in outs]
    return [array.reshape(1 + nudges, -1, array.shape[-1]) for array in arrays]


def lost(first: np.ndarray, other: np.ndarray) -> float:
    """1 - the worst token's cosine."""
    return float(1 - cosines(first, other).min())


@pytest.mark.skipif("avx512_vnni" not in (cpu_features() or ()), reason="needs VNNI to differ from")
def test_a_tower_for_avx2_is_the_same_without_vnni_and_one_for_other_cpus_is_not(
    reference_bundle: Build, arm_bundle: ArmBuild, tmp_path: Path
) -> None:
    bundles = [reference_bundle("int8"), arm_bundle("int8")]
    here = embeds(bundles, tmp_path / "here", (sys.executable,), NUDGES)
    there = embeds(bundles, tmp_path / "haswell", (*HASWELL, sys.executable))
    floors = [max(lost(a[0], nudged) for nudged in a[1:]) for a in here]
    avx2, other = (lost(a[0], b[0]) for a, b in zip(here, there, strict=True))
    assert min(floors) > 0, floors
    assert avx2 < 2 * floors[0], (avx2, floors)
    assert other > 10 * floors[1], (other, floors)


def test_a_tower_for_arm_is_the_same_on_every_arm_core(
    arm_bundle: ArmBuild, tmp_path: Path
) -> None:
    """Cores without dot products widen, those with them sum in 32 bits: nothing saturates."""
    found = {
        name: embeds([arm_bundle("int8")], tmp_path / name, set_up(load_cpu(name), silent).python())
        for name in cpu_names()
    }
    (first,), *others = found.values()
    for (other,) in others:
        assert lost(first[0], other[0]) < 1e-6
