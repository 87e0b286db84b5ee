"""Cobra is read as its own loader reads it: three published folders beside the checkpoint."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import torch

from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.errors import CheckpointError, MllmExportError, UnsupportedModelError
from mllm_export.export.families.cobra import FAMILY
from mllm_export.export.family import Reading, cover, read_spec
from mllm_export.export.parts import PROJECTORS, TOKENIZERS
from mllm_export.export.published_models import cobra
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.spec import EncoderSpec

DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_90.webli"
LLM = "mamba-2.8b-zephyr"
FILE = "checkpoints/latest-checkpoint.pt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "model", FAMILY.tiny())


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "all")
    return tmp_path / "all" / "model"


def read(model: Path, asked: Asked = None) -> Reading:
    checkpoint = Checkpoint(model, asked)
    reading = read_spec(checkpoint)
    cover(checkpoint, reading)
    return reading


def change(folder: Path, section: str = "", **keys: object) -> Path:
    """Change keys of config.json; ... removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    inner = config[section] if section else config
    inner.update(keys)
    for key in [key for key, value in keys.items() if value is ...]:
        del inner[key]
    file.write_text(json.dumps(config))
    return folder


def change_state(model: Path, part: str, **tensors: torch.Tensor | None) -> Path:
    whole = torch.load(model / FILE, weights_only=True)
    inner = whole["model"].setdefault(part, {})
    inner |= {name.replace("__", "."): value for name, value in tensors.items()}
    for name in [name for name, value in inner.items() if value is None]:
        del inner[name]
    torch.save(whole, model / FILE)
    return model


def test_the_parts_are_those_that_the_ids_name(model: Path) -> None:
    spec = read(model).spec
    dino, siglip = spec.encoders
    assert (dino.name, dino.kind, dino.prefix_tokens) == ("dino", "dinov2", 5)
    assert (siglip.name, siglip.kind, siglip.prefix_tokens) == ("siglip", "siglip_timm", 0)
    assert {(one.run_layers, one.layers, one.image.fit) for one in spec.encoders} == {
        (2, 3, "stretch")
    }
    assert (dino.position_grid, dino.grid) == (7, 6)
    assert (dino.image.mean[0], siglip.image.mean[0]) == (0.485, 0.5)
    assert spec.fusion is not None
    assert (spec.fusion.kind, spec.fusion.out_width) == ("channels", 112)
    assert (spec.projector.kind, spec.decoder.kind) == ("fused_gelu_mlp", "mamba")
    assert spec.image_tokens == 36
    assert (spec.decoder.vocab, spec.tokenizer.normalizer) == (512, "NFC")


def test_the_published_model_has_its_known_sizes(tmp_path: Path) -> None:
    """Configs that name an architecture and nothing else, as timm's do; weights are not asked."""
    whole = cobra()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(whole.config))
    for one in whole.folders:
        own = tmp_path / one.companion.published
        own.mkdir()
        (own / "config.json").write_text(json.dumps(one.config))
    TOKENIZERS["bpe"].write_random(tmp_path / LLM, 50277, "GPTNeoXTokenizer")
    spec = read_spec(Checkpoint(folder)).spec

    def sizes(one: EncoderSpec) -> tuple[int, ...]:
        return (one.width, one.layers, one.run_layers, one.mlp_width, one.heads, one.tokens_out)

    assert [sizes(one) for one in spec.encoders] == [
        (1024, 24, 23, 4096, 16, 729),
        (1152, 27, 26, 4304, 16, 729),
    ]
    assert spec.encoders[0].position_grid == 37
    projector = spec.projector
    assert (projector.in_width, projector.out_width, projector.tokens_out) == (2176, 2560, 729)
    shapes = PROJECTORS["fused_gelu_mlp"].parameters(projector)
    assert sum(math.prod(shape) for shape in shapes.values()) == 47_789_568
    assert (spec.decoder.vocab, spec.decoder.layers) == (50280, 64)


def test_the_image_stands_before_every_token_of_text(model: Path) -> None:
    prompt = read(model).spec.prompt
    wrapped = "<|user|>\nWhat?<|endoftext|>\n<|assistant|>\n"
    assert prompt.text("What?") == f"<image>{wrapped}"
    assert prompt.text("  <image>\nWhat? ") == f"<image>{wrapped}"
    assert prompt.text("What?", 0) == wrapped
    assert prompt.stop_ids == (0,)


def test_a_base_model_has_the_plain_prompt(model: Path) -> None:
    (model.parent / LLM).rename(model.parent / "mamba-2.8b-slimpj")
    change(model, "model", llm_backbone_id="mamba-2.8b-slimpj")
    assert read(model).spec.prompt.text("What?", 0) == "In: What?\nOut: "


