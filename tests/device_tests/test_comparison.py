"""A regression is what got worse beyond its bound, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mllm_export.device_tests.comparison import compare
from mllm_export.errors import CheckError
from mllm_export.report import (
    ArtifactSize,
    Latency,
    Measurement,
    Report,
    Rung,
    not_run,
    paired_values,
)

NAMES = ("before", "after")


def measured(name: str, value: float, sense: str, limit: float) -> Measurement:
    return Measurement(name=name, value=value, unit="", sense=sense, limit=limit)  # type: ignore[arg-type]


def task(lost: list[float], limit: float = 3.0) -> Rung:
    value = float(np.mean(lost))
    names = [f"question {at}" for at in range(len(lost))]
    return Rung(
        name="task",
        status="passed" if value <= limit else "failed",
        measurements=(measured("accuracy lost", value, "at_most", limit),),
        paired=(paired_values("accuracy lost", names, lost),),
    )


def report(*rungs: Rung, **others: object) -> Report:
    plain = Report(model="m", family="f", target="t", recipe="int4", profile="default", rungs=rungs)
    return replace(plain, **others)  # type: ignore[arg-type]


def tower(cosine: float) -> Rung:
    status = "passed" if cosine >= 0.95 else "failed"
    limits = (measured("worst-token cosine", cosine, "at_least", 0.95),)
    return Rung(name="tower", status=status, measurements=limits)  # type: ignore[arg-type]


def latency(median: float, spread: float = 0.1) -> tuple[Latency, ...]:
    low, high = median * (1 - spread), median * (1 + spread)
    one = Latency(stage="prefill", median_ms=median, low_ms=low, high_ms=high, repeats=5, threads=1)
    return (one,)


def worse(before: Report, after: Report) -> list[str]:
    return [one.what for one in compare(before, after, NAMES).regressions]


def test_the_same_report_twice_has_no_regression() -> None:
    one = report(
        task([0.0] * 50 + [100.0]),
        tower(0.99),
        sizes=(ArtifactSize(path="tower.onnx", size_bytes=1000),),
        latency=latency(10),
        device="cpu",
    )
    found = compare(one, one, NAMES)
    assert not found.regressions
    assert {change.kind for change in found.changes} == {"quality", "size", "speed"}
    assert found.sentence.startswith("No regression in 4 figures")


def test_paired_answers_show_a_loss_that_single_figures_would_hide() -> None:
    right = [0.0] * 200
    lost = [100.0 if at % 40 == 0 else 0.0 for at in range(200)]
    found = compare(report(task(right)), report(task(lost)), NAMES)
    (change,) = found.regressions
    assert change.what == "task: accuracy lost"
    assert "paired difference" in change.bound
    assert "200 samples" in change.bound


def test_answers_that_change_both_ways_are_noise() -> None:
    before = [100.0 if at % 20 == 0 else 0.0 for at in range(200)]
    after = [100.0 if at % 20 == 1 else 0.0 for at in range(199)] + [100.0]
    assert worse(report(task(before)), report(task(after))) == []


def test_other_samples_are_not_paired() -> None:
    before, after = task([0.0] * 10), task([0.0] * 11)
    (change,) = compare(report(before), report(after), NAMES).changes
    assert "paired" not in change.bound


def test_an_improvement_is_no_failure() -> None:
    found = compare(report(tower(0.96)), report(tower(0.99)), NAMES)
    assert not found.regressions
    assert [one.better for one in found.changes] == [True]


@pytest.mark.parametrize(
    ("after", "expected"), [(0.9885, []), (0.98, ["tower: worst-token cosine"])]
)
def test_a_figure_is_worse_from_a_tenth_of_its_room_on(after: float, expected: list[str]) -> None:
    assert worse(report(tower(0.99)), report(tower(after))) == expected


def test_a_recipe_that_may_lose_more_hides_no_loss() -> None:
    def logits(kl: float, limit: float) -> Report:
        return report(
            Rung(
                name="logits",
                status="passed",
                measurements=(measured("mean KL", kl, "at_most", limit),),
            )
        )

    assert worse(logits(0.025, limit=0.2), logits(0.15, limit=1.5)) == ["logits: mean KL"]
    assert worse(logits(0.025, limit=1.5), logits(0.15, limit=0.2)) == ["logits: mean KL"]
    assert worse(logits(0.025, limit=1.5), logits(0.15, limit=1.5)) == []


def test_a_limit_that_is_left_is_worse_however_small_the_step() -> None:
    found = compare(report(tower(0.9501)), report(tower(0.9499)), NAMES)
    assert "leaves it now" in found.regressions[0].bound


def test_a_rung_that_is_no_longer_run_is_worse() -> None:
    assert worse(report(tower(0.99)), report(not_run("tower", "no reference"))) == [
        "tower: measured"
    ]
    assert worse(report(tower(0.99)), report()) == ["tower: measured"]


@pytest.mark.parametrize(("size", "expected"), [(1005, []), (1011, ["tower.onnx"]), (900, [])])
def test_a_file_is_worse_from_a_hundredth_more_on(size: int, expected: list[str]) -> None:
    before = report(sizes=(ArtifactSize(path="tower.onnx", size_bytes=1000),))
    after = report(
        sizes=(
            ArtifactSize(path="tower.onnx", size_bytes=size),
            ArtifactSize(path="report.html", size_bytes=999_999),
        )
    )
    assert worse(before, after) == expected


@pytest.mark.parametrize(
    ("median", "expected"), [(11.5, []), (14.0, ["prefill: ratio of medians"]), (5.0, [])]
)
def test_speed_is_worse_only_where_the_quartiles_part(median: float, expected: list[str]) -> None:
    before, after = (report(latency=latency(one), device="cpu") for one in (10.0, median))
    assert worse(before, after) == expected


def beside(yardstick: float, median: float, threads: int = 1) -> Report:
    """A stage and the yardstick timed beside it."""
    (stage,) = latency(median, spread=0.02)
    (machine,) = latency(yardstick, spread=0.02)
    machine = replace(machine, stage="yardstick", threads=threads)
    return report(latency=(stage, machine), device="cpu")


@pytest.mark.parametrize(
    ("yardstick", "median", "expected"),
    [
        # Other programs had the cores: all took twice as long, or a tower's threads longer still.
        (10.0, 20.0, []),
        (7.0, 20.0, []),
        # What is slower by more than they can explain is slower on a busy machine too.
        (7.0, 40.0, ["prefill: ratio of medians"]),
        (10.0, 150.0, ["prefill: ratio of medians"]),
        # A quiet machine excuses nothing.
        (5.0, 11.5, ["prefill: ratio of medians"]),
        (5.2, 12.0, ["prefill: ratio of medians"]),
        # One that got free excuses nothing, and blames nothing.
        (2.5, 10.0, []),
    ],
)
def test_a_busy_machine_makes_no_stage_slower(
    yardstick: float, median: float, expected: list[str]
) -> None:
    found = compare(beside(5.0, 10.0), beside(yardstick, median), NAMES)
    assert [one.what for one in found.regressions] == expected
    assert [one.what for one in found.changes if one.kind == "speed"] == [
        "prefill: ratio of medians"
    ]
    assert "the yardstick's" in found.changes[-1].bound
    busy = not 4.5 < yardstick < 5.5
    assert ("the machine was busy" in found.changes[-1].bound) == busy


def test_a_machine_that_got_free_makes_no_stage_faster() -> None:
    (change,) = compare(beside(10.0, 20.0), beside(5.0, 10.0), NAMES).changes
    assert not change.better
    (change,) = compare(beside(5.0, 20.0), beside(5.0, 10.0), NAMES).changes
    assert change.better


def test_a_yardstick_of_other_threads_or_of_one_side_alone_is_no_measure() -> None:
    one, other = beside(5.0, 10.0, threads=2), beside(10.0, 20.0, threads=2)
    assert worse(one, other) == ["prefill: ratio of medians"]
    before = report(latency=latency(10.0, 0.02), device="cpu")
    assert worse(before, beside(10.0, 20.0)) == ["prefill: ratio of medians"]


def test_speed_on_two_machines_is_not_compared_and_says_so() -> None:
    before, after = (
        report(latency=latency(one), device=name) for one, name in ((10.0, "a"), (99.0, "b"))
    )
    found = compare(before, after, NAMES)
    assert not found.changes
    assert "speed is not compared: measured on a before, on b after" in found.notes


@pytest.mark.parametrize("key", ["model", "family", "target"])
def test_different_models_and_targets_are_refused(key: str) -> None:
    with pytest.raises(CheckError, match=f"before is of {key} .*, after of 'other'"):
        compare(report(), report(**{key: "other"}), NAMES)


def test_another_recipe_is_named_and_compared() -> None:
    found = compare(report(), report(recipe="int8"), NAMES)
    assert found.notes == ("recipe differs: int4 before, int8 after",)
