"""What a budget counts is what the plan counts, and the plan shows what it was chosen from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mllm_export.commands.budgeting import frontier_points, frontier_table, spend_budget
from mllm_export.commands.calibrating import Calibration
from mllm_export.commands.opening import plan_job
from mllm_export.device_tests import sensitivity
from mllm_export.errors import RecipeError
from mllm_export.export.budget_options import budget_options, fixed_bytes
from mllm_export.export.make_plan import make_plan
from mllm_export.plan import Plan
from mllm_export.progress import silent
from mllm_export.quantize.budget import Point, frontier, recipe_of, spend
from mllm_export.records import from_json, to_json

LOSSES = {"f32": 0.0, "w8a8-static": 2e-4, "w4g32": 1e-2, "Q8_0": 1e-5, "Q4_K": 1e-3, "q8_0": 1e-6}


@pytest.fixture(scope="module")
def job():
    return plan_job("reference", "linux-x86_64", "int8", None, False)


@pytest.fixture(scope="module")
def options(job):
    found = budget_options(job.plan.spec, job.plan.context_tokens)
    return tuple(replace(o, loss=LOSSES.get(o.scheme, 1.0 / o.size_bytes)) for o in found)


@pytest.mark.parametrize("name", ["reference", "reference-phi"])
def test_the_plan_takes_the_memory_that_the_budget_reckoned_with(name):
    job = plan_job(name, "linux-x86_64", "int8", None, False)
    options = tuple(
        replace(o, loss=LOSSES.get(o.scheme, 1.0 / o.size_bytes))
        for o in budget_options(job.plan.spec, job.plan.context_tokens)
    )
    fixed = fixed_bytes(job.plan)
    types = set()
    for one in frontier(options, fixed, 9):
        plan = make_plan(job.reading, job.target, recipe_of(one, "budget"))
        assert plan.device_memory_bytes == one.size_bytes
        types.add(plan.kv_type)
        chosen = spend(options, fixed, plan.device_memory_bytes)
        assert chosen.predicted_loss <= one.predicted_loss + 1e-12
    assert {"f16", "q4_0"} <= types


def test_the_kv_cache_counts_at_the_plans_context(job, options):
    sizes = {one.scheme: one.size_bytes for one in options if one.group == "kv"}
    assert sizes["f16"] == job.plan.kv_cache_bytes
    half = budget_options(job.plan.spec, job.plan.context_tokens // 2)
    assert {o.scheme: 2 * o.size_bytes for o in half if o.group == "kv"} == sizes


def test_the_plan_has_a_point_for_every_assignment_and_marks_its_own(job, options):
    points = [
        Point(assignment=one, measured_loss=2 * one.predicted_loss)
        for one in frontier(options, 0, 5)
    ]
    found = frontier_points(points, fixed_bytes(job.plan), points[2])
    assert [one.chosen for one in found] == [False, False, True, False, False]
    plan = make_plan(job.reading, job.target, recipe_of(points[2].assignment, "budget"))
    assert found[2].size_bytes == plan.device_memory_bytes
    whole = replace(plan, frontier=found)
    assert from_json(Plan, to_json(whole), "plan", RecipeError) == whole
    assert frontier_table(found).row_count == len(points)


@pytest.mark.parametrize(
    ("target", "budget", "text"),
    [
        ("linux-x86_64", "1MiB", "of 1024KiB cannot be met: .* at the least; ask for"),
        ("linux-x86_64", "much", "'much' is no size"),
        ("macos-arm64", "1GiB", "target macos-arm64 has a tower in the format coreml"),
    ],
)
def test_what_cannot_be_spent_is_refused_before_anything_is_measured(
    target, budget, text, monkeypatch
):
    def never(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(sensitivity, "Sensitivity", never)
    monkeypatch.setattr("mllm_export.export.child.run_in_child", never)
    planned = plan_job("reference", target, None, None, False)
    with pytest.raises(RecipeError, match=text):
        spend_budget(planned, budget, False, Calibration(), silent)
