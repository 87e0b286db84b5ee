"""LLaVA-1.5 as transformers writes it: nested configs, and two generations of tensor names.

Source: huggingface/transformers, models/llava/configuration_llava.py and modeling_llava.py, with
its _checkpoint_conversion_mapping.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from mllm_export.config import Config
from mllm_export.errors import UnsupportedModelError
from mllm_export.weights import WeightMap

_LLAMA_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
"""What stands for a key that `text_config` leaves out; llava-hf/llava-1.5-7b-hf lists four keys.
Source: transformers, LlamaConfig."""

_FEATURES = {"default": False, "full": True}
"""vision_feature_select_strategy to whether the class token stays."""

_OLD = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_NEW = (
    ("model.vision_tower.vision_tower.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)
"""Beginning of the authors' name and of transformers', up to release 4.51 and from 4.52 on."""


def is_hf(config: Config) -> bool:
    """Transformers' layout has the authors' early model_type; its config is nested."""
    return "text_config" in config


def hf_config(config: Config) -> Config:
    """The language model's keys, with LlamaConfig's defaults for those left out."""
    section = config.section("text_config")
    return Config({**_LLAMA_DEFAULTS, **section.plain()}, section.file)


def hf_tower(config: Config) -> Config:
    """The vision tower's own object."""
    return config.section("vision_config")


def hf_select(config: Config) -> tuple[int, bool]:
    """Selected hidden state, and whether the class token stays.

    Raises: UnsupportedModelError for another strategy than transformers' two.
    """
    strategy = config.text("vision_feature_select_strategy", "default")
    if strategy not in _FEATURES:
        raise UnsupportedModelError(
            f"{config.file}: vision_feature_select_strategy '{strategy}'; known: default, full"
        )
    return config.integer("vision_feature_layer", -2), _FEATURES[strategy]


def hf_projector(config: Config) -> Config:
    """The authors' keys of the one projector that this layout has.

    Raises: UnsupportedModelError for another activation, or linear maps without biases.
    """
    activation = config.text("projector_hidden_act", "gelu")
    has_bias = config.flag("multimodal_projector_bias", True)
    if activation != "gelu" or not has_bias:
        raise UnsupportedModelError(
            f"{config.file}: a projector with projector_hidden_act '{activation}' and "
            f"multimodal_projector_bias {has_bias} is missing "
            "(known: gelu with biases); it goes in as one file in export/projectors"
        )
    # The default of CLIPVisionConfig, and of SiglipVisionConfig.
    width = hf_tower(config).positive("hidden_size", 768)
    return Config({"mm_projector_type": "mlp2x_gelu", "mm_hidden_size": width}, config.file)


def hf_weights(weights: WeightMap, names: Collection[str]) -> WeightMap:
    """The authors' weight map under transformers' names, of the generation that is there."""
    is_new = "model.language_model.embed_tokens.weight" in names
    table = _NEW if is_new else _OLD

    def renamed(name: str) -> str:
        for authors, own in table:
            if name.startswith(authors):
                return own + name.removeprefix(authors)
        return name

    return WeightMap(
        takes=tuple(replace(take, source=renamed(take.source)) for take in weights.takes),
        drops=tuple(replace(drop, pattern=renamed(drop.pattern)) for drop in weights.drops),
    )
