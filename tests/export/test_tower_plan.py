"""The tower's plan needs neither weights nor the libraries that write the file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.stored import is_linear, stored_shape, to_published, to_stored
from mllm_export.export.tower_plan import float_bytes, plan_tower_tensors
from mllm_export.spec import VisionSpec

SCRIPT = """
import sys
from dataclasses import replace
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.tower_plan import plan_tower_tensors
from mllm_export.spec import VisionSpec
encoder = ENCODERS["clip_vit"].tiny()
for kind in PROJECTORS.names():
    spec = PROJECTORS[kind].spec(encoder.width, 96, encoder.tokens_out)
    tower = dict.fromkeys(ENCODERS["clip_vit"].parameters(encoder), "x")
    heads = dict.fromkeys(PROJECTORS[kind].parameters(spec), "x")
    vision = VisionSpec(encoders=(encoder,), projector=spec)
    assert plan_tower_tensors(vision, tower, heads, "w8a8")
loaded = {"torch", "onnx", "onnxruntime", "optimum", "transformers"} & set(sys.modules)
raise SystemExit(f"loaded {sorted(loaded)}" if loaded else 0)
"""


def test_planning_loads_no_engine():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


@pytest.mark.parametrize(
    ("name", "shape", "stored"),
    [
        ("mlp.fc1.weight", (8, 4), (4, 8)),
        ("weight", (8, 4), (4, 8)),
        ("mb_block.1.block.2.0.weight", (8, 8, 1, 1), (8, 8)),
        ("mb_block.1.block.1.fc1.weight", (2, 8, 1, 1), (8, 2)),
        ("peg.peg.0.weight", (8, 1, 3, 3), (8, 1, 3, 3)),
        ("vision_model.embeddings.position_embedding.weight", (577, 8), (577, 8)),
        ("vision_model.embeddings.patch_embedding.weight", (8, 3, 1, 1), (8, 3, 1, 1)),
        ("mlp.fc1.bias", (8,), (8,)),
    ],
)
def test_linear_maps_alone_are_turned_and_can_be_turned_back(name, shape, stored):
    import numpy as np

    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    held = to_stored(name, values)
    assert stored_shape(name, shape) == held.shape == stored
    assert is_linear(name, shape) == (stored != shape)
    np.testing.assert_array_equal(to_published(name, shape, held), values)


def test_the_published_1_7b_tower_has_the_known_sizes():
    tiny = ENCODERS["clip_vit"].tiny()

    image = replace(tiny.image, size_px=336)
    changes = {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096, "patch_px": 14}
    encoder = replace(tiny, image=image, **changes)
    projector = PROJECTORS["ldpv2"].spec(1024, 2048, 576)
    tower = {n: n for n in ENCODERS["clip_vit"].parameters(encoder)}
    heads = {n: n for n in PROJECTORS["ldpv2"].parameters(projector)}
    vision = VisionSpec(encoders=(encoder,), projector=projector)
    sizes = {
        scheme: sum(row.size_bytes for row in plan_tower_tensors(vision, tower, heads, scheme))
        for scheme in ("f32", "w8a8")
    }
    assert sizes["f32"] == 4 * (290_909_184 + 6_316_032)
    # A byte for every linear weight, five for every column, the rest in float32.
    assert 0.25 < sizes["w8a8"] / sizes["f32"] < 0.26


def test_a_block_that_must_be_filled_up_never_makes_the_float_size_too_small():
    encoder = replace(ENCODERS["clip_vit"].tiny(), width=72)
    projector = PROJECTORS["linear"].spec(encoder.width, 96, encoder.tokens_out)
    tower = dict.fromkeys(ENCODERS["clip_vit"].parameters(encoder), "x")
    heads = dict.fromkeys(PROJECTORS["linear"].parameters(projector), "x")
    vision = VisionSpec(encoders=(encoder,), projector=projector)
    blocks, plain = (
        plan_tower_tensors(vision, tower, heads, scheme) for scheme in ("w4g32", "f32")
    )
    assert any("filled up" in row.note for row in blocks)
    whole = sum(row.size_bytes for row in plain)
    assert whole == float_bytes(plain) < float_bytes(blocks) < 1.5 * whole
