"""Known traps of LLaVA-1.5, LLaVA-Phi, Mipha, CLIP, SigLIP and ViTamin, each planted and caught.

Each is a mistake that a reader of the original could make. It is planted in our own parts, run as
the runtime would, and the rung that is for it must fail, by the default profile's limits for a
float export. Weights are drawn so large that a wrong activation or epsilon shows. Traps of the
Phi decoder are planted in tests/export/decoders/test_phi_logits.py, where llama.cpp runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_towers import llava_vitamin, mipha
from parity_fakes import FakeSession, context_of, manifest_of
from PIL import Image
from torch.nn import functional

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.check import CHECKS
from mllm_export.device_tests.reference import REFERENCES, Floats, Reference
from mllm_export.export.artifact import part_reader
from mllm_export.export.families.llava import FAMILY as LLAVA
from mllm_export.export.families.llava_phi import FAMILY as LLAVA_PHI
from mllm_export.export.family import Reading, read_spec
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.export.random_checkpoint import random_tensor, write_random_checkpoint
from mllm_export.export.stored import to_stored
from mllm_export.report import Rung
from mllm_export.runtimes.preprocess import preprocess
from mllm_export.spec import EncoderSpec, ImageSpec

Weights = dict[str, Floats]
MODELS: Mapping[str, Callable[[Path], Path]] = {
    "LLaVA-1.5, CLIP": partial(write_random_checkpoint, model=LLAVA.tiny()),
    "LLaVA-Phi, CLIP": partial(write_random_checkpoint, model=LLAVA_PHI.tiny()),
    "Mipha, SigLIP": mipha,
    "LLaVA, ViTamin": llava_vitamin,
}


@dataclass
class Model:
    """A checkpoint with its original and our reading of it."""

    folder: Path
    reading: Reading
    reference: Reference

    def weights(self, part: str) -> Weights:
        checkpoint = Checkpoint(self.folder)
        read = part_reader(checkpoint, self.reading.weights.part(part))
        return {
            name: np.asarray(read(name), np.float32) for name in self.reading.weights.part(part)
        }


@dataclass
class Export:
    """Our parts with the original's weights; what a trap changes is a field."""

    model: Model
    encoder: EncoderSpec = field(init=False)
    image: ImageSpec = field(init=False)
    tower: Weights = field(init=False)
    projector: Weights = field(init=False)
    features: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows
    prepare: Callable[[Image.Image], Image.Image] = lambda picture: picture
    gelu: str = "none"
    counts_border: bool = False
    encode: Callable[[str, int], list[int]] | None = None

    def __post_init__(self) -> None:
        self.encoder = self.model.reading.spec.encoders[0]
        self.image = self.encoder.image
        self.tower, self.projector = (self.model.weights(p) for p in ("tower", "projector"))


class OurSession(FakeSession):
    """Preprocessing, tower and projector are the export's own; the rest is the original's."""

    def __init__(self, export: Export) -> None:
        super().__init__(export.model.reference)
        self.export = export

    def preprocess(self, image: Image.Image) -> Floats:
        return preprocess(self.export.prepare(image), self.export.image)

    def encode(self, prompt: str, images: int = 1) -> list[int]:
        own = self.export.encode
        return super().encode(prompt, images) if own is None else own(prompt, images)

    @torch.no_grad()
    def embed(self, pixels: Floats) -> Floats:
        export = self.export
        encoder, spec = ENCODERS[export.encoder.kind], export.model.reading.spec.projector
        with pytest.MonkeyPatch.context() as patch:
            if export.counts_border:
                plain = functional.avg_pool2d
                patch.setattr(functional, "avg_pool2d", partial(_counting, plain))
            rows = encoder.apply(export.encoder, stored(export.tower), torch.tensor(pixels))
        with pytest.MonkeyPatch.context() as patch:
            if export.gelu != "none":
                other = partial(_other_gelu, functional.gelu, export.gelu)
                patch.setattr(functional, "gelu", other)
            rows = export.features(rows)
            made = PROJECTORS[spec.kind].apply(spec, stored(export.projector), rows)
        return np.asarray(made[0].numpy())


