"""Each rung passes on what is right, and fails on the fault it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from parity_fakes import FakeSession, honest_files, shifted

from mllm_export.device_tests.check import CHECKS, Context, StoredFiles
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import GgufStored
from mllm_export.device_tests.stored_tower import OnnxFloat, OnnxInt8
from mllm_export.quantize.layout import LAYOUTS
from mllm_export.report import Rung


class OtherMean(FakeSession):
    def preprocess(self, image) -> Floats:
        return super().preprocess(image) + np.float32(0.01)


class SmallSquare(FakeSession):
    def preprocess(self, image) -> Floats:
        return super().preprocess(image)[:, :, ::2, ::2]


class ExifTurned(FakeSession):
    def preprocess(self, image) -> Floats:
        from PIL import ImageOps

        return super().preprocess(ImageOps.exif_transpose(image))


class AlphaBlended(FakeSession):
    def preprocess(self, image) -> Floats:
        from PIL import Image

        if image.mode in {"RGBA", "LA"}:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return super().preprocess(image)


class BilinearResize(FakeSession):
    def preprocess(self, image) -> Floats:
        from PIL import Image

        size = self.reference._parts.tower.config.positive("image_size")
        side = max(image.size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        place = ((side - image.width) // 2, (side - image.height) // 2)
        square.paste(image.convert("RGB"), place)
        return super().preprocess(square.resize((size, size), Image.Resampling.BILINEAR))


class DoubledBos(FakeSession):
    def encode(self, prompt: str, images: int = 1) -> list[int]:
        return [1, *super().encode(prompt, images)]


class NoSystemPrompt(FakeSession):
    def encode(self, prompt: str, images: int = 1) -> list[int]:
        ids = super().encode(prompt, images)
        return [ids[0], *ids[30:]]


class JoinedPieces(FakeSession):
    """The text around the image tokenized as one."""

    def encode(self, prompt: str, images: int = 1) -> list[int]:
        ids = super().encode(prompt, images)
        after = ids.index(-200) if -200 in ids else -1
        return ids[: after + 1] + ids[after + 2 :]


class ScaledEmbeds(FakeSession):
    def embed(self, pixels: Floats) -> Floats:
        return super().embed(pixels) * 2


class ShiftedTower(FakeSession):
    """As llama.cpp computes CLIP towers: every patch in its neighbour's place."""

    def embed(self, pixels: Floats) -> Floats:
        return shifted(super().embed(pixels))


class NotANumber(FakeSession):
    def embed(self, pixels: Floats) -> Floats:
        embeds = super().embed(pixels).copy()
        embeds[3, 5] = np.nan
        return embeds


class Blind(FakeSession):
    """The image's place is filled, with nothing in it."""

    def logits(self, prompt: Sequence[int], images: Sequence[Floats]) -> Floats:
        return super().logits(prompt, [image * 0 for image in images])


class SwappedImages(FakeSession):
    def logits(self, prompt: Sequence[int], images: Sequence[Floats]) -> Floats:
        return super().logits(prompt, images[::-1])


class Hotter(FakeSession):
    def logits(self, prompt: Sequence[int], images: Sequence[Floats]) -> Floats:
        return super().logits(prompt, images) / 2


class LatePositions(FakeSession):
    """Positions after the image count from one too high: a token more than there is."""

    def logits(self, prompt: Sequence[int], images: Sequence[Floats]) -> Floats:
        doubled = [np.concatenate([image[:1], image]) for image in images]
        return super().logits(prompt, doubled)[len(images) :]


class SecondBest(FakeSession):
    def generate(self, prompt, images, *, max_tokens):
        for step in super().generate(prompt, images, max_tokens=max_tokens):
            yield replace(step, token_id=(step.token_id + 7) % 512)


def run(name: str, context: Context) -> Rung:
    try:
        return CHECKS[name].run(context)
    except FloatingPointError as failure:
        return Rung(name=name, status="failed", reason=str(failure))


@pytest.fixture(scope="module")
def files(reference) -> StoredFiles:
    return honest_files(reference)


@pytest.mark.parametrize("name", [n for n in CHECKS.names() if n != "task"])
def test_a_rung_passes_on_the_original_itself(name: str, make_context, files) -> None:
    rung = run(name, make_context(stored=files))
    assert rung.status == "passed", rung.reason
    assert rung.samples > 0


