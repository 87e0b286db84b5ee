"""A session made of the reference itself, so that every check passes, and faults to plant in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mllm_export.bundle import Bundle, Manifest
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.check import Context, StoredFiles
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.profile import Limits, load_profile
from mllm_export.device_tests.reference import Floats, Forced, Reference
from mllm_export.device_tests.samples import Samples, generic_samples
from mllm_export.device_tests.stored import GgufStored, Stored
from mllm_export.device_tests.stored_tower import OnnxFloat
from mllm_export.device_tests.subject import Subject
from mllm_export.progress import silent


@dataclass(frozen=True)
class FakeStep:
    token_id: int
    finish: str
    text: str = ""


class FakeSession:
    """What the runtime offers, answered by the original model; faults override one method."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def preprocess(self, image) -> Floats:
        return self.reference.pixels(image)

    def embed(self, pixels: Floats) -> Floats:
        return self.reference.embed(pixels)[0]

    def encode(self, prompt: str, images: int = 1) -> list[int]:
        return self.reference.prompt_ids(prompt, images)

    def logits(self, prompt: Sequence[int], images: Sequence[Floats]) -> Floats:
        positions = len(prompt) - len(images) + sum(len(image) for image in images)
        asked = Forced(ids=tuple(prompt), images=tuple(images), rows=positions)
        return self.reference.logits([asked])[0]

    def generate(
        self, prompt: str | Sequence[int], images: Sequence[Floats], *, max_tokens: int
    ) -> Iterator[FakeStep]:
        ids = self.encode(prompt, len(images)) if isinstance(prompt, str) else list(prompt)
        answer: list[int] = []
        for count in range(1, max_tokens + 1):
            token = int(self.logits(ids, images)[-1].argmax())
            ids.append(token)
            ended = token in self.reference.stop_ids
            finish = "eos" if ended else "length" if count == max_tokens else ""
            before = self.reference.text(answer)
            answer += [] if ended else [token]
            yield FakeStep(token, finish, self.reference.text(answer).removeprefix(before))
            if ended:
                return

    def close(self) -> None:
        return


def stored_like(originals: dict[str, Original], as_gguf: bool) -> dict[str, Stored]:
    """What a file holds when every tensor is stored in float32 as it should be."""
    found: dict[str, Stored] = {}
    for name, original in originals.items():
        values = original.values(0, original.shape[0])
        if as_gguf:
            found[name] = GgufStored(scheme="F32", shape=original.shape, data=values)
        else:
            found[name] = OnnxFloat(shape=original.shape, data=values)
    return found


def few_samples(count: int = 3) -> Samples:
    return generic_samples(count)


def context_of(
    reference: Reference,
    session: FakeSession,
    manifest: Manifest,
    samples: Samples | None = None,
    stored: StoredFiles | None = None,
) -> Context:
    oracle = LiveOracle(reference, samples or few_samples(), 512, silent)
    oracle.effort = replace(oracle.effort, answer_tokens=4)
    return Context(
        bundle=Bundle(None, manifest),  # type: ignore[arg-type]  # no check opens its files
        subject=Subject(session),
        oracle=oracle,
        limits=Limits(load_profile("default"), "f16", "f16", oracle.trained),
        stored=stored or StoredFiles(tower={}, decoder={}, keys={}),
    )


def honest_files(reference: Reference) -> StoredFiles:
    return StoredFiles(
        tower=stored_like(reference.tower_originals(), as_gguf=False),
        decoder=stored_like(reference.decoder_originals(), as_gguf=True),
        keys={one.key: one.value for one in reference.decoder_keys()},
    )


def manifest_of(folder) -> Manifest:
    from mllm_export.export.family import read_spec

    return Manifest(
        model=read_spec(Checkpoint(folder)).spec,
        target="linux-x86_64",
        recipe="f16",
        profile="default",
        checked="unchecked",
        context_tokens=512,
        minimum_runtime=(0, 1, 0),
        vision_engine="onnx",
        decoder_engine="llama_cpp",
        files=(),
        sources=(),
        tools=(),
    )


def shifted(embeds: Floats) -> Floats:
    """Every token in its neighbour's place."""
    return np.roll(embeds, 1, axis=0)
