"""Cobra's forward pass from timm's towers, the authors' projectors and transformers' Mamba."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import MambaConfig

from mllm_export.config import Config
from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.device_tests.reference_tower import TowerSource
from mllm_export.device_tests.reference_towers.timm_vit import TimmFeatures, timm_model
from mllm_export.device_tests.references._fill import fill
from mllm_export.device_tests.references._mamba import (
    EMBEDDING,
    HEAD,
    MambaRows,
    mamba_keys,
    mamba_originals,
)
from mllm_export.device_tests.references._projectors import project
from mllm_export.device_tests.references._storage import onnx_originals
from mllm_export.errors import CheckError
from mllm_export.pixels import join_pixels, split_pixels
from mllm_export.spec import IMAGE_ID

if TYPE_CHECKING:
    from PIL import Image

    from mllm_export.quantize.inputs import ObservedLayer

PROJECTOR, LLM = "model.projector.projector.", "model.llm_backbone.llm."
"""Source: cobra/training/strategies/fsdp.py, save_checkpoint."""

_END = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Eye:
    """One of the vision towers."""

    name: str
    """Before the names of its layers in the export; empty for the only one."""
    config: Config
    """Of timm's folder."""
    prefix: str
    """Before timm's names in the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """An original, taken apart."""

    read: Reader
    eyes: tuple[Eye, ...]
    size_px: int
    projector: str
    """The published arch_specifier, without how it was trained."""
    llm: MambaConfig
    has_head: bool
    """Whether the file repeats the embedding as the output head."""
    tokenizer: Any
    """One of transformers'."""
    is_chat: bool
    """Whether the language model was tuned to Zephyr's turns."""
    dtype: torch.dtype


class _FusedMlp(nn.Sequential):
    """Source: cobra/util/nn_utils.py, FusedMLPProjector."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(
            nn.Linear(features, features * 4),
            nn.GELU(),
            nn.Linear(features * 4, width),
            nn.GELU(),
            nn.Linear(width, width),
        )


class _Mlp(nn.Sequential):
    """Source: cobra/util/nn_utils.py, MLPProjector."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))


class _Fewer(nn.Module):
    """A mean over 14 x 14 windows. Source: cobra/util/nn_utils.py, TokenDownLayer."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        side = int(rows.shape[1] ** 0.5)
        grid = rows.permute(0, 2, 1).reshape(rows.shape[0], -1, side, side)
        return functional.adaptive_avg_pool2d(grid, (14, 14)).flatten(2).transpose(1, 2)


class _Peg(nn.Module):
    """Source: cobra/util/nn_utils.py, PosInjectLayer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=True, groups=width))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        grid = rows.transpose(1, 2).reshape(rows.shape[0], -1, 14, 14)
        found: torch.Tensor = self.peg(grid) + grid
        return found.flatten(2).transpose(1, 2)


