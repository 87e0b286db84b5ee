"""Limits of the checks, each with its reason, read from profiles/NAME.toml."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Literal

from mllm_export.catalog import unknown
from mllm_export.device_tests.floor import RANDOM, TRAINED, FloorMeasure, highest
from mllm_export.device_tests.scheme_bits import weight_bits
from mllm_export.errors import CheckError
from mllm_export.records import from_plain, record
from mllm_export.report import RUNGS, Measurement
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.device_tests.profiles"

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

    def scaled(self, scale: float, reason: str) -> Limit:
        """The limit of a tighter or looser profile; what must be equal stays equal."""
        if self.sense == "equals":
            return self
        perfect = self._perfect
        return replace(
            self,
            values=self.values.scaled(perfect, scale),
            untrained=None if self.untrained is None else self.untrained.scaled(perfect, scale),
            reason=f"{scale:g} times default's distance ({reason}); default: {self.reason}",
        )

    @property
    def _perfect(self) -> float:
        if self.perfect is not None:
            return self.perfect
        return 1.0 if self.sense == "at_least" else 0.0

    def resolved(self) -> Limit:
        """With its multiples of a noise floor as numbers, and the reason saying so."""
        if self.floor is None:
            return self
        trained, random = self.floor.floors()
        values = self.values.or_else(self._from(self.floor.times, trained))
        untrained = self.untrained
        if self.floor.untrained is not None:
            untrained = (untrained or Values()).or_else(self._from(self.floor.untrained, random))
        of = f"{self.floor.measure.replace('_', ' ')} of {self.floor.variant}"
        said = f"multiples of the noise floor, {of}: {trained:g} trained, {random:g} random"
        return replace(
            self, values=values, untrained=untrained, floor=None, reason=f"{said}; {self.reason}"
        )

    def _from(self, times: Values, floor: float) -> Values:
        away = -floor if self.sense == "at_least" else floor
        return times.mapped(lambda one: self._perfect + one * away)


@record
class SchemeLimit:
    """What a stored tensor of one scheme may lose."""

    scheme: str
    sqnr_db: float
    """Least signal to quantization noise of any tensor."""
    largest_error: float
    """Of any value: in steps for the tower's schemes, else over the largest value of its block."""
    reason: str
    calibrated_sqnr_db: float | None = None
    """In place of `sqnr_db` where an importance matrix or a method weighed the columns."""
    calibrated_largest_error: float | None = None

    def calibrated(self) -> SchemeLimit:
        """The limits of a tensor whose columns were weighed; its own where nothing weighs."""
        sqnr_db, error = self.calibrated_sqnr_db, self.calibrated_largest_error
        return replace(
            self,
            sqnr_db=self.sqnr_db if sqnr_db is None else sqnr_db,
            largest_error=self.largest_error if error is None else error,
        )


@record
class BitsLimit:
    """What a stored tensor of any scheme of so many bits may lose, where none names it."""

    bits: int
    """Of a weight, scales left out."""
    sqnr_db: float
    largest_error: float
    """Over the largest value of its block, for ggml's types."""
    largest_steps: float = 1.02
    """In steps, for the tower's schemes: a whole one where the end of a range clips."""
    reason: str


@record
class Profile:
    """One file of device_tests/profiles."""

    name: str
    description: str
    limits: tuple[Limit, ...]
    schemes: tuple[SchemeLimit, ...]
    bits: tuple[BitsLimit, ...] = ()

    def scheme(self, name: str, *, calibrated: bool = False) -> SchemeLimit:
        """The limits of a scheme: its own, or those of its number of bits.

        `calibrated` asks for those of a tensor whose columns were weighed.

        Raises: CheckError for a word that says nothing of its bits.
        """
        for one in self.schemes:
            if one.scheme == name:
                return one.calibrated() if calibrated else one
        bits = weight_bits(name)
        found = [one for one in self.bits if bits is not None and one.bits <= bits]
        if not found:
            known = [one.scheme for one in self.schemes]
            raise CheckError(f"profile '{self.name}': {unknown('scheme', name, known)}")
        most = max(found, key=lambda one: one.bits)
        return SchemeLimit(
            scheme=name,
            sqnr_db=most.sqnr_db,
            largest_error=most.largest_steps if name.startswith("w") else most.largest_error,
            reason=f"{most.bits} bits: {most.reason}",
        )


