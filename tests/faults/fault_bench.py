"""A small model, its honest bundle, and the float original that every faulty copy is held against.

The original is asked once for what does not depend on the export; a fault costs the artifact it
changes and one run of the ladder up to the first rung that fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mllm_export.bundle import Bundle, describe_file, open_bundle, write_manifest
from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.calibrating import Calibration
from mllm_export.commands.opening import Job, plan_job
from mllm_export.device_tests.cases import PixelCase, PromptCase, TowerCase
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.parity import check
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import Samples
from mllm_export.export.artifact import Work
from mllm_export.export.build import build
from mllm_export.export.family import Reading, read_spec
from mllm_export.progress import silent
from mllm_export.report import Report
from mllm_export.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

    from mllm_export.export.artifacts.onnx import TowerJob

TARGET = "linux-x86_64"
_CONTEXT_TOKENS = 512
Edit = Callable[["ModelProto"], None]
"""Changes a tower's graph before its weights are attached."""


class SharedOracle(LiveOracle):
    """What the original makes of the same inputs, computed once for all bundles."""

    @cached_property
    def _pixel_cases(self) -> list[PixelCase]:
        return super().pixel_cases()

    @cached_property
    def _prompt_cases(self) -> list[PromptCase]:
        return super().prompt_cases()

    @cached_property
    def _tower_cases(self) -> list[TowerCase]:
        return super().tower_cases()

    def pixel_cases(self) -> list[PixelCase]:
        return self._pixel_cases

    def prompt_cases(self) -> list[PromptCase]:
        return self._prompt_cases

    def tower_cases(self) -> list[TowerCase]:
        return self._tower_cases


