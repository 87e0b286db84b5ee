"""Tables of positions brought to the size that a tower runs at, once, where a file keeps only that.

An ONNX graph stores the published table and resizes it as it is opened. A Core ML program keeps
what is left after its constants are folded, so there the table is resized before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mllm_export.export.graph import resizes_positions
from mllm_export.export.parts import ENCODERS, Array, Reader, as_float32
from mllm_export.export.vision_parts import encoder_prefix
from mllm_export.spec import EncoderSpec, VisionSpec


def settled(vision: VisionSpec) -> VisionSpec:
    """The same vision with every table of positions at the size it runs at."""
    return replace(vision, encoders=tuple(_settled(one) for one in vision.encoders))


def settled_reader(vision: VisionSpec, read: Reader) -> Reader:
    """Of tower weights by name, as `settled` wants them."""
    tables = {
        encoder_prefix(encoder) + name: encoder
        for encoder in vision.encoders
        for name in _tables(encoder)
    }

    def settle(name: str) -> Array:
        values = read(name)
        if name not in tables:
            return values
        encoder = tables[name]
        return resized_table(values, encoder.position_grid or encoder.grid, encoder.grid)

    return settle


def resized_table(table: Array, side: int, wanted: int) -> Array:
    """Shapes: f32[1, side^2, D] -> f32[1, wanted^2, D].

    Source: timm, layers/pos_embed.py, resample_abs_pos_embed, to the bit.
    """
    import torch
    from torch.nn.functional import interpolate

    rows = torch.from_numpy(np.array(as_float32(table)))
    grid = rows.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=True)
    made: Array = grid.permute(0, 2, 3, 1).reshape(1, wanted * wanted, -1).numpy()
    return made


def _settled(encoder: EncoderSpec) -> EncoderSpec:
    return replace(encoder, position_grid=encoder.grid) if resizes_positions(encoder) else encoder


def _tables(encoder: EncoderSpec) -> list[str]:
    """Parameters whose shape depends on the size of the stored table."""
    stored = ENCODERS[encoder.kind].parameters(encoder)
    run = ENCODERS[encoder.kind].parameters(_settled(encoder))
    return [name for name, shape in stored.items() if run[name] != shape]
