"""Every size of ViTamin at its published shapes, exported once with random weights (slow).

`pytest -s -m slow tests/export/encoders/test_vitamin_sizes.py` prints the table's rows.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from mllm_export.config import Config
from mllm_export.export.encoders.vitamin import ENCODER
from mllm_export.export.formats.onnx import write_graph
from mllm_export.export.graph import Graph

NAMES = (
    "vitamin_small_224", "vitamin_base_224", "vitamin_large_336", "vitamin_large2_384",
    "vitamin_xlarge_384",
)  # fmt: skip


def features_graph(spec):
    side = spec.image.size_px
    return Graph(
        name="features",
        inputs={"pixel_values": (1, 3, side, side)},
        images={"pixel_values": spec.image},
        outputs={"features": (spec.tokens_out, spec.width)},
        parts=(("", ENCODER.parameters(spec)),),
        apply=lambda weights, given: (ENCODER.apply(spec, weights, given[0])[0],),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_published_size_exports_and_equals_timms(name, tmp_path, cosine):
    config = Config({"architecture": name}, "config.json")
    spec = ENCODER.read_spec(config, ENCODER.image(config, "pad"), -2, False)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    if model.pos_embed is not None:
        torch.nn.init.normal_(model.pos_embed, std=0.5)
    weights = model.state_dict()
    path = tmp_path / "features.onnx"
    start = time.monotonic()
    write_graph(path, features_graph(spec), (lambda n: weights[n].numpy(),))
    seconds = time.monotonic() - start
    side = spec.image.size_px
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    with torch.inference_mode():
        (theirs,) = model.forward_intermediates(
            torch.from_numpy(pixels), indices=[spec.run_layers - 1], norm=False,
            output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
    expected = theirs[0].numpy().copy()
    del model
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {"pixel_values": pixels})
    found = cosine(np.asarray(ours), expected)
    size_mib = path.stat().st_size / 2**20
    print(  # noqa: T201 - the table
        f"\n| {name} | {spec.tokens_out} x {spec.width} | {seconds:.1f} | {size_mib:.1f} |"
          f" {1 - found:.1e} |")  # fmt: skip
    assert found > 0.99999
