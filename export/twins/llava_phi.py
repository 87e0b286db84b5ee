"""LLaVA-Phi: CLIP, a two-layer projector and Phi, the tower inside the checkpoint alone.

Source: zhuyiche/llava-phi, llava_phi/model and scripts/llava_phi.
"""

import json
from pathlib import Path

import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    PhiConfig,
    PhiForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from mllm_export.export.reference.byte_bpe import END_OF_TEXT, write_byte_bpe
from mllm_export.export.reference.checkpoint_files import (
    clip_vision_keys,
    new_folder,
    vision_sizes,
    write_json,
)
from mllm_export.export.reference.model import MEAN, STD
from mllm_export.export.reference.spec import DecoderSizes, ReferenceSpec, Schedule, VisionSizes
from mllm_export.export.reference.twin import Parts, join_parts, split_parts

TOWER = "model.vision_tower."
PROJECTOR = "model.mm_projector."
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4_500_000  # three shards, as in published checkpoints of this layout
# Source: the published config.json; the tokenizer's ids are others, and those count
CONFIG_BOS, CONFIG_EOS = 1, 2


def phi_keys(sizes: DecoderSizes) -> dict[str, object]:
    """The language model's part of config.json."""
    return {
        "attention_dropout": 0.0,
        "bos_token_id": CONFIG_BOS,
        "embd_pdrop": 0.0,
        "eos_token_id": CONFIG_EOS,
        "hidden_act": "gelu_new",
        "hidden_size": sizes.width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp_width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": sizes.context_tokens,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.heads,
        "partial_rotary_factor": sizes.rope_share,
        "qk_layernorm": False,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": sizes.vocab,
    }


def _vision_keys(spec: ReferenceSpec) -> dict[str, object]:
    """The nested parts; each carries every default of a transformers config, as published."""
    defaults = {k: v for k, v in PretrainedConfig().to_dict().items() if k != "dtype"}
    tower = clip_vision_keys(spec.vision) | {
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": spec.vision.select_layer,
        "model_type": "llava_phi_clip_vision_model",
    }
    projector = {
        "hidden_size": spec.decoder.width,
        "mm_hidden_size": spec.vision.width,
        "mm_projector_type": spec.projector,
        "model_type": "llava_phi_projector",
    }
    return {"mm_projector": defaults | projector, "vision_tower": defaults | tower}


def checkpoint_config(spec: ReferenceSpec) -> dict[str, object]:
    """The keys of the published `config.json`."""
    keys = phi_keys(spec.decoder) | {
        "architectures": ["LlavaPhiForCausalLM"],
        "freeze_vision_tower": False,
        "image_aspect_ratio": "pad",
        "mm_projector_lr": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "model_type": "llava_phi",
        "torch_dtype": "bfloat16",
        "transformers_version": transformers.__version__,
        "tune_mm_mlp_adapter": True,
        "vision_config": _vision_keys(spec),
    }
    return dict(sorted(keys.items()))


def _write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    split = split_torch_state_dict_into_shards(state, max_shard_size=SHARD_BYTES)
    for name, tensors in split.filename_to_tensors.items():
        held = {tensor: state[tensor] for tensor in tensors}
        save_file(held, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)
    index: dict[str, object] = {
        "metadata": split.metadata, "weight_map": split.tensor_to_filename,
    }  # fmt: skip
    write_json(folder, {INDEX: index})


class LlavaPhi:
    """Half the side of the other twin's pictures, a wider tower, no pooling."""

    title = "LLaVA-Phi"
    decoder_title = "Phi"
    layout = "All weights are stored in bfloat16, the tower inside the checkpoint alone."
    model_type = "llava_phi"
    eos = END_OF_TEXT
    writes_questions = False
    spec = ReferenceSpec(
        twin="llava_phi",
        tower_name="",
        projector="mlp2x_gelu",
        image_tokens=144,
        vision=VisionSizes(image_px=168, width=192, heads=3, mlp_width=768),
        decoder=DecoderSizes(kind="phi", mlp_width=1024, vocab=768, rope_share=0.5),
        schedule=Schedule(
            tower_steps=4000, tower_patches=144, unrun_scale=8.0, llm_pictures=24000, llm_steps=3200
        ),
    )

    def new_projector(self, spec: ReferenceSpec) -> nn.Module:
        """Source: llava_phi/model/multimodal_projector/builder.py."""
        width = spec.decoder.width
        return nn.Sequential(
            nn.Linear(spec.vision.width, width), nn.GELU(), nn.Linear(width, width)
        )

    def new_decoder(self, sizes: DecoderSizes) -> PhiForCausalLM:
        """Transformers' own Phi, which is Phi-2's structure."""
        return PhiForCausalLM(PhiConfig(**phi_keys(sizes)))

    def write_tokenizer(self, folder: Path, vocab: int) -> None:
        """The files of Phi-2's tokenizer."""
        write_byte_bpe(folder, vocab)

    def open_tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """The fast tokenizer. Source: llava_phi/model/builder.py."""
        opened: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, use_fast=True)
        return opened

    def write(self, parts: Parts, spec: ReferenceSpec, out: Path) -> None:
        """Write `checkpoint/`: there is no other folder in this layout."""
        generation = {
            "_from_model_config": True, "bos_token_id": CONFIG_BOS, "eos_token_id": CONFIG_EOS,
            "transformers_version": transformers.__version__,
        }  # fmt: skip
        side = spec.vision.image_px
        processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side},
            image_mean=list(MEAN), image_std=list(STD),
        )  # fmt: skip
        with new_folder(out / "checkpoint") as folder:
            configs = {"config.json": checkpoint_config(spec), "generation_config.json": generation}
            write_json(folder, configs)
            processor.save_pretrained(folder)
            self.write_tokenizer(folder, spec.decoder.vocab)
            _write_shards(folder, join_parts(parts, TOWER, PROJECTOR))

    def read_spec(self, folder: Path) -> ReferenceSpec:
        """The sizes, from config.json alone."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tower, projector = (config["vision_config"][k] for k in ("vision_tower", "mm_projector"))
        return ReferenceSpec(
            twin="llava_phi",
            tower_name="",
            projector=projector["mm_projector_type"],
            vision=vision_sizes(tower, tower["mm_vision_select_layer"]),
            decoder=DecoderSizes(
                kind="phi",
                width=config["hidden_size"],
                heads=config["num_attention_heads"],
                layers=config["num_hidden_layers"],
                mlp_width=config["intermediate_size"],
                vocab=config["vocab_size"],
                context_tokens=config["max_position_embeddings"],
                rope_share=config["partial_rotary_factor"],
            ),
        )

    def read_parts(self, folder: Path) -> Parts:
        """Every shard that the index names."""
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        state: dict[str, Tensor] = {}
        for name in sorted(set(index.values())):
            state |= load_file(folder / name)
        return split_parts(state, TOWER, PROJECTOR)

    def processor_folder(self, folder: Path) -> Path:
        """The checkpoint's own."""
        return folder


TWIN = LlavaPhi()
