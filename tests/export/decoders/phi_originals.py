"""Phi models as the authors' libraries save them, in each of the published layouts.

The weights are made in transformers' own module; the older layouts are written from the
descriptions of the code that made them, apart from the exporter's.
"""

import json

import numpy as np
import torch

from mllm_export.export.random_checkpoint import random_tensor

CONFIG = {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_act": "gelu_new",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.375,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "qk_layernorm": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The ids are wrong as LLaVA-Phi's are; the tokenizer knows better."""


def split_state(config):
    """Names and weights of PhiForCausalLM, in its own order."""
    from transformers import PhiConfig, PhiForCausalLM

    with torch.device("meta"):
        names = PhiForCausalLM(PhiConfig(**config)).state_dict()
    return {
        name: torch.from_numpy(random_tensor(name, tuple(value.shape), 0))
        for name, value in names.items()
    }


def write_phi(folder, layout="phi", dtype="bfloat16", weights="bin", **changes):
    """A checkpoint folder without a tokenizer."""
    config = {**CONFIG, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    state = split_state(config)
    if layout == "phi-interleaved":
        state = interleaved(state, config["num_attention_heads"])
    if layout == "phi-msft":
        state, config = packed(state), old_config(config)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: v.to(getattr(torch, dtype)).contiguous() for name, v in state.items()}
    if weights == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def interleaved(state, heads):
    """transformers 4.36: the rows of q, k and v of head 0, then of head 1, ..."""
    made = {}
    for name, value in state.items():
        if ".q_proj." in name:
            three = [state[name.replace("q_proj", f"{one}_proj")].numpy() for one in "qkv"]
            by_head = [np.split(part, heads) for part in three]
            rows = [by_head[one][head] for head in range(heads) for one in range(3)]
            packed_name = name.replace("q_proj", "query_key_value")
            made[packed_name] = torch.from_numpy(np.concatenate(rows))
        elif not any(f".{one}_proj." in name for one in "kv"):
            made[name] = value
    return made


def packed(state):
    """phi-msft: all rows of q, then all of k, then all of v, under other names."""
    made = {}
    renames = (
        ("model.embed_tokens", "transformer.embd.wte"),
        ("model.final_layernorm", "lm_head.ln"),
        ("model.layers", "transformer.h"),
        ("self_attn.dense", "mixer.out_proj"),
        ("input_layernorm", "ln"),
        ("self_attn.q_proj", "mixer.Wqkv"),
    )
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        new = name.replace("lm_head.", "lm_head.linear.")
        for old, newer in renames:
            new = new.replace(old, newer)
        if ".q_proj." in name:
            value = torch.cat([state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
        made[new] = value
    return made


def old_config(config):
    heads = config["num_attention_heads"]
    head_dim = config["hidden_size"] // heads
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi-msft",
        "activation_function": "gelu_new",
        "n_embd": config["hidden_size"],
        "n_inner": None,
        "n_layer": config["num_hidden_layers"],
        "n_head": heads,
        "n_head_kv": None,
        "n_positions": config["max_position_embeddings"],
        "rotary_dim": int(head_dim * config["partial_rotary_factor"]),
        "layer_norm_epsilon": config["layer_norm_eps"],
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": False,
    }


def in_layout(model, layout):
    """A written LLaVA-Phi with its decoder renamed and packed as an older release has it."""
    file = model / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    llm = {n: v for n, v in state.items() if "vision_tower" not in n and "projector" not in n}
    rest = {n: v for n, v in state.items() if n not in llm}
    config = json.loads((model / "config.json").read_text())
    if layout == "phi-msft":
        llm = packed(llm)
        rest = {n.replace("model.", "transformer.", 1): v for n, v in rest.items()}
        kept = {k: config[k] for k in ("model_type", "vision_config", "image_aspect_ratio")}
        config = {**old_config(config), **kept, "n_inner": config["intermediate_size"]}
    else:
        llm = interleaved({n: v.float() for n, v in llm.items()}, config["num_attention_heads"])
    torch.save({**llm, **rest}, file)
    (model / "config.json").write_text(json.dumps(config))
    return model
