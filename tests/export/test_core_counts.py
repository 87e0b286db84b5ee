"""The bytes of a bundle do not depend on how many cores a build may use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_export.device_tests.samples import reference_calibration
from tests.export.test_build import contents

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        len(CORES) < 2, reason="one core: there is no other number of threads to compare with"
    ),
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two calibration pictures with their questions: rows enough for threads to share."""
    folder = tmp_path_factory.mktemp("calibration")
    source = reference_calibration().parent
    lines = (source / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in {json.loads(line)["image"] for line in lines}:
        shutil.copy(source / name, folder / name)
    return folder


def built(out: Path, recipe: str, questions: Path | None, cores: set[int]) -> dict[str, bytes]:
    """Every file of the reference's bundle, built on these cores."""
    asked = [sys.executable, "-m", "mllm_export", "build", "reference", "--no-check"]
    asked += ["--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)]
    asked += ["--calibration", str(questions)] if questions else []
    # A number of threads that the environment gives would hold in both builds; threads that wait
    # asleep leave the cores to the tests beside.
    given = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    environment = given | {"OMP_WAIT_POLICY": "passive"}
    subprocess.run(
        asked,
        check=True,
        capture_output=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return contents(out)


def require_same_bytes(folder: Path, recipe: str, questions: Path | None = None) -> None:
    on_one = built(folder / "one", recipe, questions, {min(CORES)})
    on_all = built(folder / "all", recipe, questions, CORES)
    assert on_one.keys() == on_all.keys()
    assert [name for name in on_one if on_one[name] != on_all[name]] == []


@pytest.mark.parametrize("recipe", ["int4", "q4_k_m"])
def test_one_core_rounds_the_checkpoints_weights_to_the_bytes_of_all(
    recipe: str, tmp_path: Path
) -> None:
    require_same_bytes(tmp_path, recipe)


@pytest.mark.parametrize("recipe", ["int8-static", "int4-calibrated"])
def test_one_core_calibrates_to_the_bytes_of_all(
    recipe: str, questions: Path, tmp_path: Path
) -> None:
    require_same_bytes(tmp_path, recipe, questions)