@record
class Derived:
    """A profile that says how far it is from another."""

    name: str
    description: str
    extends: str
    scale: float
    """How many times as far from a perfect export its limits lie."""
    reason: str
    limits: tuple[Limit, ...] = ()
    """In place of the other's on the same measurements."""

    def __post_init__(self) -> None:
        """Refuse a profile that would turn limits around, or does not say why it is another."""
        if self.scale <= 0:
            raise CheckError(f"profile '{self.name}': scale is {self.scale}, needed: over 0")
        if not self.reason.strip():
            raise CheckError(f"profile '{self.name}' has no reason")

    def whole(self, other: Profile) -> Profile:
        """All limits. What a stored block loses is its format's doing, and stays."""
        own = {(one.rung, one.measurement): one for one in self.limits}
        scaled = [one.scaled(self.scale, self.reason) for one in other.limits]
        return replace(
            other,
            name=self.name,
            description=self.description,
            limits=tuple(own.pop((one.rung, one.measurement), one) for one in scaled)
            + tuple(own.values()),
        )


class Limits:
    """A profile applied to one export: makes measurements with their limits."""

    def __init__(self, profile: Profile, kind: Kind, tower_kind: Kind, trained: bool) -> None:
        """`kind` is that of the coarsest part, `tower_kind` that of tower and projector."""
        self.profile = profile
        self.kind = kind
        self.tower_kind = tower_kind
        self._trained = trained

    def measure(
        self, rung: str, name: str, value: float, unit: str = "", kind: Kind | None = None
    ) -> Measurement:
        """A measurement with the profile's limit for it, if there is one.

        Raises: FloatingPointError for a value that is no number: nothing can be said of it.
        """
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
        found = next(
            (one for one in self.profile.limits if (one.rung, one.measurement) == (rung, name)),
            None,
        )
        used = kind or (self.tower_kind if rung == "tower" else self.kind)
        limit = found.value(used, self._trained) if found else None
        if found is None or limit is None:
            return Measurement(name=name, value=float(value), unit=unit)
        return Measurement(
            name=name,
            value=float(value),
            unit=unit,
            sense=found.sense,
            limit=limit,
            limit_from=f"profile {self.profile.name}, {used}: {found.reason}",
        )


def profile_names() -> list[str]:
    """The profiles there are."""
    entries = files(_PACKAGE).iterdir()
    return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".toml"))


def load_profile(name: str) -> Profile:
    """Read a profile.

    Raises: CheckError for an unknown name or key, a limit without a reason, or one limit twice.
    """
    if name not in profile_names():
        raise CheckError(unknown("profile", name, profile_names()))
    table = read_toml(files(_PACKAGE) / f"{name}.toml", CheckError)
    where = f"{name}.toml"
    if "extends" in table:
        derived = from_plain(Derived, {"name": name, **table}, where, CheckError)
        _refuse_doubled(derived.limits, where)
        derived = replace(derived, limits=tuple(one.resolved() for one in derived.limits))
        return derived.whole(load_profile(derived.extends))
    profile = from_plain(Profile, {"name": name, **table}, where, CheckError)
    _refuse_doubled(profile.limits, where)
    return replace(profile, limits=tuple(one.resolved() for one in profile.limits))


def _refuse_doubled(limits: Sequence[Limit], where: str) -> None:
    keys = [(one.rung, one.measurement) for one in limits]
    for key in keys:
        if keys.count(key) > 1:
            raise CheckError(f"{where}: two limits on {key[0]}, '{key[1]}'")
