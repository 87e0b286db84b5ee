"""Instruction counts: repeatable, true to the core, and a change is a failed check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm_export.device_tests.cost import Cost
from mllm_export.errors import DeviceError
from mllm_export.records import from_plain
from tests.device_tests.emulated.conftest import ArmBuild
from tests.mllm_export.commands.conftest import Run, command

__all__ = ["command"]

pytestmark = pytest.mark.xdist_group("cost")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("costs") / "costs.json"


def counted(command: Run, folder: Path, cpu: str, record: Path) -> Cost:
    words = ("--device", f"qemu:{cpu}", "--cost-record", record, "--record-cost", "--json")
    outcome = command("check", folder, *words)
    assert outcome.code == 0, outcome.err
    return from_plain(Cost, json.loads(outcome.out), "cost", DeviceError)


def test_counts_are_those_of_the_core(command: Run, arm_bundle: ArmBuild, record: Path) -> None:
    folder = arm_bundle("int8").folder
    old, new = (counted(command, folder, cpu, record) for cpu in ("cortex-a72", "max"))
    for region in ("tower", "prefill"):
        assert old.regions[region].dot_products == old.regions[region].matrix_products == 0
        assert new.regions[region].matrix_products > 10_000
        assert new.regions[region].instructions < old.regions[region].instructions
    assert new.regions["decode"].dot_products > 10_000
    weights = arm_bundle("int8").path("decoder").stat().st_size
    # A token reads every weight of the decoder once, save the table of embeddings.
    assert 0.5 * weights < new.regions["decode"].bytes_read < 4 * weights


def test_a_second_count_is_within_its_bounds(
    command: Run, arm_bundle: ArmBuild, record: Path
) -> None:
    words = ("--device", "qemu:max", "--cost", "--cost-record", record)
    outcome = command("check", arm_bundle("int8").folder, *words)
    assert outcome.code == 0, outcome.err
    assert "counts, no time" in outcome.out


def test_the_shipped_record_holds_on_this_machine(command: Run, arm_bundle: ArmBuild) -> None:
    words = ("--device", "qemu:cortex-a76", "--cost")
    outcome = command("check", arm_bundle("int8").folder, *words)
    assert outcome.code == 0, outcome.err


def test_a_cost_that_moved_fails_and_names_the_count(
    command: Run, arm_bundle: ArmBuild, record: Path
) -> None:
    data = json.loads(record.read_text())
    for cost in data["costs"]:
        cost["regions"]["decode"]["instructions"] += cost["regions"]["decode"]["instructions"] // 50
    record.write_text(json.dumps(data))
    words = ("--device", "qemu:max", "--cost", "--cost-record", record)
    outcome = command("check", arm_bundle("int8").folder, *words)
    assert outcome.code == 1
    assert "the cost moved: decode: " in outcome.error
    assert "bound 0.50%" in outcome.error


def test_bench_on_an_emulated_core_shows_counts_and_an_estimate(
    command: Run, arm_bundle: ArmBuild
) -> None:
    outcome = command("bench", arm_bundle("int8").folder, "--device", "qemu:cortex-a72")
    assert outcome.code == 0, outcome.err
    assert "counts, no time" in outcome.out
    assert "ESTIMATE, not measured: on one Cortex-A72" in outcome.out
