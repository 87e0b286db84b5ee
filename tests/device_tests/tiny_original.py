"""A tiny MobileVLM as the authors' libraries would save it: made of transformers' own modules."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mllm_export.device_tests.references._projectors import PROJECTORS
from mllm_export.export.random_tokenizer import write_tokenizer

TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 96, "patch_size": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
DECODER = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def loud(module: nn.Module, seed: int) -> nn.Module:
    """Weights at a scale where faults show, already rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_gain = name.endswith("weight") and "class" not in name
                drawn = 1 + 0.25 * drawn if is_gain else 0.2 * drawn
            elif "embed" in name:
                drawn = 0.5 * drawn
            else:
                drawn = drawn * 1.4 / parameter[0].numel() ** 0.5
            parameter.copy_(drawn.bfloat16().float())
    return module.eval()


def write_original(
    folder: Path, projector: str = "ldpnetv2", seed: int = 1
) -> dict[str, nn.Module]:
    """Write checkpoint `folder` and its tower's folder; returns the whole modules."""
    tower = loud(CLIPVisionModel(CLIPVisionConfig(**TOWER)), seed)
    decoder = loud(LlamaForCausalLM(LlamaConfig(**DECODER)), seed + 1)
    middle = loud(PROJECTORS[projector](32, 64), seed + 2)
    state = {**decoder.state_dict()}
    inside = "model.vision_tower.vision_tower."
    state |= {inside + n: v for n, v in tower.state_dict().items() if "position_ids" not in n}
    state |= {PROJECTORS[projector].prefix + n: v for n, v in middle.state_dict().items()}
    folder.mkdir(parents=True)
    torch.save(
        {n: v.bfloat16().contiguous() for n, v in state.items()}, folder / "pytorch_model.bin"
    )
    config = {
        **DECODER, "model_type": "mobilevlm", "architectures": ["MobileLlamaForCausalLM"],
        "mm_projector_type": projector, "mm_hidden_size": 32, "mm_vision_tower": "x/clip-tiny",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad", "vision_tower_type": "clip", "hidden_act": "silu",
        "mm_use_im_start_end": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_scaling": None, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 512)
    _write_tower(folder.parent / "clip-tiny", tower)
    return {"tower": tower, "projector": middle, "decoder": decoder}


def _write_tower(folder: Path, tower: nn.Module) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TOWER, "model_type": "clip_vision_model"}))
    processor = {
        "crop_size": 96, "size": 96, "do_center_crop": True, "do_normalize": True,
        "do_resize": True, "resample": 3, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    state = {n: v.contiguous() for n, v in tower.state_dict().items() if "position_ids" not in n}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
