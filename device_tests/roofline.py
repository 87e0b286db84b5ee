"""A lower bound of time from counts and a device's rates: an estimate, and always called one."""

from __future__ import annotations

from collections.abc import Mapping

from mllm_export.device_tests.cost import Cost, Region
from mllm_export.export.target import Rates
from mllm_export.records import record


@record
class Estimate:
    """The least time that one thread of the device can take for a region."""

    milliseconds: float
    bound: str
    """Which rate sets it."""


def estimate(cost: Cost, rates: Rates, weights_bytes: Mapping[str, int]) -> dict[str, Estimate]:
    """Regions to their slowest roof, one thread.

    `weights_bytes` of a region are read once from memory, for caches hold no model of use; every
    other byte is taken to come from them. What no roof shows (cache misses, dependent
    instructions, a warm governor) makes a device slower, never faster.

    Source: Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009, with one roof per port kind.
    """
    return {
        name: _slowest(region, rates, weights_bytes[name]) for name, region in cost.regions.items()
    }


def _slowest(region: Region, rates: Rates, weights_bytes: int) -> Estimate:
    cycles = {
        "instructions": region.instructions / rates.instructions_per_cycle,
        "SIMD instructions": region.simd / rates.simd_per_cycle,
        "loads and stores": region.loads_stores / rates.loads_stores_per_cycle,
    }
    times_ms = {bound: number / (rates.clock_mhz * 1e3) for bound, number in cycles.items()}
    times_ms["memory bandwidth"] = weights_bytes / (rates.bandwidth_gb_s * 1e6)
    bound = max(times_ms, key=lambda name: times_ms[name])
    return Estimate(milliseconds=times_ms[bound], bound=bound)
