"""Mamba as its authors' library saves it: mamba_ssm's names and config.json."""

import json

import torch

from mllm_export.export.random_checkpoint import random_tensor

CONFIG = {
    "d_model": 256,
    "n_layer": 2,
    "vocab_size": 509,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
"""Keys of state-spaces/mamba-2.8b."""
ROWS = 512


def transformers_model(rows=ROWS):
    """transformers' own Mamba of the same sizes, without weights."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=256, num_hidden_layers=2, vocab_size=rows)
    with torch.device("meta"):
        return MambaForCausalLM(config)


def state(rows=ROWS):
    """Published names and float32 weights; the recurrence keeps what it saw for some tokens."""
    made = {}
    for name, value in transformers_model(rows).state_dict().items():
        published = name.replace("embeddings", "embedding")
        made[published] = torch.from_numpy(random_tensor(published, tuple(value.shape), 0))
    made["lm_head.weight"] = made["backbone.embedding.weight"]
    return made


def write_mamba(folder, dtype="bfloat16", rows=ROWS, **changes):
    """A checkpoint folder without a tokenizer; the recurrence stays float32, as it is published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    made = state(rows).items()
    kept = (".A_log", ".D")
    tensors = {
        n: v.to(torch.float32 if n.endswith(kept) else getattr(torch, dtype)).clone()
        for n, v in made
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def original(folder):
    """transformers' model with the folder's weights, in float32."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    renamed = {n.replace("embedding.", "embeddings."): v.float() for n, v in weights.items()}
    model = transformers_model()
    model.load_state_dict(renamed, strict=True, assign=True)
    return model.eval()
