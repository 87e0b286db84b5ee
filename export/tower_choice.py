"""Which encoder a tower's config belongs to: every file in export/encoders is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.parts import ENCODERS, Encoder
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Shape

TABLE = "pos_embed"
"""The positions of the encoders that resize them, in every layout."""


def encoder_for(config: Config) -> Encoder:
    """The encoder that claims a tower's config.json (the whole file).

    Raises: UnsupportedModelError when none or several do.
    """
    claimed = [name for name in ENCODERS.names() if ENCODERS[name].claims(config)]
    if len(claimed) == 1:
        return ENCODERS[claimed[0]]
    if claimed:
        raise UnsupportedModelError(f"{config.file}: claimed by {' and '.join(claimed)}")
    model_type = config.text("model_type", "(none)")
    raise UnsupportedModelError(
        f"{config.file}: a vision tower of model_type '{model_type}' is not there yet "
        f"(known: {', '.join(ENCODERS.names())}); an encoder goes in as one file in "
        "export/encoders"
    )


def name_prefix(encoder: Encoder, first: str, prefix: str, names: Iterable[str]) -> str:
    """What stands before the encoder's parameters: `prefix`, then the layout's own.

    `first` is one of the parameters, `names` are the checkpoint's tensors. The layout is the
    first whose name for it is there, and the usual one where there are no names yet.
    """
    there = set(names)
    found = (own for own in encoder.prefixes if prefix + own + first in there)
    return prefix + next(found, encoder.prefixes[0])


def tower_shapes(
    checkpoint: Checkpoint, encoder: Encoder, from_folder: bool
) -> Mapping[str, Shape]:
    """Tensors of the checkpoint, where the encoder's layout has to be told by their names.

    Nothing is there to tell it by in a folder whose weights are yet to be written; that weights
    are missing is said when the weight map is held against the files.
    """
    if len(encoder.prefixes) == 1:
        return {}
    try:
        return checkpoint.shapes(from_folder)
    except CheckpointError:
        return {}


def with_table(encoder: EncoderSpec, table: Shape | None) -> EncoderSpec:
    """The encoder with positions of the size that is stored, `table` being their shape."""
    if table is None or encoder.position_grid == 0:
        return encoder
    side = isqrt(table[1])
    return encoder if side == encoder.grid else replace(encoder, position_grid=side)


def table_notes(encoder: EncoderSpec) -> tuple[str, ...]:
    """What a reader should know of positions of another size."""
    if encoder.position_grid in (None, 0, encoder.grid):
        return ()
    return (
        f"positions are stored for a grid of {encoder.position_grid}, the image gives "
        f"{encoder.grid}: resized as timm does (bicubic, antialiased)",
    )