def test_the_chat_template_writes_the_builders_turns(model: Path) -> None:
    template = jinja2.Template(read(model).chat_template)
    turns = [("user", " Hi "), ("assistant", "Yes."), ("user", "Why?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert template.render(messages=messages) == (
        "<|user|>\nHi<|endoftext|>\n<|assistant|>\nYes.<|endoftext|>"
        "\n<|user|>\nWhy?<|endoftext|>\n<|assistant|>\n"
    )


def test_one_tower_has_no_fusion_and_no_name(model: Path) -> None:
    change(model, "model", vision_backbone_id="siglip-vit-so400m-90px", arch_specifier="gelu-mlp")
    nothing = dict.fromkeys(("projector__4__weight", "projector__4__bias"))
    small = {
        "projector__0__weight": torch.zeros(256, 48),
        "projector__0__bias": torch.zeros(256),
        "projector__2__weight": torch.zeros(256, 256),
    }
    change_state(model, "projector", **nothing, **small)
    shutil.rmtree(model.parent / DINO)
    spec = read(model).spec
    assert [one.name for one in spec.encoders] == [""]
    assert (spec.fusion, spec.projector.kind) == (None, "mlp2x_gelu")


def test_the_projector_of_fewer_tokens_is_taken(tmp_path: Path) -> None:
    whole = FAMILY.tiny()
    model = dict(whole.config["model"], arch_specifier="no-align+fused-ldpnet")
    small = replace(whole, config={**whole.config, "model": model})
    spec = read(write_random_checkpoint(tmp_path / "model", small)).spec
    assert (spec.projector.kind, spec.image_tokens) == ("fused_ldpnet", 196)


def test_towers_are_taken_from_where_the_user_says(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (model.parent / DINO).rename(elsewhere)
    with pytest.raises(CheckpointError, match="--vision-tower dino=DIR"):
        read(model)
    assert read(model, (("dino", elsewhere),)).spec.encoders[0].kind == "dinov2"
    # Any folder may be named, the language model's too.
    (model.parent / LLM).rename(tmp_path / "llm")
    read(model, (("dino", elsewhere), ("llm", tmp_path / "llm")))


def test_open_clips_folder_of_siglip_goes_in(model: Path) -> None:
    """It has no config.json that names timm's architecture, and a text tower beside the trunk."""
    folder = model.parent / SIGLIP
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    whole = {f"visual.trunk.{name}": value for name, value in weights.items()}
    whole |= {"text.ln_final.weight": torch.ones(4), "logit_scale": torch.ones(())}
    torch.save(whole, folder / "open_clip_pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    reading = read(model)
    first = next(iter(t for t in reading.weights.takes if t.parameter.startswith("siglip.")))
    assert first.source == f"siglip@{SIGLIP}:visual.trunk.pos_embed"
    # Nothing but the id tells what it is, and that is the published size.
    (folder / "config.json").unlink()
    with pytest.raises(MllmExportError, match="'vit_so400m_patch14_siglip_90' is no"):
        read(model)


def test_a_copy_of_the_towers_in_a_training_dump_is_left_out(model: Path) -> None:
    change_state(model, "vision_backbone", dino_featurizer__cls_token=torch.zeros(1, 1, 64))
    checkpoint = Checkpoint(model)
    dropped = cover(checkpoint, read_spec(checkpoint))
    why = {one.source: one.why for one in dropped}
    assert "own folders" in why["model.vision_backbone.dino_featurizer.cls_token"]


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"vision_backbone_id": "dinoclip-vit-l-336px"}, UnsupportedModelError, "dinoclip-vit-l"),
        ({"arch_specifier": "no-align+fused-qformer"}, UnsupportedModelError, "fused-qformer"),
        ({"image_resize_strategy": "letterbox"}, UnsupportedModelError, "'letterbox'"),
        ({"image_resize_strategy": ...}, CheckpointError, "'image_resize_strategy'"),
        ({"llm_backbone_id": "mamba-9b"}, CheckpointError, "'mamba-9b' was not found"),
        ({"llm_backbone_id": "vicuna-v15-7b"}, UnsupportedModelError, "no family"),
    ],
)
def test_what_is_not_there_is_named(
    model: Path, keys: dict[str, object], error: type[MllmExportError], words: str
) -> None:
    change(model, "model", **keys)
    with pytest.raises(error, match=words):
        read(model)


def test_another_towers_folder_is_told(model: Path) -> None:
    config = json.loads((model.parent / SIGLIP / "config.json").read_text())
    change(model.parent / DINO, **config)
    with pytest.raises(UnsupportedModelError, match=f"is no {DINO}"):
        read(model)


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("projector", "projector__4__bias", None, r"projector\.4\.bias' \[256\] is missing"),
        ("projector", "projector__6__bias", torch.ones(1), r"projector\.6\.bias' \[1\] has no pl"),
        ("llm_backbone", "llm__backbone__layers__0__mixer__D", torch.ones(4), "the config needs"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    model: Path, part: str, name: str, value: torch.Tensor | None, words: str
) -> None:
    change_state(model, part, **{name: value})
    with pytest.raises(CheckpointError, match=words):
        read(model)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((("left", Path("x")),), "no 'left'; it has parts of their own: dino, siglip, llm"),
        (Path("x"), "say which: dino=DIR, siglip=DIR, llm=DIR"),
    ],
)
def test_a_tower_that_the_model_does_not_have_is_told(
    model: Path, asked: Asked, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(model, asked)