class Bench:
    """One checkpoint at one recipe."""

    def __init__(
        self, folder: Path, checkpoint: Path, recipe: str, oracle: SharedOracle, sibling: Path
    ) -> None:
        """`sibling` is a checkpoint of the same sizes with other weights and another tokenizer."""
        self.folder = folder
        self.checkpoint = checkpoint
        self.recipe = recipe
        self.oracle = oracle
        self.sibling = sibling
        self._made = 0

    @cached_property
    def job(self) -> Job:
        return plan_job(str(self.checkpoint), TARGET, self.recipe, None, False)

    @cached_property
    def honest(self) -> Bundle:
        job = self.job
        out = self.folder / f"honest-{self.recipe}"
        with pytest.MonkeyPatch.context() as patch:
            in_this_process(patch)
            return build(
                job.plan,
                job.reading,
                job.checkpoint,
                job.target,
                out,
                lambda _, __: "unchecked",
                calibrate=self._calibrate,
                calibrated=Calibration().calibrated(job),
            )

    def _calibrate(self, path: Path) -> None:
        """The samples' own pictures, as the original prepares them."""
        pixels = [case.pixels for case in self.oracle.tower_cases() if case.picture]
        np.save(path, np.concatenate(pixels))

    def copy(self) -> Bundle:
        """The honest bundle again, in a folder of its own."""
        self._made += 1
        folder = self.folder / f"{self.recipe}-{self._made}"
        shutil.copytree(self.honest.folder, folder)
        return Bundle(folder, self.honest.manifest)

    def mended(self, bundle: Bundle) -> Bundle:
        """The bundle with sizes and hashes of its files as they are now, opened as a user would."""
        files = tuple(describe_file(bundle.folder, f.path, f.role) for f in bundle.manifest.files)
        write_manifest(bundle.folder, replace(bundle.manifest, files=files))
        return open_bundle(bundle.folder)

    def with_model(self, change: Callable[[ModelSpec], ModelSpec]) -> Bundle:
        """The manifest says something else of the model."""
        made = self.copy()
        model = change(made.manifest.model)
        return self.mended(Bundle(made.folder, replace(made.manifest, model=model)))

    def with_file(self, role: str, change: Callable[[Path], None]) -> Bundle:
        """One file changed in place."""
        made = self.copy()
        change(made.path(role))  # type: ignore[arg-type]  # a role, from a table
        return self.mended(made)

    def with_tower(
        self,
        *,
        edit: Edit | None = None,
        spec: Callable[[ModelSpec], ModelSpec] | None = None,
        read: Mapping[str, Callable] | None = None,
        checkpoint: Path | None = None,
    ) -> Bundle:
        """The tower exported anew: another graph, another spec, or other weights.

        `read` maps the end of a published name to what is done to its values; `checkpoint` is
        read in place of the true one.
        """
        from mllm_export.export.artifacts.onnx import quantize_tower_stage, write_tower_stage
        from mllm_export.export.tower_steps import steps_path

        made = self.copy()
        reading = self.job.reading
        if spec is not None:
            reading = replace(reading, spec=spec(reading.spec))
        path = made.path("tower")
        preset = self.job.plan.vision_preset
        plain = path.with_name("plain.onnx") if preset else path
        with pytest.MonkeyPatch.context() as patch:
            self._fast_tower(patch, edit, traced=spec is not None)
            _changed_reads(patch, read or {})
            write_tower_stage(self._work(made, reading, checkpoint), plain, silent)
        if preset:
            quantize_tower_stage(plain, path, self.tower_job(made), silent)
            plain.unlink()
            steps_path(plain).unlink()
        return self.mended(made)

    def tower_job(self, made: Bundle) -> TowerJob:
        """What this recipe asks of a quantized tower."""
        from mllm_export.export.artifacts.onnx import tower_job

        artifact = self.job.plan.artifact("tower")
        assert artifact is not None
        return tower_job(self._work(made, self.job.reading, None), artifact)

    def with_decoder(
        self,
        *,
        reading: Callable[[Reading], Reading] | None = None,
        schemes: Mapping[str, str] | None = None,
        read: Mapping[str, Callable] | None = None,
        checkpoint: Path | None = None,
    ) -> Bundle:
        """The decoder exported anew; `schemes` maps tensors to layouts that were not planned."""
        from mllm_export.export.artifacts.gguf import write_decoder_stage

        made = self.copy()
        used = reading(self.job.reading) if reading else self.job.reading
        artifact = self.job.plan.artifact("decoder")
        assert artifact is not None
        tensors = tuple(
            replace(one, scheme=(schemes or {}).get(one.name, one.scheme))
            for one in artifact.tensors
        )
        with pytest.MonkeyPatch.context() as patch:
            _changed_reads(patch, read or {})
            work = self._work(made, used, checkpoint)
            made.path("decoder").unlink()
            write_decoder_stage(work, replace(artifact, tensors=tensors), silent)
        return self.mended(made)

    def check(self, bundle: Bundle, *, profile: str | None = None, whole: bool = False) -> Report:
        """The ladder, up to the first failure unless it is asked for whole."""
        return check(
            bundle, plan=self.job.plan, oracle=self.oracle, profile=profile, fail_fast=not whole
        )

    def _work(self, made: Bundle, reading: Reading, checkpoint: Path | None) -> Work:
        source = (checkpoint or self.checkpoint, self.job.checkpoint.asked)
        return Work(plan=self.job.plan, reading=reading, source=source, folder=made.folder)

    @cached_property
    def _skeleton(self) -> ModelProto:
        from mllm_export.export.formats.onnx import tower_skeleton

        return tower_skeleton(self.job.reading.spec.vision)

    def _fast_tower(self, patch: pytest.MonkeyPatch, edit: Edit | None, traced: bool) -> None:
        """The honest graph is traced once; the writer's own trial run is left out."""
        from mllm_export.export.formats import onnx as writer

        patch.setattr(writer, "run_once", lambda *_: None)
        if traced:
            return
        honest = self._skeleton  # traced before the tracer is replaced

        def skeleton(*_: object) -> ModelProto:
            from onnx import ModelProto

            model = ModelProto()
            model.CopyFrom(honest)
            if edit is not None:
                edit(model)
            return model

        patch.setattr(writer, "graph_skeleton", skeleton)


def make_oracle(checkpoint: Path, samples: Samples, few: bool = True) -> SharedOracle:
    """The original in float32, asked about few samples or as many as `check` asks."""
    opened = Checkpoint(checkpoint)
    family = read_spec(opened).spec.family
    oracle = SharedOracle(REFERENCES[family](opened), samples, _CONTEXT_TOKENS, silent)
    if few:
        oracle.effort = replace(oracle.effort, towers=4, sequences=8, controls=8, answer_tokens=8)
    return oracle


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Stages run here: starting a process and importing torch would take most of the time."""
    from mllm_export.export.artifact import ARTIFACTS

    def here(_: str, stage: Callable, *args: object, progress: object) -> object:
        return stage(*args, progress)

    for name in ARTIFACTS.names():
        module = type(ARTIFACTS[name]).__module__
        patch.setattr(f"{module}.run_in_child", here, raising=False)


def _changed_reads(patch: pytest.MonkeyPatch, changes: Mapping[str, Callable]) -> None:
    """The exporter's reads of some tensors give something else; the original's do not."""
    from mllm_export.export.artifacts import gguf, onnx

    def reader(checkpoint: Checkpoint, sources: Mapping[str, str]) -> Callable:
        def read(name: str) -> object:
            for ending, change in changes.items():
                if name.endswith(ending):
                    return change(lambda other: checkpoint.read(sources[other]), name)
            return checkpoint.read(sources[name])

        return read

    if changes:
        patch.setattr(gguf, "part_reader", reader)
        patch.setattr(onnx, "part_reader", reader)
