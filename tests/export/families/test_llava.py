"""LLaVA-1.5 in the authors' layout and in both of transformers': one model, the same bytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

from mllm_export.checkpoint import INSIDE, TOWER_PREFIX, Checkpoint
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.errors import CheckpointError, MllmExportError, UnsupportedModelError
from mllm_export.export.families.llava import FAMILY
from mllm_export.export.family import Reading, cover, read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint

WEIGHTS = "pytorch_model.bin"
LAYOUTS = ("authors", "transformers to 4.51", "transformers from 4.52")


def read(model: Path, vision_tower: str | None = None) -> Reading:
    checkpoint = Checkpoint(model, vision_tower)
    reading = read_spec(checkpoint)
    cover(checkpoint, reading)
    return reading


def as_hf(source: Path, folder: Path, is_new: bool) -> Path:
    """The same weights and tokenizer as transformers' LlavaForConditionalGeneration saves them."""
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    tower = source.parent / FAMILY.tiny().tower_name
    text = {k: v for k, v in config.items() if not k.startswith("mm_")}
    nested = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 500,
        "projector_hidden_act": "gelu",
        "text_config": {**text, "model_type": "llama"},
        "vision_config": json.loads((tower / "config.json").read_text()),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    (folder / "config.json").write_text(json.dumps(nested))
    shutil.copy(tower / "preprocessor_config.json", folder)
    state = torch.load(source / WEIGHTS, weights_only=True)
    torch.save({hf_name(n, is_new): v for n, v in state.items()}, folder / WEIGHTS)
    return folder


def hf_name(name: str, is_new: bool) -> str:
    inside = "model.vision_tower."
    if name.startswith(inside):
        name = name.removeprefix(inside)
        return f"model.{name}" if is_new else name
    if "mm_projector" in name:
        name = name.removeprefix("model.").replace(
            "mm_projector.0", "multi_modal_projector.linear_1"
        )
        name = name.replace("mm_projector.2", "multi_modal_projector.linear_2")
        return f"model.{name}" if is_new else name
    if is_new:
        return name.replace("model.", "model.language_model.", 1)
    return f"language_model.{name}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    authors = write_random_checkpoint(root / "model", FAMILY.tiny(), dtype="float16")
    old, new = (as_hf(authors, root / layout, layout == "new") for layout in ("old", "new"))
    return dict(zip(LAYOUTS, (authors, old, new), strict=True))


