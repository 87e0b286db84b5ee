"""The mmproj file, and what the pinned llama.cpp makes of it."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from mllm_export.errors import CheckError, PlanError
from mllm_export.export.formats import mmproj_measure
from mllm_export.export.formats.mmproj import plan_mmproj_tensors, write_mmproj
from mllm_export.export.formats.mmproj_measure import measure_mmproj
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.spec import DecoderSpec, ModelSpec, PromptSpec, TokenizerSpec

KINDS = ("ldp", "ldpv2", "mlp2x_gelu")


def model_spec(original):
    width = original.projector.out_width
    return ModelSpec(
        family="mobilevlm",
        name="tiny",
        encoders=(original.encoder,),
        projector=original.projector,
        decoder=DecoderSpec(
            kind="llama",
            width=width,
            layers=1,
            heads=4,
            kv_heads=4,
            head_dim=width // 4,
            mlp_width=128,
            vocab=300,
            context_tokens=512,
            norm_eps=1e-6,
            rope_theta=10000.0,
            rope_scaling=None,
            tied_head=False,
        ),
        tokenizer=TokenizerSpec(
            kind="sentencepiece",
            file="tokenizer.model",
            vocab=300,
            bos_id=1,
            eos_id=2,
            unk_id=0,
            pad_id=0,
            add_bos=True,
        ),
        prompt=PromptSpec(
            name="v", before="", after="", between_turns="", stop_strings=(), stop_ids=()
        ),
    )


@pytest.fixture(scope="module")
def files(vision, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmproj")
    made = {}
    for kind in KINDS:
        original = vision(kind, layers=4)
        path = folder / f"{kind}.gguf"
        write_mmproj(path, model_spec(original), original.read_tower, original.read_projector)
        made[kind] = (original, path)
    return made


def planned(original):
    tower = {n: f"t.{n}" for n in ENCODERS["clip_vit"].parameters(original.encoder)}
    kind = original.projector.kind
    projector = {n: f"p.{n}" for n in PROJECTORS[kind].parameters(original.projector)}
    return plan_mmproj_tensors(model_spec(original), tower, projector)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_tensors_are_the_planned_ones(files, kind):
    original, path = files[kind]
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    plan = planned(original)
    assert [row.name for row in plan] == list(stored)
    for row in plan:
        tensor = stored[row.name]
        assert row.shape == tuple(int(side) for side in reversed(tensor.shape))
        assert (row.size_bytes, row.scheme) == (tensor.n_bytes, tensor.tensor_type.name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_published_value_is_there_once_rounded_to_its_type(files, kind):
    original, path = files[kind]
    stored = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    for row in planned(original):
        part, name = row.sources[0].split(".", 1)
        read = original.read_tower if part == "t" else original.read_projector
        source = read(name).astype(np.float16 if row.scheme == "F16" else np.float32)
        np.testing.assert_array_equal(stored[row.name].reshape(-1), source.reshape(-1))


@pytest.mark.parametrize(
    ("kind", "projector_type", "count"), [("ldp", "ldp", 397), ("ldpv2", "ldpv2", 379)]
)
def test_published_shapes_give_the_known_number_of_tensors(vision, kind, projector_type, count):
    tiny = vision("linear").encoder
    encoder = replace(tiny, layers=24, select_layer=-2)
    projector = PROJECTORS[kind].spec(encoder.width, 96, encoder.tokens_out)
    tower = dict.fromkeys(ENCODERS["clip_vit"].parameters(encoder), "x")
    heads = dict.fromkeys(PROJECTORS[kind].parameters(projector), "x")
    spec = replace(model_spec(vision(kind)), encoders=(encoder,), projector=projector)
    assert len(plan_mmproj_tensors(spec, tower, heads)) == count


def test_keys_are_those_clip_cpp_reads(files):
    original, path = files["ldpv2"]
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "ldpv2",
        "clip.use_gelu": False,
        "clip.use_silu": False,
        "clip.vision.image_size": 96,
        "clip.vision.patch_size": 4,
        "clip.vision.embedding_length": 64,
        "clip.vision.feed_forward_length": 160,
        "clip.vision.projection_dim": 96,
        "clip.vision.block_count": 3,
        "clip.vision.attention.head_count": 4,
        "clip.vision.feature_layer": [3],
    }
    assert {key: found[key] for key in expected} == expected
    assert found["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    np.testing.assert_allclose(found["clip.vision.image_mean"], original.encoder.image.mean)
    np.testing.assert_allclose(found["clip.vision.image_std"], original.encoder.image.std)
    assert not any(tensor.name.startswith("v.post_ln") for tensor in reader.tensors)


def test_a_depthwise_kernel_is_float16_and_squeezed(files):
    _, path = files["ldpv2"]
    kernel = next(t for t in gguf.GGUFReader(path).tensors if t.name == "mm.model.peg.0.weight")
    assert (kernel.tensor_type.name, list(kernel.shape)) == ("F16", [3, 3, 96])


def test_same_inputs_same_bytes(files, tmp_path):
    original, path = files["ldp"]
    again = tmp_path / "again.gguf"
    write_mmproj(again, model_spec(original), original.read_tower, original.read_projector)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("linear", {}, "llama.cpp knows no projector 'linear'"),
        ("mlp2x_gelu", {"keep_prefix": True}, "drops the class token"),
        ("ldpv2", {"patch_px": 8}, "takes 24 x 24 patches only, this tower gives 12 x 12"),
        ("mlp2x_gelu", {"mlp_width": 64}, "swaps the two MLP weights"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_before_a_weight_is_read(
    vision, kind, changes, words
):
    original = vision(kind, **changes)
    with pytest.raises(PlanError, match=words):
        planned(original)


def picture(original):
    size = original.encoder.image.size_px
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def pixels_of(original, image):
    spec = original.encoder.image
    scaled = (image / 255 - np.array(spec.mean)) / np.array(spec.std)
    return torch.tensor(scaled.transpose(2, 0, 1)[None], dtype=torch.float32)


@torch.no_grad()
def as_llama_cpp_computes(original, pixels):
    """The class token behind the patches, positions and row selection as if it stood in front.

    Attention does not care for order, so the mistaken order is the right one with positions
    turned by one; of its rows patches 1 to N-1 and then the class token are taken.
    """
    tower, spec = original.tower, original.encoder
    rows = tower.vision_model.embeddings.position_embedding.weight
    saved = rows.clone()
    rows.copy_(saved.roll(1, 0))
    states = tower(pixels, output_hidden_states=True).hidden_states[spec.select_layer]
    rows.copy_(saved)
    taken = torch.cat([states[:, 2:], states[:, :1]], dim=1)
    return original.head(taken)[0].numpy()


@pytest.mark.parametrize(("kind", "worst"), [("ldp", 0.9), ("ldpv2", 0.97), ("mlp2x_gelu", 0.9)])
def test_the_pinned_llama_cpp_still_puts_the_class_token_last(files, cosine, error, kind, worst):
    """Fails when the library is mended: then an mmproj may stand in a bundle without its rung."""
    original, path = files[kind]
    image = picture(original)
    measured = measure_mmproj(path, image)
    pixels = pixels_of(original, image)
    right = original.embeddings(pixels)
    assert measured.shape == right.shape
    assert cosine(measured, right) < worst, (
        "this llama.cpp revision computes CLIP towers rightly now; "
        "allow mmproj files for it and turn this test round"
    )
    # float16 weights and the tanh form of GELU are all that is left once the fault is emulated.
    assert error(measured, as_llama_cpp_computes(original, pixels)) < 5e-3


def test_a_text_file_is_refused_by_name(tmp_path):
    (tmp_path / "m.gguf").write_text("no such thing")
    with pytest.raises(CheckError, match=r"m\.gguf: not a GGUF file"):
        measure_mmproj(tmp_path / "m.gguf", np.zeros((8, 8, 3), np.uint8))


def test_a_file_without_its_tensors_is_refused_with_the_librarys_words(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_uint32("clip.vision.projection_dim", 96)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckError, match=r"m\.gguf: llama.cpp refuses the file \(.+\)"):
        measure_mmproj(tmp_path / "m.gguf", np.zeros((8, 8, 3), np.uint8))


def test_a_crash_of_the_library_comes_back_as_an_error(files, tmp_path):
    """A depthwise kernel in float32 makes this revision abort the process."""
    original, path = files["ldpv2"]
    spoilt = tmp_path / "f32.gguf"
    rewrite_in_float32(path, spoilt, "mm.model.peg.0.weight")
    with pytest.raises(CheckError, match=r"llama.cpp ended its process by SIGABRT"):
        measure_mmproj(spoilt, picture(original))


def rewrite_in_float32(source, target, name):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "clip")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        writer.add_tensor(tensor.name, values.astype(np.float32) if tensor.name == name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_hanging_library_is_given_up(files, monkeypatch):
    original, path = files["ldpv2"]
    monkeypatch.setattr(mmproj_measure, "_LIMIT_S", 0.05)
    with pytest.raises(CheckError, match=r"gave no answer in 0\.05 s"):
        measure_mmproj(path, picture(original))
