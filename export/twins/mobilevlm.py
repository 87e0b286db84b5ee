"""MobileVLM V2: CLIP, LDPv2 and a LLaMA decoder, as its authors saved theirs."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerBase

from mllm_export.export.reference.checkpoint_files import (
    clip_vision_keys,
    new_folder,
    vision_sizes,
    write_json,
)
from mllm_export.export.reference.model import MEAN, STD
from mllm_export.export.reference.spec import DecoderSizes, ReferenceSpec
from mllm_export.export.reference.tokenizer import train_tokenizer
from mllm_export.export.reference.twin import Parts, join_parts, split_parts

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."


class LDPv2(nn.Module):
    """MobileVLM V2's projector; parameter names are those of its checkpoints.

    Shapes: f32[B, 576, in_width] -> f32[B, 144, width].
    Source: Meituan-AutoML/MobileVLM, mobilevlm/model/vision_projector.py.
    """

    class _Mlp(nn.Module):
        def __init__(self, in_width: int, width: int) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))

    class _Peg(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.peg = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width))

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.mlp = self._Mlp(in_width, width)
        self.peg = self._Peg(width)

    def forward(self, features: Tensor) -> Tensor:
        """Project, average 2 by 2, add the depthwise convolution."""
        rows: Tensor = self.mlp.mlp(features)
        side = round(rows.shape[1] ** 0.5)
        grid: Tensor = rows.transpose(1, 2).reshape(rows.shape[0], -1, side, side)
        grid = nn.functional.adaptive_avg_pool2d(grid, (12, 12))
        grid = self.peg.peg(grid) + grid
        return grid.flatten(2).transpose(1, 2)


def llama_config(sizes: DecoderSizes) -> LlamaConfig:
    """The decoder's configuration in transformers' words."""
    return LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        vocab_size=sizes.vocab,
        max_position_embeddings=sizes.context_tokens,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


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
        "vision_config": clip_vision_keys(spec.vision),
    }
    return {"config.json": config, "preprocessor_config.json": processor}


class MobileVlmV2:
    """The first twin: it also ships the question sets."""

    title = "MobileVLM V2"
    decoder_title = "LLaMA"
    layout = (
        "All weights are stored in bfloat16, the tower twice: in the checkpoint and in its own "
        "folder."
    )
    model_type = "mobilevlm"
    eos = "</s>"
    writes_questions = True
    spec = ReferenceSpec()

    def new_projector(self, spec: ReferenceSpec) -> nn.Module:
        """LDPv2, for a grid of 24 by 24."""
        return LDPv2(spec.vision.width, spec.decoder.width)

    def new_decoder(self, sizes: DecoderSizes) -> LlamaForCausalLM:
        """Transformers' own LLaMA."""
        return LlamaForCausalLM(llama_config(sizes))

    def write_tokenizer(self, folder: Path, vocab: int) -> None:
        """The files of LLaMA's SentencePiece tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer(folder / "tokenizer.model", vocab)
        write_json(folder, _tokenizer_configs())

    def open_tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """The slow tokenizer, which is what the authors' loader uses."""
        return LlamaTokenizer.from_pretrained(folder)

    def write(self, parts: Parts, spec: ReferenceSpec, out: Path) -> None:
        """Write `checkpoint/` and the tower's own folder beside it."""
        generation = {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            "transformers_version": transformers.__version__,
        }  # fmt: skip
        with new_folder(out / "checkpoint") as folder:
            configs = {"config.json": checkpoint_config(spec), "generation_config.json": generation}
            write_json(folder, configs)
            self.write_tokenizer(folder, spec.decoder.vocab)
            torch.save(join_parts(parts, TOWER, PROJECTOR), folder / "pytorch_model.bin")
        with new_folder(out / spec.tower_name.rpartition("/")[2]) as folder:
            write_json(folder, _tower_configs(spec))
            tensors = {name: value.bfloat16().contiguous() for name, value in parts.tower.items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def read_spec(self, folder: Path) -> ReferenceSpec:
        """The sizes, from the two config.json files."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tower = self.processor_folder(folder) / "config.json"
        vision = json.loads(tower.read_text(encoding="utf-8"))["vision_config"]
        return ReferenceSpec(
            tower_name=config["mm_vision_tower"],
            projector=config["mm_projector_type"],
            vision=vision_sizes(vision, config["mm_vision_select_layer"]),
            decoder=DecoderSizes(
                width=config["hidden_size"],
                heads=config["num_attention_heads"],
                layers=config["num_hidden_layers"],
                mlp_width=config["intermediate_size"],
                vocab=config["vocab_size"],
                context_tokens=config["max_position_embeddings"],
            ),
        )

    def read_parts(self, folder: Path) -> Parts:
        """The one file of the checkpoint; the tower's own folder holds a copy."""
        state: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
        return split_parts(state, TOWER, PROJECTOR)

    def processor_folder(self, folder: Path) -> Path:
        """The tower's own, beside the checkpoint."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tower: str = config["mm_vision_tower"]
        return folder.parent / tower.rpartition("/")[2]


TWIN = MobileVlmV2()
