"""Limits of the checks, each with its reason, read from profiles/NAME.toml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from mllm_export.catalog import unknown
from mllm_export.device_tests.limit import Kind, Limit
from mllm_export.device_tests.scheme_bits import weight_bits
from mllm_export.errors import CheckError
from mllm_export.records import from_plain, record
from mllm_export.report import Measurement
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.device_tests.profiles"


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
            limit_from=f"profile {self.profile.name}, {used}: {found.why(used, self._trained)}",
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
