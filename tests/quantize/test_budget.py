"""The budget's solver against trying every assignment."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_export.errors import RecipeError
from mllm_export.quantize.budget import (
    Assignment,
    Option,
    Point,
    best_within,
    frontier,
    pareto,
    parse_size,
    recipe_of,
    smallest,
    spend,
)
from mllm_export.quantize.recipe import Storable, choose_layouts

MIB = 1 << 20


def option(group, scheme, mib, loss):
    return Option(group=group, scheme=scheme, size_bytes=int(mib * MIB), loss=loss)


OPTIONS = (
    option("tower", "f32", 40, 0.0),
    option("tower", "w8a8-static", 10, 0.02),
    option("head", "Q8_0", 8, 0.001),
    option("head", "Q4_K", 4, 0.05),
    option("blk.0", "Q8_0", 20, 0.002),
    option("blk.0", "Q4_K", 11, 0.01),
)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_assignment_within_the_budget_loses_less(data):
    options = []
    for group in range(data.draw(st.integers(1, 4))):
        for scheme in range(data.draw(st.integers(1, 4))):
            size = data.draw(st.integers(1, 60))
            loss = data.draw(st.integers(0, 1000)) / 1000
            options.append(option(str(group), str(scheme), size, loss))
    groups = {one.group: [o for o in options if o.group == one.group] for one in options}
    every = list(product(*groups.values()))
    fixed = data.draw(st.integers(0, 50)) * MIB
    low = smallest(options, fixed).size_bytes
    budget = low + data.draw(st.integers(0, 120)) * MIB
    found = spend(options, fixed, budget)
    assert found.size_bytes <= budget
    assert {one.group for one in found.options} == set(groups)
    best = min(
        sum(o.loss for o in one)
        for one in every
        if fixed + sum(o.size_bytes for o in one) <= budget
    )
    assert found.predicted_loss == pytest.approx(best, abs=1e-6)


def test_a_budget_that_cannot_be_met_says_the_smallest_that_can():
    text = r"30720KiB cannot be met.* take 35840KiB at the least; ask for 35840KiB or more"
    with pytest.raises(RecipeError, match=text):
        spend(OPTIONS, 10 * MIB, 30 * MIB)
    with pytest.raises(RecipeError, match=r"of 899MiB cannot be met.* take 900MiB at the least"):
        spend(OPTIONS, 875 * MIB, 900 * MIB - 1)
    assert spend(OPTIONS, 10 * MIB, 35 * MIB).size_bytes == 35 * MIB


def test_the_frontier_is_monotone_and_ends_at_the_least_loss():
    found = frontier(OPTIONS, 10 * MIB, 12)
    sizes = [one.size_bytes for one in found]
    losses = [one.predicted_loss for one in found]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    assert (sizes[0], sizes[-1]) == (35 * MIB, 78 * MIB)
    assert losses[-1] == pytest.approx(0.003)


def test_an_assignment_becomes_rules_that_give_each_group_its_scheme():
    assignment = spend(OPTIONS, 0, 100 * MIB)
    more = (
        option("tower.layers.1", "w8a8-static", 50, 0.0),
        option("projector", "w4g32", 1, 0.0),
        option("kv", "q8_0", 1, 0.0),
    )
    made = recipe_of(Assignment(options=(*assignment.options, *more), fixed_bytes=0), "budget")
    rules = [(rule.tensors, rule.scheme) for rule in made.tower]
    # A layer before the rest of its tower, which would take it.
    assert rules == [
        ("tower.layers.1.*", "w8a8-static"), ("tower.*", "f32"), ("projector.*", "w4g32"),
    ]  # fmt: skip
    assert (made.tower_scheme, made.kv_cache) == ("w8a8-static", "q8_0")
    tensors = [
        Storable(shape=(512, 256), names=("head.weight",)),
        Storable(shape=(256, 256), names=("blk.0.attn_q.weight",)),
    ]
    found = [one.scheme for one in choose_layouts(made, tensors)]
    schemes = {one.group: one.scheme for one in assignment.options}
    assert found == [schemes["head"], schemes["blk.0"]]


@pytest.mark.parametrize(
    ("text", "size"), [("900MiB", 900 << 20), ("1.5 GiB", 3 << 29), ("4096", 4096)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


def test_what_is_no_size_is_refused():
    with pytest.raises(RecipeError, match="'900 megs' is no size; write for example 900MiB"):
        parse_size("900 megs")


def test_a_point_that_loses_no_less_than_a_smaller_one_is_no_frontier():
    ends = frontier(OPTIONS, 0, 3)
    points = [
        Point(assignment=one, measured_loss=loss)
        for one, loss in zip(ends, (0.5, 0.6, 0.1), strict=True)
    ]
    assert [one.measured_loss for one in pareto(reversed(points))] == [0.5, 0.1]
    room = ends[1].size_bytes + 10 * MIB
    assert best_within(points, 10 * MIB, room).measured_loss == 0.5
    assert best_within(points, 10 * MIB, room + 80 * MIB).measured_loss == 0.1
