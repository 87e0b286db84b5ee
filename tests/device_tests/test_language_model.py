"""A language model taken out of a checkpoint is one that transformers reads, tokenizer and all."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.language_model import copy_language_model
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint


@pytest.mark.parametrize("family", ["mobilevlm", "llava", "llava_phi"])
def test_transformers_reads_model_and_tokenizer(tmp_path: Path, family: str) -> None:
    checkpoint = tmp_path / "model"
    write_random_checkpoint(checkpoint, FAMILIES[family].tiny())
    folder = copy_language_model(checkpoint, tmp_path / "language")
    spec = read_spec(Checkpoint(checkpoint)).spec
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("what is this?", return_tensors="pt").input_ids
    assert ids.shape[1] > 1
    with torch.no_grad():
        assert model(ids).logits.shape == (1, ids.shape[1], spec.decoder.vocab)
