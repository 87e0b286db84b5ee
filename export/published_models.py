"""Configs of published models by short name: the shapes that full-size tests and benches use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mllm_export.checkpoint import Companion
from mllm_export.export.families.cobra import FAMILY as COBRA
from mllm_export.export.families.llava_phi import FAMILY as LLAVA_PHI
from mllm_export.export.families.mobilevlm import FAMILY as MOBILEVLM
from mllm_export.export.family import TinyFolder, TinyModel
from mllm_export.export.published_towers import CLIP_L_336

_MOBILEVLM_SIZES: dict[str, dict[str, object]] = {
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    "3B": {
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        # Left-overs of another trainer in the published 3B config; n_head is wrong.
        "n_head": 16,
        "n_query_groups": 16,
        "n_embd": 2560,
        "n_layer": 32,
        "block_size": 2048,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
}
"""Source: config.json of mtgv/MobileVLM_V2-1.7B, -3B, -7B."""


def mobilevlm(size: str, projector: str = "ldpnetv2") -> TinyModel:
    """A published MobileVLM (`ldpnet`) or MobileVLM V2 (`ldpnetv2`) size: 1.7B, 3B or 7B."""
    tiny = MOBILEVLM.tiny()
    config = {
        **tiny.config,
        **_MOBILEVLM_SIZES[size],
        "mm_hidden_size": 1024,
        "mm_projector_type": projector,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "vocab_size": 32000,
    }
    return TinyModel(
        config=config,
        tower_name="clip-vit-large-patch14-336",
        tower_config=CLIP_L_336,
        preprocessor={**tiny.preprocessor, "size": 336, "crop_size": 336},
    )


_PHI_2: dict[str, object] = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "vocab_size": 51200,
}
"""Source: microsoft/phi-2, config.json."""


def llava_phi() -> TinyModel:
    """LLaVA-Phi: Phi-2 and CLIP ViT-L/14-336, as published."""
    tiny = LLAVA_PHI.tiny()
    tower = {
        **CLIP_L_336,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "model_type": "llava_phi_clip_vision_model",
    }
    projector = {
        "hidden_size": 2560,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "model_type": "llava_phi_projector",
    }
    sides = {
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
    }
    return replace(
        tiny,
        config={
            **tiny.config,
            **_PHI_2,
            "vision_config": {"mm_projector": projector, "vision_tower": tower},
        },
        preprocessor={**tiny.preprocessor, **sides},
    )


_COBRA_FOLDERS = {
    "dino": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_large_patch14_reg4_dinov2"),
    "siglip": ("vit_so400m_patch14_siglip_384.webli", "vit_so400m_patch14_siglip_384"),
}
_MAMBA_2_8B: dict[str, object] = {"d_model": 2560, "n_layer": 64, "vocab_size": 50277}
"""Source: state-spaces/mamba-2.8b-slimpj, config.json."""


def cobra() -> TinyModel:
    """Cobra 3B: DINOv2-L with registers and SigLIP so400m at 384 px, Mamba 2.8B, as published."""
    tiny = COBRA.tiny()
    (llm,) = (one for one in tiny.folders if not one.companion.has_weights)
    towers = (
        TinyFolder(
            companion=Companion(name=name, published=folder),
            config={"architecture": architecture, "num_classes": 0},
        )
        for name, (folder, architecture) in _COBRA_FOLDERS.items()
    )
    model = {**_section(tiny.config, "model"), "vision_backbone_id": "dinosiglip-vit-so-384px"}
    return replace(
        tiny,
        config={**tiny.config, "model": model},
        folders=(*towers, replace(llm, config={**llm.config, **_MAMBA_2_8B})),
    )


def _section(config: dict[str, object], key: str) -> dict[str, object]:
    inner = config[key]
    assert isinstance(inner, dict), "a family's own small config"
    return inner


PUBLISHED: dict[str, Callable[[], TinyModel]] = {
    "mobilevlm-v2-1.7b": lambda: mobilevlm("1.7B"),
    "mobilevlm-v2-3b": lambda: mobilevlm("3B"),
    "mobilevlm-v2-7b": lambda: mobilevlm("7B"),
    "llava-phi": llava_phi,
    "cobra-3b": cobra,
}
"""By short name."""
