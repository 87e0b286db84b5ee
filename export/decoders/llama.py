"""LLaMA: RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases.

Source: llama.cpp, conversion/llama.py and conversion/base.py, which this file agrees with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, SpecError, UnsupportedModelError
from mllm_export.export.decoders._rope import (
    read_rope_scaling,
    read_rope_theta,
    refuse_partial_rotary,
    rope_fields,
    rope_freqs_tensor,
)
from mllm_export.export.parts import Array, GgufField, GgufTensor
from mllm_export.quantize.method import Fold
from mllm_export.spec import DecoderSpec
from mllm_export.weights import Drop, Shape

_FIXED_FLAGS = ("attention_bias", "mlp_bias")

_LAYER_TENSORS = (
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
)
"""Published and GGUF names of a layer, in the order of a published state dict, which is
the order upstream's converter keeps."""

_ATTENTION_INPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class Llama:
    """Parameter names are those of transformers' LlamaForCausalLM."""

    def read_spec(self, config: Config, names: Collection[str] = ()) -> DecoderSpec:
        """Sizes from the published config.

        Only transformers' own keys are read: MobileVLM's 3B config also holds another
        trainer's `n_head`, which is wrong.

        Raises: CheckpointError for a missing or wrong key, UnsupportedModelError for a variant
        that llama.cpp's `llama` architecture does not compute.
        """
        del names
        _refuse_variants(config)
        heads = config.positive("num_attention_heads")
        width = config.positive("hidden_size")
        return DecoderSpec(
            kind="llama",
            width=width,
            layers=config.positive("num_hidden_layers"),
            heads=heads,
            kv_heads=config.positive("num_key_value_heads", heads),
            head_dim=_head_dim(config, width, heads),
            mlp_width=config.positive("intermediate_size"),
            vocab=config.positive("vocab_size"),
            context_tokens=config.positive("max_position_embeddings"),
            norm_eps=config.number("rms_norm_eps"),
            rope_theta=read_rope_theta(config),
            rope_scaling=read_rope_scaling(config),
            tied_head=config.flag("tie_word_embeddings", False),
        )

    def parameters(self, spec: DecoderSpec) -> Mapping[str, Shape]:
        """Published name to shape."""
        shapes: dict[str, Shape] = {"model.embed_tokens.weight": (spec.vocab, spec.width)}
        for layer in range(spec.layers):
            for published, shape in _layer_shapes(spec).items():
                shapes[f"model.layers.{layer}.{published}.weight"] = shape
        shapes["model.norm.weight"] = (spec.width,)
        if not spec.tied_head:
            shapes["lm_head.weight"] = (spec.vocab, spec.width)
        return shapes

    def drops(self, spec: DecoderSpec) -> tuple[Drop, ...]:
        """Patterns of published tensors that llama.cpp recomputes or shares."""
        inv_freq = Drop(
            pattern="*.rotary_emb.inv_freq", why="llama.cpp computes rotary frequencies itself"
        )
        head = Drop(pattern="lm_head.weight", why="the head is tied to the token embedding")
        return (inv_freq, head) if spec.tied_head else (inv_freq,)

    def tensors(self, spec: DecoderSpec) -> tuple[GgufTensor, ...]:
        """The file's tensors in upstream's order."""
        embedding = _plain(
            "token_embd", "model.embed_tokens", (spec.vocab, spec.width), spec.tied_head
        )
        return (
            *rope_freqs_tensor(spec),
            embedding,
            *(tensor for layer in range(spec.layers) for tensor in _layer_tensors(spec, layer)),
            _plain("output_norm", "model.norm", (spec.width,)),
            *(() if spec.tied_head else (_plain("output", "lm_head", embedding.shape),)),
        )

    def metadata(self, spec: DecoderSpec) -> tuple[GgufField, ...]:
        """Architecture and size keys, as upstream's converter writes them."""
        return (
            GgufField(key="general.architecture", value="llama", kind="STRING"),
            _size("block_count", spec.layers),
            _size("context_length", spec.context_tokens),
            _size("embedding_length", spec.width),
            _size("feed_forward_length", spec.mlp_width),
            _size("attention.head_count", spec.heads),
            _size("attention.head_count_kv", spec.kv_heads),
            *rope_fields("llama", spec),
            GgufField(
                key="llama.attention.layer_norm_rms_epsilon", value=spec.norm_eps, kind="FLOAT32"
            ),
            _size("attention.key_length", spec.head_dim),
            _size("attention.value_length", spec.head_dim),
            _size("vocab_size", spec.vocab),
            _size("rope.dimension_count", spec.head_dim),
        )

    def folds(self, spec: DecoderSpec, layer: int | None) -> tuple[Fold, ...]:
        """Every input of a linear map has a norm or a linear map before it.

        A value head that several query heads share has one row for several columns of the
        output projection: no scale of its own for each.
        """
        if layer is None:
            head = Fold(into=("lm_head.weight",), out_of=("model.norm.weight",))
            return () if spec.tied_head else (head,)
        at = f"model.layers.{layer}."
        pairs = [
            (_ATTENTION_INPUTS, "input_layernorm"),
            (("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
            (("mlp.down_proj",), "mlp.up_proj"),
        ]
        if spec.kv_heads == spec.heads:
            pairs.append((("self_attn.o_proj",), "self_attn.v_proj"))
        return tuple(
            Fold(
                into=tuple(f"{at}{name}.weight" for name in into),
                out_of=(f"{at}{out_of}.weight",),
            )
            for into, out_of in pairs
        )

    def tiny(self) -> DecoderSpec:
        """A small twin whose rows K-quants can hold."""
        return DecoderSpec(
            kind="llama",
            width=256,
            layers=2,
            heads=4,
            kv_heads=4,
            head_dim=64,
            mlp_width=512,
            vocab=512,
            context_tokens=1024,
            norm_eps=1e-6,
            rope_theta=10000.0,
            rope_scaling=None,
            tied_head=False,
        )


def interleave_halves(heads: int, values: list[Array]) -> Array:
    """Reorder the rows of q or k from transformers' rotary pairs to llama.cpp's.

    transformers turns row i of a head with row i + head_dim / 2, ggml turns neighbours:
    rows 0 1 2 3 of a head become 0 2 1 3.

    Shapes: [heads * head_dim, width] -> the same.
    Source: llama.cpp, conversion/llama.py, LlamaModel.permute.
    """
    (rows,) = values
    half = rows.shape[0] // heads // 2
    split = rows.reshape(heads, 2, half, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def _as_stored(values: list[Array]) -> Array:
    (only,) = values
    return only


def _plain(name: str, published: str, shape: Shape, is_head: bool = False) -> GgufTensor:
    return GgufTensor(
        name=f"{name}.weight",
        sources=(f"{published}.weight",),
        shape=shape,
        transform=_as_stored,
        aliases=("output.weight",) if is_head else (),
    )


def _layer_tensors(spec: DecoderSpec, layer: int) -> list[GgufTensor]:
    shapes = _layer_shapes(spec)
    turned = {"attn_q": spec.heads, "attn_k": spec.kv_heads}
    return [
        GgufTensor(
            name=f"blk.{layer}.{name}.weight",
            sources=(f"model.layers.{layer}.{published}.weight",),
            shape=shapes[published],
            transform=partial(interleave_halves, turned[name]) if name in turned else _as_stored,
        )
        for published, name in _LAYER_TENSORS
    ]


def _layer_shapes(spec: DecoderSpec) -> dict[str, Shape]:
    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return {
        "self_attn.q_proj": (query, spec.width),
        "self_attn.k_proj": (key, spec.width),
        "self_attn.v_proj": (key, spec.width),
        "self_attn.o_proj": (spec.width, query),
        "mlp.gate_proj": (spec.mlp_width, spec.width),
        "mlp.up_proj": (spec.mlp_width, spec.width),
        "mlp.down_proj": (spec.width, spec.mlp_width),
        "input_layernorm": (spec.width,),
        "post_attention_layernorm": (spec.width,),
    }


def _size(key: str, value: int) -> GgufField:
    return GgufField(key=f"llama.{key}", value=value, kind="UINT32")


def _refuse_variants(config: Config) -> None:
    for key in _FIXED_FLAGS:
        if config.flag(key, False):
            raise UnsupportedModelError(
                f"{config.file}: key '{key}' is true; the 'llama' exporter knows no biases"
            )
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModelError(
            f"{config.file}: key 'hidden_act' is '{activation}'; llama.cpp's 'llama' "
            "architecture computes 'silu' only"
        )
    refuse_partial_rotary(config)


def _head_dim(config: Config, width: int, heads: int) -> int:
    if "head_dim" not in config and width % heads:
        raise CheckpointError(
            f"{config.file}: hidden_size {width} is not a multiple of num_attention_heads "
            f"{heads}; is a key missing or wrong?"
        )
    head_dim = config.positive("head_dim", width // heads)
    if head_dim % 2:
        raise SpecError(f"{config.file}: heads of {head_dim} values have no rotary pairs")
    return head_dim


DECODER = Llama()
