"""LLaVA-1.5: CLIP, a two-layer projector, Vicuna or LLaMA, in the authors' layout or transformers'.

Source: haotian-liu/LLaVA, llava/model and llava/conversation.py; huggingface/transformers,
models/llava.
"""

from __future__ import annotations

from collections.abc import Mapping

from mllm_export.checkpoint import INSIDE, Checkpoint
from mllm_export.config import Config
from mllm_export.export import llava_layout
from mllm_export.export.clip_images import read_image_spec
from mllm_export.export.families._llava_hf import (
    hf_config,
    hf_projector,
    hf_select,
    hf_tower,
    hf_weights,
    is_hf,
)
from mllm_export.export.family import Reading, TinyModel
from mllm_export.export.llava_layout import decoder_kind
from mllm_export.export.parts import DECODERS, ENCODERS, TOKENIZERS
from mllm_export.export.tower_choice import encoder_for, table_notes, tower_shapes
from mllm_export.spec import EncoderSpec, ModelSpec, PromptSpec, TokenizerSpec
from mllm_export.weights import Drop, Shape

_PROJECTORS = {"mlp2x_gelu": "mlp2x_gelu", "linear": "linear"}
"""mm_projector_type to the catalog. Source: llava/model/multimodal_projector/builder.py."""

_DECODERS = {"llava": "llama", "llava_llama": "llama"}
"""model_type of the authors' layout, early and now, to the catalog."""

_HF_DECODERS = {"llama": "llama"}
"""model_type of `text_config` to the catalog."""

_TOWER_INSIDE = "model.vision_tower.vision_tower."
_STOP = "</s>"
_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
"""Source: LLaVA, llava/conversation.py, llava_llama_2."""


class Llava:
    """Both layouts give the same parts; names of tensors and keys differ."""

    title = "LLaVA-1.5"

    def claims(self, config: Config) -> bool:
        """By model_type; transformers uses the early one of the authors' two."""
        return config.text("model_type", "") in _DECODERS

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Spec and weight map from the published config.

        Raises: UnsupportedModelError, CheckpointError naming the part or key.
        """
        return _read_hf(checkpoint) if is_hf(checkpoint.config) else _read_authors(checkpoint)

    def tiny(self) -> TinyModel:
        """The authors' layout with the tower inside, on a grid of 8 by 8."""
        return TinyModel(
            config=_tiny_config(),
            tower_name="clip-vit-tiny",
            tower_config=_tiny_tower(),
            preprocessor=_tiny_preprocessor(),
        )


def _read_authors(checkpoint: Checkpoint) -> Reading:
    config = checkpoint.config
    llava_layout.refuse_image_wrapping(config)
    llava_layout.refuse_scales(config)
    decoder = DECODERS[decoder_kind(config, _DECODERS)].read_spec(config, checkpoint.names)
    from_folder = _tower_from_folder(checkpoint)
    encoder, shapes = _authors_encoder(checkpoint, from_folder)
    projector = llava_layout.read_projector(config, _PROJECTORS, encoder, decoder)
    tokenizer = TOKENIZERS["sentencepiece"].read_spec(checkpoint.path, config)
    spec = ModelSpec(
        family="llava",
        name=checkpoint.path.resolve().name,
        encoders=(encoder,),
        projector=projector,
        decoder=decoder,
        tokenizer=tokenizer,
        prompt=_prompt(checkpoint, tokenizer),
    )
    unused = Drop(
        pattern=f"{_TOWER_INSIDE}*",
        why="the original loader reads the tower from its own folder after this copy",
    )
    prefixes = llava_layout.Prefixes(
        tower=llava_layout.tower_prefix(_TOWER_INSIDE, from_folder),
        projector="model.mm_projector.",
        decoder="",
    )
    weights = llava_layout.weight_map(
        encoder,
        projector,
        decoder,
        prefixes,
        (unused,) if from_folder else (),
        shapes,
    )
    return Reading(
        spec=spec,
        weights=weights,
        uses_tower_folder=from_folder,
        chat_template=_template(spec),
        notes=(*table_notes(encoder), *_notes(checkpoint, from_folder)),
    )


def _authors_encoder(
    checkpoint: Checkpoint, from_folder: bool
) -> tuple[EncoderSpec, Mapping[str, Shape]]:
    """The tower as it is stored, and the tensors that tell its layout."""
    encoder = llava_layout.read_encoder(checkpoint)
    shapes = tower_shapes(checkpoint, ENCODERS[encoder.kind], from_folder)
    prefix = llava_layout.tower_prefix(_TOWER_INSIDE, from_folder)
    return llava_layout.as_stored(encoder, prefix, shapes), shapes


