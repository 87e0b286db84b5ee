"""One memory budget over the whole model: the assignment of schemes that loses least.

Every group of tensors takes one of its options; sizes add up, and so, to first order, do losses.
The choice is solved exactly as a mixed integer program by HiGHS.
Source: scipy.optimize.milp; HAWQ-V3 (arXiv:2011.10680) for the additive loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from mllm_export.errors import RecipeError
from mllm_export.kv_cache import require_kv_type
from mllm_export.quantize.recipe import Recipe, Rule
from mllm_export.quantize.tower_recipe import TowerRule
from mllm_export.records import record

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|KiB|MiB|GiB)?")
KV_GROUP = "kv"
"""Keys and values, whose schemes are types of the cache."""

_WHY = "assigned by the memory budget"
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@record
class Option:
    """One way to store one group of tensors."""

    group: str
    scheme: str
    size_bytes: int
    loss: float
    """Mean KL divergence from the original with this group alone stored so, in nats."""


@record
class Assignment:
    """An option for every group."""

    options: tuple[Option, ...]
    fixed_bytes: int
    """What no option changes: activations, norms."""

    @property
    def size_bytes(self) -> int:
        """Of everything together."""
        return self.fixed_bytes + sum(one.size_bytes for one in self.options)

    @property
    def predicted_loss(self) -> float:
        """The sum over the groups, in nats."""
        return sum(one.loss for one in self.options)


@record
class Point:
    """An assignment of the frontier with what it really loses."""

    assignment: Assignment
    measured_loss: float
    """Mean KL divergence with every group stored as assigned, in nats."""


@record
class Curve:
    """What was measured of one model on one calibration set."""

    options: tuple[Option, ...]
    points: tuple[Point, ...]
    """Assignments that were measured as a whole, without what is fixed; see `pareto`."""


def recipe_of(assignment: Assignment, name: str) -> Recipe:
    """The assignment as rules, of which a longer group's comes before a shorter one's."""
    schemes = {one.group: one.scheme for one in assignment.options}
    cache = schemes.pop(KV_GROUP, "f16")
    ordered = sorted(schemes, key=lambda group: -group.count("."))
    vision = [group for group in ordered if _is_vision(group)]
    decoder = [group for group in ordered if not _is_vision(group)]
    most = _most(assignment, decoder)
    return Recipe(
        name=name,
        description="What loses least within a memory budget, by measured sensitivity.",
        tower_scheme=_most(assignment, vision),
        tower=tuple(
            TowerRule(tensors=f"{group}.*", scheme=schemes[group], why=_WHY) for group in vision
        ),
        decoder_scheme=most,
        decoder=(
            *(Rule(tensors=f"{group}.*", scheme=schemes[group]) for group in decoder),
            Rule(tensors="*", scheme=most, optional=True),
        ),
        kv_cache=require_kv_type(cache),
    )


def _most(assignment: Assignment, groups: Sequence[str]) -> str:
    """The scheme that most bytes of these groups have."""
    sizes: dict[str, int] = {}
    for one in assignment.options:
        if one.group in groups:
            sizes[one.scheme] = sizes.get(one.scheme, 0) + one.size_bytes
    return max(sizes, key=lambda scheme: sizes[scheme])


def _is_vision(group: str) -> bool:
    """Whether a group's tensors stand in the tower's file: an encoder's, or the projector's."""
    return group.split(".")[0] in {"tower", "projector"}


def parse_size(text: str) -> int:
    """Bytes of a size such as 900MiB, 1.5GiB or 1000000.

    Raises: RecipeError for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"'{text}' is no size; write for example 900MiB or 1.5GiB")
    return int(float(found[1]) * _UNITS[found[2] or "B"])


