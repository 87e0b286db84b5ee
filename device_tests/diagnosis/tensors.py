"""Stored tensors that are not what their source allows, by the part they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mllm_export.device_tests.checks.weights import Loss, loss_of
from mllm_export.device_tests.diagnosis.mixture import part_of
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.profile import Profile
from mllm_export.device_tests.stored import FLOATS, Stored, standing_in


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLoss:
    """One stored tensor against its source."""

    name: str
    part: str
    sqnr_db: float | None
    """None when nothing was lost."""
    why: str
    """What is wrong with it, as a clause; empty when it keeps its scheme's limit."""


def tensor_losses(
    stored: Mapping[str, Stored],
    originals: Mapping[str, Original],
    profile: Profile,
    *,
    calibrated: bool = False,
) -> list[TensorLoss]:
    """Every tensor that both sides have in one shape, in the originals' order.

    `calibrated` says that the columns were weighed when they were stored.
    """
    found: list[TensorLoss] = []
    for name, original in standing_in(stored, originals).items():
        one = stored.get(name)
        if one is None or tuple(one.shape) != tuple(original.shape):
            why = "is missing" if one is None else f"is {list(one.shape)}, not as published"
            found.append(TensorLoss(name=name, part=_part(name), sqnr_db=0.0, why=why))
            continue
        loss = loss_of(one, original)
        why = _why(one.scheme, loss, profile, calibrated)
        found.append(TensorLoss(name=name, part=_part(name), sqnr_db=loss.sqnr_db, why=why))
    return found


def _part(name: str) -> str:
    for part in ("tower", "projector"):
        if name.startswith(f"{part}."):
            return part
    return part_of(name)


def _why(scheme: str, loss: Loss, profile: Profile, calibrated: bool) -> str:
    if scheme in FLOATS:
        return f"holds {loss.unrounded} values that are not the source's" if loss.unrounded else ""
    if loss.sqnr_db is None:
        return ""
    limit = profile.scheme(scheme, calibrated=calibrated).sqnr_db
    if loss.sqnr_db >= limit:
        return ""
    return f"is {loss.sqnr_db:.1f} dB from its source as {scheme} (at least {limit:g})"


def wrong(losses: Iterable[TensorLoss], part: str, under: str = "") -> list[TensorLoss]:
    """Those of one part, and of names that begin with `under`, that break their limit."""
    return [one for one in losses if one.part == part and one.why and one.name.startswith(under)]


def told(bad: list[TensorLoss], shown: int = 2) -> str:
    """`a.weight is ...; b.weight is ...; and 4 more tensors`."""
    if not bad:
        return ""
    clauses = [f"{one.name} {one.why}" for one in bad[:shown]]
    if len(bad) > shown:
        clauses.append(f"and {len(bad) - shown} more")
    return "; ".join(clauses)
