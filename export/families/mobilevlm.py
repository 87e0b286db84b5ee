"""MobileVLM (LDP) and MobileVLM V2 (LDPv2): CLIP, a light projector, MobileLLaMA or Vicuna.

Source: Meituan-AutoML/MobileVLM, mobilevlm/model and mobilevlm/conversation.py.
"""

from __future__ import annotations

from mllm_export.checkpoint import INSIDE, Checkpoint
from mllm_export.config import Config
from mllm_export.export import llava_layout
from mllm_export.export.family import Reading, TinyModel
from mllm_export.export.parts import DECODERS, ENCODERS, TOKENIZERS
from mllm_export.export.tower_choice import tower_shapes
from mllm_export.spec import ModelSpec
from mllm_export.weights import Drop

_PROJECTORS = {
    "ldpnet": "ldp",
    "ldpnetv2": "ldpv2",
    "mlp2x_gelu": "mlp2x_gelu",
    "linear": "linear",
}
"""mm_projector_type to the catalog. Source: mobilevlm/model/vision_projector.py."""

_TOWER_INSIDE = "model.vision_tower.vision_tower."
_STOP = "</s>"


class MobileVlm:
    """V1 and V2 differ in the projector and in whose tower weights count."""

    title = "MobileVLM, MobileVLM V2"

    def claims(self, config: Config) -> bool:
        """By model_type, which all published checkpoints carry."""
        return config.text("model_type", "") == "mobilevlm"

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Spec and weight map from the published config.

        Raises: UnsupportedModelError, CheckpointError naming the part or key.
        """
        config = checkpoint.config
        llava_layout.refuse_image_wrapping(config)
        decoder = DECODERS["llama"].read_spec(config)
        encoder = llava_layout.read_encoder(checkpoint)
        projector = llava_layout.read_projector(config, _PROJECTORS, encoder, decoder)
        tokenizer = TOKENIZERS["sentencepiece"].read_spec(checkpoint.path, config)
        from_folder = _tower_from_folder(checkpoint)
        prefixes = llava_layout.Prefixes(
            tower=llava_layout.tower_prefix(_TOWER_INSIDE, from_folder),
            projector=_projector_prefix(projector.kind),
            decoder="",
        )
        spec = ModelSpec(
            family="mobilevlm",
            name=checkpoint.path.resolve().name,
            encoders=(encoder,),
            projector=projector,
            decoder=decoder,
            tokenizer=tokenizer,
            prompt=llava_layout.vicuna_v1(_STOP, tokenizer),
        )
        overwritten = Drop(
            pattern=f"{_TOWER_INSIDE}*",
            why="the original loader reads the tower from its own folder over this copy",
        )
        return Reading(
            spec=spec,
            weights=llava_layout.weight_map(
                encoder,
                projector,
                decoder,
                prefixes,
                (overwritten,) if from_folder else (),
                tower_shapes(checkpoint, ENCODERS[encoder.kind], from_folder),
            ),
            uses_tower_folder=from_folder,
            chat_template=llava_layout.vicuna_chat_template(_STOP, tokenizer),
            notes=_notes(checkpoint, from_folder),
        )

    def tiny(self) -> TinyModel:
        """V2 with a grid of 24 by 24, as LDPv2 needs it, on 96 px pictures."""
        return TinyModel(
            config=_tiny_config(),
            tower_name="clip-vit-tiny",
            tower_config=_tiny_tower(),
            preprocessor=_tiny_preprocessor(),
        )


def _tower_from_folder(checkpoint: Checkpoint) -> bool:
    """V1's loader overwrites the tower, V2's keeps the checkpoint's copy.

    Source: mobilevlm/model/mobilevlm.py, load_pretrained_model, which looks for 'v2'.
    """
    asked_inside = checkpoint.asked == INSIDE
    is_v1 = "v2" not in checkpoint.config.text("mm_projector_type")
    if is_v1 and not asked_inside:
        checkpoint.require_tower()
    return is_v1 and not asked_inside


def _notes(checkpoint: Checkpoint, from_folder: bool) -> tuple[str, ...]:
    if from_folder and checkpoint.tower is not None:
        return (f"tower weights come from {checkpoint.tower.path.name}, as V1's own loader does",)
    if "v2" not in checkpoint.config.text("mm_projector_type"):
        return (
            f"--vision-tower {INSIDE}: the copy in the checkpoint is used; V1's own loader reads "
            "the encoder's repository, of which this copy may be a rounding to bfloat16",
        )
    return ()


def _projector_prefix(kind: str) -> str:
    return "model.mm_projector.model." if kind == "ldp" else "model.mm_projector."


def _tiny_config() -> dict[str, object]:
    return {
        "architectures": ["MobileLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": 256,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 1024,
        "mm_hidden_size": 64,
        "mm_projector_type": "ldpnetv2",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "example/clip-vit-tiny",
        "model_type": "mobilevlm",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vision_tower_type": "clip",
        "vocab_size": 512,
    }


def _tiny_tower() -> dict[str, object]:
    return {
        "architectures": ["CLIPVisionModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 64,
        "image_size": 96,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 4,
        "projection_dim": 64,
        "torch_dtype": "float32",
    }


def _tiny_preprocessor() -> dict[str, object]:
    return {
        "crop_size": 96,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 96,
    }


FAMILY = MobileVlm()