def pareto(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those that lose less than every smaller one, as measured, smallest first."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda p: (p.assignment.size_bytes, p.measured_loss)):
        if not kept or one.measured_loss < kept[-1].measured_loss:
            kept.append(one)
    return tuple(kept)


def best_within(points: Sequence[Point], fixed_bytes: int, budget_bytes: int) -> Point:
    """Of the assignments that were measured as a whole and fit, the one that loses least.

    Predictions leave out what groups do to each other, so the solver's own may not be it.
    """
    fitting = [one for one in points if one.assignment.size_bytes + fixed_bytes <= budget_bytes]
    return min(fitting, key=lambda one: (one.measured_loss, one.assignment.size_bytes))


def require_met(options: Sequence[Option], fixed_bytes: int, budget_bytes: int) -> None:
    """Raise RecipeError for a budget that cannot be met, with the smallest that can.

    Losses do not count, so this can be asked before they are measured.
    """
    least = smallest(options, fixed_bytes).size_bytes
    if budget_bytes < least:
        unit = _unit(least)
        needed, asked = _in_units(least, unit, math.ceil), _in_units(budget_bytes, unit, math.floor)
        raise RecipeError(
            f"a memory budget of {asked} cannot be met: weights, KV cache and activations take "
            f"{needed} at the least; ask for {needed} or more, or for a shorter context"
        )


def spend(options: Sequence[Option], fixed_bytes: int, budget_bytes: int) -> Assignment:
    """The assignment within the budget whose predicted loss is least.

    Raises: RecipeError for a budget that cannot be met, with the smallest that can.
    """
    require_met(options, fixed_bytes, budget_bytes)
    return _solve(options, fixed_bytes, budget_bytes)


def smallest(options: Sequence[Option], fixed_bytes: int) -> Assignment:
    """The smallest option of each group, and of equals the one that loses least."""
    found = {
        group: min((o for o in options if o.group == group), key=lambda o: (o.size_bytes, o.loss))
        for group in _groups(options)
    }
    return Assignment(options=tuple(found.values()), fixed_bytes=fixed_bytes)


def frontier(options: Sequence[Option], fixed_bytes: int, points: int) -> tuple[Assignment, ...]:
    """Assignments at budgets spread evenly from the smallest to the least lossy, without doubles.

    Sizes rise and predicted losses fall along it.
    """
    low = smallest(options, fixed_bytes).size_bytes
    most = sum(max(o.size_bytes for o in options if o.group == g) for g in _groups(options))
    high = _solve(options, fixed_bytes, fixed_bytes + most).size_bytes
    found: list[Assignment] = []
    for step in range(points):
        budget = low + (high - low) * step // max(1, points - 1)
        one = _solve(options, fixed_bytes, budget)
        if not found or one.predicted_loss < found[-1].predicted_loss:
            found.append(one)
    return tuple(found)


def _unit(size_bytes: int) -> str:
    return "MiB" if size_bytes >= 100 << 20 else "KiB"


def _in_units(size_bytes: int, unit: str, whole: Callable[[float], int]) -> str:
    return f"{whole(size_bytes / _UNITS[unit])}{unit}"


def _groups(options: Sequence[Option]) -> list[str]:
    return list(dict.fromkeys(one.group for one in options))


def _solve(options: Sequence[Option], fixed_bytes: int, budget_bytes: int) -> Assignment:
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups = _groups(options)
    sizes = np.array([one.size_bytes for one in options], np.float64)
    member = np.array([[one.group == group for one in options] for group in groups], np.float64)
    losses = np.array([one.loss for one in options], np.float64)
    scale = max(float(losses.max()), 1e-30)
    # Of assignments that lose the same, the smaller: a nudge far below what is measured.
    costs = losses / scale + 1e-9 * sizes / max(float(sizes.max()), 1.0)
    spare = (budget_bytes - fixed_bytes) / max(float(sizes.max()), 1.0)
    found = milp(
        costs,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(member, 1, 1),
            LinearConstraint(sizes[None] / max(float(sizes.max()), 1.0), -np.inf, spare),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert found.success, f"HiGHS: {found.message}"
    taken = [one for one, x in zip(options, found.x, strict=True) if x > 0.5]
    return Assignment(options=tuple(taken), fixed_bytes=fixed_bytes)
