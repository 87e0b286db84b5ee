"""Every planted fault fails the check, and the first rung that fails names its stage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fault import Fault
from planting import FAULTS, MODELS, Benches, markdown, plant
from reports import REPORTS

from mllm_export.report import RUNGS

ROOT = Path(__file__).parents[2]
QUICK = [fault for fault in FAULTS if fault.quick]
LEAST_KINDS, LEAST_CAUGHT, LEAST_NAMED = 30, 0.95, 0.85


@pytest.mark.parametrize("recipe", ["f16", "int4"])
def test_an_honest_bundle_passes(recipe: str, benches: Benches) -> None:
    bench = benches.get("tiny", recipe)
    report = bench.check(bench.honest, whole=True)
    assert report.passed, report.first_failure


@pytest.mark.parametrize("fault", QUICK, ids=[fault.name for fault in QUICK])
def test_a_fault_is_caught_where_it_is(fault: Fault, benches: Benches) -> None:
    found = plant(fault, fault.models[0], benches)
    assert found.named, f"{found.rung or 'not caught'}: {found.reason}"


def test_values_that_are_no_numbers_are_placed_in_their_layer(benches: Benches) -> None:
    (overflow,) = [fault for fault in FAULTS if fault.name == "float16 overflow in one layer"]
    found = plant(overflow, "tiny", benches)
    assert found.reason.endswith("numbers come from vision_model.encoder.layers.1")


@pytest.mark.slow
def test_nearly_all_faults_are_caught_and_named(benches: Benches) -> None:
    results = [
        plant(fault, model, benches)
        for model in MODELS
        for fault in FAULTS
        if model in fault.models
    ]
    table = markdown(results)
    assert len({one.fault.name for one in results}) >= LEAST_KINDS
    assert sum(one.caught for one in results) >= LEAST_CAUGHT * len(results), table
    assert sum(one.named for one in results) >= LEAST_NAMED * len(results), table


def test_every_fault_has_a_name_of_its_own_and_a_rung_that_there_is() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    assert all(rung in RUNGS for fault in FAULTS for rung in fault.rungs)


def test_every_report_of_users_has_a_fault_or_another_guard() -> None:
    planted = {fault.name for fault in FAULTS}
    for report in REPORTS:
        assert set(report.faults) <= planted, report.where
        assert report.faults or report.instead, report.where
        assert report.rung in {*RUNGS, "open"}
        for test in re.findall(r"tests/[\w/]+\.py", report.instead):
            assert (ROOT / test).is_file(), test
