"""One operation as a program of its own, built and saved by coremltools, run by our evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mllm_export.export.coreml_tools import coremltools, without_bars
from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import MODEL_FILE, read_program


def run_saved(folder: Path, build, x: np.ndarray, precision="float32", opset="iOS18"):
    """`build(mb, x)` gives the operation's result; returns what the saved file evaluates to."""
    evaluator = saved(folder, build, x.shape, precision, opset)
    return run_on(evaluator, x)


def run_on(evaluator: Evaluator, x: np.ndarray, watch=None):
    """The program's result for its one input."""
    (port,) = evaluator.program.inputs
    return evaluator.run({port.name: x.astype(np.float32)}, watch)


def saved(folder: Path, build, shape, precision="float32", opset="iOS18"):
    ct = coremltools()
    from coremltools.converters.mil import Builder, mil

    @Builder.program(
        input_specs=[Builder.TensorSpec(shape=shape, dtype=mil.types.fp32)],
        opset_version=getattr(ct.target, opset),
    )
    def program(x):
        # A result that is the input itself would be optimised away.
        return Builder.identity(x=build(Builder, x), name="made")

    width = ct.precision.FLOAT16 if precision == "float16" else ct.precision.FLOAT32
    with without_bars():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, opset),
            compute_precision=width,
            skip_model_load=True,
        )
        package = folder / "one.mlpackage"
        model.save(str(package))
    assert (package / MODEL_FILE).is_file()
    return Evaluator(read_program(package), precision)
