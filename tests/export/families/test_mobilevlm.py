"""MobileVLM V1 and V2 are read as their own loaders read them, or refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import torch

from mllm_export.checkpoint import INSIDE, TOWER_PREFIX, Checkpoint
from mllm_export.errors import CheckpointError, MllmExportError, UnsupportedModelError
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.family import Reading, cover, read_spec
from mllm_export.export.published_models import mobilevlm
from mllm_export.export.random_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V2 checkpoint and its tower's folder side by side."""
    root = tmp_path_factory.mktemp("models")
    write_random_checkpoint(root / "model", FAMILY.tiny())
    return root


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "model"


def change(model: Path, **keys: object) -> Path:
    file = model / "config.json"
    config = json.loads(file.read_text())
    for key, value in keys.items():
        config.pop(key, None)
        if value is not ...:
            config[key] = value
    file.write_text(json.dumps(config))
    return model


def read(model: Path, vision_tower: str | None = None) -> Reading:
    checkpoint = Checkpoint(model, vision_tower)
    reading = read_spec(checkpoint)
    cover(checkpoint, reading)
    return reading


def test_v2_takes_the_tower_inside_the_checkpoint(model: Path) -> None:
    reading = read(model)
    assert reading.spec.projector.kind == "ldpv2"
    assert not reading.uses_tower_folder
    assert all(s.startswith("model.vision_tower.") for s in reading.weights.part("tower").values())


def test_v1_takes_the_towers_own_folder_over_the_copy_inside(tmp_path: Path) -> None:
    tiny = FAMILY.tiny()
    v1 = replace(tiny, config={**tiny.config, "mm_projector_type": "ldpnet"})
    model = write_random_checkpoint(tmp_path / "model", v1)
    reading = read(model)
    assert reading.spec.projector.kind == "ldp"
    assert all(s.startswith(TOWER_PREFIX) for s in reading.weights.part("tower").values())
    first = next(iter(reading.weights.part("projector").values()))
    assert first.startswith("model.mm_projector.model.")


def test_v1_without_its_tower_says_where_it_was_looked_for(tmp_path: Path) -> None:
    tiny = FAMILY.tiny()
    v1 = replace(tiny, config={**tiny.config, "mm_projector_type": "ldpnet"})
    model = write_random_checkpoint(tmp_path / "model", v1)
    shutil.rmtree(tmp_path / tiny.tower_name)
    with pytest.raises(CheckpointError, match=r"example/clip-vit-tiny.*looked in.*--vision-tower"):
        read(model)


def test_v2_of_the_published_tower_needs_no_folder(tmp_path: Path) -> None:
    big = mobilevlm("1.7B")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(big.config))
    from mllm_export.export.random_tokenizer import write_tokenizer

    write_tokenizer(tmp_path / "model", 32000)
    spec = read_spec(Checkpoint(tmp_path / "model")).spec
    assert (spec.encoders[0].tokens_out, spec.image_tokens) == (576, 144)
    assert (spec.encoders[0].run_layers, spec.encoders[0].layers) == (23, 24)
    assert spec.encoders[0].image.pad_rgb == (122, 116, 104)


def test_the_left_over_trainer_keys_of_3b_are_not_believed(tmp_path: Path) -> None:
    big = mobilevlm("3B")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(big.config))
    from mllm_export.export.random_tokenizer import write_tokenizer

    write_tokenizer(tmp_path / "model", 32000)
    decoder = read_spec(Checkpoint(tmp_path / "model")).spec.decoder
    assert (decoder.heads, decoder.head_dim) == (32, 80)


