"""What LLaVA's descendants share: where the tower is, how parts are named, the Vicuna prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mllm_export.catalog import unknown
from mllm_export.checkpoint import TOWER_PREFIX, Checkpoint
from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.clip_images import fit_of, read_image_spec
from mllm_export.export.parts import DECODERS, ENCODERS, PROJECTORS
from mllm_export.export.published_towers import published_tower
from mllm_export.export.tower_choice import TABLE, encoder_for, name_prefix, with_table
from mllm_export.records import record
from mllm_export.spec import (
    DecoderSpec,
    EncoderSpec,
    ImageSpec,
    ProjectorSpec,
    PromptSpec,
    TokenizerSpec,
)
from mllm_export.weights import Drop, Shape, Take, WeightMap

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Source: LLaVA, llava/conversation.py, vicuna_v1."""


@record
class Prefixes:
    """What stands before the published names of each part."""

    tower: str
    projector: str
    decoder: str


def vicuna_v1(stop: str, tokenizer: TokenizerSpec) -> PromptSpec:
    """The `vicuna_v1` conversation, one user turn."""
    return PromptSpec(
        name="vicuna_v1",
        before=f"{VICUNA_SYSTEM} USER: ",
        after=" ASSISTANT:",
        between_turns=stop,
        stop_strings=(stop,),
        stop_ids=(tokenizer.eos_id,),
    )


def vicuna_chat_template(stop: str, tokenizer: TokenizerSpec) -> str:
    """`vicuna_v1` as Jinja: what the prompt is, turn by turn, with the BOS where there is one."""
    return (
        ("{{ bos_token }}" if tokenizer.add_bos else "")
        + "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
        "{% else %}{{ '" + VICUNA_SYSTEM.replace("'", "\\'") + " ' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ 'ASSISTANT: ' + message['content'] + '" + stop + "' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


def decoder_kind(config: Config, kinds: Mapping[str, str]) -> str:
    """The file in export/decoders for a model_type; `kinds` maps the known ones to it.

    Raises: UnsupportedModelError that says what would have to be added for another.
    """
    model_type = config.text("model_type")
    if model_type not in kinds:
        raise UnsupportedModelError(
            f"{config.file}: the language model of model_type '{model_type}' is missing (known: "
            f"{', '.join(sorted(kinds))}); its decoder goes in as one file in export/decoders, and "
            "its tokenizer in export/tokenizers if it is of another kind"
        )
    return kinds[model_type]


def read_projector(
    config: Config, kinds: Mapping[str, str], encoder: EncoderSpec, decoder: DecoderSpec
) -> ProjectorSpec:
    """The projector that `mm_projector_type` names; `kinds` maps published names to the catalog's.

    Raises: UnsupportedModelError for a type that is not in `kinds`.
    """
    published = config.text("mm_projector_type")
    if published not in kinds:
        raise UnsupportedModelError(
            f"{config.file}: mm_projector_type: {unknown('projector', published, sorted(kinds))}; "
            "a projector goes in as one file in export/projectors"
        )
    width = config.positive("mm_hidden_size")
    if width != encoder.width:
        raise CheckpointError(
            f"{config.file}: mm_hidden_size is {width}, the vision tower is {encoder.width} wide; "
            "is the vision tower another model's?"
        )
    return PROJECTORS[kinds[published]].spec(width, decoder.width, encoder.tokens_out)


def read_encoder(checkpoint: Checkpoint) -> EncoderSpec:
    """The tower that `mm_vision_tower` names, cut where the config says.

    Raises: CheckpointError when neither its folder nor a published config is known.
    """
    config = checkpoint.config
    name = config.text("mm_vision_tower")
    feature = config.text("mm_vision_select_feature", "patch")
    keep_prefix = keeps_prefix(config, feature)
    tower_config = _tower_config(checkpoint, name)
    encoder = encoder_for(tower_config)
    return encoder.read_spec(
        tower_config,
        _image(checkpoint, encoder.image(tower_config, fit_of(config))),
        config.integer("mm_vision_select_layer", -2),
        keep_prefix,
    )


def keeps_prefix(config: Config, feature: str) -> bool:
    """Whether a feature's name keeps the class token.

    Raises: UnsupportedModelError for another name than LLaVA's two.
    """
    if feature not in {"patch", "cls_patch"}:
        raise UnsupportedModelError(f"{config.file}: mm_vision_select_feature '{feature}'")
    return feature == "cls_patch"


def _tower_config(checkpoint: Checkpoint, name: str) -> Config:
    if checkpoint.tower is not None:
        return checkpoint.tower.config
    known = published_tower(name)
    if known is None:
        checkpoint.require_tower()
        raise AssertionError("require_tower raises when there is no tower")
    return known


def _image(checkpoint: Checkpoint, published: ImageSpec) -> ImageSpec:
    """The tower folder's own preprocessing, else the authors' published one."""
    if checkpoint.tower is None:
        return published
    own = read_image_spec(checkpoint.tower.path, published.fit)
    return same_size(checkpoint.tower.path, own, published)


def same_size(folder: Path, own: ImageSpec | None, published: ImageSpec) -> ImageSpec:
    """What a folder's preprocessor_config.json says, where it is there.

    Raises: CheckpointError when it makes another size than the tower takes.
    """
    if own is None:
        return published
    if own.size_px != published.size_px:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json makes {own.size_px} px, "
            f"the tower takes {published.size_px} px"
        )
    return own


