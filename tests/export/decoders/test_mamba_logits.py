"""llama.cpp on our mamba file computes what transformers computes, text and image alike."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mllm_export.export.decoders import mamba
from mllm_export.export.parts import DECODERS, TOKENIZERS

sys.path.insert(0, str(Path(__file__).parent))

from mamba_originals import original, write_mamba

IDS = [300, 17, 45, 402, 99, 7, 311, 5, *range(40, 90)]
LIMIT = 2e-5
"""Of the largest logit; measured 1.1e-6."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_mamba(tmp_path_factory.mktemp("mamba") / "m", "float32")
    TOKENIZERS["bpe"].write_random(made, 509, "GPTNeoXTokenizer")
    return made


@pytest.fixture(scope="module")
def model(folder):
    return original(folder)


def open_engine(path):
    from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder

    spec = SimpleNamespace(decoder=SimpleNamespace(vocab=512, width=256))
    return LlamaCppDecoder(path, spec, 2048, 1, "f16")


def llama_cpp(path, segments):
    engine = open_engine(path)
    found = engine.evaluate(segments, all_logits=True)
    engine.close()
    return found


@torch.inference_mode()
def expected(model, rows):
    return model(inputs_embeds=rows[None]).logits[0].numpy()


def embedded(model, ids):
    return model.get_input_embeddings()(torch.tensor(ids)).detach()


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.fixture(scope="module")
def path(folder, write_gguf):
    return write_gguf(folder, folder.parent / "f32.gguf", decoder=DECODERS["mamba"],
                      tokenizer="bpe")  # fmt: skip


def test_logits_equal_transformers(path, model):
    assert relative_error(llama_cpp(path, [IDS]), expected(model, embedded(model, IDS))) < LIMIT


def test_image_embeddings_go_in_as_they_are(path, model):
    image = np.random.default_rng(0).standard_normal((20, 256)).astype(np.float32)
    found = llama_cpp(path, [image, IDS])
    rows = [torch.from_numpy(image), embedded(model, IDS)]
    wanted = expected(model, torch.cat(rows))
    assert relative_error(found, wanted) < LIMIT
    assert relative_error(found[20:], expected(model, rows[1])) > 100 * LIMIT


class Faulty(mamba.Mamba):
    """Another file than the right one."""

    def __init__(self, change=None, **spec):
        self.change = change or (lambda tensors: tensors)
        self.spec = spec

    def read_spec(self, config, names=()):
        return replace(super().read_spec(config, names), **self.spec)

    def tensors(self, spec):
        return tuple(self.change(list(super().tensors(spec))))


def with_transform(part, transform):
    def change(tensors):
        return [replace(t, transform=transform) if t.name == part else t for t in tensors]

    return change


def exchanged(values):
    """The gate before what is convolved."""
    one, other = np.split(values[0], 2)
    return np.concatenate([other, one])


FAULTS = {
    "A as the logarithm stands": with_transform("blk.0.ssm_a", lambda v: -v[0]),
    "A half as fast": with_transform("blk.1.ssm_a", lambda v: -0.5 * np.exp(v[0])),
    "no D": with_transform("blk.0.ssm_d", lambda v: 0 * v[0]),
    "convolution turned": with_transform(
        "blk.0.ssm_conv1d.weight", lambda v: np.ascontiguousarray(v[0][:, 0, ::-1])
    ),
    "no bias on the convolution": with_transform("blk.1.ssm_conv1d.bias", lambda v: 0 * v[0]),
    "no bias on the steps": with_transform("blk.0.ssm_dt.bias", lambda v: 0 * v[0]),
    "gate and input exchanged": with_transform("blk.0.ssm_in.weight", exchanged),
    "B and C exchanged": with_transform(
        "blk.0.ssm_x.weight",
        lambda v: np.concatenate([v[0][:16], v[0][32:], v[0][16:32]]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_planted_fault(
    fault, tmp_path, folder, model, write_gguf, monkeypatch
):
    faulty = Faulty(FAULTS[fault])
    monkeypatch.setattr(mamba, "DECODER", faulty)
    path = write_gguf(folder, tmp_path / "f.gguf", decoder=faulty, tokenizer="bpe")
    wanted = expected(model, embedded(model, IDS))
    found = llama_cpp(path, [IDS])
    assert relative_error(found, wanted) > 50 * LIMIT


def test_another_epsilon_shows(tmp_path, folder, model, write_gguf, monkeypatch):
    faulty = Faulty(norm_eps=1e-3)
    monkeypatch.setattr(mamba, "DECODER", faulty)
    path = write_gguf(folder, tmp_path / "f.gguf", decoder=faulty, tokenizer="bpe")
    wanted = expected(model, embedded(model, IDS))
    assert relative_error(llama_cpp(path, [IDS]), wanted) > 50 * LIMIT
