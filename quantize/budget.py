"""One memory budget over the whole model: the assignment of schemes that loses least.

Every group of tensors takes one of its options; sizes add up, and so, to first order, do losses.
The choice is solved exactly as a mixed integer program by HiGHS.
Source: scipy.optimize.milp; HAWQ-V3 (arXiv:2011.10680) for the additive loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mllm_export.errors import RecipeError
from mllm_export.quantize.recipe import Recipe, Rule
from mllm_export.quantize.tower_recipe import TowerRule
from mllm_export.records import record

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|KiB|MiB|GiB)?")
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
    """What no option changes: KV cache, activations, norms."""

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
    """From the smallest to the least lossy; both losses fall along it."""


def recipe_of(assignment: Assignment, name: str) -> Recipe:
    """The assignment as rules."""
    schemes = {one.group: one.scheme for one in assignment.options}
    vision = {group: schemes.pop(group) for group in tuple(schemes) if _is_vision(group)}
    sizes: dict[str, int] = {}
    for one in assignment.options:
        if one.group in schemes:
            sizes[one.scheme] = sizes.get(one.scheme, 0) + one.size_bytes
    most = max(sizes, key=lambda scheme: sizes[scheme])
    why = "assigned by the memory budget"
    return Recipe(
        name=name,
        description="What loses least within a memory budget, by measured sensitivity.",
        tower_scheme=next(iter(vision.values())),
        tower=tuple(
            TowerRule(tensors=f"{group}.*", scheme=scheme, why=why)
            for group, scheme in vision.items()
        ),
        decoder_scheme=most,
        decoder=(
            *(Rule(tensors=f"{group}.*", scheme=scheme) for group, scheme in schemes.items()),
            Rule(tensors="*", scheme=most, optional=True),
        ),
    )


def _is_vision(group: str) -> bool:
    """Whether a group's tensors stand in the tower's file: an encoder, or the projector."""
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
    """Those that lose less than every smaller one, as measured."""
    kept: list[Point] = []
    for one in points:
        if not kept or one.measured_loss < kept[-1].measured_loss:
            kept.append(one)
    return tuple(kept)


def spend(options: Sequence[Option], fixed_bytes: int, budget_bytes: int) -> Assignment:
    """The assignment within the budget whose predicted loss is least.

    Raises: RecipeError for a budget that cannot be met, with the smallest that can.
    """
    least = smallest(options, fixed_bytes)
    if budget_bytes < least.size_bytes:
        raise RecipeError(
            f"a memory budget of {mib_up(budget_bytes)} MiB cannot be met: weights, KV cache and "
            f"activations take {mib_up(least.size_bytes)} MiB at the least; "
            f"ask for {mib_up(least.size_bytes)}MiB or more, or for a shorter context"
        )
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


def mib_up(size_bytes: int) -> int:
    """MiB, rounded up."""
    return -(-size_bytes >> 20)


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
