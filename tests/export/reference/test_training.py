"""What training relies on: prompts, packing, and files that load back as they were written."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm_export.export.reference import optimizer
from mllm_export.export.reference import train_tower as stage
from mllm_export.export.reference.corpus import PROMPT
from mllm_export.export.reference.evaluate import load_model
from mllm_export.export.reference.model import ReferenceModel, normalized, round_to_bfloat16
from mllm_export.export.reference.pictures import draw_pool, open_pool, scene_of
from mllm_export.export.reference.questions import all_questions
from mllm_export.export.reference.spec import DecoderSizes, ReferenceSpec, Schedule, VisionSizes
from mllm_export.export.reference.tokenizer import Prompts
from mllm_export.export.reference.train_llm import answer_scores, pack
from mllm_export.export.reference.train_tower import new_tower, patch_features, train_tower
from mllm_export.export.reference.twin import TWINS, twin_of

SMALL = ReferenceSpec(
    vision=VisionSizes(width=64, heads=1, layers=3, mlp_width=64),
    decoder=DecoderSizes(width=32, heads=1, layers=2, mlp_width=32),
    schedule=Schedule(pictures=4, tower_steps=2, tower_batch=2),
)
SMALL_PHI = replace(
    TWINS["llava_phi"].spec,
    vision=VisionSizes(image_px=56, width=64, heads=1, layers=3, mlp_width=64),
    decoder=DecoderSizes(kind="phi", width=32, heads=1, layers=2, mlp_width=128, rope_share=0.5),
)
SMALLS = pytest.mark.parametrize("spec", [SMALL, SMALL_PHI], ids=["mobilevlm", "llava_phi"])


def open_prompts(spec: ReferenceSpec, folder: Path) -> Prompts:
    twin = TWINS[spec.twin]
    twin.write_tokenizer(folder, spec.decoder.vocab)
    return Prompts(twin.open_tokenizer(folder), twin.eos)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return open_prompts(SMALL, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def phi_prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return open_prompts(SMALL_PHI, tmp_path_factory.mktemp("phi_tokenizer"))


def test_prompt_is_the_one_of_mobilevlm() -> None:
    assert PROMPT == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "{question} ASSISTANT:"
    )


def test_pieces_around_the_image_are_tokenized_apart(prompts: Prompts) -> None:
    space, newline = prompts.before[-1], 3 + ord("\n")
    assert prompts.before[0] == 1
    assert prompts.before.count(1) == 1
    assert prompts.prompt("Where is the digit?")[:2] == [space, newline]
    assert 1 not in prompts.prompt("Where is the digit?")


def test_pieces_of_a_tokenizer_without_a_beginning_lose_nothing(phi_prompts: Prompts) -> None:
    # Source: GPT-2's byte alphabet: 'A' is 32, a line feed 198, a blank 220
    assert (phi_prompts.before[0], phi_prompts.before[-1]) == (32, 220)
    assert phi_prompts.prompt("Where is the digit?")[0] == 198


@pytest.mark.parametrize("which", ["prompts", "phi_prompts"])
def test_prompt_is_a_prefix_of_every_conversation(
    which: str, request: pytest.FixtureRequest
) -> None:
    prompts: Prompts = request.getfixturevalue(which)
    end = prompts.conversation("Which digit is shown?", "1")[0][-1]
    for index in range(30):
        for asked in all_questions(scene_of(0, index)):
            ids, start = prompts.conversation(asked.text, asked.answer)
            assert ids[:start] == prompts.prompt(asked.text)
            assert ids.index(end) == len(ids) - 1


@SMALLS
def test_a_packed_question_scores_as_if_it_were_alone(
    spec: ReferenceSpec, prompts: Prompts, phi_prompts: Prompts
) -> None:
    torch.manual_seed(0)
    model = ReferenceModel(spec).eval()
    prompts = phi_prompts if spec is SMALL_PHI else prompts
    features = torch.randn(1, spec.vision.grid**2, spec.vision.width)
    questions = all_questions(scene_of(0, 0))[:4]
    before = torch.tensor(prompts.before)
    with torch.no_grad():
        packed = answer_scores(model, features, before, pack(prompts, [questions]))
        alone = [
            answer_scores(model, features, before, pack(prompts, [[asked]])) for asked in questions
        ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


@SMALLS
def test_all_patches_give_the_features_of_the_selected_layer(spec: ReferenceSpec) -> None:
    model, side = ReferenceModel(spec).eval(), spec.vision.image_px
    pixels = normalized(torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8))
    keep = torch.arange(spec.vision.grid**2).expand(2, -1)
    with torch.no_grad():
        made = patch_features(model.tower, pixels, spec.vision.select_layer, keep)
        torch.testing.assert_close(made, model.features(pixels), rtol=1e-4, atol=1e-5)


@SMALLS
def test_a_written_checkpoint_loads_back_with_the_same_values(
    spec: ReferenceSpec, tmp_path: Path
) -> None:
    model = ReferenceModel(spec)
    round_to_bfloat16(model)
    TWINS[spec.twin].write(model.parts(), spec, tmp_path)
    again, twin = load_model(tmp_path / "checkpoint"), twin_of(tmp_path / "checkpoint")
    assert twin is TWINS[spec.twin]
    assert twin.read_spec(tmp_path / "checkpoint").decoder == spec.decoder
    assert twin.read_spec(tmp_path / "checkpoint").vision == spec.vision
    wanted = model.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


def test_an_interrupted_tower_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(draw_pool(tmp_path / "pool", SMALL, 1)) == [4]
    assert not list(draw_pool(tmp_path / "pool", SMALL, 1))
    pool = open_pool(tmp_path / "pool")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir()
    stopped.mkdir()
    wanted = train_tower(SMALL, pool, straight).state_dict()

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        optimizer.save_state(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "SAVE_EVERY_STEPS", 1)
        patched.setattr(stage, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_tower(SMALL, pool, stopped)
    torch.testing.assert_close(train_tower(SMALL, pool, stopped).state_dict(), wanted)
    first = new_tower(SMALL).state_dict()
    assert any(not torch.equal(first[name], value) for name, value in wanted.items())