FAULTS: list[tuple[type[FakeSession], str, str]] = [
    (OtherMean, "pixels", "largest difference 0.01"),
    (SmallSquare, "pixels", "pictures of another shape"),
    (ExifTurned, "pixels", "largest difference"),
    (AlphaBlended, "pixels", "largest difference"),
    (BilinearResize, "pixels", "largest difference"),
    (DoubledBos, "prompt", "prompts with another count of BOS"),
    (NoSystemPrompt, "prompt", "prompts with other ids"),
    (JoinedPieces, "prompt", "prompts with other ids"),
    (ScaledEmbeds, "tower", "relative error 1 "),
    (ShiftedTower, "tower", "worst-token cosine"),
    (NotANumber, "tower", "values that are no numbers"),
    (ScaledEmbeds, "logits", "mean KL"),
    (ShiftedTower, "logits", "mean KL"),
    (Blind, "logits", "decoder alone: mean KL"),
    (SwappedImages, "logits", "mean KL"),
    (Hotter, "logits", "mean KL"),
    (LatePositions, "logits", "decoder alone: mean KL"),
    (SecondBest, "text", "largest gap"),
    (Blind, "text", "largest gap"),
    (Blind, "controls", "blank picture: movement kept 0 "),
]


@pytest.mark.parametrize(
    ("fault", "name", "text"), FAULTS, ids=[f"{f.__name__}-{n}" for f, n, _ in FAULTS]
)
def test_a_planted_fault_fails_its_rung(
    fault: type[FakeSession], name: str, text: str, reference, make_context
) -> None:
    rung = run(name, make_context(fault(reference)))
    assert rung.status == "failed"
    assert text in rung.reason


def test_the_worst_pictures_are_shown_with_their_difference(reference, make_context) -> None:
    rung = run("pixels", make_context(ExifTurned(reference)))
    assert "EXIF" in rung.examples[0].name
    assert rung.examples[0].image.startswith("data:image/jpeg;base64,")


def test_a_wrong_tower_is_not_blamed_on_the_decoder(reference, make_context) -> None:
    rung = run("logits", make_context(ShiftedTower(reference)))
    broken = [m.name for m in rung.measurements if m.passed is False]
    assert "mean KL" in broken
    assert not any(name.startswith("decoder alone") for name in broken)


Change = Callable[[StoredFiles, dict[str, Original]], StoredFiles]


