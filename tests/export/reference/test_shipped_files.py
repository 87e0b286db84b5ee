"""The files that ship: laid out as MobileVLM V2 was published, small, and well-balanced."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import mllm_export.export.reference as reference

DATA = Path(reference.__file__).parent / "data"
CHECKPOINT, TOWER = DATA / "checkpoint", DATA / "clip-vit-tiny-patch14-336"
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(CHECKPOINT / "pytorch_model.bin", weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def config() -> dict[str, object]:
    read: dict[str, object] = json.loads((CHECKPOINT / "config.json").read_text())
    return read


def _tower_shapes() -> dict[str, list[int]]:
    vision = json.loads((TOWER / "config.json").read_text())["vision_config"]
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    rows = (vision["image_size"] // patch) ** 2 + 1
    shapes = {
        "embeddings.class_embedding": [width],
        "embeddings.patch_embedding.weight": [width, 3, patch, patch],
        "embeddings.position_embedding.weight": [rows, width],
    }
    layers = [f"encoder.layers.{at}." for at in range(vision["num_hidden_layers"])]
    norms = ["pre_layrnorm", "post_layernorm"]
    norms += [f"{layer}layer_norm{number}" for layer in layers for number in (1, 2)]
    for name in norms:
        shapes |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    for layer in layers:
        sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (width, width))
        linears = {f"self_attn.{name}": size for name, size in sizes.items()}
        linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, (out, within) in linears.items():
            shapes |= {f"{layer}{name}.weight": [out, within], f"{layer}{name}.bias": [out]}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def _language_shapes(config: dict[str, int]) -> dict[str, list[int]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    vocab = config["vocab_size"]
    shapes = {
        "model.embed_tokens.weight": [vocab, width],
        "model.norm.weight": [width],
        "lm_head.weight": [vocab, width],
    }
    for at in range(config["num_hidden_layers"]):
        layer = f"model.layers.{at}."
        for name in "qkvo":
            shapes[f"{layer}self_attn.{name}_proj.weight"] = [width, width]
        shapes[f"{layer}mlp.gate_proj.weight"] = [inner, width]
        shapes[f"{layer}mlp.up_proj.weight"] = [inner, width]
        shapes[f"{layer}mlp.down_proj.weight"] = [width, inner]
        shapes[f"{layer}input_layernorm.weight"] = [width]
        shapes[f"{layer}post_attention_layernorm.weight"] = [width]
    return shapes


def test_the_checkpoint_has_the_files_of_the_published_one() -> None:
    assert {path.name for path in CHECKPOINT.iterdir()} == {
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert {path.name for path in TOWER.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_the_config_has_the_published_keys(config: dict[str, object]) -> None:
    published = {
        "architectures": ["MobileLlamaForCausalLM"],
        "model_type": "mobilevlm",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "use_mm_proj": True,
        "mm_projector_type": "ldpnetv2",
        "mm_projector_lr": None,
        "vision_tower_type": "clip",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "max_position_embeddings": 2048,
        "max_sequence_length": 2048,
    }
    assert {key: config[key] for key in published} == published
    assert config["num_attention_heads"] == config["num_key_value_heads"]
    assert str(config["mm_vision_tower"]) == f"openai/{TOWER.name}"


def test_tensor_names_and_shapes_are_those_of_mobilevlm_v2(state: dict[str, Tensor]) -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    width, in_width = config["hidden_size"], config["mm_hidden_size"]
    wanted = _language_shapes(config)
    wanted |= {f"model.vision_tower.vision_tower.{n}": s for n, s in _tower_shapes().items()}
    projector = {
        "mlp.mlp.0.weight": [width, in_width],
        "mlp.mlp.0.bias": [width],
        "mlp.mlp.2.weight": [width, width],
        "mlp.mlp.2.bias": [width],
        "peg.peg.0.weight": [width, 1, 3, 3],
        "peg.peg.0.bias": [width],
    }
    wanted |= {f"model.mm_projector.{name}": shape for name, shape in projector.items()}
    assert {name: list(value.shape) for name, value in state.items()} == wanted
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_decoder_rows_hold_k_quant_blocks(state: dict[str, Tensor]) -> None:
    rows = {name: value.shape[1] for name, value in state.items() if value.ndim == 2}
    outside = {name for name in rows if "vision_tower" in name or "mlp.mlp.0" in name}
    assert all(rows[name] % 256 == 0 for name in rows.keys() - outside)


def test_the_tower_folder_holds_the_same_tower(state: dict[str, Tensor]) -> None:
    tensors = load_file(TOWER / "model.safetensors")
    assert {name: list(value.shape) for name, value in tensors.items()} == _tower_shapes()
    for name, value in tensors.items():
        assert torch.equal(value, state[f"model.vision_tower.vision_tower.{name}"])


def test_trained_files_stay_below_sixteen_mebibytes() -> None:
    sizes = [path.stat().st_size for folder in (CHECKPOINT, TOWER) for path in folder.iterdir()]
    assert sum(sizes) <= 16 * MEBIBYTE


@pytest.mark.parametrize(
    ("name", "pictures", "questions", "limit_bytes"),
    [
        ("evaluation", 125, 500, 1_500_000),
        ("calibration", 32, 128, 500_000),
        ("demo", 3, 3, 100_000),
    ],
)
def test_question_sets_are_whole_and_small(
    name: str, pictures: int, questions: int, limit_bytes: int
) -> None:
    folder = DATA / name
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len(lines) == questions
    assert {line["image"] for line in lines} == {path.name for path in folder.glob("*.png")}
    assert len({line["image"] for line in lines}) == pictures
    assert all(set(line) == {"image", "question", "answers", "kind"} for line in lines)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= limit_bytes


def test_evaluation_pictures_need_padding() -> None:
    shapes = {Image.open(path).size for path in (DATA / "evaluation").glob("*.png")}
    assert len(shapes) >= 6
    assert any(width > height for width, height in shapes)
    assert any(width < height for width, height in shapes)


def test_no_answer_rules_the_evaluation() -> None:
    lines = (DATA / "evaluation" / "questions.jsonl").read_text().splitlines()
    answers = Counter(json.loads(line)["answers"][0] for line in lines)
    assert answers.most_common(1)[0][1] / len(lines) < 0.3


def test_the_card_reports_scores_licence_and_digits() -> None:
    text = (DATA / "CARD.md").read_text()
    assert all(word in text for word in ("Apache-2.0", "Handwritten Digits", "blank picture"))
