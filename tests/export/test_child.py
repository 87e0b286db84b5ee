"""A stage in a process of its own gives its result, its refusals and its death back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm_export.errors import BuildError, CheckpointError
from mllm_export.export.child import run_in_child
from mllm_export.progress import Progress, Step


def count(to: int, progress: Progress) -> int:
    for done in range(to):
        progress(Step(stage="count", item=str(done), done=done, total=to, unit="numbers"))
    return to


def refuse(progress: Progress) -> None:
    raise CheckpointError("tensor 'x' is missing")


def fill_the_disk(progress: Progress) -> None:
    raise OSError(28, "No space left on device", "tower.onnx")


def fail(progress: Progress) -> None:
    raise ZeroDivisionError


def die(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_long(begun: Path, progress: Progress) -> None:
    begun.touch()
    time.sleep(600)


INTERRUPTED = """
import sys
from pathlib import Path
from mllm_export.export.child import run_in_child
from tests.export.test_child import wait_long
try:
    run_in_child("stage", wait_long, Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_from_the_terminal_ends_a_stage_without_its_traceback(
    tmp_path: Path,
) -> None:
    begun = tmp_path / "begun"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(begun)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ""


def test_result_and_progress_come_back() -> None:
    seen: list[Step] = []
    assert run_in_child("count", count, 3, progress=seen.append) == 3
    assert [step.done for step in seen] == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "error", "named"),
    [
        (refuse, CheckpointError, "tensor 'x' is missing"),
        (fill_the_disk, BuildError, "tower.onnx: No space left on device"),
        (fail, BuildError, "ZeroDivisionError"),
        (die, BuildError, "SIGKILL; the machine may be out of memory"),
    ],
)
def test_what_goes_wrong_in_a_stage_is_told(
    function: object, error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as caught:
        run_in_child("stage", function)  # type: ignore[arg-type]
    assert named in str(caught.value)
