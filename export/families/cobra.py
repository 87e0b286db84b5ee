"""Cobra: DINOv2 and SigLIP side by side, a projector of joined features, Mamba.

Source: h-zhao1997/cobra, cobra/models/load.py, cobra/models/vlms/cobra.py. The layout is that of
TRI-ML's prismatic-vlms: projector and language model in one file, towers and tokenizer in
published folders of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from mllm_export.catalog import unknown
from mllm_export.checkpoint import Checkpoint, Companion, Folder
from mllm_export.config import Config
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.family import Reading, TinyFolder, TinyModel
from mllm_export.export.llava_layout import below
from mllm_export.export.parts import DECODERS, ENCODERS, FUSIONS, PROJECTORS, TOKENIZERS
from mllm_export.export.tower_choice import name_prefix
from mllm_export.export.vision_parts import encoder_prefix
from mllm_export.records import record
from mllm_export.spec import EncoderSpec, ModelSpec, ProjectorSpec, PromptSpec, TokenizerSpec
from mllm_export.weights import Drop, Shape, Take, WeightMap

_PROJECTORS = {
    "fused-gelu-mlp": "fused_gelu_mlp",
    "gelu-mlp": "mlp2x_gelu",
    "fused-ldpnet": "fused_ldpnet",
    "linear": "linear",
}
"""End of arch_specifier to the catalog; the first that fits counts.
Source: cobra/models/vlms/cobra.py, CobraVLM.__init__."""

_PROJECTOR, _DECODER = "model.projector.projector.", "model.llm_backbone.llm."
_END = "<|endoftext|>"

_DINO, _SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_{px}.webli"
_BACKBONES = (
    (r"dinosiglip-vit-so-(\d+)px", (("dino", "dinov2", _DINO), ("siglip", "siglip_timm", _SIGLIP))),
    (r"siglip-vit-so400m-(\d+)px", (("siglip", "siglip_timm", _SIGLIP),)),
)
"""vision_backbone_id to the towers: name, encoder, timm's folder.
Source: cobra/models/backbones/vision/dinosiglip_vit.py and siglip_vit.py."""

_TEMPLATES = {
    "zephyr": ("<|user|>\n", f"{_END}\n<|assistant|>\n"),
    "mamba": ("In: ", "\nOut: "),
}
"""What stands around a question. Source: cobra/models/backbones/llm/prompting."""


@record
class _Tower:
    """One of the vision backbones, and the folder that it comes from."""

    encoder: EncoderSpec
    companion: Companion
    layout: str
    """What stands before timm's names in its file."""


class Cobra:
    """Told by the ids of Prismatic's config.json, whose language model is a Mamba."""

    title = "Cobra"

    def claims(self, config: Config) -> bool:
        """By Prismatic's ids."""
        model = config.plain().get("model")
        if not isinstance(model, dict) or "vision_backbone_id" not in model:
            return False
        return str(model.get("llm_backbone_id", "")).startswith("mamba")

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Spec and weight map from config.json and the configs of the folders that it names.

        Raises: UnsupportedModelError, CheckpointError naming the part or key.
        """
        config = checkpoint.config.section("model")
        llm = Companion(name="llm", published=config.text("llm_backbone_id"), has_weights=False)
        llm_folder = checkpoint.companion(llm)
        decoder = DECODERS["mamba"].read_spec(llm_folder.config)
        towers = _read_towers(checkpoint, config)
        encoders = tuple(tower.encoder for tower in towers)
        fusion = FUSIONS["channels"].spec(encoders) if len(encoders) > 1 else None
        features = fusion.out_width if fusion else encoders[0].width
        kind = _projector_kind(config)
        projector = PROJECTORS[kind].spec(features, decoder.width, encoders[0].tokens_out)
        tokenizer = TOKENIZERS["bpe"].read_spec(llm_folder.path, llm_folder.config)
        return Reading(
            spec=ModelSpec(
                family="cobra",
                name=checkpoint.path.resolve().name,
                encoders=encoders,
                fusion=fusion,
                projector=projector,
                decoder=decoder,
                tokenizer=tokenizer,
                prompt=_prompt(config, tokenizer),
            ),
            weights=WeightMap(
                takes=(
                    *_tower_takes(towers),
                    *_takes("projector", _PROJECTOR, _parameters(projector)),
                    *_takes("decoder", _DECODER, DECODERS["mamba"].parameters(decoder)),
                ),
                drops=(*_tower_drops(towers), *below(_DECODER, DECODERS["mamba"].drops(decoder))),
            ),
            uses_tower_folder=False,
            chat_template=_chat_template(config),
            companions=tuple(tower.companion for tower in towers),
            tokenizer_folder=llm,
        )

    def tiny(self) -> TinyModel:
        """Towers of width 64 and 48 on 90 px, positions of DINOv2 stored for 98 px."""
        return TinyModel(
            config=_tiny_config(),
            tower_name="",
            tower_config={},
            preprocessor={},
            tokenizer="bpe",
            tokenizer_class="GPTNeoXTokenizer",
            folders=_tiny_folders(),
            file="checkpoints/latest-checkpoint.pt",
            nesting=2,
            copies=((f"{_DECODER}lm_head.weight", f"{_DECODER}backbone.embedding.weight"),),
        )


def _read_towers(checkpoint: Checkpoint, config: Config) -> tuple[_Tower, ...]:
    backbone = config.text("vision_backbone_id")
    for pattern, parts in _BACKBONES:
        if match := re.fullmatch(pattern, backbone):
            size_px = int(match.group(1))
            several = len(parts) > 1
            return tuple(
                _read_tower(
                    checkpoint,
                    config,
                    size_px,
                    kind,
                    Companion(name=name, published=folder.format(px=size_px)),
                    name if several else "",
                )
                for name, kind, folder in parts
            )
    raise UnsupportedModelError(
        f"{config.file}: vision_backbone_id '{backbone}' is not there yet (known: "
        f"{', '.join(pattern for pattern, _ in _BACKBONES)})"
    )


def _read_tower(
    checkpoint: Checkpoint,
    config: Config,
    size_px: int,
    kind: str,
    companion: Companion,
    name: str,
) -> _Tower:
    strategy = config.text("image_resize_strategy")
    if strategy != "resize-naive":
        raise UnsupportedModelError(
            f"{config.file}: image_resize_strategy '{strategy}'; needed: 'resize-naive', as in "
            "every published Cobra"
        )
    folder = checkpoint.companion(companion)
    encoder = ENCODERS[kind]
    own = _tower_config(folder, companion)
    if not encoder.claims(own):
        raise UnsupportedModelError(
            f"{own.file}: architecture '{own.text('architecture', '(none)')}' is no "
            f"{companion.published}, which {config.file} names; is it another tower's folder?"
        )
    image = replace(encoder.image(own, "stretch"), size_px=size_px)
    spec = replace(encoder.read_spec(own, image, -2, False), name=name)
    first = next(iter(encoder.parameters(spec)))
    names = folder.tensors if folder.has_weights else ()
    return _Tower(encoder=spec, companion=companion, layout=name_prefix(encoder, first, "", names))


def _tower_config(folder: Folder, companion: Companion) -> Config:
    """The config.json of timm; a folder of open_clip's has none that says it, but the id does."""
    if (folder.path / "config.json").is_file() and "architecture" in folder.config:
        return folder.config
    return Config({"architecture": companion.published.split(".")[0]}, str(folder.path))