def refuse_image_wrapping(config: Config) -> None:
    """Refuse `<im_start><image><im_end>`, which no published checkpoint of this layout uses."""
    if config.flag("mm_use_im_start_end", False):
        raise UnsupportedModelError(
            f"{config.file}: mm_use_im_start_end is true; images wrapped in tokens of their own "
            "are not there yet"
        )


def refuse_scales(config: Config) -> None:
    """Refuse S2-Wrapper's tower, which sees one picture at several sizes.

    Source: bfshi/scaling_on_scales; config.json of bfshi/llava-v1.5-7b-s2-lora.
    """
    if config.flag("s2", False):
        raise UnsupportedModelError(
            f"{config.file}: s2 is true (s2_scales '{config.text('s2_scales', '')}'); a tower that "
            "sees one picture at several sizes, their features side by side, is not there yet"
        )


def as_stored(encoder: EncoderSpec, prefix: str, shapes: Mapping[str, Shape]) -> EncoderSpec:
    """The encoder with the table of positions that stands in the checkpoint, if it can resize it.

    `prefix` is what stands before the tower's tensors, `shapes` is `tower_choice.tower_shapes`.
    """
    entry = ENCODERS[encoder.kind]
    first = next(iter(entry.parameters(encoder)))
    return with_table(encoder, shapes.get(name_prefix(entry, first, prefix, shapes) + TABLE))


def weight_map(
    encoder: EncoderSpec,
    projector: ProjectorSpec,
    decoder: DecoderSpec,
    prefixes: Prefixes,
    extra: tuple[Drop, ...] = (),
    names: Iterable[str] = (),
) -> WeightMap:
    """Every published tensor of the three parts below its prefix, and what is left out.

    `names` tell an encoder's layouts apart; see `tower_choice.tower_shapes`.
    """
    of_tower = ENCODERS[encoder.kind].parameters(encoder)
    tower = name_prefix(ENCODERS[encoder.kind], next(iter(of_tower)), prefixes.tower, names)
    parts: tuple[tuple[str, str, Mapping[str, Shape]], ...] = (
        ("tower", tower, of_tower),
        ("projector", prefixes.projector, PROJECTORS[projector.kind].parameters(projector)),
        ("decoder", prefixes.decoder, DECODERS[decoder.kind].parameters(decoder)),
    )
    takes = tuple(
        Take(part=part, parameter=name, source=prefix + name, shape=tuple(shape))
        for part, prefix, parameters in parts
        for name, shape in parameters.items()
    )
    drops = (
        *extra,
        *below(prefixes.tower, ENCODERS[encoder.kind].drops(encoder)),
        *below(prefixes.decoder, DECODERS[decoder.kind].drops(decoder)),
    )
    return WeightMap(takes=takes, drops=drops)


def below(prefix: str, drops: tuple[Drop, ...]) -> tuple[Drop, ...]:
    """The same patterns under a prefix."""
    return tuple(Drop(pattern=prefix + drop.pattern, why=drop.why) for drop in drops)


def tower_prefix(inside: str, from_folder: bool) -> str:
    """Prefix of tower tensors: the checkpoint's own copy, or the tower's folder."""
    return TOWER_PREFIX if from_folder else inside
