"""One limit of one rung: by how coarsely what is measured is stored, with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from mllm_export.catalog import unknown
from mllm_export.device_tests.floor import RANDOM, TRAINED, FloorMeasure, highest
from mllm_export.errors import CheckError
from mllm_export.records import record
from mllm_export.report import RUNGS

Kind = Literal["f16", "half", "int8", "int4", "int2"]
"""How coarsely the coarsest part of what is measured is stored; half: a tower that computes in
float16 too, which is f16 wherever a limit does not name it; int2: in less than 4 bits."""

KINDS: tuple[Kind, ...] = ("f16", "half", "int8", "int4", "int2")


@record
class Values:
    """A limit for each kind; a kind without one is measured and not judged."""

    every: float | None = None
    """For kinds that are not named."""
    f16: float | None = None
    half: float | None = None
    int8: float | None = None
    int4: float | None = None
    int2: float | None = None

    def of(self, kind: Kind) -> float | None:
        """The limit for that kind."""
        half = self.f16 if self.half is None else self.half
        own = {
            "f16": self.f16,
            "half": half,
            "int8": self.int8,
            "int4": self.int4,
            "int2": self.int2,
        }[kind]
        return self.every if own is None else own

    def mapped(self, change: Callable[[float], float]) -> Values:
        """The same kinds, each with another value."""

        def one(value: float | None) -> float | None:
            return None if value is None else change(value)

        return Values(
            every=one(self.every),
            f16=one(self.f16),
            half=one(self.half),
            int8=one(self.int8),
            int4=one(self.int4),
            int2=one(self.int2),
        )

    def scaled(self, perfect: float, scale: float) -> Values:
        """Each value `scale` times as far from what nothing lost would give."""
        return self.mapped(lambda value: perfect + (value - perfect) * scale)

    def or_else(self, other: Values) -> Values:
        """These values, and the other's for kinds that have none here."""

        def one(mine: float | None, its: float | None) -> float | None:
            return its if mine is None else mine

        return Values(
            every=one(self.every, other.every),
            f16=one(self.f16, other.f16),
            half=one(self.half, other.half),
            int8=one(self.int8, other.int8),
            int4=one(self.int4, other.int4),
            int2=one(self.int2, other.int2),
        )


@record
class FloorTimes:
    """Limits that are multiples of a measured noise floor; see device_tests/floors."""

    variant: str
    measure: FloorMeasure
    times: Values
    """Of the highest floor of the trained checkpoints."""
    untrained: Values | None = None
    """Of a random twin's floor."""

    def scaled(self, scale: float) -> FloorTimes:
        """So many times as far from the original."""

        def wider(value: float) -> float:
            return value * scale

        untrained = None if self.untrained is None else self.untrained.mapped(wider)
        return replace(self, times=self.times.mapped(wider), untrained=untrained)

    def floors(self) -> tuple[float, float]:
        """Of trained checkpoints, and of a random twin."""
        return (
            highest(TRAINED, self.variant, self.measure),
            highest((RANDOM,), self.variant, self.measure),
        )


@record
class Limit:
    """One limit of one rung."""

    rung: str
    measurement: str
    sense: Literal["at_least", "at_most", "equals"]
    values: Values
    untrained: Values | None = None
    """In place of `values` for models whose questions have no known answers, which may be
    random weights: those have no favourite answer, and any rounding may tip a near tie."""
    perfect: float | None = None
    """What an export that loses nothing measures; by default 1 for `at_least`, else 0."""
    floor: FloorTimes | None = None
    """Where the limits of some kinds come from."""
    reason: str

    def __post_init__(self) -> None:
        """Refuse a limit that could never be applied, or that says nothing for itself."""
        if self.rung not in RUNGS:
            raise CheckError(f"limit: {unknown('rung', self.rung, list(RUNGS))}")
        if not self.reason.strip():
            raise CheckError(f"limit on {self.rung}, '{self.measurement}' has no reason")

    def value(self, kind: Kind, trained: bool) -> float | None:
        """The limit for that kind, if there is one."""
        used = self.values if trained or self.untrained is None else self.untrained
        return used.of(kind)

    def why(self, kind: Kind, trained: bool) -> str:
        """Where the limit for that kind comes from."""
        if self.floor is None:
            return self.reason
        times, floor = self._floor(trained)
        value, of_floor = self.value(kind, trained), self._from(times, floor).of(kind)
        if value is None or of_floor is None or not math.isclose(value, of_floor, rel_tol=1e-12):
            return self.reason
        of = f"{self.floor.measure.replace('_', ' ')} of the original in {self.floor.variant}"
        model = "the trained checkpoints"
        if not trained and self.floor.untrained is not None:
            model = "random weights"
        return (
            f"{times.of(kind):.3g} times the noise floor, {of}, {floor:.2g} on {model}; "
            f"{self.reason}"
        )

    def scaled(self, scale: float, reason: str) -> Limit:
        """The limit of a tighter or looser profile; what must be equal stays equal."""
        if self.sense == "equals":
            return self
        perfect = self._perfect
        return replace(
            self,
            values=self.values.scaled(perfect, scale),
            untrained=None if self.untrained is None else self.untrained.scaled(perfect, scale),
            floor=None if self.floor is None else self.floor.scaled(scale),
            reason=f"{scale:g} times default's distance ({reason}); default: {self.reason}",
        )

    @property
    def _perfect(self) -> float:
        if self.perfect is not None:
            return self.perfect
        return 1.0 if self.sense == "at_least" else 0.0

    def resolved(self) -> Limit:
        """With its multiples of a noise floor as numbers."""
        if self.floor is None:
            return self
        values = self.values.or_else(self._from(*self._floor(True)))
        untrained = self.untrained
        if self.floor.untrained is not None:
            untrained = (untrained or Values()).or_else(self._from(*self._floor(False)))
        return replace(self, values=values, untrained=untrained)

    def _floor(self, trained: bool) -> tuple[Values, float]:
        """Multiples, and the floor they are of."""
        assert self.floor is not None, "asked only where there is one"
        of_trained, of_random = self.floor.floors()
        if trained or self.floor.untrained is None:
            return self.floor.times, of_trained
        return self.floor.untrained, of_random

    def _from(self, times: Values, floor: float) -> Values:
        away = -floor if self.sense == "at_least" else floor
        return times.mapped(lambda one: self._perfect + one * away)
