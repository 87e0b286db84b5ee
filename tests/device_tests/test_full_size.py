"""The benchmark of building counts the build's memory, and not what wrote the checkpoint."""

from pathlib import Path

import pytest

from mllm_export.device_tests.benchmarks.full_size import measure, table, write_apart
from mllm_export.export.family import FAMILIES


@pytest.mark.slow
def test_a_small_model_goes_through_it(tmp_path: Path) -> None:
    held = b"x" * (2_000 << 20)  # What this process holds is inherited by what it starts.
    checkpoint = write_apart(tmp_path / "model", FAMILIES["cobra"].tiny())
    one = measure(checkpoint, "int4", "linux-x86_64", tmp_path / "bundle")
    del held
    assert (one.recipe, one.tower_mib > 0.5, one.decoder_mib > 0.5) == ("int4", True, True)
    assert 200 < one.peak_mib < 2000
    lines = table("tiny", 4.0, [one])
    assert lines[-1].startswith(f"| int4 | {one.seconds:.0f} | {one.peak_mib} | 1 | 1 |")
