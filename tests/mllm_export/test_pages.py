"""Memory of mapped files goes back to the system, and their contents stay."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil

from mllm_export.pages import forget_file, forget_weight_files, peak_bytes, trim_heap

MIB = 1 << 20


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss / MIB)


def test_pages_of_a_mapped_weight_file_are_dropped_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = np.arange(16 * MIB, dtype=np.uint32)
    values.tofile(path)
    mapped = np.memmap(path, np.uint32, "r")
    assert int(mapped[:: 4096 // 4].astype(np.int64).sum()) > 0
    before = resident_mib()
    forget_weight_files()
    assert before - resident_mib() > 50
    np.testing.assert_array_equal(mapped, values)


def test_what_the_rest_of_the_process_changed_in_its_own_mappings_stays(tmp_path: Path) -> None:
    """As an application does with weights it maps, beside a session it loads."""
    theirs, ours = tmp_path / "index.bin", tmp_path / "decoder.gguf"
    for path in (theirs, ours):
        np.ones(16 * MIB, np.uint8).tofile(path)
    changed = np.memmap(theirs, np.uint8, "c")
    changed[:] = 7
    mapped = np.memmap(ours, np.uint8, "r")
    assert int(mapped[::4096].sum()) > 0
    before = resident_mib()
    forget_file(ours)
    assert before - resident_mib() > 12
    assert int(changed.min()) == 7


def test_trimming_is_harmless() -> None:
    trim_heap()


def test_the_peak_is_that_of_this_program_alone() -> None:
    """Linux' getrusage goes on counting what the process held before it became this program."""
    held = np.ones(400 * MIB // 8)
    program = "from mllm_export.pages import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 5 < int(done.stdout) / MIB < 200
    assert peak_bytes() > held.nbytes


def test_the_peak_of_a_build_is_that_of_its_largest_process() -> None:
    child = "held = bytearray(300 << 20)"
    program = (
        "import subprocess, sys; from mllm_export.pages import family_peak_bytes, peak_bytes; "
        f"subprocess.run([sys.executable, '-c', '{child}'], check=True); "
        "print(peak_bytes(), family_peak_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    own, family = map(int, done.stdout.split())
    assert own < 200 * MIB
    assert 300 * MIB < family < 500 * MIB
