"""What a memory budget buys: the assignments of schemes that a plan's was chosen from."""

from __future__ import annotations

from mllm_export.records import record


@record
class FrontierPoint:
    """One assignment of schemes to the groups of tensors and to the KV cache."""

    size_bytes: int
    """On the device: weights, KV cache at the plan's context, activations."""
    predicted_kl: float
    """Sum of what each group loses alone: mean KL divergence from the original, in nats."""
    measured_kl: float
    """Mean KL divergence of the whole assignment, in nats."""
    schemes: tuple[tuple[str, str], ...]
    """Group and scheme, in the model's order."""
    chosen: bool = False
    """Whether the plan is this one."""


def schemes_text(point: FrontierPoint) -> str:
    """Groups by scheme, layers as ranges: `Q4_K: blk.0-2 output; kv: f16`."""
    by_scheme: dict[str, list[str]] = {}
    for group, scheme in point.schemes:
        by_scheme.setdefault(scheme, []).append(group)
    return "; ".join(f"{scheme}: {' '.join(_ranges(g))}" for scheme, g in by_scheme.items())


def _ranges(groups: list[str]) -> list[str]:
    """Numbered groups that follow each other, as one word."""
    found: list[str] = []
    before: tuple[str, int] | None = None
    for group in groups:
        stem, _, last = group.rpartition(".")
        number = (stem, int(last)) if last.isdecimal() and last.isascii() else None
        if number and before == (stem, number[1] - 1):
            # The run's first number stays, its last gives way.
            found[-1] = f"{found[-1].removesuffix(f'-{before[1]}')}-{last}"
        else:
            found.append(group)
        before = number
    return found
