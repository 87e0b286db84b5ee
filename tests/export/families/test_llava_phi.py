"""LLaVA-Phi is read as its own loader reads it, in each layout of its decoder, or refused."""

import copy
import json
import shutil
import sys
from pathlib import Path

import jinja2
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "decoders"))
sys.path.insert(0, str(Path(__file__).parents[2] / "device_tests"))

from other_towers import mipha
from phi_originals import in_layout

from mllm_export.checkpoint import Checkpoint
from mllm_export.errors import CheckpointError, MllmExportError, UnsupportedModelError
from mllm_export.export.families.llava_phi import FAMILY
from mllm_export.export.family import Reading, cover, read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint

WEIGHTS = "pytorch_model.bin"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "model", FAMILY.tiny())


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def read(model: Path, vision_tower: str | None = None) -> Reading:
    checkpoint = Checkpoint(model, vision_tower)
    reading = read_spec(checkpoint)
    cover(checkpoint, reading)
    return reading


def change(model: Path, path: str = "", **keys: object) -> Path:
    """Change keys of the object at `path`; ... removes one."""
    file = model / "config.json"
    config = json.loads(file.read_text())
    inner = config
    for name in filter(None, path.split(".")):
        inner = inner[name]
    inner.update(keys)
    for key in [key for key, value in keys.items() if value is ...]:
        del inner[key]
    file.write_text(json.dumps(config))
    return model


def test_the_parts_are_those_of_the_nested_config(model: Path) -> None:
    spec = read(model).spec
    assert (spec.encoders[0].kind, spec.projector.kind) == ("clip_vit", "mlp2x_gelu")
    assert (spec.decoder.kind, spec.decoder.layout, spec.decoder.rotary_dim) == ("phi", "phi", 24)
    assert (spec.encoders[0].run_layers, spec.encoders[0].layers) == (2, 3)
    assert (spec.image_tokens, spec.encoders[0].image.fit) == (64, "pad")


def test_nothing_is_read_from_another_folder(model: Path, tmp_path: Path) -> None:
    reading = read(model)
    assert not reading.uses_tower_folder
    assert {s.split(".")[1] for s in reading.weights.part("tower").values()} == {"vision_tower"}
    asked = read(model, str(model))
    assert asked.weights == reading.weights
    assert "fine-tuned" in asked.notes[0]


def test_a_checkpoint_without_its_own_tower_is_refused(model: Path) -> None:
    """The published encoder would give answers, and not the model's."""
    state = torch.load(model / WEIGHTS, weights_only=True)
    torch.save({n: v for n, v in state.items() if "vision_tower" not in n}, model / WEIGHTS)
    for tower in (None, str(model)):
        with pytest.raises(CheckpointError, match=r"below 'model\.vision_tower\.'.*fine-tuned"):
            read(model, tower)


def test_the_end_is_the_tokenizers_and_not_the_configs(model: Path) -> None:
    spec = read(model).spec
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == 2
    assert spec.prompt.stop_ids == (spec.tokenizer.eos_id,) == (451,)
    assert spec.prompt.stop_strings == ("<|endoftext|>",)
    assert not spec.tokenizer.add_bos


@pytest.mark.parametrize("layout", ["phi-interleaved", "phi-msft"])
def test_the_decoders_older_layouts_are_told_by_their_names(model: Path, layout: str) -> None:
    assert read(in_layout(model, layout)).spec.decoder.layout == layout


@pytest.mark.parametrize(
    ("path", "keys", "error", "named"),
    [
        ("", {"model_type": "mipha_phi3"}, UnsupportedModelError, "export/decoders"),
        ("", {"model_type": "mipha_gemma"}, UnsupportedModelError, "'mipha_gemma' is missing"),
        ("", {"vision_config": ...}, UnsupportedModelError, "flat mm_ keys"),
        ("", {"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act"),
        ("", {"vocab_size": 400}, CheckpointError, "vocab_size is 400"),
        ("", {"num_hidden_layers": 3}, CheckpointError, "layers.2"),
        ("", {"mm_use_im_start_end": True}, UnsupportedModelError, "mm_use_im_start_end"),
        (
            "vision_config.mm_projector",
            {"mm_projector_type": "mlp3x_gelu"},
            UnsupportedModelError,
            "export/projectors",
        ),
        ("vision_config.mm_projector", {"mm_hidden_size": 65}, CheckpointError, "mm_hidden_size"),
        ("vision_config.mm_projector", {"mm_projector_type": ...}, CheckpointError, "is missing"),
        (
            "vision_config.vision_tower",
            {"vision_model_name_or_path": "facebook/dinov2-base"},
            UnsupportedModelError,
            "export/encoders",
        ),
        ("vision_config.vision_tower", {"image_size": 72}, CheckpointError, "72"),
        (
            "vision_config.vision_tower",
            {"mm_vision_select_feature": "cls"},
            UnsupportedModelError,
            "mm_vision_select_feature",
        ),
    ],
)
def test_a_near_miss_names_the_part_and_what_to_add(
    model: Path, path: str, keys: dict[str, object], error: type[MllmExportError], named: str
) -> None:
    with pytest.raises(error) as caught:
        read(change(model, path, **copy.deepcopy(keys)))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_without_its_bias_is_named(model: Path) -> None:
    state = torch.load(model / WEIGHTS, weights_only=True)
    del state["lm_head.bias"]
    torch.save(state, model / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"'lm_head\.bias' \[512\] is missing"):
        read(model)


def test_the_chat_template_renders_the_prompt_without_a_bos(model: Path) -> None:
    reading = read(model)
    template = jinja2.Environment().from_string(reading.chat_template)
    turn = [{"role": "user", "content": "What's that?"}]
    text = template.render(messages=turn, bos_token="<|endoftext|>", add_generation_prompt=True)
    assert text == reading.spec.prompt.text("What's that?", images=0)
    more = [*turn, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "And?"}]
    text = template.render(messages=more, bos_token="", add_generation_prompt=True)
    assert text.endswith("ASSISTANT: A cat.<|endoftext|>USER: And? ASSISTANT:")


def test_mipha_has_siglip_by_its_config_and_keeps_all_patches(tmp_path: Path) -> None:
    model = mipha(tmp_path / "model")
    reading = read(model)
    encoder = reading.spec.encoders[0]
    assert (encoder.kind, encoder.activation) == ("siglip", "gelu_pytorch_tanh")
    assert (encoder.image.pad_rgb, encoder.image.fit) == ((127, 127, 127), "pad")
    assert (reading.spec.image_tokens, encoder.run_layers) == (64, 2)
    assert not any("class_embedding" in name for name in reading.weights.part("tower"))
