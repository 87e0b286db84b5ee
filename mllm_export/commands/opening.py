"""From what the user typed to a checkpoint, a target and a plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_export.records import record

if TYPE_CHECKING:
    from mllm_export.checkpoint import Asked, Checkpoint
    from mllm_export.export.family import Reading
    from mllm_export.export.target import Target
    from mllm_export.plan import Importance, Plan
    from mllm_export.quantize.recipe import Recipe

REFERENCE = "reference"
SHIPPED = {REFERENCE: "data", "reference-phi": "data_llava_phi"}
"""Words for the checkpoints that come with the package, and their folders in export/reference."""


def open_checkpoint(name: str, vision_tower: Sequence[str] | None) -> Checkpoint:
    """The checkpoint folder, or the one that ships with the package.

    Raises: CheckpointError for --vision-tower that is given twice without names.
    """
    from mllm_export.checkpoint import Checkpoint

    folder = reference_folder(name) if name in SHIPPED else Path(name)
    return Checkpoint(folder, asked_towers(vision_tower or ()))


def asked_towers(given: Sequence[str]) -> Asked:
    """What --vision-tower says: DIR or `inside` once, or NAME=DIR any number of times.

    Raises: CheckpointError for both together, or a name given twice.
    """
    from mllm_export.checkpoint import INSIDE
    from mllm_export.errors import CheckpointError

    if not given:
        return None
    named = [(m[1], m[2]) for one in given if (m := _NAMED.fullmatch(one))]
    if not named and len(given) == 1:
        return given[0] if given[0] == INSIDE else Path(given[0])
    if len(named) < len(given) or len(dict(named)) < len(named):
        raise CheckpointError(
            f"--vision-tower {', '.join(given)}: give one DIR, or NAME=DIR once for each name"
        )
    return tuple((part, Path(place)) for part, place in named)


def reference_folder(name: str = REFERENCE) -> Path:
    """The folder of a checkpoint that comes with the package."""
    import mllm_export.export.reference as package

    return Path(package.__path__[0]) / SHIPPED[name] / "checkpoint"


def reference_evaluation() -> Path:
    """The held-out questions that every shipped checkpoint is scored on."""
    return reference_folder().parent / "evaluation" / "questions.jsonl"


_NAMED = re.compile(r"([a-z][a-z0-9_]*)=(.+)")


@record
class Job:
    """A checkpoint that was read and planned."""

    checkpoint: Checkpoint
    reading: Reading
    target: Target
    recipe: Recipe
    """What the plan was made by."""
    plan: Plan


def plan_job(
    name: str,
    target: str,
    recipe: str | None,
    vision_tower: Sequence[str] | None,
    mmproj: bool,
    importance: Importance = "none",
) -> Job:
    """Read, cover and plan; everything that can be refused before a weight is read is refused."""
    from mllm_export.export.family import cover, read_spec
    from mllm_export.export.make_plan import make_plan
    from mllm_export.export.target import load_target
    from mllm_export.quantize.recipe import load_recipe

    device = load_target(target)
    chosen = load_recipe(recipe or device.default_recipe)
    checkpoint = open_checkpoint(name, vision_tower)
    reading = read_spec(checkpoint)
    dropped = cover(checkpoint, reading)
    plan = make_plan(reading, device, chosen, dropped=dropped, mmproj=mmproj, importance=importance)
    return Job(checkpoint=checkpoint, reading=reading, target=device, recipe=chosen, plan=plan)
