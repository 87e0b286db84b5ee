"""What LLaVA's descendants share: a tower, a projector and a decoder in a row, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.device_tests.reference_tower import REFERENCE_TOWERS, OriginalTower, TowerSource
from mllm_export.device_tests.references._decoder import Architecture, DecoderRows
from mllm_export.device_tests.references._fill import fill
from mllm_export.device_tests.references._projectors import PROJECTORS, project
from mllm_export.device_tests.references._prompts import image_token_ids, prompt_text
from mllm_export.device_tests.references._storage import onnx_originals
from mllm_export.errors import CheckError

if TYPE_CHECKING:
    from PIL import Image

    from mllm_export.quantize.inputs import ObservedLayer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """An original, taken apart."""

    read: Reader
    """Published names of the checkpoint."""
    tower: TowerSource
    projector: str
    """The published mm_projector_type."""
    projector_names: tuple[tuple[str, str], ...] = ()
    """Beginning of a name in the checkpoint for the beginning of the authors' name."""
    widths: tuple[int, int]
    """Of the features and of the embeddings."""
    decoder: Architecture
    tokenizer: Any
    """One of transformers'."""
    processor: Any
    """Transformers' image processor."""
    pads: bool
    """Whether a picture is padded to a square before."""
    stop: str
    dtype: torch.dtype
    around: tuple[str, str] | None = None
    """What stands before and after the question; None for Vicuna's template."""


class LlavaReference:
    """The original model; see `Reference`."""

    def __init__(self, parts: Parts) -> None:
        """Weights are read when they are needed."""
        self._parts = parts
        self._tokenizer = parts.tokenizer
        self._decoder = DecoderRows(parts.decoder, parts.read, parts.dtype)
        self.resident = self._decoder.resident
        self.parameters = self._decoder.parameters
        self.bos_id = int(parts.tokenizer.bos_token_id)
        self.stop_ids = (int(parts.tokenizer.eos_token_id),)
        self.stop_strings = (parts.stop,)
        self.title = (
            f"original weights in float32, {REFERENCE_TOWERS[parts.tower.kind].title} and "
            f"{parts.decoder.title} layers, {parts.projector} after the authors' code"
        )

    @cached_property
    def _tower(self) -> OriginalTower:
        source = self._parts.tower
        return REFERENCE_TOWERS[source.kind].open(source, self._parts.dtype)

    @cached_property
    def _projector_class(self) -> Any:  # one of the classes in _projectors
        if self._parts.projector not in PROJECTORS:
            raise CheckError(f"no reference for projector '{self._parts.projector}'")
        return PROJECTORS[self._parts.projector]

    @cached_property
    def _projector(self) -> nn.Module:
        make = self._projector_class
        return fill(
            lambda: make(*self._parts.widths), self._read_projector, make.prefix, self._parts.dtype
        )

    def _published(self, name: str) -> str:
        for ours, theirs in self._parts.projector_names:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def _read_projector(self, name: str) -> Any:
        return self._parts.read(self._published(name))

    def pixels(self, image: Image.Image) -> Floats:
        """RGB, padded to a square of the mean colour if the config says so, then processed.

        Source: LLaVA, llava/mm_utils.py, process_images and expand2square.
        """
        picture = image.convert("RGB")
        processor = self._parts.processor
        if self._parts.pads:
            mean = tuple(int(value * 255) for value in processor.image_mean)
            picture = _expand2square(picture, mean)
        made = processor(picture, return_tensors="np")["pixel_values"]
        return np.asarray(made, np.float32)

    def embed(self, pixels: Floats) -> Floats:
        """Shapes: f32[B, 3, S, S] -> f32[B, T, D]."""
        return np.asarray(project(self._projector, self._tower.features(pixels)).numpy())

    def prompt_ids(self, question: str, images: int = 1) -> list[int]:
        """The whole prompt of one user turn."""
        return image_token_ids(self._tokenizer, prompt_text(question, images, self._parts.around))

    def text_ids(self, text: str) -> list[int]:
        """Plain text after something else: no BOS."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of answer ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def logits(self, sequences: Sequence[Forced], weights: Reader | None = None) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence."""
        return self._decoder.logits(sequences, weights)

    def walk(self, sequences: Sequence[Forced], diagonal_only: bool) -> Iterator[ObservedLayer]:
        """The decoder over calibration sequences, a layer at a time."""
        return self._decoder.walk(sequences, diagonal_only)

    def holding(self, weights: Reader) -> LlavaReference:
        """The same original with other weights in tower and projector, by published name."""
        tower = self._parts.tower
        held = replace(tower, read=lambda name: weights(tower.prefix + name))
        # `weights` go by the names that `tower_originals` gives.
        return LlavaReference(replace(self._parts, tower=held, read=weights, projector_names=()))

    def at(self, precision: str) -> LlavaReference:
        """The same original in another torch dtype."""
        return LlavaReference(replace(self._parts, dtype=getattr(torch, precision)))

    def decoder_originals(self) -> dict[str, Original]:
        """Every tensor of the decoder's file, by name in GGUF."""
        return self._parts.decoder.originals(self._parts.read)

    def decoder_keys(self) -> tuple[OriginalKey, ...]:
        """Metadata that the decoder's file must hold."""
        return self._parts.decoder.keys(self._tokenizer)

    def tower_originals(self) -> dict[str, Original]:
        """Every tensor of the tower's file, by name in ONNX."""
        source = self._parts.tower
        found: dict[str, Original] = {}
        for name, module in self._tower.modules().items():
            found |= onnx_originals(
                module, name, f"tower.{name}", source.read, source.prefix + name
            )
        if (at := "tower.pos_embed") in found:
            found[at] = replace(found[at], instead=self._tower.resized(found[at]))
        before = self._projector_class.prefix
        return found | onnx_originals(
            self._projector, before, "projector.", self._read_projector, before
        )


def _expand2square(picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    from PIL import Image

    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    square = Image.new(picture.mode, (side, side), background)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square
