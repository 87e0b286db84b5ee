"""The second twin's files: laid out as LLaVA-Phi was published, small, and as good as its card."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PhiConfig,
    PhiForCausalLM,
)

import mllm_export.export.reference as reference
from mllm_export.commands.opening import reference_evaluation, reference_folder
from mllm_export.export.reference.evaluate import Evaluator, read_questions
from mllm_export.export.reference.twin import TWINS

CHECKPOINT = reference_folder("reference-phi")
MEBIBYTE = 2**20
QUESTIONS_HELD = 40  # of the 500 on the card: enough to see a broken file, in a few seconds
QUESTIONS_DAMAGED = 20


@pytest.fixture(scope="module")
def config() -> dict[str, object]:
    read: dict[str, object] = json.loads((CHECKPOINT / "config.json").read_text())
    return read


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    index = json.loads((CHECKPOINT / "model.safetensors.index.json").read_text())["weight_map"]
    held = {name: load_file(CHECKPOINT / name) for name in set(index.values())}
    assert {name: file for file, tensors in held.items() for name in tensors} == index
    return {name: value for tensors in held.values() for name, value in tensors.items()}


def test_the_checkpoint_has_the_files_of_the_published_one() -> None:
    assert {path.name for path in CHECKPOINT.iterdir()} == {
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }


def test_nothing_but_the_checkpoint_and_its_card_ships() -> None:
    assert {path.name for path in CHECKPOINT.parent.iterdir()} == {"CARD.md", "checkpoint"}


def test_trained_files_stay_below_sixteen_mebibytes() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 16 * MEBIBYTE


def test_the_config_has_the_published_keys(config: dict[str, object]) -> None:
    published = {
        "architectures": ["LlavaPhiForCausalLM"],
        "model_type": "llava_phi",
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,  # wrong, as published: the tokenizer's ids count
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "image_aspect_ratio": "pad",
        "freeze_vision_tower": False,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "max_position_embeddings": 2048,
    }
    assert {key: config[key] for key in published} == published
    assert not {"mm_vision_tower", "mm_hidden_size", "mm_projector_type"} & config.keys()


def test_tower_and_projector_stand_in_the_nested_config(config: dict[str, object]) -> None:
    nested = config["vision_config"]
    assert isinstance(nested, dict)
    assert set(nested) == {"mm_projector", "vision_tower"}
    tower, projector = nested["vision_tower"], nested["mm_projector"]
    assert tower["model_type"] == "llava_phi_clip_vision_model"
    assert (tower["mm_vision_select_layer"], tower["mm_vision_select_feature"]) == (-2, "patch")
    assert tower["hidden_act"] == "quick_gelu"
    assert projector["model_type"] == "llava_phi_projector"
    assert projector["mm_projector_type"] == "mlp2x_gelu"
    assert projector["mm_hidden_size"] == tower["hidden_size"]
    assert projector["hidden_size"] == config["hidden_size"]


def test_tensors_are_those_of_transformers_own_modules(
    config: dict[str, object], state: dict[str, Tensor]
) -> None:
    nested = config["vision_config"]
    assert isinstance(nested, dict)
    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig.from_dict(nested["vision_tower"])).state_dict()
        phi = PhiForCausalLM(PhiConfig.from_dict(config)).state_dict()
    width, within = nested["mm_projector"]["hidden_size"], nested["mm_projector"]["mm_hidden_size"]
    wanted = {name: list(value.shape) for name, value in phi.items()}
    wanted |= {f"model.vision_tower.{name}": list(value.shape) for name, value in tower.items()}
    for at, shape in {"0": [width, within], "2": [width, width]}.items():
        wanted |= {
            f"model.mm_projector.{at}.weight": shape,
            f"model.mm_projector.{at}.bias": [width],
        }
    assert {name: list(value.shape) for name, value in state.items()} == wanted
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_every_bias_was_trained(state: dict[str, Tensor]) -> None:
    unused = ("post_layernorm", "encoder.layers.3.")  # behind the selected hidden state
    for name, value in state.items():
        if name.endswith(".bias") and not any(part in name for part in unused):
            # a softmax is blind to what is added to all its scores: k's bias hardly moves
            assert value.count_nonzero() or "k_proj" in name, name


def test_decoder_rows_hold_k_quant_blocks(state: dict[str, Tensor]) -> None:
    rows = {name: value.shape[1] for name, value in state.items() if value.ndim == 2}
    outside = {
        name for name in rows if "vision_tower" in name or name.endswith("projector.0.weight")
    }
    assert all(rows[name] % 256 == 0 for name in rows.keys() - outside)


def test_the_processor_pads_nothing_and_crops_nothing() -> None:
    processor = CLIPImageProcessor.from_pretrained(CHECKPOINT)
    assert processor.size == {"shortest_edge": 168}
    assert processor.crop_size == {"height": 168, "width": 168}


def test_the_tokenizers_ids_count_not_the_configs(config: dict[str, object]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert type(tokenizer).__name__ == "CodeGenTokenizerFast"
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id not in (config["bos_token_id"], config["eos_token_id"])
    assert len(tokenizer) < int(str(config["vocab_size"]))  # rows without a token, as published


def test_the_card_reports_at_least_95_percent_on_the_shipped_questions() -> None:
    text = (CHECKPOINT.parent / "CARD.md").read_text()
    assert "--twin llava_phi" in text
    assert f"{len(read_questions(reference_evaluation()))} questions" in text
    found = re.search(r"\*\*all\*\* \| ([\d.]+) %", text)
    assert found
    assert float(found[1]) >= 95.0


def test_the_files_answer_held_out_questions() -> None:
    questions = read_questions(reference_evaluation())[:QUESTIONS_HELD]
    score = Evaluator(CHECKPOINT).score(questions, reference_evaluation().parent)
    assert score.count == QUESTIONS_HELD
    assert score.exact >= 0.95, score.wrong


def _last_hidden_state(evaluator: Evaluator) -> None:
    evaluator.model.select_layer = -1


def _query_and_key_swapped(evaluator: Evaluator) -> None:
    for layer in evaluator.model.decoder.model.layers:
        attention = layer.self_attn
        attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj


@pytest.mark.parametrize("damage", [_last_hidden_state, _query_and_key_swapped])
def test_a_wrong_reading_of_the_files_costs_answers(damage: Callable[[Evaluator], None]) -> None:
    evaluator = Evaluator(CHECKPOINT)
    damage(evaluator)
    questions = read_questions(reference_evaluation())[:QUESTIONS_DAMAGED]
    score = evaluator.score(questions, reference_evaluation().parent)
    assert score.exact < 0.7


def test_its_questions_are_those_of_the_other_twin() -> None:
    assert not TWINS["llava_phi"].writes_questions
    assert reference_evaluation().parent.parent == Path(reference.__file__).parent / "data"
