"""Declared cover of a checkpoint: every tensor is taken or dropped, by name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from mllm_export.errors import CheckpointError
from mllm_export.records import record

Shape = tuple[int, ...]


@record
class Take:
    """Parameter `parameter` of `part` is the checkpoint's tensor `source`, of shape `shape`."""

    part: str
    """tower, projector or decoder."""
    parameter: str
    source: str
    shape: Shape


@record
class Drop:
    """Tensors whose name matches `pattern` (shell style) are not part of the export."""

    pattern: str
    why: str


@record
class Dropped:
    """One tensor that a Drop covered; a row of the report."""

    source: str
    why: str


@record
class WeightMap:
    """What a family takes from a checkpoint and what it leaves, with the reason."""

    takes: tuple[Take, ...]
    drops: tuple[Drop, ...] = ()

    def part(self, part: str) -> dict[str, str]:
        """Source name of every parameter of one part."""
        return {t.parameter: t.source for t in self.takes if t.part == part}

    def resolve(self, found: Mapping[str, Shape]) -> tuple[Dropped, ...]:
        """Hold the map against a checkpoint's names and shapes; return what is dropped.

        Raises: CheckpointError naming a tensor that is missing, misshapen, or left over.
        """
        self._require_all(found)
        taken = {take.source for take in self.takes}
        dropped: list[Dropped] = []
        for name in sorted(found):
            if name in taken:
                continue
            rule = next((d for d in self.drops if fnmatchcase(name, d.pattern)), None)
            if rule is None:
                raise CheckpointError(
                    f"tensor '{name}' {list(found[name])} has no place in this model; "
                    "is config.json another model's, or was a part added to the checkpoint?"
                )
            dropped.append(Dropped(source=name, why=rule.why))
        return tuple(dropped)

    def _require_all(self, found: Mapping[str, Shape]) -> None:
        for take in self.takes:
            if take.source not in found:
                raise CheckpointError(
                    f"tensor '{take.source}' {list(take.shape)} is missing from the checkpoint; "
                    "is a shard or the vision tower's folder not there?"
                )
            if tuple(found[take.source]) != take.shape:
                raise CheckpointError(
                    f"tensor '{take.source}' is {list(found[take.source])}, the config needs "
                    f"{list(take.shape)}; is config.json another model's?"
                )
