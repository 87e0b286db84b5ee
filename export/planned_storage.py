"""How a plan stores every tensor of tower and decoder, for the bundle and for the checks."""

from __future__ import annotations

from mllm_export.export.tower_plan import planned_schemes
from mllm_export.plan import Plan
from mllm_export.planned import PlannedScheme, remember
from mllm_export.quantize.tower_scheme import BLOCKS, QUANTIZED
from mllm_export.weights import Shape


def planned_storage(plan: Plan) -> dict[str, tuple[str, Shape]]:
    """Scheme and shape in the file of every tensor of tower and decoder, by its float name."""
    tower, decoder = plan.artifact("tower"), plan.artifact("decoder")
    rows = decoder.tensors if decoder else ()
    found = {row.name: (row.scheme, row.shape) for row in rows}
    if tower is not None:
        shapes = {row.name: row.shape for row in tower.tensors}
        for name, scheme in planned_schemes(tower.tensors).items():
            endings = ("", QUANTIZED, BLOCKS)
            shape = next(shapes[name + end] for end in endings if name + end in shapes)
            found[name] = (scheme, shape)
    return found


def remembered(plan: Plan) -> tuple[PlannedScheme, ...]:
    """What bundle.json keeps of it."""
    return remember({name: scheme for name, (scheme, _) in planned_storage(plan).items()})