def test_transformers_itself_reads_the_twins_as_one_model(models: dict[str, Path]) -> None:
    from transformers import LlavaForConditionalGeneration

    for layout in LAYOUTS[1:]:
        model, info = LlavaForConditionalGeneration.from_pretrained(
            models[layout], output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        del model


def test_every_layout_gives_one_spec(models: dict[str, Path]) -> None:
    found = [read(models[layout]).spec for layout in LAYOUTS]
    for other in found[1:]:
        for part in ("encoders", "projector", "decoder", "tokenizer", "prompt"):
            assert getattr(other, part) == getattr(found[0], part)


def artifacts(model: Path, folder: Path) -> dict[str, bytes]:
    """What a float16 build writes, without its child processes."""
    from mllm_export.export.artifact import Work
    from mllm_export.export.artifacts.gguf import write_decoder_stage
    from mllm_export.export.artifacts.onnx import write_tower_stage
    from mllm_export.export.make_plan import make_plan
    from mllm_export.export.target import load_target
    from mllm_export.progress import silent
    from mllm_export.quantize.recipe import load_recipe

    folder.mkdir()
    reading = read(model)
    plan = make_plan(reading, load_target("linux-x86_64"), load_recipe("f16"))
    work = Work(plan=plan, reading=reading, source=(model, None), folder=folder)
    for artifact in plan.artifacts:
        if artifact.role == "decoder":
            write_decoder_stage(work, artifact, silent)
        else:
            write_tower_stage(work, work.path(artifact), silent)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_layout_gives_the_same_bytes(models: dict[str, Path], tmp_path: Path) -> None:
    made = [artifacts(models[layout], tmp_path / str(at)) for at, layout in enumerate(LAYOUTS)]
    assert set(made[0]) == {"decoder.gguf", "tower.onnx"}
    for other in made[1:]:
        assert other == made[0]


def test_the_reference_reads_every_layout_alike(models: dict[str, Path]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    embeds: list[Any] = []
    for layout in LAYOUTS:
        reference = REFERENCES["llava"](Checkpoint(models[layout]))
        pixels = reference.pixels(picture)
        embeds.append(reference.embed(pixels))
        assert (reference.decoder_originals()["blk.1.attn_q.weight"].values(0, 4)).any()
    assert (embeds[0] == embeds[1]).all()
    assert (embeds[0] == embeds[2]).all()


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(models["authors"].parent / FAMILY.tiny().tower_name, tmp_path / "clip-vit-tiny")
    return Path(shutil.copytree(models["authors"], tmp_path / "model"))


def change(model: Path, **keys: object) -> Path:
    file = model / "config.json"
    config = json.loads(file.read_text())
    config.update(keys)
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return model


def test_an_untrained_tower_is_read_from_its_own_folder(model: Path) -> None:
    change(model, unfreeze_mm_vision_tower=False)
    state = torch.load(model / WEIGHTS, weights_only=True)
    prefix = "model.vision_tower.vision_tower."
    tower = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    torch.save(tower, model.parent / "clip-vit-tiny" / WEIGHTS)
    reading = read(model)
    assert reading.uses_tower_folder
    assert all(s.startswith(TOWER_PREFIX) for s in reading.weights.part("tower").values())
    assert not read(model, INSIDE).uses_tower_folder


def test_the_early_model_type_is_taken_too(model: Path) -> None:
    assert read(change(model, model_type="llava")).spec.family == "llava"


def test_llama_2_has_a_template_of_its_own_by_the_folders_name(model: Path) -> None:
    named = model.rename(model.parent / "llava-llama-2-7b-chat")
    reading = read(named)
    prompt = reading.spec.prompt
    assert prompt.text("Q", 1).startswith("[INST] <<SYS>>\nYou are a helpful language and vision")
    assert prompt.text("Q", 1).endswith("\n<</SYS>>\n\n<image>\nQ [/INST]")
    template = jinja2.Environment().from_string(reading.chat_template)
    turn = [{"role": "user", "content": "What's that?"}]
    text = template.render(messages=turn, bos_token="<s>", add_generation_prompt=True)
    assert text == "<s>" + prompt.text("What's that?", images=0)
    reference = REFERENCES["llava"](Checkpoint(named))
    tokenizer = reference._tokenizer  # type: ignore[attr-defined]
    assert reference.prompt_ids("What?", 0) == tokenizer(prompt.text("What?", 0)).input_ids


@pytest.mark.parametrize(
    ("keys", "error", "named"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, UnsupportedModelError, "export/projectors"),
        ({"image_aspect_ratio": "anyres"}, UnsupportedModelError, "anyres"),
        ({"mm_use_im_start_end": True}, UnsupportedModelError, "mm_use_im_start_end"),
        (
            {"s2": True, "s2_scales": "336,672,1008", "mm_hidden_size": 3072},
            UnsupportedModelError,
            r"s2 is true \(s2_scales '336,672,1008'\)",
        ),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act"),
        ({"mm_vision_tower": "no/such"}, CheckpointError, "no/such"),
        ({"num_hidden_layers": 3}, CheckpointError, "layers.2"),
    ],
)
def test_a_near_miss_in_the_authors_layout_names_the_part(
    model: Path, keys: dict[str, object], error: type[MllmExportError], named: str
) -> None:
    with pytest.raises(error, match=named):
        read(change(model, **keys))


@pytest.mark.parametrize(
    ("section", "keys", "named"),
    [
        ("text_config", {"model_type": "phi3"}, "'phi3' is missing.*export/decoders"),
        ("text_config", {"model_type": "mistral"}, "'mistral' is missing"),
        ("vision_config", {"model_type": "pixtral"}, "'pixtral'.*export/encoders"),
        ("", {"projector_hidden_act": "silu"}, "'silu'.*export/projectors"),
        ("", {"multimodal_projector_bias": False}, "multimodal_projector_bias False"),
        ("", {"vision_feature_select_strategy": "mean"}, "select_strategy 'mean'"),
    ],
)
def test_a_near_miss_in_transformers_layout_names_the_part(
    models: dict[str, Path], tmp_path: Path, section: str, keys: dict[str, object], named: str
) -> None:
    model = Path(shutil.copytree(models[LAYOUTS[2]], tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (config[section] if section else config).update(keys)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=named):
        read(model)


def test_keys_that_transformers_leaves_out_have_llamas_defaults(tmp_path: Path) -> None:
    from mllm_export.config import Config
    from mllm_export.export.families._llava_hf import hf_config
    from mllm_export.export.parts import DECODERS

    lean = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5}
    config = Config({"text_config": {**lean, "vocab_size": 32064}}, "config.json")
    spec = DECODERS["llama"].read_spec(hf_config(config))
    assert (spec.width, spec.mlp_width, spec.layers, spec.heads) == (4096, 11008, 32, 32)
    assert (spec.vocab, spec.context_tokens, spec.norm_eps) == (32064, 4096, 1e-5)
