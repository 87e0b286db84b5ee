"""The three namings in which Phi-2's weights are published, and how each holds q, k and v.

Source: huggingface/transformers, models/phi/modeling_phi.py at 4.36 and 4.37; microsoft/phi-2,
modeling_phi.py of the first release (`phi-msft`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from mllm_export.errors import UnsupportedModelError
from mllm_export.records import record


@record
class PhiLayout:
    """Published names; `{}` stands for the layer's number."""

    embedding: str
    layer: str
    attention: tuple[tuple[str, str], ...]
    """Published name below the layer and GGUF name, in the order of a published state dict."""
    others: tuple[tuple[str, str], ...]
    final_norm: str
    head: str


SPLIT, INTERLEAVED, PACKED = "phi", "phi-interleaved", "phi-msft"

_SPLIT = PhiLayout(
    embedding="model.embed_tokens",
    layer="model.layers.{}.",
    attention=(
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
    ),
    others=(
        ("self_attn.dense", "attn_output"),
        ("mlp.fc1", "ffn_up"),
        ("mlp.fc2", "ffn_down"),
        ("input_layernorm", "attn_norm"),
    ),
    final_norm="model.final_layernorm",
    head="lm_head",
)

LAYOUTS = {
    SPLIT: _SPLIT,
    INTERLEAVED: replace(
        _SPLIT,
        attention=tuple(("self_attn.query_key_value", name) for _, name in _SPLIT.attention),
    ),
    PACKED: PhiLayout(
        embedding="transformer.embd.wte",
        layer="transformer.h.{}.",
        attention=(("mixer.Wqkv", "attn_qkv"),),
        others=(
            ("ln", "attn_norm"),
            ("mixer.out_proj", "attn_output"),
            ("mlp.fc1", "ffn_up"),
            ("mlp.fc2", "ffn_down"),
        ),
        final_norm="lm_head.ln",
        head="lm_head.linear",
    ),
}


def recognise(names: Collection[str], default: str) -> str:
    """The layout whose first attention weight is there; `default` where there are no tensors.

    The two packed forms have the same shape and another order of rows, so nothing but the name
    tells them apart.

    Raises: UnsupportedModelError when none is there.
    """
    signs = {layout: _sign(one) for layout, one in LAYOUTS.items()}
    if not names:
        return default
    for layout, sign in signs.items():
        if sign in names:
            return layout
    looked = ", ".join(f"'{sign}' ({layout})" for layout, sign in signs.items())
    raise UnsupportedModelError(
        f"the checkpoint's language model is in none of Phi's published layouts; looked for "
        f"{looked}; found '{min(names)}' and {len(names) - 1} others; is it a Phi-3, or an older "
        "layout? another one goes into export/decoders/_phi_layouts.py"
    )


def _sign(layout: PhiLayout) -> str:
    return f"{layout.layer.format(0)}{layout.attention[0][0]}.weight"
