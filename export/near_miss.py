"""What of a checkpoint that no family claims is there already, and what would have to be added."""

from __future__ import annotations

import re

from mllm_export.config import Config
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.parts import DECODERS, ENCODERS, PROJECTORS
from mllm_export.export.published_towers import published_tower
from mllm_export.export.tower_choice import encoder_for

_PREFIXES = ("llava", "mipha", "mobilevlm", "bunny", "tiny", "imp")
"""Beginnings of a model_type that stand for the family, not for its language model."""


def near_miss(config: Config) -> str:
    """One sentence: each part as there or missing, and where the missing ones go."""
    told = [*_tower(config), *_projector(config), *_decoder(config)]
    model_type = config.text("model_type", "(none)")
    family = f"the family of model_type '{model_type}' is missing (one file in export/families)"
    return "; ".join([family, *told])


def _tower(config: Config) -> list[str]:
    name = config.text("mm_vision_tower", "")
    section = _section(config, "vision_config")
    own = section or (published_tower(name) if name else None)
    if own is None:
        return [f"its vision tower '{name}' is told by that folder's config"] if name else []
    word = own.text("model_type", name or "(unnamed)")
    try:
        encoder_for(own)
    except UnsupportedModelError:
        known = ", ".join(ENCODERS.names())
        return [f"vision tower '{word}' is missing (known: {known}; one file in export/encoders)"]
    return [f"vision tower '{word}' is there"]


def _projector(config: Config) -> list[str]:
    published = config.text("mm_projector_type", "")
    if not published:
        return []
    # MobileVLM writes ldpnet for LDP, ldpnetv2 for LDPv2.
    if published.replace("net", "") in PROJECTORS.names():
        return [f"projector '{published}' is there"]
    known = ", ".join(PROJECTORS.names())
    return [f"projector '{published}' is missing (known: {known}; one file in export/projectors)"]


def _decoder(config: Config) -> list[str]:
    word = _decoder_word(config)
    if not word:
        return []
    if word in DECODERS.names():
        return [f"decoder '{word}' is there"]
    known = ", ".join(DECODERS.names())
    return [f"decoder '{word}' is missing (known: {known}; one file in export/decoders)"]


def _decoder_word(config: Config) -> str:
    """The language model's own model_type: nested, or what is left of the whole model's."""
    text = _section(config, "text_config")
    if text is not None:
        return text.text("model_type", "")
    if "hidden_size" not in config:
        return ""
    words = re.split(r"[-_]", config.text("model_type", ""))
    left = [word for word in words if word not in _PREFIXES]
    return left[-1] if left else ""


def _section(config: Config, key: str) -> Config | None:
    """A nested object, if the key holds one."""
    return config.section(key) if isinstance(config.plain().get(key), dict) else None