def _tower_from_folder(checkpoint: Checkpoint) -> bool:
    """The copy inside counts only where the tower was trained too.

    Source: llava/model/multimodal_encoder/builder.py and llava/model/builder.py.
    """
    inside = checkpoint.asked == INSIDE
    from_folder = not (inside or checkpoint.config.flag("unfreeze_mm_vision_tower", False))
    if from_folder:
        checkpoint.require_tower()
    return from_folder


def _read_hf(checkpoint: Checkpoint) -> Reading:
    config = hf_config(checkpoint.config)
    kind = decoder_kind(config, _HF_DECODERS)
    decoder = DECODERS[kind].read_spec(config)
    encoder = _hf_encoder(checkpoint)
    projector = llava_layout.read_projector(
        hf_projector(checkpoint.config), _PROJECTORS, encoder, decoder
    )
    tokenizer = TOKENIZERS["sentencepiece"].read_spec(checkpoint.path, config)
    spec = ModelSpec(
        family="llava",
        name=checkpoint.path.resolve().name,
        encoders=(encoder,),
        projector=projector,
        decoder=decoder,
        tokenizer=tokenizer,
        prompt=_prompt(checkpoint, tokenizer),
    )
    prefixes = llava_layout.Prefixes(
        tower=_TOWER_INSIDE, projector="model.mm_projector.", decoder=""
    )
    weights = llava_layout.weight_map(encoder, projector, decoder, prefixes)
    return Reading(
        spec=spec,
        weights=hf_weights(weights, checkpoint.names),
        uses_tower_folder=False,
        chat_template=_template(spec),
        notes=(
            "pictures are padded to a square as in the authors' training and evaluation; "
            "transformers' own processor for this layout cuts their ends off",
        ),
    )


def _hf_encoder(checkpoint: Checkpoint) -> EncoderSpec:
    tower = hf_tower(checkpoint.config)
    encoder = encoder_for(tower)
    layer, keep_prefix = hf_select(checkpoint.config)
    image = encoder.image(tower, "pad")
    own = read_image_spec(checkpoint.path, "pad")
    own = llava_layout.same_size(checkpoint.path, own, image)
    return encoder.read_spec(tower, own, layer, keep_prefix)


def _prompt(checkpoint: Checkpoint, tokenizer: TokenizerSpec) -> PromptSpec:
    """No config names the template; the authors' tools go by the folder's name.

    Source: llava/eval/run_llava.py, eval_model; llava/conversation.py, llava_llama_2.
    """
    if "llama-2" not in checkpoint.path.resolve().name.lower():
        return llava_layout.vicuna_v1(_STOP, tokenizer)
    return PromptSpec(
        name="llava_llama_2",
        before=f"[INST] <<SYS>>\n{_LLAMA_2}\n<</SYS>>\n\n",
        after=" [/INST]",
        between_turns=f" {_STOP}",
        stop_strings=(_STOP,),
        stop_ids=(tokenizer.eos_id,),
    )


def _template(spec: ModelSpec) -> str:
    if spec.prompt.name == "vicuna_v1":
        return llava_layout.vicuna_chat_template(_STOP, spec.tokenizer)
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' }}{% if loop.first %}{{ '<<SYS>>\\n" + _LLAMA_2 + ""
        "\\n<</SYS>>\\n\\n' }}{% endif %}{{ message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' " + _STOP + "' }}"
        "{% endif %}{% endfor %}"
    )


def _notes(checkpoint: Checkpoint, from_folder: bool) -> tuple[str, ...]:
    if from_folder and checkpoint.tower is not None:
        return (
            f"tower weights come from {checkpoint.tower.path.name}, as the authors' loader does",
        )
    return ()


def _tiny_config() -> dict[str, object]:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 256,
        "image_aspect_ratio": "pad",
        "intermediate_size": 512,
        "max_position_embeddings": 1024,
        "mm_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "example/clip-vit-tiny",
        "model_type": "llava_llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
        "vocab_size": 512,
    }


def _tiny_tower() -> dict[str, object]:
    return {
        "architectures": ["CLIPVisionModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 64,
        "image_size": 64,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 8,
        "projection_dim": 64,
    }


def _tiny_preprocessor() -> dict[str, object]:
    return {
        "crop_size": 64,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 64,
    }


FAMILY = Llava()
