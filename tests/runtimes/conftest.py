"""A tiny bundle from nothing: random LLaMA, trained vocabulary, a tower of one convolution."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
import sentencepiece
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mllm_export.bundle import Manifest, describe_file, write_manifest
from mllm_export.runtimes import load
from mllm_export.runtimes.decoder.llama_cpp import ENGINE, LlamaCppDecoder
from mllm_export.runtimes.session import Session
from mllm_export.spec import (
    DecoderSpec,
    EncoderSpec,
    ImageSpec,
    ModelSpec,
    ProjectorSpec,
    PromptSpec,
    TokenizerSpec,
)

CONTEXT = 1024
VOCAB = 800

IMAGE = ImageSpec(
    size_px=28,
    fit="pad",
    resample="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    pad_rgb=(122, 116, 104),
)
ENCODER = EncoderSpec(
    kind="clip_vit",
    image=IMAGE,
    patch_px=7,
    width=48,
    layers=2,
    heads=3,
    mlp_width=96,
    activation="quick_gelu",
    norm_eps=1e-5,
    select_layer=-2,
    keep_prefix=False,
)
DECODER = DecoderSpec(
    kind="llama",
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=128,
    vocab=VOCAB,
    context_tokens=CONTEXT,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tied_head=False,
)
SPEC = ModelSpec(
    family="mobilevlm",
    name="tiny",
    encoders=(ENCODER,),
    projector=ProjectorSpec(kind="linear", in_width=48, out_width=64, tokens_in=16, tokens_out=16),
    decoder=DECODER,
    tokenizer=TokenizerSpec(
        kind="sentencepiece",
        file="tokenizer.model",
        vocab=VOCAB,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=None,
        add_bos=True,
    ),
    prompt=PromptSpec(
        name="v1",
        before="A chat between a curious user and an assistant. USER: ",
        after=" ASSISTANT:",
        between_turns="</s>",
        stop_strings=("</s>",),
        stop_ids=(2,),
    ),
)


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return SPEC


@pytest.fixture(scope="session")
def tokenizer_model() -> bytes:
    """A BPE model with LLaMA's training settings."""
    source = random.Random(0)
    words = ["the", "red", "circle", "left", "how", "many", "is", "USER:", "図形", "赤い", "123"]
    words += ["".join(source.choices("aeioubcdfglmnprst", k=6)) for _ in range(200)]
    lines = [" ".join(source.choices(words, k=12)) for _ in range(400)]
    lines += ["    indented  twice", "x = y\n", "</s> tags <b>", "<0x41> <unk> <s>", "naïve café"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 2),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        hard_vocab_limit=True,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def sentences(tokenizer_model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)


def write_gguf(path: Path, model: bytes, weights: type[np.floating] = np.float32) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DECODER.width)
    writer.add_block_count(DECODER.layers)
    writer.add_feed_forward_length(DECODER.mlp_width)
    writer.add_head_count(DECODER.heads)
    writer.add_head_count_kv(DECODER.kv_heads)
    writer.add_layer_norm_rms_eps(DECODER.norm_eps)
    writer.add_rope_dimension_count(DECODER.head_dim)
    writer.add_vocab_size(VOCAB)
    write_vocabulary(writer, sentencepiece.SentencePieceProcessor(model_proto=model))
    write_weights(writer, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer: gguf.GGUFWriter, model: sentencepiece.SentencePieceProcessor) -> None:
    """As llama.cpp's converter writes a SentencePiece vocabulary."""

    def kind(token: int) -> gguf.TokenType:
        if model.is_byte(token):
            return gguf.TokenType.BYTE
        if model.is_unknown(token):
            return gguf.TokenType.UNKNOWN
        return gguf.TokenType.CONTROL if model.is_control(token) else gguf.TokenType.NORMAL

    ids = range(model.get_piece_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(token).encode() for token in ids])
    writer.add_token_scores([model.get_score(token) for token in ids])
    writer.add_token_types([kind(token) for token in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write_weights(writer: gguf.GGUFWriter, dtype: type[np.floating]) -> None:
    """Drawn so wide that a wrong position or a lost row moves every logit."""
    draw = np.random.default_rng(0)
    width, mlp, kv_width = DECODER.width, DECODER.mlp_width, DECODER.kv_heads * DECODER.head_dim

    def matrix(name: str, rows: int, cols: int, scale: float = 1.5) -> None:
        values = draw.standard_normal((rows, cols)) * scale / np.sqrt(cols)
        writer.add_tensor(name, values.astype(dtype))

    matrix("token_embd.weight", VOCAB, width, scale=8.0)
    for layer in range(DECODER.layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(width, np.float32))
        writer.add_tensor(block + "ffn_norm.weight", np.ones(width, np.float32))
        for name, rows in (("q", width), ("k", kv_width), ("v", kv_width), ("output", width)):
            matrix(f"{block}attn_{name}.weight", rows, width)
        matrix(block + "ffn_gate.weight", mlp, width)
        matrix(block + "ffn_up.weight", mlp, width)
        matrix(block + "ffn_down.weight", width, mlp)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    matrix("output.weight", VOCAB, width, scale=4.0)


def write_tower(path: Path, output: str = "image_embeds", width: int = 64) -> None:
    draw = np.random.default_rng(1)
    kernel = (draw.standard_normal((width, 3, 7, 7)) / 4).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixel_values", "kernel"], ["map"], strides=[7, 7]),
            helper.make_node("Reshape", ["map", "shape"], ["rows"]),
            helper.make_node("Transpose", ["rows"], [output], perm=[1, 0]),
        ],
        "tower",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, 28, 28])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [16, width])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array([width, 16], np.int64), "shape"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def write_bundle(folder: Path, model: bytes, **changes: object) -> None:
    """A whole bundle; `changes` are fields of the manifest."""
    folder.mkdir(parents=True)
    write_tower(folder / "tower.onnx")
    write_gguf(folder / "decoder.gguf", model)
    manifest = Manifest(
        model=SPEC,
        target="linux-x86_64",
        recipe="f32",
        profile="float",
        checked="passed",
        context_tokens=CONTEXT,
        minimum_runtime=(0, 1, 0),
        vision_engine="onnx",
        decoder_engine="llama_cpp",
        files=(
            describe_file(folder, "tower.onnx", "tower"),
            describe_file(folder, "decoder.gguf", "decoder"),
        ),
        sources=(),
        tools=(),
    )
    write_manifest(folder, replace(manifest, **changes))


@pytest.fixture(scope="session")
def bundle(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to read; tests that change one ask for `bundle_copy`."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(folder, tokenizer_model)
    return folder


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with load(bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def make_tower() -> Callable[..., None]:
    return write_tower


@pytest.fixture(scope="session")
def float16_gguf(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float16") / "decoder.gguf"
    write_gguf(path, tokenizer_model, np.float16)
    return path


@pytest.fixture
def decoder(bundle: Path) -> Iterator[LlamaCppDecoder]:
    opened = ENGINE.open(bundle / "decoder.gguf", SPEC, CONTEXT, 1)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def token_embeddings(bundle: Path) -> np.ndarray:
    """token_embd.weight f32[V, D] as the decoder's file stores it."""
    (tensor,) = [
        t for t in gguf.GGUFReader(bundle / "decoder.gguf").tensors if t.name == "token_embd.weight"
    ]
    return np.array(tensor.data, np.float32).reshape(VOCAB, DECODER.width)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    values = np.random.default_rng(2).integers(0, 256, (30, 44, 3), np.uint8)
    return Image.fromarray(values)