def _projector_kind(config: Config) -> str:
    specifier = config.text("arch_specifier")
    found = next((kind for end, kind in _PROJECTORS.items() if specifier.endswith(end)), None)
    if found is None:
        raise UnsupportedModelError(
            f"{config.file}: arch_specifier: "
            f"{unknown('projector', specifier.split('+')[-1], sorted(_PROJECTORS))}; a projector "
            "goes in as one file in export/projectors"
        )
    return found


def _parameters(projector: ProjectorSpec) -> Mapping[str, Shape]:
    return PROJECTORS[projector.kind].parameters(projector)


def _takes(part: str, prefix: str, parameters: Mapping[str, Shape]) -> tuple[Take, ...]:
    return tuple(
        Take(part=part, parameter=name, source=prefix + name, shape=tuple(shape))
        for name, shape in parameters.items()
    )


def _tower_takes(towers: tuple[_Tower, ...]) -> tuple[Take, ...]:
    return tuple(
        Take(
            part="tower",
            parameter=encoder_prefix(tower.encoder) + name,
            source=tower.companion.prefix + tower.layout + name,
            shape=tuple(shape),
        )
        for tower in towers
        for name, shape in ENCODERS[tower.encoder.kind].parameters(tower.encoder).items()
    )


def _tower_drops(towers: tuple[_Tower, ...]) -> tuple[Drop, ...]:
    unused = Drop(
        pattern="model.vision_backbone.*",
        why="the original's loader reads the towers from their own folders over this copy",
    )
    of_towers = (
        drop
        for tower in towers
        for drop in below(tower.companion.prefix, ENCODERS[tower.encoder.kind].drops(tower.encoder))
    )
    return (unused, *of_towers)


def _template(config: Config) -> tuple[str, str, str]:
    name = "zephyr" if config.text("llm_backbone_id").endswith("zephyr") else "mamba"
    return name, *_TEMPLATES[name]


def _prompt(config: Config, tokenizer: TokenizerSpec) -> PromptSpec:
    name, before, after = _template(config)
    return PromptSpec(
        name=name,
        before=before,
        after=after,
        between_turns=f"{_END}\n",
        stop_strings=(_END,),
        stop_ids=(tokenizer.eos_id,),
        after_image="",
        images_first=True,
    )


def _chat_template(config: Config) -> str:
    """The builder's turns as Jinja; what follows a question stands there whatever comes next."""
    _, before, after = (text.replace("\n", "\\n") for text in _template(config))
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{% if not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ '" + before + "' + message['content'] | trim + '" + after + "' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] | trim + '" + _END + "' }}{% endif %}{% endfor %}"
    )


def _tiny_config() -> dict[str, object]:
    model = {
        "type": "cobra+3b",
        "model_id": "cobra+3b",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-90px",
        "llm_backbone_id": "mamba-2.8b-zephyr",
        "image_resize_strategy": "resize-naive",
        "llm_max_length": 2048,
    }
    return {"model": model, "stage": "finetune", "run_id": "cobra+3b+tiny"}


def _tiny_folders() -> tuple[TinyFolder, ...]:
    def tower(name: str, published: str, **sizes: float) -> TinyFolder:
        architecture = published.split(".")[0].replace("_90", "_384")
        return TinyFolder(
            companion=Companion(name=name, published=published),
            config={"architecture": architecture, "num_classes": 0, "model_args": sizes},
        )

    llm = {
        "d_model": 256,
        "n_layer": 2,
        "vocab_size": 509,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    blocks = {"depth": 3, "num_heads": 4}
    return (
        tower("dino", _DINO, embed_dim=64, img_size=98, **blocks),
        tower("siglip", _SIGLIP.format(px=90), embed_dim=48, mlp_ratio=3.0, img_size=90, **blocks),
        TinyFolder(
            companion=Companion(name="llm", published="mamba-2.8b-zephyr", has_weights=False),
            config=llm,
        ),
    )


FAMILY = Cobra()
