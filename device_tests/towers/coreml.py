"""Core ML packages: Core ML runs them on a Mac, the evaluator of ML Programs everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.coreml_seams import CoremlSeams
from mllm_export.device_tests.limit import Kind
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import Stored
from mllm_export.device_tests.stored_coreml import read_coreml
from mllm_export.device_tests.tower_file import Embed, GraphOpener, TowerSeams
from mllm_export.errors import EngineError
from mllm_export.export.coreml_package import read_contents
from mllm_export.export.mil_evaluator import Evaluator, Precision
from mllm_export.export.mil_program import MilProgram, read_program
from mllm_export.pixels import tiles_of
from mllm_export.runtimes.engines import VISION_ENGINES, GraphRun, VisionEngine
from mllm_export.runtimes.vision.coreml import to_picture
from mllm_export.spec import IMAGE_EMBEDS, ImageSpec, ModelSpec

_FOUR_BITS = ("w4g32", "pal4", "pal6")


class EvaluatedTower:
    """A package without Core ML: every operation in torch."""

    def __init__(self, program: MilProgram, spec: ModelSpec, precision: Precision) -> None:
        """Raises: EngineError for an operation that is not known, or ports that are not ours."""
        self._evaluator: Evaluator | None = Evaluator(program, precision)
        self._spec = spec
        found = [(port.name, port.shape) for port in program.inputs]
        needed = list(spec.vision.input_shapes.items())
        if found != needed or program.outputs != (IMAGE_EMBEDS,):
            raise EngineError(
                f"{program.path}: takes {found} and gives {list(program.outputs)}, "
                f"the spec needs {needed} and {IMAGE_EMBEDS}; is the tower another model's?"
            )

    def embed(self, pixels: Floats) -> Floats:
        """Pixels f32[N, 3, S, S] to embeddings f32[N * T, D], tile after tile."""
        if self._evaluator is None:
            raise EngineError("the session is closed; load the bundle again")
        tiles = tiles_of(pixels, self._spec.vision.input_shapes)
        return np.concatenate([self._run(self._evaluator, tile) for tile in tiles])

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._evaluator = None

    def _run(self, evaluator: Evaluator, tile: Mapping[str, Floats]) -> Floats:
        given = fed(evaluator.program, self._spec, tile)
        return np.asarray(evaluator.run(given), np.float32)


class EvaluatedGraph:
    """A package of one input, without Core ML."""

    def __init__(self, path: Path, image: ImageSpec | None, precision: Precision) -> None:
        """`image` is what pixels are made of; None: the input is ids.

        Raises: EngineError for an operation that is not known.
        """
        self._evaluator = Evaluator(read_program(path), precision)
        self._image = image

    def __call__(self, values: npt.NDArray[Any]) -> dict[str, Floats]:
        """The outputs by name for pixels f32[1, 3, S, S], or for ids i64[1, T]."""
        program = self._evaluator.program
        (port,) = program.inputs
        if self._image is not None and program.image_inputs:
            values = levels_of(values[0], self._image)
        return self._evaluator.outputs({port.name: values})


def fed(program: MilProgram, spec: ModelSpec, tile: Mapping[str, Floats]) -> dict[str, Floats]:
    """Normalised pixels f32[1, 3, S, S] by input, as levels where the program takes a picture."""
    return {
        one.name: levels_of(tile[one.name][0], one.image)
        if one.name in program.image_inputs
        else tile[one.name]
        for one in spec.vision.image_inputs
    }


def levels_of(tile: Floats, image: ImageSpec) -> Floats:
    """Normalised pixels f32[3, S, S] as the levels f32[1, 3, S, S] of the picture they were."""
    levels = np.asarray(to_picture(tile, image), np.float32)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)[None])


class EvaluatorEngine:
    """Opens .mlpackage folders anywhere, for checks alone: it is no fast engine.

    Every result is rounded to float16, as the neural engine keeps them.
    """

    def open(self, path: Path, spec: ModelSpec, threads: int) -> EvaluatedTower:
        """A model's tower."""
        del threads
        return EvaluatedTower(read_program(path), spec, "float16")

    def open_graph(self, path: Path, image: ImageSpec | None, threads: int) -> GraphRun:
        """An encoder's image or text tower."""
        del threads
        return EvaluatedGraph(path, image, "float16")


class CoremlFile:
    """tower.mlpackage."""

    def read(self, path: Path) -> dict[str, Stored]:
        """Its constants, decoded, under the published names."""
        return read_coreml(path)

    def kind(self, stored: Mapping[str, Stored]) -> Kind:
        """Activations are in float16 whatever the weights are in."""
        schemes = {one.scheme for one in stored.values()}
        if schemes & set(_FOUR_BITS):
            return "int4"
        return "int8" if "w8" in schemes else "half"

    def engine(self) -> VisionEngine:
        """Core ML on a Mac; elsewhere the evaluator in its place."""
        return EvaluatorEngine() if self.stands_in() else VISION_ENGINES["coreml"]

    def stands_in(self) -> bool:
        """Everywhere but on a Mac."""
        return sys.platform != "darwin"

    def more(self, path: Path, spec: ModelSpec) -> Mapping[str, Callable[[], Embed]]:
        """The evaluator in float32: what the weights alone cost; on a Mac also in float16."""
        found = {"program in float32": partial(_evaluated, path, spec, "float32")}
        if sys.platform == "darwin":
            found["program in float16"] = partial(_evaluated, path, spec, "float16")
        return found

    def more_graphs(self, path: Path, image: ImageSpec | None) -> Mapping[str, GraphOpener]:
        """As `more`."""
        found: dict[str, GraphOpener] = {
            "program in float32": partial(EvaluatedGraph, path, image, "float32")
        }
        if sys.platform == "darwin":
            found["program in float16"] = partial(EvaluatedGraph, path, image, "float16")
        return found

    def seams(self, path: Path, spec: ModelSpec) -> TowerSeams:
        """Its operations, run by the evaluator in float16.

        Raises: EngineError for no ML Program, BuildError for another tool's package.
        """
        return CoremlSeams(path, partial(fed, read_program(path), spec))

    def takes_pictures(self, path: Path) -> bool:
        """By the type of its inputs."""
        return bool(read_program(path).image_inputs)

    def notes(self, path: Path) -> tuple[str, ...]:
        """How it was run, and what runs in float32."""
        wide = read_contents(path).float32
        here = "Core ML" if sys.platform == "darwin" else "the evaluator of ML Programs in float16"
        return (
            f"tower: run by {here}",
            f"tower: operations in float32: {', '.join(wide) or 'none'}",
        )


def _evaluated(path: Path, spec: ModelSpec, precision: Precision) -> Embed:
    return EvaluatedTower(read_program(path), spec, precision).embed


TOWER_FILE = CoremlFile()
