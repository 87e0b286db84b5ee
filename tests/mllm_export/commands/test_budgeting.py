"""What a budget counts is what the plan counts."""

from __future__ import annotations

import pytest

from mllm_export.commands.budgeting import fixed_bytes, frontier_table
from mllm_export.commands.opening import plan_job
from mllm_export.device_tests.sensitivity import decoder_groups
from mllm_export.export.make_plan import make_plan
from mllm_export.export.parts import DECODERS
from mllm_export.export.tower_plan import tower_tensors
from mllm_export.quantize.budget import Curve, Option, Point, frontier, recipe_of, spend
from mllm_export.quantize.layout import stored_bytes
from mllm_export.quantize.tower_scheme import tower_scheme

LOSSES = {"f32": 0.0, "w8a8-static": 2e-4, "w4g32": 1e-2, "Q8_0": 1e-5, "Q4_K": 1e-3}


@pytest.fixture(scope="module")
def job():
    return plan_job("reference", "linux-x86_64", "int8", None, False)


@pytest.fixture(scope="module")
def options(job):
    spec = job.plan.spec
    found = []
    for group in ("tower", "projector"):
        tensors = tower_tensors(spec.vision)
        shapes = [t.shape for t in tensors if t.is_product and t.name.startswith(f"{group}.")]
        for scheme in ("f32", "w8a8-static", "w4g32"):
            parts = [part for shape in shapes for part in tower_scheme(scheme).parts(shape)]
            found.append((group, scheme, sum(part.size_bytes for part in parts)))
    for group, tensors in decoder_groups(DECODERS["llama"].tensors(spec.decoder)).items():
        for scheme in ("Q8_0", "Q4_K"):
            size = sum(stored_bytes(scheme, tensor.shape) for tensor in tensors)
            found.append((group, scheme, size))
    return tuple(
        Option(group=group, scheme=scheme, size_bytes=size, loss=LOSSES[scheme])
        for group, scheme, size in found
    )


def test_the_plan_takes_the_memory_that_the_budget_reckoned_with(job, options):
    fixed = fixed_bytes(job.plan)
    for one in frontier(options, fixed, 9):
        plan = make_plan(job.reading, job.target, recipe_of(one, "budget"))
        assert plan.device_memory_bytes == one.size_bytes
        chosen = spend(options, fixed, plan.device_memory_bytes)
        assert chosen.predicted_loss <= one.predicted_loss + 1e-12


def test_the_table_has_a_row_for_every_point_and_one_for_the_choice(options):
    ends = frontier(options, 0, 5)
    points = tuple(Point(assignment=one, measured_loss=one.predicted_loss) for one in ends)
    table = frontier_table(Curve(options=options, points=points), 0, ends[0])
    assert table.row_count == len(points) + 1
