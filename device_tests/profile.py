"""Limits of the checks, each with its reason, read from profiles/NAME.toml."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Literal

from mllm_export.catalog import unknown
from mllm_export.errors import CheckError
from mllm_export.records import from_plain, record
from mllm_export.report import RUNGS, Measurement
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.device_tests.profiles"

Kind = Literal["f16", "half", "int8", "int4"]
"""How coarsely the coarsest part of what is measured is stored; half: a tower that computes in
float16 too, which is f16 wherever a limit does not name it."""

KINDS: tuple[Kind, ...] = ("f16", "half", "int8", "int4")


@record
class Values:
    """A limit for each kind; a kind without one is measured and not judged."""

    every: float | None = None
    """For kinds that are not named."""
    f16: float | None = None
    half: float | None = None
    int8: float | None = None
    int4: float | None = None

    def of(self, kind: Kind) -> float | None:
        """The limit for that kind."""
        half = self.f16 if self.half is None else self.half
        own = {"f16": self.f16, "half": half, "int8": self.int8, "int4": self.int4}[kind]
        return self.every if own is None else own


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


@record
class SchemeLimit:
    """What a stored tensor of one scheme may lose."""

    scheme: str
    sqnr_db: float
    """Least signal to quantization noise of any tensor."""
    largest_error: float
    """Of any value: in steps for the tower's schemes, else over the largest value of its block."""
    reason: str


@record
class Profile:
    """One file of device_tests/profiles."""

    name: str
    description: str
    limits: tuple[Limit, ...]
    schemes: tuple[SchemeLimit, ...]

    def scheme(self, name: str) -> SchemeLimit:
        """The limits of a scheme.

        Raises: CheckError for a scheme that the profile does not know.
        """
        for one in self.schemes:
            if one.scheme == name:
                return one
        known = [one.scheme for one in self.schemes]
        raise CheckError(f"profile '{self.name}': {unknown('scheme', name, known)}")


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
    profile = from_plain(Profile, {"name": name, **table}, f"{name}.toml", CheckError)
    keys = [(one.rung, one.measurement) for one in profile.limits]
    for key in keys:
        if keys.count(key) > 1:
            raise CheckError(f"{name}.toml: two limits on {key[0]}, '{key[1]}'")
    return profile