class _FusedLdp(nn.Sequential):
    """Source: cobra/util/nn_utils.py, FusedLDPProjector."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(
            nn.Linear(features, features * 4),
            nn.GELU(),
            nn.Linear(features * 4, width),
            _Fewer(),
            _Peg(width),
        )


PROJECTORS: dict[str, type[nn.Module]] = {
    "fused-gelu-mlp": _FusedMlp,
    "fused-ldpnet": _FusedLdp,
    "gelu-mlp": _Mlp,
    "linear": nn.Linear,
}
"""By the published arch_specifier, without how it was trained."""


class CobraReference:
    """The original model; see `Reference`."""

    def __init__(self, parts: Parts) -> None:
        """Weights are read when they are needed."""
        self._parts = parts
        self._tokenizer = parts.tokenizer
        head = HEAD if parts.has_head else EMBEDDING
        self._decoder = MambaRows(parts.llm, LLM, parts.read, head, parts.dtype)
        self.resident = self._decoder.resident
        self.parameters = self._decoder.parameters
        self.bos_id = int(parts.tokenizer.bos_token_id)
        self.stop_ids = (int(parts.tokenizer.eos_token_id),)
        self.stop_strings = (_END,)
        self.title = (
            "original weights in float32, timm's towers and transformers' Mamba, "
            f"{parts.projector} after the authors' code"
        )

    @cached_property
    def _towers(self) -> tuple[TimmFeatures, ...]:
        return tuple(
            TimmFeatures(self._source(eye), self._parts.size_px, eye.name, self._parts.dtype)
            for eye in self._parts.eyes
        )

    def _source(self, eye: Eye) -> TowerSource:
        read = self._parts.read
        return TowerSource(
            kind="timm_vit",
            config=eye.config,
            read=lambda name: read(eye.prefix + name),
            prefix=eye.prefix,
            select_layer=-2,
            feature="patch",
        )

    @cached_property
    def _projector(self) -> nn.Module:
        if self._parts.projector not in PROJECTORS:
            raise CheckError(f"no reference for projector '{self._parts.projector}'")
        make = PROJECTORS[self._parts.projector]
        features = sum(int(timm_model(eye.config).embed_dim) for eye in self._parts.eyes)
        width = self._parts.llm.hidden_size
        return fill(lambda: make(features, width), self._parts.read, PROJECTOR, self._parts.dtype)

    @cached_property
    def _transforms(self) -> tuple[Any, ...]:
        return tuple(_transform(eye.config, self._parts.size_px) for eye in self._parts.eyes)

    def pixels(self, image: Image.Image) -> Floats:
        """The same picture through each tower's own transform, side by side.

        Source: cobra/models/backbones/vision/dinosiglip_vit.py, DinoSigLIPImageTransform.
        """
        picture = image.convert("RGB")
        return join_pixels([one(picture)[None].numpy() for one in self._transforms])

    def embed(self, pixels: Floats) -> Floats:
        """Shapes: f32[B, 3 for each tower, S, S] -> f32[B, T, D]."""
        side = self._parts.size_px
        shapes = {str(at): (1, 3, side, side) for at in range(len(self._towers))}
        views = split_pixels(pixels, shapes).values()
        rows = [tower.features(view) for tower, view in zip(self._towers, views, strict=True)]
        return np.asarray(project(self._projector, torch.cat(rows, dim=2)).numpy())

    def prompt_ids(self, question: str, images: int = 1) -> list[int]:
        """Image embeddings stand before the embeddings of the whole text.

        Source: cobra/models/vlms/cobra.py, forward; models/backbones/llm/prompting.
        """
        asked = question.replace("<image>", "").strip()
        chat = f"<|user|>\n{asked}{_END}\n<|assistant|>\n"
        text = chat if self._parts.is_chat else f"In: {asked}\nOut: "
        return [*[IMAGE_ID] * images, *self._tokenizer(text).input_ids]

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

    def holding(self, weights: Reader) -> CobraReference:
        """The same original with other weights in towers and projector, by published name."""
        return CobraReference(replace(self._parts, read=weights))

    def at(self, precision: str) -> CobraReference:
        """The same original in another torch dtype."""
        return CobraReference(replace(self._parts, dtype=getattr(torch, precision)))

    def decoder_originals(self) -> dict[str, Original]:
        """Every tensor of the decoder's file, by name in GGUF."""
        return mamba_originals(self._parts.llm, LLM, self._parts.read)

    def decoder_keys(self) -> tuple[OriginalKey, ...]:
        """Metadata that the decoder's file must hold."""
        return mamba_keys(self._parts.llm, self._tokenizer)

    def tower_originals(self) -> dict[str, Original]:
        """Every tensor of the tower's file, by name in ONNX."""
        found: dict[str, Original] = {}
        for eye, tower in zip(self._parts.eyes, self._towers, strict=True):
            source = self._source(eye)
            for name, module in tower.modules().items():
                stored = f"tower.{eye.name}{name}"
                found |= onnx_originals(module, name, stored, source.read, eye.prefix + name)
            at = f"tower.{eye.name}pos_embed"
            found[at] = replace(found[at], instead=tower.resized(found[at]))
        return found | onnx_originals(
            self._projector, PROJECTOR, "projector.", self._parts.read, PROJECTOR
        )


def _transform(config: Config, size_px: int) -> Any:
    """Timm's own transform, its resize replaced by one to exactly this size ('resize-naive')."""
    import timm
    from torchvision.transforms import Compose, Resize

    name = config.text("architecture").split(".")[0]
    data = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    data["input_size"] = (3, size_px, size_px)
    whole = timm.data.create_transform(**data, is_training=False)
    resize = whole.transforms[0]
    if not isinstance(resize, Resize):
        raise CheckError(f"timm's transform of {name} begins with {type(resize).__name__}")
    exact = Resize((size_px, size_px), interpolation=resize.interpolation)
    return Compose([exact, *whole.transforms[1:]])
