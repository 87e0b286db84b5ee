"""LLaVA-Phi and Mipha: CLIP or SigLIP, a two-layer projector, Phi-2.

Source: zhuyiche/llava-phi, llava_phi/model and mipha/model; their builders take every weight from
the checkpoint, whose tower is fine-tuned.
"""

from __future__ import annotations

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export import llava_layout
from mllm_export.export.clip_images import fit_of, read_image_spec
from mllm_export.export.family import Reading, TinyModel
from mllm_export.export.parts import DECODERS, ENCODERS, TOKENIZERS
from mllm_export.export.tower_choice import encoder_for, tower_shapes
from mllm_export.spec import EncoderSpec, ImageSpec, ModelSpec

_PROJECTORS = {"mlp2x_gelu": "mlp2x_gelu", "linear": "linear"}
"""mm_projector_type to the catalog. Source: llava_phi/model/multimodal_projector/builder.py."""

_DECODERS = {"llava_phi": "phi", "mipha_phi": "phi"}
"""model_type to the catalog. Its siblings mipha_phi3 and mipha_gemma have other decoders."""

_TOWERS = (
    ("siglip", "siglip_vision_model"),
    ("dinov2", "dinov2"),
    ("clip", "clip_vision_model"),
)
"""Part of `vision_model_name_or_path` and the published model_type of such a tower; a config
without that key has CLIP. Source: mipha/model/mipha_arch.py, MiphaMetaModel."""

_STOP = "<|endoftext|>"


class LlavaPhi:
    """The config nests tower and projector; the decoder comes in any of Phi's layouts."""

    title = "LLaVA-Phi, Mipha"

    def claims(self, config: Config) -> bool:
        """By model_type; Mipha's siblings too, so that what they lack can be said."""
        model_type = config.text("model_type", "")
        return model_type in _DECODERS or model_type.startswith("mipha_")

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Spec and weight map from the published config.

        Raises: UnsupportedModelError, CheckpointError naming the part or key.
        """
        config = checkpoint.config
        decoder_kind = llava_layout.decoder_kind(config, _DECODERS)
        llava_layout.refuse_image_wrapping(config)
        parts = _vision_config(config)
        decoder = DECODERS[decoder_kind].read_spec(config, checkpoint.names)
        encoder = _read_encoder(checkpoint, parts.section("vision_tower"))
        projector = llava_layout.read_projector(
            parts.section("mm_projector"), _PROJECTORS, encoder, decoder
        )
        tokenizer = TOKENIZERS["bpe"].read_spec(checkpoint.path, config)
        owner = _owner(checkpoint)
        _require_tower(checkpoint, f"{owner}vision_tower.")
        spec = ModelSpec(
            family="llava_phi",
            name=checkpoint.path.resolve().name,
            encoders=(encoder,),
            projector=projector,
            decoder=decoder,
            tokenizer=tokenizer,
            prompt=llava_layout.vicuna_v1(_STOP, tokenizer),
        )
        prefixes = llava_layout.Prefixes(
            tower=f"{owner}vision_tower.", projector=f"{owner}mm_projector.", decoder=""
        )
        return Reading(
            spec=spec,
            weights=llava_layout.weight_map(
                encoder,
                projector,
                decoder,
                prefixes,
                names=tower_shapes(checkpoint, ENCODERS[encoder.kind], False),
            ),
            uses_tower_folder=False,
            chat_template=llava_layout.vicuna_chat_template(_STOP, tokenizer),
            notes=_notes(checkpoint),
        )

    def tiny(self) -> TinyModel:
        """A grid of 8 by 8; the tower is inside the checkpoint alone."""
        return TinyModel(
            config=_tiny_config(),
            tower_name="",
            tower_config={},
            preprocessor=_tiny_preprocessor(),
            tokenizer="bpe",
        )


def _vision_config(config: Config) -> Config:
    if "vision_config" not in config:
        raise UnsupportedModelError(
            f"{config.file}: model_type '{config.text('model_type')}' without a vision_config: "
            "not LLaVA-Phi's layout (ALLaVA's Phi-2 model has the same model_type and flat mm_ "
            "keys); such a layout goes in as a family of its own in export/families"
        )
    return config.section("vision_config")


def _read_encoder(checkpoint: Checkpoint, section: Config) -> EncoderSpec:
    """The tower that stands in the nested config, by the encoder that claims its real kind."""
    path = section.text("vision_model_name_or_path", "clip")
    kind = next((kind for part, kind in _TOWERS if part in path), path)
    tower = Config({**section.plain(), "model_type": kind}, section.file)
    encoder = encoder_for(tower)
    feature = section.text("mm_vision_select_feature", "patch")
    return encoder.read_spec(
        tower,
        _image(checkpoint, encoder.image(tower, fit_of(checkpoint.config))),
        section.integer("mm_vision_select_layer", -2),
        llava_layout.keeps_prefix(section, feature),
    )


def _image(checkpoint: Checkpoint, published: ImageSpec) -> ImageSpec:
    """The checkpoint's own preprocessing; its folder holds the processor's file."""
    own = read_image_spec(checkpoint.path, published.fit)
    return llava_layout.same_size(checkpoint.path, own, published)


def _owner(checkpoint: Checkpoint) -> str:
    """The module that tower and projector belong to; the first Phi-2 release calls it so."""
    old = "transformer.mm_projector.0.weight" in checkpoint.names
    return "transformer." if old else "model."


def _require_tower(checkpoint: Checkpoint, prefix: str) -> None:
    """Refuse a checkpoint without its own tower; one whose weights are yet to be written passes."""
    if checkpoint.names and not any(name.startswith(prefix) for name in checkpoint.names):
        raise CheckpointError(
            f"{checkpoint.path}: no tensor stands below '{prefix}'; the tower of this family is "
            "fine-tuned and published inside the checkpoint alone, and no folder of a published "
            "encoder can stand in for it; is a shard missing?"
        )


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.asked is None:
        return ()
    return (
        "--vision-tower is not needed: the tower inside the checkpoint is fine-tuned and the "
        "original's loader reads no other",
    )


def _tiny_config() -> dict[str, object]:
    return {
        "architectures": ["LlavaPhiForCausalLM"],
        "attention_dropout": 0.0,
        # Wrong in the published files too; the tokenizer says 451.
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_vision_tower": False,
        "hidden_act": "gelu_new",
        "hidden_size": 256,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 1024,
        "model_type": "llava_phi",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "partial_rotary_factor": 0.375,
        "qk_layernorm": False,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": {"mm_projector": _tiny_projector(), "vision_tower": _tiny_tower()},
        "vocab_size": 512,
    }


def _tiny_projector() -> dict[str, object]:
    return {
        "hidden_size": 256,
        "mm_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "model_type": "llava_phi_projector",
    }


def _tiny_tower() -> dict[str, object]:
    return {
        "hidden_act": "quick_gelu",
        "hidden_size": 64,
        "image_size": 64,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-05,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "model_type": "llava_phi_clip_vision_model",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 8,
        "projection_dim": 64,
    }


def _tiny_preprocessor() -> dict[str, object]:
    return {
        "crop_size": {"height": 64, "width": 64},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 64},
    }


FAMILY = LlavaPhi()