def _counting(plain: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    return plain(*args, **{**settings, "count_include_pad": True})


def _other_gelu(
    plain: Callable[..., Any], form: str, values: torch.Tensor, approximate: str = "none"
) -> Any:
    del approximate
    return plain(values, approximate=form)


def stored(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(to_stored(name, values)) for name, values in weights.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            folder = MODELS[name](tmp_path_factory.mktemp("trap") / "model")
            reading = read_spec(Checkpoint(folder))
            reference = REFERENCES[reading.spec.family](Checkpoint(folder))
            made[name] = Model(folder, reading, reference)
        return made[name]

    return get


def climb(export: Export, rung: str, **prompt: Any) -> Rung:
    manifest = manifest_of(export.model.folder)
    if prompt:
        spec = manifest.model
        manifest = replace(manifest, model=replace(spec, prompt=replace(spec.prompt, **prompt)))
    context = context_of(export.model.reference, OurSession(export), manifest)
    return CHECKS[rung].run(context)


@pytest.mark.parametrize("rung", ["pixels", "prompt", "tower"])
@pytest.mark.parametrize("name", MODELS)
def test_the_honest_export_passes(name: str, rung: str, model: Callable[[str], Model]) -> None:
    found = climb(Export(model(name)), rung)
    assert found.status == "passed", found.reason


def encoder(**changes: Any) -> Callable[[Export], None]:
    def plant(export: Export) -> None:
        export.encoder = replace(export.encoder, **changes)
        wanted = ENCODERS[export.encoder.kind].parameters(export.encoder)
        for name, shape in wanted.items():
            # A layer too many has weights in the checkpoint that the reading leaves out.
            export.tower.setdefault(name, random_tensor(name, tuple(shape), 0))

    return plant


def zeroed(part: str, ending: str) -> Callable[[Export], None]:
    def plant(export: Export) -> None:
        weights: Weights = getattr(export, part)
        names = [name for name in weights if name.endswith(ending)]
        assert names
        for name in names:
            weights[name] = np.zeros_like(weights[name])

    return plant


def identity_norm(name: str) -> Callable[[Export], None]:
    """A norm whose two vectors are left out."""

    def plant(export: Export) -> None:
        for one in [n for n in export.tower if name in n]:
            fill = np.ones_like if one.endswith("weight") else np.zeros_like
            export.tower[one] = fill(export.tower[one])

    return plant


def swapped(part: str, one: str, other: str) -> Callable[[Export], None]:
    def plant(export: Export) -> None:
        weights: Weights = getattr(export, part)
        for name in [n for n in weights if one in n]:
            twin = name.replace(one, other)
            weights[name], weights[twin] = weights[twin], weights[name]

    return plant


def field_is(**changes: Any) -> Callable[[Export], None]:
    def plant(export: Export) -> None:
        for name, value in changes.items():
            setattr(export, name, value)

    return plant


def image(**changes: Any) -> Callable[[Export], None]:
    def plant(export: Export) -> None:
        export.image = replace(export.image, **changes)

    return plant


def other_tower(export: Export) -> None:
    """The tower of the folder that the config names, where the checkpoint's own was trained."""
    export.tower = {n: random_tensor(n, v.shape, 9) for n, v in export.tower.items()}


def class_token_last(export: Export) -> None:
    """Row 0 kept and the last patch lost, as llama.cpp does with CLIP."""
    export.encoder = replace(export.encoder, keep_prefix=True)
    export.features = lambda rows: rows[:, :-1]


def patches_in_columns(export: Export) -> None:
    grid = export.encoder.grid
    export.features = lambda rows: (
        rows.reshape(1, grid, grid, -1).transpose(1, 2).reshape(1, grid * grid, -1)
    )


def resized_then_padded(picture: Image.Image) -> Image.Image:
    """The other order; a square of the wrong size is then resized once more."""
    side = 64
    scale = side / max(picture.size)
    size = tuple(max(1, round(one * scale)) for one in picture.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    place = ((side - size[0]) // 2, (side - size[1]) // 2)
    square.paste(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), place)
    return square


def packed_rows_head_by_head(export: Export) -> None:
    """ViTamin stacks q, k and v; read as interleaved per head, as Phi's are."""
    heads = export.encoder.heads
    for name in [n for n in export.tower if "attn.qkv" in n]:
        values = export.tower[name]
        apart = values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1)
        export.tower[name] = np.ascontiguousarray(apart.reshape(values.shape))


CLIP, PHI, SIGLIP, VITAMIN = MODELS
TRAPS: dict[str, tuple[str, Callable[[Export], None], str]] = {
    "CLIP: all layers run, not up to hidden state -2": (CLIP, encoder(select_layer=-1), "tower"),
    "CLIP: one layer fewer, hidden states counted from the first layer": (
        CLIP, encoder(select_layer=-3), "tower",
    ),
    "CLIP: GELU by erf for quick_gelu": (CLIP, encoder(activation="gelu"), "tower"),
    "CLIP: epsilon of 1e-6 for 1e-5": (CLIP, encoder(norm_eps=1e-6), "tower"),
    "CLIP: pre_layrnorm left out": (CLIP, identity_norm("pre_layrnorm"), "tower"),
    "CLIP: class token behind the patches": (CLIP, class_token_last, "tower"),
    "CLIP: patches in column order": (CLIP, patches_in_columns, "tower"),
    "CLIP: a dropped bias of the attention": (
        CLIP, zeroed("tower", "0.self_attn.q_proj.bias"), "tower",
    ),
    "CLIP: biases of a layer's two norms exchanged": (
        CLIP, swapped("tower", "0.layer_norm1.bias", "0.layer_norm2.bias"), "tower",
    ),
    "LLaVA: the tower of the named folder, not the trained one": (CLIP, other_tower, "tower"),
    "LLaVA: the projector's GELU by tanh": (CLIP, field_is(gelu="tanh"), "tower"),
    "LLaVA: the projector without a bias": (CLIP, zeroed("projector", "0.bias"), "tower"),
    "LLaVA: cut to the square, not padded": (CLIP, image(fit="crop"), "pixels"),
    "LLaVA: padded with the mean rounded": (CLIP, image(pad_rgb=(123, 117, 104)), "pixels"),
    "LLaVA: padded with black": (CLIP, image(pad_rgb=(0, 0, 0)), "pixels"),
    "LLaVA: resized before it is padded": (CLIP, field_is(prepare=resized_then_padded), "pixels"),
    "LLaVA: bilinear for bicubic": (CLIP, image(resample="bilinear"), "pixels"),
    "LLaVA: SigLIP's mean and deviation": (
        CLIP, image(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), "pixels",
    ),
    "LLaVA-Phi: the projector's GELU by tanh, as the decoder's": (
        PHI, field_is(gelu="tanh"), "tower",
    ),
    "LLaVA-Phi: the published tower, not the fine-tuned one": (PHI, other_tower, "tower"),
    "LLaVA-Phi: cut, as its own command line does": (PHI, image(fit="crop"), "pixels"),
    "SigLIP: GELU by erf for tanh in the tower": (SIGLIP, encoder(activation="gelu"), "tower"),
    "SigLIP: quick_gelu as CLIP's": (SIGLIP, encoder(activation="quick_gelu"), "tower"),
    "SigLIP: epsilon of 1e-5 for 1e-6": (SIGLIP, encoder(norm_eps=1e-5), "tower"),
    "SigLIP: patches without bias": (SIGLIP, zeroed("tower", "patch_embedding.bias"), "tower"),
    "SigLIP: all layers run": (SIGLIP, encoder(select_layer=-1), "tower"),
    "SigLIP: GELU by tanh in the projector too": (SIGLIP, field_is(gelu="tanh"), "tower"),
    "SigLIP: padded with CLIP's mean": (SIGLIP, image(pad_rgb=(122, 116, 104)), "pixels"),
    "SigLIP: CLIP's mean and deviation": (
        SIGLIP, image(mean=(0.48145466, 0.4578275, 0.40821073)), "pixels",
    ),
    "ViTamin: the norm inside the MLP left out": (VITAMIN, identity_norm("mlp.norm"), "tower"),
    "ViTamin: gate and value of the MLP exchanged": (
        VITAMIN, swapped("tower", "mlp.w0", "mlp.w1"), "tower",
    ),
    "ViTamin: q, k and v taken head by head": (VITAMIN, packed_rows_head_by_head, "tower"),
    "ViTamin: GELU by tanh": (VITAMIN, encoder(activation="gelu_pytorch_tanh"), "tower"),
    "ViTamin: epsilon of 1e-5 for 1e-6": (VITAMIN, encoder(norm_eps=1e-5), "tower"),
    "ViTamin: no positions, as XL has none": (VITAMIN, encoder(position_grid=0), "tower"),
    "ViTamin: padding counted into the mean": (VITAMIN, field_is(counts_border=True), "tower"),
    "ViTamin: all blocks run": (VITAMIN, encoder(select_layer=-1), "tower"),
    "ViTamin: the norm behind the mean applied to tokens": (
        VITAMIN,
        field_is(features=lambda rows: functional.layer_norm(rows, rows.shape[-1:], eps=1e-6)),
        "tower",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_a_planted_trap_is_caught_by_its_rung(trap: str, model: Callable[[str], Model]) -> None:
    name, plant, rung = TRAPS[trap]
    export = Export(model(name))
    plant(export)
    found = climb(export, rung)
    assert found.status == "failed", [m for m in found.measurements if m.limit is not None]


def text_as(change: Callable[[str], str]) -> Callable[[Export], None]:
    """Another text, tokenized piece by piece as the original does."""

    def plant(export: Export) -> None:
        from mllm_export.device_tests.references._prompts import image_token_ids, prompt_text

        tokenizer = export.model.reference._tokenizer  # type: ignore[attr-defined]
        export.encode = lambda question, images: image_token_ids(
            tokenizer, change(prompt_text(question, images, None))
        )

    return plant


TEXTS: dict[str, Callable[[str], str]] = {
    "the words of llava_v1": lambda text: text.replace("curious user", "curious human"),
    "line breaks for blanks, as llama.cpp's vicuna template": lambda text: text.replace(
        " USER: ", "\nUSER: "
    ),
    "a blank behind ASSISTANT:": lambda text: text + " ",
    "no line break behind the image": lambda text: text.replace("<image>\n", "<image>"),
    "no system text": lambda text: text[text.index("USER: ") :],
}


@pytest.mark.parametrize("name", [CLIP, PHI])
@pytest.mark.parametrize("text", TEXTS)
def test_another_prompt_is_caught_by_its_ids(
    name: str, text: str, model: Callable[[str], Model]
) -> None:
    honest = Export(model(name))
    text_as(lambda same: same)(honest)
    assert climb(honest, "prompt").status == "passed"
    export = Export(model(name))
    text_as(TEXTS[text])(export)
    found = climb(export, "prompt")
    assert found.status == "failed"
    assert "prompts with other ids" in found.reason


def test_a_bos_before_phis_prompt_is_caught(model: Callable[[str], Model]) -> None:
    export = Export(model(PHI))
    reference = export.model.reference
    export.encode = lambda q, images: [reference.bos_id, *reference.prompt_ids(q, images)]
    assert "another count of BOS" in climb(export, "prompt").reason


def test_the_end_that_llava_phis_config_says_is_caught(model: Callable[[str], Model]) -> None:
    """Published configs say bos 1 and eos 2; the tokenizer's is another."""
    found = climb(Export(model(PHI)), "prompt", stop_ids=(2,))
    assert "stop rules that differ 2" in found.reason


def test_llamas_stop_string_for_phi_is_caught(model: Callable[[str], Model]) -> None:
    found = climb(Export(model(PHI)), "prompt", stop_strings=("</s>",))
    assert "stop rules that differ" in found.reason
