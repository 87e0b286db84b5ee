"""What bad quantization input gets: exit code 2 and what is wrong, before a weight is read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.samples import reference_calibration
from mllm_export.export.family import FAMILIES
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.quantize.imatrix import Entry, Imatrix, write_imatrix
from tests.export.embedders import tiny_embedders as tiny
from tests.mllm_export.commands.conftest import Run

LINE = json.dumps({"image": "000.png", "question": "What is it?"})
ANSWERED = json.dumps({**json.loads(LINE), "answers": ["red"]})


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes may be looked at; values may not."""

    def refuse(_self: Checkpoint, name: str) -> None:
        raise AssertionError(f"'{name}' was read")

    monkeypatch.setattr(Checkpoint, "read", refuse)


def pictures(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "questions.jsonl").write_text("\n".join(lines))
    shown = reference_calibration().parent / "000.png"
    (folder / "000.png").write_bytes(shown.read_bytes())
    (folder / "torn.png").write_bytes(shown.read_bytes()[:60])
    return folder


def matrix(path: Path, name: str, columns: int) -> Path:
    entry = Entry(sums=np.ones(columns, np.float32), count=3)
    write_imatrix(path, Imatrix(entries={name: entry}, datasets=(), chunk_tokens=512))
    return path


def recipe(path: Path, text: str) -> Path:
    path.write_text(
        'description = ""\ntower_scheme = "f32"\ndecoder_scheme = "Q4_0"\n'
        f'{text}\n[[decoder]]\ntensors = "*"\nscheme = "Q4_0"\n'
    )
    return path


Given = Callable[[Path], tuple[object, ...]]

BAD: dict[str, tuple[Given, str]] = {
    "a broken line": (
        lambda at: ("--calibration", pictures(at / "c", LINE, LINE, '{"image": ')),
        "questions.jsonl, line 3: not valid JSON",
    ),
    "a line without a question": (
        lambda at: ("--calibration", pictures(at / "c", LINE, '{"image": "000.png"}')),
        "line 2: key 'question'",
    ),
    "a picture that does not open": (
        lambda at: ("--calibration", pictures(at / "c", LINE, LINE.replace("000", "torn"))),
        "calibration picture 'torn.png' does not open",
    ),
    "an evaluation picture that does not open": (
        lambda at: (
            "--evaluation",
            pictures(at / "c", ANSWERED, ANSWERED.replace("000", "torn")) / "questions.jsonl",
        ),
        "evaluation picture 'torn.png' does not open",
    ),
    "a picture that is not there": (
        lambda at: ("--calibration", pictures(at / "c", LINE.replace("000", "001"))),
        "picture '001.png' is not there",
    ),
    "no folder": (lambda at: ("--calibration", at / "gone"), "gone"),
    "a matrix with another name": (
        lambda at: ("--imatrix", matrix(at / "m.gguf", "blk.99.attn_q.weight", 8)),
        "holds 'blk.99.attn_q.weight', which this model does not have",
    ),
    "a matrix of another width": (
        lambda at: ("--imatrix", matrix(at / "m.gguf", "blk.0.attn_q.weight", 8)),
        "'blk.0.attn_q.weight' has 8 columns, this model's has 256",
    ),
    "a matrix that is none": (
        lambda at: ("--imatrix", pictures(at / "c", LINE) / "000.png"),
        "not an importance matrix",
    ),
    "a method there is not": (
        lambda at: ("--recipe", recipe(at / "r.toml", 'decoder_methods = ["gtpq"]')),
        "unknown quantization method 'gtpq'; did you mean gptq",
    ),
    "a method that a matrix cannot serve": (
        lambda at: (
            *("--recipe", recipe(at / "r.toml", 'decoder_methods = ["gptq"]')),
            *("--imatrix", matrix(at / "m.gguf", "blk.0.attn_q.weight", 256)),
        ),
        "method 'gptq' does not work on an importance matrix",
    ),
    "a KV type there is not": (
        lambda at: ("--recipe", recipe(at / "r.toml", 'kv_cache = "q3_0"')),
        "kv_cache",
    ),
    "a pattern that matches nothing": (
        lambda at: (
            "--recipe",
            recipe(at / "r.toml", '[[decoder]]\ntensors = "blk.*.attn_z*"\nscheme = "Q8_0"'),
        ),
        "rule 'blk.*.attn_z*' takes no tensor of this model",
    ),
    "a type the target's engine cannot run": (
        lambda at: (
            "--recipe",
            recipe(at / "r.toml", '[[tower]]\ntensors = "projector.*"\nscheme = "pal4"'),
        ),
        "tower scheme 'pal4' is for Core ML towers alone",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_quantization_input_is_refused_before_a_weight_is_read(
    command: Run, tmp_path: Path, case: str
) -> None:
    given, named = BAD[case]
    arguments = given(tmp_path)
    plain = () if "--recipe" in arguments else ("--recipe", "q4_k_m")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "bundle"
    asked = ("--target", "linux-x86_64", "-o", out, *plain, *arguments)
    outcome = command("build", "reference", *asked)
    assert outcome.code == 2
    assert named in outcome.error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_type_for_a_decoder_without_keys_and_values_is_refused(
    command: Run, tmp_path: Path
) -> None:
    folder = write_random_checkpoint(tmp_path / "model", FAMILIES["cobra"].tiny())
    asked = recipe(tmp_path / "r.toml", 'kv_cache = "q8_0"')
    outcome = command("plan", folder, "--target", "linux-x86_64", "--recipe", asked)
    assert outcome.code == 2
    assert 'kv_cache = "q8_0", but' in outcome.error
    assert "carries a recurrent state in float32, no keys and values" in outcome.error


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_calibration_is_refused_for_an_encoder_alone(
    command: Run, tmp_path: Path, verb: str
) -> None:
    given = pictures(tmp_path / "c", LINE)
    asked = ["--target", "linux-x86_64", "--calibration", given]
    asked += ["-o", tmp_path / "bundle"] if verb == "build" else []
    outcome = command(verb, tiny.clip(tmp_path / "clip"), *asked)
    assert outcome.code == 2
    assert "--calibration is for models that answer" in outcome.error


@pytest.mark.parametrize(
    ("name", "option", "note"),
    [
        ("q8_0", "--imatrix", "--imatrix changes nothing: no layout of recipe 'q8_0' uses it"),
        ("q4_k_m", "--imatrix", ""),
        ("f16", "--calibration", "--calibration changes nothing: recipe 'f16' calibrates nothing"),
        ("q4_k_m", "--calibration", ""),
        ("int8-static", "--calibration", ""),
    ],
)
def test_what_is_given_and_changes_nothing_is_noted(
    command: Run, tmp_path: Path, name: str, option: str, note: str
) -> None:
    given = (
        matrix(tmp_path / "m.gguf", "blk.0.attn_q.weight", 256)
        if option == "--imatrix"
        else pictures(tmp_path / "c", LINE)
    )
    outcome = command(
        "plan", "reference", "--target", "linux-x86_64", "--recipe", name, option, given
    )
    assert outcome.code == 0
    assert (note in outcome.err) if note else ("changes nothing" not in outcome.err)
