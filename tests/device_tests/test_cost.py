"""Cost records: what is a change, what is noise, and what an estimate may say."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from mllm_export.device_tests import costs
from mllm_export.device_tests.cost import (
    Cost,
    Region,
    changes,
    read_record,
    recorded,
    write_record,
)
from mllm_export.device_tests.emulation.cpu import cpu_names, load_cpu
from mllm_export.device_tests.roofline import estimate
from mllm_export.errors import DeviceError
from mllm_export.export.target import Rates, load_target, target_names

REGION = Region(
    instructions=1_000_000,
    simd=400_000,
    loads_stores=300_000,
    dot_products=100_000,
    matrix_products=0,
    fmla=5_000,
    bytes_read=4_000_000,
    bytes_written=1_000_000,
)
COST = Cost(
    model="m",
    target="linux-arm64",
    recipe="int8",
    cpu="qemu:cortex-a76",
    prefill_positions=150,
    regions={"tower": REGION, "prefill": REGION, "decode": REGION},
)


def moved(region: str, **counts: int) -> Cost:
    return replace(COST, regions={**COST.regions, region: replace(REGION, **counts)})


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (COST, []),
        (moved("tower", instructions=1_004_900), []),
        (moved("tower", instructions=1_005_100), ["tower: 1,000,000 instructions, now 1,005,100"]),
        (moved("decode", instructions=900_000), ["decode: 1,000,000 instructions, now 900,000"]),
        (moved("prefill", dot_products=100_011), ["prefill: 100,000 dot products, now 100,011"]),
        (moved("prefill", dot_products=0, fmla=0), ["dot products, now 0", "fmla, now 0"]),
        (moved("prefill", matrix_products=7), ["prefill: 0 matrix products, now 7"]),
        (moved("prefill", bytes_read=1), []),
        (replace(COST, prefill_positions=151), ["150 positions, now 151"]),
    ],
)
def test_a_count_out_of_its_bound_is_a_change(now: Cost, said: list[str]) -> None:
    found = changes(COST, now)
    assert len(found) == len(said)
    for sentence, part in zip(found, said, strict=True):
        assert part in sentence


def test_a_record_keeps_one_entry_for_each_bundle_and_cpu(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "costs.json"
    other = replace(COST, cpu="qemu:cortex-a72")
    newer = moved("tower", instructions=5)
    for cost in (COST, other, newer):
        write_record(file, cost)
    record = read_record(file, "linux-arm64")
    assert set(map(str, record.costs)) == {str(other), str(newer)}
    assert recorded(record, COST) == newer


def test_a_cost_that_was_never_recorded_names_what_was(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    with pytest.raises(DeviceError, match=r"no cost of target linux-arm64 is recorded in .*costs"):
        read_record(file, "linux-arm64")
    write_record(file, COST)
    with pytest.raises(DeviceError, match=r"no cost of m, int4, .* \(it has: m int8 on qemu"):
        recorded(read_record(file, "linux-arm64"), replace(COST, recipe="int4"))


def test_an_estimate_is_the_slowest_roof() -> None:
    rates = Rates(
        core="c",
        clock_mhz=1000,
        instructions_per_cycle=2,
        simd_per_cycle=2,
        loads_stores_per_cycle=1,
        bandwidth_gb_s=10,
        source="s",
    )
    weights = {"tower": 0, "prefill": 5_000_000, "decode": 50_000_000}
    found = estimate(COST, rates, weights)
    assert (found["tower"].milliseconds, found["tower"].bound) == (0.5, "instructions")
    assert (found["decode"].milliseconds, found["decode"].bound) == (5.0, "memory bandwidth")
    slow_loads = replace(rates, loads_stores_per_cycle=0.1)
    assert estimate(COST, slow_loads, weights)["tower"].bound == "loads and stores"
    slow_simd = replace(rates, simd_per_cycle=0.1)
    assert estimate(COST, slow_simd, weights)["tower"].bound == "SIMD instructions"


def shipped() -> list[str]:
    return sorted(e.name[:-5] for e in files(costs).iterdir() if e.name.endswith(".json"))


def test_the_reference_is_recorded_on_every_core() -> None:
    found = {(one.recipe, one.cpu) for one in read_record(None, "linux-arm64").costs}
    assert {("int8", f"qemu:{load_cpu(name).qemu}") for name in cpu_names()} <= found


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_record_is_of_its_target_and_its_core(name: str) -> None:
    for cost in read_record(None, name).costs:
        assert cost.target == name in target_names()
        features = load_cpu(cost.cpu.removeprefix("qemu:")).features
        assert set(load_target(name).cpu_features) <= set(features)
        total = cost.regions["prefill"]
        whole = cost.recipe != "f16"
        assert bool(total.matrix_products) == (whole and "i8mm" in features)
        assert bool(total.dot_products) == (whole and "asimddp" in features)
        assert cost.regions["decode"].instructions < total.instructions / 20


def test_a_target_that_ships_no_record_is_told() -> None:
    with pytest.raises(DeviceError, match="no cost of target ios-arm64 is recorded; write it with"):
        read_record(None, "ios-arm64")
