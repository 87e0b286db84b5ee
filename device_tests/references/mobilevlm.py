"""MobileVLM and MobileVLM V2 as the authors run them, in float32 on the CPU.

Tower and decoder are transformers' own layers, tokenizer and image processor are its slow ones;
the projectors stand in `_projectors`. Reads config.json by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.checkpoint import INSIDE, TOWER_PREFIX, Checkpoint
from mllm_export.config import Config, read_json_object
from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.errors import CheckError

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

_TOWER_INSIDE = "model.vision_tower.vision_tower."

_CLIP_L_336: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""Source: openai/clip-vit-large-patch14-336, config.json, vision_config."""


class MobileVlmReference:
    """The original model; see `Reference`."""

    def __init__(self, checkpoint: Checkpoint, precision: str = "float32") -> None:
        """Configs and tokenizer are read now, weights when they are needed.

        `precision` other than float32 names a torch dtype: for measuring the noise floor.
        """
        import torch

        from mllm_export.device_tests.references._conversation import STOP, load_tokenizer
        from mllm_export.device_tests.references._llama import LlamaRows

        self._checkpoint = checkpoint
        self._plain = read_json_object(checkpoint.path / "config.json")
        self._config = checkpoint.config
        self._tokenizer = load_tokenizer(checkpoint.path)
        self._dtype: torch.dtype = getattr(torch, precision)
        self._decoder = LlamaRows(self._plain, self._config, checkpoint.read, self._dtype)
        self._kind = self._config.text("mm_projector_type")
        self.resident = self._decoder.resident
        self.parameters = self._decoder.parameters
        self.bos_id = int(self._tokenizer.bos_token_id)
        self.stop_ids = (int(self._tokenizer.eos_token_id),)
        self.stop_strings = (STOP,)
        self.title = (
            "original weights in float32, transformers' CLIPVisionModel and LlamaForCausalLM "
            f"layers, {self._kind} after the authors' code"
        )

    # The authors' loader puts the tower's own folder over the checkpoint's copy unless the
    # projector's type says V2. Source: mobilevlm/model/mobilevlm.py, load_pretrained_model.
    @cached_property
    def _tower_outside(self) -> bool:
        asked_inside = self._checkpoint.asked == INSIDE
        return "v2" not in self._kind and not asked_inside

    @cached_property
    def _tower_config(self) -> Config:
        folder = self._checkpoint.tower
        if folder is not None:
            config = folder.config
            return config.section("vision_config") if "vision_config" in config else config
        name = self._config.text("mm_vision_tower")
        if not name.endswith("clip-vit-large-patch14-336"):
            self._checkpoint.require_tower()
        return Config(_CLIP_L_336, f"{name} (published config)")

    def _read_tower(self, name: str) -> npt.NDArray[Any]:
        prefix = TOWER_PREFIX if self._tower_outside else _TOWER_INSIDE
        return self._checkpoint.read(prefix + name)

    @cached_property
    def _tower(self) -> Any:  # torch's classes are not imported with this module
        from mllm_export.device_tests.references._clip import ClipFeatures, clip_config

        feature = self._config.text("mm_vision_select_feature", "patch")
        return ClipFeatures(
            clip_config(self._tower_config),
            self._read_tower,
            self._config.integer("mm_vision_select_layer", -2),
            keep_cls=feature == "cls_patch",
            dtype=self._dtype,
        )

    @cached_property
    def _projector_class(self) -> Any:  # one of the classes in _projectors
        from mllm_export.device_tests.references._projectors import PROJECTORS

        if self._kind not in PROJECTORS:
            raise CheckError(f"no reference for projector '{self._kind}'")
        return PROJECTORS[self._kind]

    @cached_property
    def _projector(self) -> nn.Module:
        from mllm_export.device_tests.references._fill import fill

        make = self._projector_class
        in_width = self._config.positive("mm_hidden_size")
        width = self._config.positive("hidden_size")
        read = self._checkpoint.read
        return fill(lambda: make(in_width, width), read, make.prefix, self._dtype)

    @cached_property
    def _processor(self) -> Any:  # transformers has no type for its image processors
        from transformers import CLIPImageProcessor

        folder = self._checkpoint.tower
        if folder is not None and (folder.path / "preprocessor_config.json").is_file():
            return CLIPImageProcessor.from_pretrained(folder.path, local_files_only=True)
        side = self._tower_config.positive("image_size")
        return CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def pixels(self, image: Image.Image) -> Floats:
        """RGB, padded to a square of the mean colour if the config says so, then processed.

        Source: LLaVA, llava/mm_utils.py, process_images and expand2square.
        """
        picture = image.convert("RGB")
        if self._config.text("image_aspect_ratio", "") == "pad":
            mean = tuple(int(value * 255) for value in self._processor.image_mean)
            picture = _expand2square(picture, mean)
        made = self._processor(picture, return_tensors="np")["pixel_values"]
        return np.asarray(made, np.float32)

    def embed(self, pixels: Floats) -> Floats:
        """Shapes: f32[B, 3, S, S] -> f32[B, T, D]."""
        from mllm_export.device_tests.references._projectors import project

        return np.asarray(project(self._projector, self._tower.features(pixels)).numpy())

    def prompt_ids(self, question: str, images: int = 1) -> list[int]:
        """The whole prompt of one user turn."""
        from mllm_export.device_tests.references._conversation import image_token_ids, prompt_text

        return image_token_ids(self._tokenizer, prompt_text(question, images))

    def text_ids(self, text: str) -> list[int]:
        """Plain text after something else: no BOS."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of answer ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def logits(self, sequences: Sequence[Forced], weights: Reader | None = None) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence."""
        return self._decoder.logits(sequences, weights)

    def decoder_originals(self) -> dict[str, Original]:
        """Every tensor of the decoder's file, by name in GGUF."""
        from mllm_export.device_tests.references._storage import gguf_originals

        return gguf_originals(self._decoder.config, self._checkpoint.read)

    def decoder_keys(self) -> tuple[OriginalKey, ...]:
        """Metadata that the decoder's file must hold."""
        from mllm_export.device_tests.references._storage import gguf_keys

        return gguf_keys(self._decoder.config, self._tokenizer)

    def tower_originals(self) -> dict[str, Original]:
        """Every tensor of the tower's file, by name in ONNX."""
        from mllm_export.device_tests.references._storage import onnx_originals

        prefix = TOWER_PREFIX if self._tower_outside else _TOWER_INSIDE
        found: dict[str, Original] = {}
        for name, module in self._tower.modules().items():
            found |= onnx_originals(module, name, f"tower.{name}", self._read_tower, prefix + name)
        before = self._projector_class.prefix
        return found | onnx_originals(
            self._projector, before, "projector.", self._checkpoint.read, before
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


REFERENCE = MobileVlmReference
