"""LLaVA-1.5 in float32 on the CPU, from the authors' layout or transformers'.

Source: haotian-liu/LLaVA, llava/model/builder.py and llava/conversation.py;
huggingface/transformers, models/llava/modeling_llava.py, for the names of its layout.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mllm_export.checkpoint import INSIDE, Checkpoint
from mllm_export.config import Config, read_json_object

if TYPE_CHECKING:
    from mllm_export.device_tests.reference_tower import TowerSource
    from mllm_export.device_tests.references._llava import LlavaReference

_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
"""Source: transformers, LlamaConfig."""

_LLAMA_2 = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand "
    "the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.\n<</SYS>>\n\n",
    " [/INST]",
)
"""Before and after the question. Source: llava/conversation.py, llava_llama_2."""


def llava_reference(checkpoint: Checkpoint, precision: str = "float32") -> LlavaReference:
    """The original model. Configs and tokenizer are read now, weights when they are needed.

    `precision` other than float32 names a torch dtype: for measuring the noise floor.
    """
    import torch
    from transformers import LlamaTokenizer

    from mllm_export.device_tests.reference_tower import REFERENCE_TOWERS
    from mllm_export.device_tests.references._llama import llama
    from mllm_export.device_tests.references._llava import LlavaReference, Parts

    plain = read_json_object(checkpoint.path / "config.json")
    is_nested = "text_config" in checkpoint.config
    read = partial(_read, checkpoint) if is_nested else checkpoint.read
    if is_nested:  # transformers leaves out what its LlamaConfig has for a default
        plain = {**_DEFAULTS, **checkpoint.config.section("text_config").plain()}
    text = Config(plain, "config.json")
    tower = _nested_tower(checkpoint) if is_nested else _flat_tower(checkpoint)
    folder = checkpoint.tower.path if checkpoint.tower else checkpoint.path
    named = "llama-2" in checkpoint.path.resolve().name.lower()
    return LlavaReference(
        Parts(
            read=read,
            tower=tower,
            projector="mlp2x_gelu" if is_nested else text.text("mm_projector_type"),
            widths=(REFERENCE_TOWERS[tower.kind].width(tower.config), text.positive("hidden_size")),
            decoder=llama(plain, text),
            tokenizer=LlamaTokenizer.from_pretrained(checkpoint.path, local_files_only=True),
            processor=REFERENCE_TOWERS[tower.kind].processor(folder, tower.config),
            pads=is_nested or checkpoint.config.text("image_aspect_ratio", "") == "pad",
            stop="</s>",
            dtype=getattr(torch, precision),
            around=_LLAMA_2 if named else None,
        )
    )


def _flat_tower(checkpoint: Checkpoint) -> TowerSource:
    from mllm_export.device_tests.references._flat_config import flat_tower

    # Unless the tower was trained too, the authors' loader reads it from its own folder.
    trained = checkpoint.config.flag("unfreeze_mm_vision_tower", False)
    return flat_tower(checkpoint, not trained and checkpoint.asked != INSIDE)


def _nested_tower(checkpoint: Checkpoint) -> TowerSource:
    from mllm_export.device_tests.reference_tower import TowerSource

    config: Config = checkpoint.config
    prefix = "model.vision_tower." if _is_new(checkpoint) else "vision_tower."
    full = config.text("vision_feature_select_strategy", "default") == "full"
    return TowerSource(
        kind="clip",
        config=config.section("vision_config"),
        read=lambda name: checkpoint.read(prefix + name),
        prefix=prefix,
        select_layer=config.integer("vision_feature_layer", -2),
        feature="cls_patch" if full else "patch",
    )


def _is_new(checkpoint: Checkpoint) -> bool:
    """From transformers 4.52 on everything but the head is below `model.`."""
    return any(name.startswith("model.language_model.") for name in checkpoint.names)


def _read(checkpoint: Checkpoint, name: str) -> npt.NDArray[Any]:
    """A tensor by the name that LlamaForCausalLM, or the authors' projector, has for it."""
    is_new = _is_new(checkpoint)
    if name.startswith("model.mm_projector."):
        place, kind = name.split(".")[-2:]
        linear = {"0": "linear_1", "2": "linear_2"}[place]
        own = f"multi_modal_projector.{linear}.{kind}"
        return checkpoint.read(f"model.{own}" if is_new else own)
    if not is_new:
        return checkpoint.read(f"language_model.{name}")
    if name.startswith("lm_head."):
        return checkpoint.read(name)
    return checkpoint.read(name.replace("model.", "model.language_model.", 1))


REFERENCE = llava_reference
