"""Limits in multiples of the noise floor: what the records say, and whether it still holds."""

from pathlib import Path

import pytest

from mllm_export.device_tests.floor import RANDOM, TRAINED, FloorRecord, highest, load_floors
from mllm_export.device_tests.limit import FloorTimes, Limit, Values
from mllm_export.device_tests.noise_floor import as_toml, measured
from mllm_export.device_tests.profile import load_profile
from mllm_export.errors import CheckError
from mllm_export.records import from_plain
from mllm_export.toml import read_toml


@pytest.mark.parametrize("name", [*TRAINED, RANDOM])
def test_a_record_knows_every_variant(name: str) -> None:
    record = load_floors(name)
    variants = [one.variant for one in record.floors]
    assert variants == ["float64", "float16", "bfloat16", "two threads", "torch's resize"]
    assert record.rows >= 50


@pytest.mark.parametrize("name", [*TRAINED, RANDOM])
def test_coarser_arithmetic_lies_further_from_float32(name: str) -> None:
    record = load_floors(name)
    errors = [record.floor(one).relative_error for one in ("float64", "float16", "bfloat16")]
    assert errors == sorted(errors)
    assert record.floor("two threads").mean_kl == 0


def test_an_unknown_variant_is_answered_with_those_there_are() -> None:
    with pytest.raises(CheckError, match=r"unknown variant 'float8'.*float16"):
        load_floors(RANDOM).floor("float8")


def test_a_limit_is_so_many_times_the_floor_and_says_so() -> None:
    floor = highest(TRAINED, "float16", "mean_kl")
    limit = Limit(
        rung="logits",
        measurement="mean KL",
        sense="at_most",
        values=Values(int8=0.5),
        floor=FloorTimes(variant="float16", measure="mean_kl", times=Values(f16=10)),
        reason="why",
    ).resolved()
    assert limit.value("f16", True) == pytest.approx(10 * floor)
    assert limit.value("int8", True) == 0.5
    assert limit.why("f16", True).startswith("10 times the noise floor, mean kl of the original")
    assert limit.why("int8", True) == "why"
    half = limit.scaled(0.5, "tighter")
    assert half.value("f16", True) == pytest.approx(5 * floor)
    assert half.why("f16", True).startswith("5 times the noise floor")


def test_agreement_is_as_far_below_one_as_the_floor_says() -> None:
    lost = highest(TRAINED, "float16", "worst_token_cosine_lost")
    limits = load_profile("default").limits
    (found,) = [o for o in limits if (o.rung, o.measurement) == ("tower", "worst-token cosine")]
    assert found.value("f16", True) == pytest.approx(1 - 3.6 * lost, abs=1e-12)


def test_the_record_of_the_random_twin_still_holds(tmp_path: Path) -> None:
    """Within a factor of three: torch's kernels differ between machines."""
    (tmp_path / "made.toml").write_text(as_toml(measured(RANDOM, 16, RANDOM)), encoding="utf-8")
    table = read_toml(tmp_path / "made.toml", CheckError)
    made = from_plain(FloorRecord, table, "made.toml", CheckError)
    assert made.rows == load_floors(RANDOM).rows
    for variant in ("float16", "bfloat16"):
        known, now = load_floors(RANDOM).floor(variant), made.floor(variant)
        assert 1 / 3 < now.relative_error / known.relative_error < 3
        assert 1 / 3 < now.mean_kl / known.mean_kl < 3
