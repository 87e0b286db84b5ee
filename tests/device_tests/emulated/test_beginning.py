"""An arm64 device computes the state that its bundle lacks, and begins with the same bits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mllm_export.commands.opening import reference_folder
from mllm_export.device_tests.emulation.cpu import load_cpu
from mllm_export.device_tests.emulation.machine import set_up
from mllm_export.device_tests.runtime_archive import write_runtime
from mllm_export.progress import silent
from tests.device_tests.emulated.conftest import ArmBuild

_ASK = """
import sys

runtime, bundle, picture = sys.argv[1:]
sys.path.insert(0, runtime)
from mllm_export.runtimes import load, opening

opening.SMALL_BYTES = 0
for verify in (False, True, True):
    with load(bundle, threads=2, verify=verify) as session:
        steps = list(session.generate("Which colour is it?", picture, max_tokens=3))
        session.forget()
        segments, _ = session._prepare("Which colour is it?", picture)
        logits = session._decoder.evaluate(segments, all_logits=False)
    ids = [step.token_id for step in steps]
    print(steps[0].reused_positions, ids, logits.tobytes().hex(), sep=";")
"""


def test_the_first_load_computes_it_and_all_answers_begin_with_the_same_bits(
    arm_bundle: ArmBuild, tmp_path: Path
) -> None:
    machine = set_up(load_cpu("cortex-a76"), silent)
    picture = next(reference_folder().parent.glob("evaluation/*.png"))
    given = (write_runtime(tmp_path / "runtime.zip"), arm_bundle("int4").folder, picture)
    done = subprocess.run(
        [*machine.python(), "-c", _ASK, *map(str, given)],
        env={**os.environ, "MLLM_EXPORT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    computed, first, later = (line.split(";") for line in done.stdout.splitlines())
    assert (computed[0], first[0], later[0]) == ("0", "33", "33")
    assert computed[1:] == first[1:] == later[1:]
    assert len(list((tmp_path / "cache" / "beginnings").iterdir())) == 1
