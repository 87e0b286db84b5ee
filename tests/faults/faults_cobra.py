"""Faults of two encoders, of a decoder without attention, and of images before the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest
from fault import Fault, Plant
from fault_bench import Bench
from faults_decoder import reads as decoder_reads
from faults_decoder import stored_as
from faults_tower import Read
from faults_tower import reads as tower_reads

from mllm_export.bundle import Bundle
from mllm_export.export.fusions import channels
from mllm_export.runtimes.decoder import _states
from mllm_export.runtimes.decoder._batches import Chunk
from mllm_export.spec import EncoderSpec, ModelSpec

MODELS = ("cobra",)


def model_spec(change: Callable[[ModelSpec], ModelSpec]) -> Plant:
    return lambda bench, _: bench.with_model(change)


def exchanged_images(model: ModelSpec) -> ModelSpec:
    """Each tower gets the other's constants."""
    one, other = model.encoders
    swapped = (replace(one, image=other.image), replace(other, image=one.image))
    return replace(model, encoders=swapped)


def encoders(change: Callable[[tuple[EncoderSpec, ...]], tuple[EncoderSpec, ...]]) -> Plant:
    """The exporter traces another graph."""
    return lambda bench, _: bench.with_tower(
        spec=lambda model: replace(model, encoders=change(model.encoders))
    )


def joined_otherwise(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """Channels of the second encoder first."""
    assert bench.honest  # built before its parts are replaced
    plain = channels.Channels.apply
    patch.setattr(channels.Channels, "apply", lambda self, given: plain(self, given[::-1]))
    made = bench.with_tower(spec=lambda model: model)
    patch.undo()
    return made


def tanh_gelu(found: tuple[EncoderSpec, ...]) -> tuple[EncoderSpec, ...]:
    """As transformers' SigLIP has it, and timm's has not."""
    return (found[0], replace(found[1], activation="gelu_pytorch_tanh"))


def not_antialiased(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    """The middle of the table as plain bicubic interpolation would bring it about, at its size."""
    table = np.array(get(name), np.float32)
    side = round(table.shape[1] ** 0.5)
    grid = table.reshape(side, side, -1)
    smooth = (grid + np.roll(grid, 1, 0) + np.roll(grid, 1, 1)) / 3
    return smooth.reshape(table.shape)


def as_logarithm(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    """So that the file's A is minus the logarithm that is stored."""
    return np.log(np.abs(np.array(get(name), np.float32)) + np.float32(1e-3))


def turned(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    return np.ascontiguousarray(np.array(get(name), np.float32)[..., ::-1])


def gate_first(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    one, other = np.split(np.array(get(name), np.float32), 2)
    return np.concatenate([other, one])


def b_and_c_exchanged(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    rows = np.array(get(name), np.float32)
    return np.concatenate([rows[:16], rows[32:], rows[16:32]])


def decoder_reads_as(**changes: Read) -> Plant:
    by_ending = {ending.replace("__", "."): change for ending, change in changes.items()}
    return lambda bench, _: bench.with_decoder(read=by_ending)


def text_before_the_image(model: ModelSpec) -> ModelSpec:
    """Where LLaVA puts it: within the user's turn."""
    return replace(model, prompt=replace(model.prompt, images_first=False))


def not_normalized(model: ModelSpec) -> ModelSpec:
    return replace(model, tokenizer=replace(model.tokenizer, normalizer=""))


def state_of_another_picture(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """A picture of as many rows is taken for the one whose state was saved."""

    def restore(self: _states.RecurrentStates, wanted: list[Chunk]) -> list[Chunk]:
        if not self._chunks or len(wanted) <= len(self._chunks):
            return []
        llama_cpp.llama_state_seq_set_data(self._context, *self._place())
        return list(wanted[: len(self._chunks)])

    patch.setattr(_states.RecurrentStates, "restore", restore)
    return bench.honest


def state_not_reset(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """A new prompt goes on from the last one's state; llama.cpp sees it by the positions."""
    assert bench.honest
    patch.setattr(llama_cpp, "llama_memory_clear", lambda *_: None)
    return bench.honest


def fault(name: str, stage: str, rungs: tuple[str, ...], plant: Plant, **more: object) -> Fault:
    return Fault(name=name, stage=stage, rungs=rungs, plant=plant, models=MODELS, **more)


TOWER, FILE = ("tower",), ("weights",)

FAULTS = (
    fault(
        "each tower gets the other's constants",
        "preprocessing",
        ("pixels",),
        model_spec(exchanged_images),
    ),
    fault("image behind the start of the turn", "prompt", ("prompt",),
          model_spec(text_before_the_image)),
    fault("text not brought to NFC", "prompt", ("prompt",), model_spec(not_normalized)),
    fault("encoders joined in the other order", "tower", TOWER,
          joined_otherwise, quick=True),
    fault("tanh GELU in timm's SigLIP", "tower", TOWER, encoders(tanh_gelu)),
    fault("registers of DINOv2 lost", "tower", TOWER,
          tower_reads(reg_token=lambda get, name: np.zeros_like(get(name)))),
    fault("scale of a layer lost", "tower", TOWER,
          tower_reads(blocks__1__ls2__gamma=lambda get, name: np.ones_like(get(name)))),
    fault("positions resized otherwise", "tower", TOWER, tower_reads(pos_embed=not_antialiased)),
    fault("A stored as another function of its logarithm", "decoder file", FILE,
          decoder_reads_as(mixer__A_log=as_logarithm), quick=True),
    fault("convolution turned", "decoder file", FILE,
          decoder_reads_as(conv1d__weight=turned)),
    fault("gate and input exchanged", "decoder file", FILE,
          decoder_reads_as(in_proj__weight=gate_first)),
    fault("B and C exchanged", "decoder file", FILE,
          decoder_reads_as(x_proj__weight=b_and_c_exchanged)),
    fault("D lost", "decoder file", FILE, decoder_reads(".D", 0.0)),
    fault("steps stored in 4 bits", "decoder file", FILE,
          stored_as(blk__1__ssm_x__weight="Q4_0"), recipe="int8"),
    fault("state of another picture restored", "decoding", ("text",), state_of_another_picture,
          quick=True),
    fault("state not reset for a new prompt", "decoding", ("logits",), state_not_reset,
          quick=True),
)  # fmt: skip
