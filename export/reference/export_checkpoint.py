"""Write the trained model as the authors of MobileVLM V2 saved theirs."""

import json
import os
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from mllm_export.export.reference.model import MEAN, STD, ReferenceModel
from mllm_export.export.reference.spec import ReferenceSpec
from mllm_export.export.reference.tokenizer import train_tokenizer

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."


def checkpoint_config(spec: ReferenceSpec) -> dict[str, object]:
    """The keys of MobileVLM V2's published `config.json`."""
    sizes = spec.decoder
    return {
        "architectures": ["MobileLlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp_width,
        "max_position_embeddings": sizes.context_tokens,
        "max_sequence_length": sizes.context_tokens,
        "mm_hidden_size": spec.vision.width,
        "mm_projector_lr": None,
        "mm_projector_type": spec.projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": spec.vision.select_layer,
        "mm_vision_tower": spec.tower_name,
        "model_type": "mobilevlm",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": transformers.__version__,
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vision_tower_type": "clip",
        "vocab_size": sizes.vocab,
    }


def _tokenizer_configs() -> dict[str, dict[str, object]]:
    def token(text: str) -> dict[str, object]:
        return {
            "content": text, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False,
        }  # fmt: skip

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings: dict[str, object] = {
        "add_bos_token": True,
        "add_eos_token": False,
        **{name: {"__type": "AddedToken", **token(text)} for name, text in names.items()},
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    special: dict[str, object] = {name: token(text) for name, text in names.items()}
    return {
        "tokenizer_config.json": settings,
        "special_tokens_map.json": {**special, "pad_token": "<unk>"},
    }


def _tower_configs(spec: ReferenceSpec) -> dict[str, dict[str, object]]:
    vision: dict[str, object] = {
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": spec.vision.width,
        "image_size": spec.vision.image_px,
        "intermediate_size": spec.vision.mlp_width,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": spec.vision.heads,
        "num_channels": 3,
        "num_hidden_layers": spec.vision.layers,
        "patch_size": spec.vision.patch_px,
        "projection_dim": spec.vision.width,
    }
    processor = {
        "crop_size": spec.vision.image_px,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "size": spec.vision.image_px,
    }
    config: dict[str, object] = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip",
        "projection_dim": spec.vision.width,
        "torch_dtype": "bfloat16",
        "transformers_version": transformers.__version__,
        "vision_config": vision,
    }
    return {"config.json": config, "preprocessor_config.json": processor}


def state_dict(model: ReferenceModel) -> dict[str, Tensor]:
    """The checkpoint's tensors by their published names, in bfloat16."""
    named = dict(model.decoder.state_dict())
    named |= {TOWER + name: value for name, value in _tower_state(model).items()}
    named |= {PROJECTOR + name: value for name, value in model.projector.state_dict().items()}
    return {name: value.detach().bfloat16().contiguous() for name, value in named.items()}


def _tower_state(model: ReferenceModel) -> dict[str, Tensor]:
    state = model.tower.state_dict()
    return {name: value for name, value in state.items() if "position_ids" not in name}


def _write_json(folder: Path, files: dict[str, dict[str, object]]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _replace(part: Path, folder: Path) -> None:
    """Move a whole new folder into the place of the old one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def _new_part(folder: Path) -> Path:
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def write_checkpoint(model: ReferenceModel, spec: ReferenceSpec, out: Path) -> None:
    """Write `checkpoint/` and the tower's own folder beside it."""
    folder, tower = out / "checkpoint", out / spec.tower_name.rpartition("/")[2]
    part = _new_part(folder)
    generation = {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "transformers_version": transformers.__version__,
    }  # fmt: skip
    _write_json(
        part, {"config.json": checkpoint_config(spec), "generation_config.json": generation}
    )
    _write_json(part, _tokenizer_configs())
    train_tokenizer(part / "tokenizer.model", spec.decoder.vocab)
    torch.save(state_dict(model), part / "pytorch_model.bin")
    _replace(part, folder)
    part = _new_part(tower)
    _write_json(part, _tower_configs(spec))
    tensors = {name: value.bfloat16().contiguous() for name, value in _tower_state(model).items()}
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    _replace(part, tower)
