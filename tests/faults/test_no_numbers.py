"""A bundle whose numbers are NaN or infinite is reported on to the end, like any other fault."""

from __future__ import annotations

from pathlib import Path

import gguf_edits
import numpy as np
import pytest
from faults_decoder import QUANTIZED
from planting import FAULTS, Benches

from mllm_export.bundle import Bundle
from mllm_export.commands.checking import write_reports
from mllm_export.device_tests.parity import check
from mllm_export.report import Report, Rung, read_report


def written(report: Report, folder: Path) -> Report:
    write_reports(report, folder)
    return read_report(folder / "report.json")


def rung(report: Report, name: str) -> Rung:
    return next(one for one in report.rungs if one.name == name)


def test_a_tower_of_no_numbers_gets_a_whole_report(benches: Benches, tmp_path: Path) -> None:
    """As `build` checks it: with golden files to record, and everything beside the ladder."""
    (overflow,) = [fault for fault in FAULTS if fault.name == "float16 overflow in one layer"]
    bench = benches.get("tiny", overflow.recipe)
    with pytest.MonkeyPatch.context() as patch:
        bundle = overflow.plant(bench, patch)
        golden = tmp_path / "golden"
        made = check(bundle, plan=bench.job.plan, oracle=bench.oracle, golden=golden)
    report = written(made, tmp_path)
    assert report.first_failure is not None
    assert report.first_failure.name == "tower"
    assert "vision_model.encoder.layers.1" in report.first_failure.reason
    assert not report.latency
    assert [one for one in report.notes if one.startswith("latency: not measured, ")]
    assert not golden.exists()


def infinite_scale(data: np.ndarray) -> np.ndarray:
    """Of the first block in Q4_0, which begins with it."""
    data[3, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    return data


def test_an_infinite_scale_fails_the_weights_in_figures(benches: Benches, tmp_path: Path) -> None:
    bench = benches.get("tiny", "int4")

    def change(path: Path) -> None:
        gguf_edits.change_tensor(path, QUANTIZED, infinite_scale)

    bundle: Bundle = bench.with_file("decoder", change)
    made = check(bundle, plan=bench.job.plan, oracle=bench.oracle, rungs=["weights"])
    weights = rung(written(made, tmp_path), "weights")
    failed = {m.name: m.value for m in weights.measurements if m.passed is False}
    assert failed["values that are no numbers"] > 0
    assert failed["Q4_0: largest error"] == np.finfo(np.float32).max
    assert weights.tensors