def test_v1_takes_the_copy_inside_when_asked_and_notes_what_that_means(tmp_path: Path) -> None:
    tiny = FAMILY.tiny()
    v1 = replace(tiny, config={**tiny.config, "mm_projector_type": "ldpnet"})
    model = write_random_checkpoint(tmp_path / "model", v1)
    state = torch.load(model / "pytorch_model.bin", weights_only=True)
    tower = load_file(tmp_path / tiny.tower_name)
    prefix = "model.vision_tower.vision_tower."
    torch.save({**state, **{prefix + n: t for n, t in tower.items()}}, model / "pytorch_model.bin")
    assert read(model).uses_tower_folder
    inside = read(model, INSIDE)
    assert not inside.uses_tower_folder
    assert "rounding to bfloat16" in inside.notes[0]


def load_file(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_published_file_layout_gives_the_same_reading(
    made: Path, tmp_path: Path, form: str, shards: int
) -> None:
    other = write_random_checkpoint(
        tmp_path / "model",
        FAMILY.tiny(),
        weights=form,  # type: ignore[arg-type]
        shards=shards,
    )
    assert read(other) == read(made / "model")


@pytest.mark.parametrize(
    ("keys", "error", "named"),
    [
        ({"hidden_size": ...}, CheckpointError, "hidden_size"),
        ({"mm_projector_type": "ldpnetv3"}, UnsupportedModelError, "did you mean ldpnetv2"),
        ({"mm_projector_type": ...}, CheckpointError, "mm_projector_type"),
        ({"mm_vision_tower": ...}, CheckpointError, "mm_vision_tower"),
        ({"mm_vision_tower": "no/such"}, CheckpointError, "no/such"),
        ({"mm_hidden_size": 65}, CheckpointError, "mm_hidden_size"),
        ({"mm_vision_select_layer": -9}, MllmExportError, "select layer"),
        ({"mm_vision_select_feature": "cls"}, UnsupportedModelError, "mm_vision_select_feature"),
        ({"mm_use_im_start_end": True}, UnsupportedModelError, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "anyres"}, UnsupportedModelError, "anyres"),
        ({"model_type": "llava_phi3"}, UnsupportedModelError, "llava_phi3"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act"),
        ({"vocab_size": 100}, CheckpointError, "vocab_size"),
        ({"num_attention_heads": 3}, MllmExportError, "head"),
        ({"intermediate_size": 513}, CheckpointError, "513"),
        ({"num_hidden_layers": 1}, CheckpointError, "layers.1"),
        ({"num_hidden_layers": 3}, CheckpointError, "layers.2"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_config_that_does_not_fit_is_refused_with_the_key_or_tensor(
    model: Path, keys: dict[str, object], error: type[MllmExportError], named: str
) -> None:
    with pytest.raises(error) as caught:
        read(change(model, **keys))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_too_many_is_named(model: Path) -> None:
    state = torch.load(model / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "model.extra_head.weight": torch.ones(2)}, model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.extra_head\.weight"):
        read(model)


def test_buffers_that_old_transformers_stored_are_dropped_by_name(model: Path) -> None:
    state = torch.load(model / "pytorch_model.bin", weights_only=True)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    tower = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
    state[tower] = torch.arange(577)[None]
    torch.save(state, model / "pytorch_model.bin")
    read(model)


def test_crop_is_taken_where_the_config_does_not_ask_for_padding(model: Path) -> None:
    assert read(model).spec.encoders[0].image.fit == "pad"
    cropped = read(change(model, image_aspect_ratio=...))
    assert cropped.spec.encoders[0].image.fit == "crop"


def test_the_chat_template_renders_the_prompt_it_was_trained_on(model: Path) -> None:
    reading = read(model)
    template = jinja2.Environment().from_string(reading.chat_template)
    turn = [{"role": "user", "content": "What's that?"}]
    text = template.render(messages=turn, bos_token="<s>", add_generation_prompt=True)
    assert text == "<s>" + reading.spec.prompt.text("What's that?", images=0)
    more = [*turn, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "And?"}]
    text = template.render(messages=more, bos_token="<s>", add_generation_prompt=True)
    assert text.endswith("USER: What's that? ASSISTANT: A cat.</s>USER: And? ASSISTANT:")
