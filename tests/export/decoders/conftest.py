"""Random LLaMA checkpoints as folders, their files in GGUF, and what runs them."""

import json
import os
import sys
from pathlib import Path
from subprocess import run

import pytest
import torch

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.decoder_plan import general_fields, gguf_tensors, plan_decoder_tensors
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import DECODERS, TOKENIZERS
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.export.random_tokenizer import write_tokenizer
from mllm_export.quantize.recipe import Recipe, Rule

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[3]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 520,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FLOAT32 = Recipe(
    name="f32",
    description="all float32",
    tower_scheme="f32",
    decoder_scheme="F32",
    decoder=(Rule(tensors="*", scheme="F32"),),
)


@pytest.fixture(scope="session")
def llama_folder():
    """Writes a checkpoint folder; the tokenizer has fewer pieces than the model has rows."""

    def make(folder, weights="bin", dtype="bfloat16", **config):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
        write_tokenizer(folder, 480)
        spec = DECODERS["llama"].read_spec(Checkpoint(folder).config)
        tensors = {
            name: torch.from_numpy(random_tensor(name, shape, 0)).to(getattr(torch, dtype))
            for name, shape in DECODERS["llama"].parameters(spec).items()
        }
        if weights == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            from safetensors.torch import save_file

            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="session")
def write_gguf():
    """Writes a checkpoint folder's GGUF file with our code."""

    def write(folder, path, recipe=FLOAT32, decoder=None, tokenizer="sentencepiece"):
        decoder = decoder or DECODERS["llama"]
        tokenizer = TOKENIZERS[tokenizer]
        checkpoint = Checkpoint(folder)
        spec = decoder.read_spec(checkpoint.config, checkpoint.names)
        plan = plan_decoder_tensors(spec, recipe, {n: n for n in decoder.parameters(spec)})
        tensors = gguf_tensors(spec, plan)
        ids = tokenizer.read_spec(folder, checkpoint.config)
        fields = (
            *general_fields(folder.name, recipe.decoder_scheme, tensors),
            *decoder.metadata(spec),
            *tokenizer.metadata(folder, ids, spec.vocab),
        )
        write_decoder(path, fields, tensors, checkpoint.read)
        return path

    return write


@pytest.fixture(scope="session")
def convert_upstream():
    """Writes a checkpoint folder's GGUF file with llama.cpp's own converter."""
    trees = sorted((ROOT / "build" / "upstream").glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not trees:
        if os.environ.get("MLLM_REQUIRE_UPSTREAM"):
            pytest.fail("build/upstream is missing and MLLM_REQUIRE_UPSTREAM is set")
        pytest.skip("build/upstream is missing; make upstream")
    tree = trees[-1]

    def convert(folder, path, kind="f16"):
        script = [str(tree / "convert_hf_to_gguf.py"), str(folder), "--outtype", kind]
        environment = {**os.environ, "PYTHONPATH": str(tree / "gguf-py")}
        done = run(
            [sys.executable, *script, "--outfile", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return path

    return convert


@pytest.fixture(scope="session")
def llama_cpp_logits():
    """Logits f32[T, V] that llama.cpp computes from a file."""

    def logits(path, ids):
        from llama_cpp import Llama

        # The KV cache is float16 unless asked otherwise, which would hide errors below 2e-3.
        float32 = {"type_k": 0, "type_v": 0}
        model = Llama(str(path), n_ctx=128, n_threads=2, logits_all=True, verbose=False, **float32)
        model.eval(ids)
        found = model.scores[: len(ids)].copy()
        model.close()
        return found

    return logits


@pytest.fixture(scope="session")
def torch_logits():
    """Logits f32[T, V] that transformers computes in float32 from a checkpoint folder."""

    def logits(folder, ids):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            return model.eval()(torch.tensor([ids])).logits[0].numpy()

    return logits