def decoder_with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def made(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
        one = files.decoder[name]
        values = change(one.values(0, one.shape[0]).copy())
        stored = GgufStored(scheme="F32", shape=values.shape, data=values)
        return replace(files, decoder={**files.decoder, name: stored})

    return made


def tower_with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def made(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
        one = files.tower[name]
        values = change(one.values(0, one.shape[0]).copy())
        stored = OnnxFloat(shape=values.shape, data=values)
        return replace(files, tower={**files.tower, name: stored})

    return made


def not_permuted(files: StoredFiles, originals: dict[str, Original]) -> StoredFiles:
    values = np.array(originals["blk.1.attn_q.weight"].read(), np.float32)
    stored = GgufStored(scheme="F32", shape=values.shape, data=values)
    return replace(files, decoder={**files.decoder, "blk.1.attn_q.weight": stored})


def swapped_gate(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
    one, other = "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"
    pair = {one: files.decoder[other], other: files.decoder[one]}
    return replace(files, decoder={**files.decoder, **pair})


def tied(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
    decoder = {n: one for n, one in files.decoder.items() if n != "output.weight"}
    return replace(files, decoder=decoder)


def with_post_norm(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
    extra = OnnxFloat(shape=(32,), data=np.ones(32, np.float32))
    return replace(files, tower={**files.tower, "tower.vision_model.post_layernorm.weight": extra})


def key_with(name: str, value: object) -> Change:
    def made(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
        return replace(files, keys={**files.keys, name: value})

    return made


def keyless(files: StoredFiles, _: dict[str, Original]) -> StoredFiles:
    kept = {n: v for n, v in files.keys.items() if "rms_epsilon" not in n}
    return replace(files, keys=kept)


def flipped_bit(values: np.ndarray) -> np.ndarray:
    values.view(np.uint32)[5, 7] ^= 1
    return values


FILE_FAULTS: list[tuple[str, Change, str]] = [
    ("q not permuted", not_permuted, "values that are not the source's, rounded"),
    ("gate and up swapped", swapped_gate, "values that are not the source's, rounded"),
    ("head tied", tied, "tensors missing 1"),
    ("a norm too many", with_post_norm, "tensors that should not be there 1"),
    (
        "another epsilon",
        key_with("llama.attention.layer_norm_rms_epsilon", 1e-5),
        "keys that are not the config's 1",
    ),
    ("no epsilon", keyless, "keys that are not the config's 1"),
    ("another rope", key_with("llama.rope.freq_base", 5e5), "keys that are not the config's 1"),
    ("a rope scaled", key_with("llama.rope.scaling.factor", 2.0), "keys that are not the config"),
    ("no BOS", key_with("tokenizer.ggml.add_bos_token", False), "keys that are not the config"),
    (
        "one bit flipped",
        decoder_with("blk.1.ffn_down.weight", flipped_bit),
        "values that are not the source's, rounded 1 ",
    ),
    (
        "tower not transposed",
        tower_with("tower.vision_model.encoder.layers.1.mlp.fc1.weight", lambda v: v.T),
        "tensors of another shape 1",
    ),
    (
        "square weight not transposed",
        tower_with("tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", lambda v: v.T),
        "values that are not the source's, rounded",
    ),
    (
        "positions shifted by one",
        tower_with(
            "tower.vision_model.embeddings.position_embedding.weight",
            lambda v: np.roll(v, 1, axis=0),
        ),
        "values that are not the source's, rounded",
    ),
    (
        "a weight of the projector scaled",
        tower_with("projector.mlp.mlp.2.weight", lambda v: v * np.float32(1.01)),
        "values that are not the source's, rounded",
    ),
]


@pytest.mark.parametrize(
    ("change", "text"), [(c, t) for _, c, t in FILE_FAULTS], ids=[n for n, _, _ in FILE_FAULTS]
)
def test_a_fault_in_a_file_fails_the_weights(
    change: Change, text: str, reference, make_context, files
) -> None:
    wrong = change(files, reference.decoder_originals())
    rung = run("weights", make_context(stored=wrong))
    assert rung.status == "failed"
    assert text in rung.reason


def quantized(files: StoredFiles, scheme: str, name: str) -> GgufStored:
    one = files.decoder[name]
    packed = LAYOUTS[scheme].pack(one.values(0, one.shape[0]))
    return GgufStored(scheme=scheme, shape=one.shape, data=packed)


@pytest.mark.parametrize("scheme", ["Q4_0", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_rows_pass_and_a_damaged_block_does_not(scheme: str, make_context, files) -> None:
    name = "blk.0.attn_v.weight"
    stored = quantized(files, scheme, name)
    right = replace(files, decoder={**files.decoder, name: stored})
    rung = run("weights", make_context(stored=right))
    assert rung.status == "passed", rung.reason
    assert {row.name: row.scheme for row in rung.tensors}[name] == scheme
    damaged = stored.data.copy()
    damaged[3, -1] ^= 0x80
    wrong = {**files.decoder, name: replace(stored, data=damaged)}
    rung = run("weights", make_context(stored=replace(files, decoder=wrong)))
    assert f"{scheme}: largest error" in rung.reason


def int8_of(values: Floats) -> OnnxInt8:
    scale = np.abs(values).max(axis=0) / np.float32(127)
    data = np.round(values / scale).astype(np.int8)
    zero = np.zeros(len(scale), np.int8)
    return OnnxInt8(shape=values.shape, data=data, scale=scale, zero_point=zero)


def test_int8_rows_pass_and_one_that_is_off_by_a_step_does_not(make_context, files) -> None:
    name = "tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    one = files.tower[name]
    stored = int8_of(one.values(0, one.shape[0]))
    rung = run("weights", make_context(stored=replace(files, tower={**files.tower, name: stored})))
    assert rung.status == "passed", rung.reason
    stored.data[4, 4] -= 2
    rung = run("weights", make_context(stored=replace(files, tower={**files.tower, name: stored})))
    assert "w8a8: largest error" in rung.reason


def test_float16_must_be_rounded_and_not_cut(make_context, files) -> None:
    name = "output.weight"
    values = files.decoder[name].values(0, 512)
    values += np.float32(1e-4)  # bfloat16 sources would fit float16 whole

    def stored(data: np.ndarray) -> GgufStored:
        return GgufStored(scheme="F16", shape=data.shape, data=data)

    original = Original(source="x", shape=values.shape, read=lambda: values)
    from mllm_export.device_tests.checks.weights import loss_of

    rounded = values.astype(np.float16)
    assert loss_of(stored(rounded), original).unrounded == 0
    cut = np.where(np.abs(rounded) > np.abs(values), np.nextafter(rounded, np.float16(0)), rounded)
    assert loss_of(stored(cut.astype(np.float16)), original).unrounded > 1000
