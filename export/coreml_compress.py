"""Store a package's weights as planned, by coremltools' own compression."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mllm_export.errors import BuildError
from mllm_export.export.coreml_package import read_contents, save_package, write_contents
from mllm_export.export.coreml_scheme import COREML_SCHEMES, FLOAT
from mllm_export.export.coreml_tools import coremltools, without_bars
from mllm_export.export.mil_program import read_program

KINDS = {"w": "linear_quantize_weights", "p": "palettize_weights"}
"""First letter of a scheme's name to what coremltools compresses with."""


def compress(path: Path, schemes: Mapping[str, str]) -> None:
    """Rewrite the package; `schemes` gives the scheme of each tensor that has one.

    Raises: BuildError for a tensor that coremltools left in float16.
    """
    asked = {name: scheme for name, scheme in schemes.items() if scheme != FLOAT}
    if not asked:
        return
    contents = read_contents(path)
    constants = {h.name: h.constant for h in contents.tensors if h.constant}
    optimize = coremltools().optimize.coreml
    model = coremltools().models.MLModel(str(path), skip_model_load=True)
    for letter, function in KINDS.items():
        configs = {
            constants[name]: COREML_SCHEMES[scheme].config()
            for name, scheme in asked.items()
            if scheme.startswith(letter) and name in constants
        }
        if configs:
            settings = optimize.OptimizationConfig(global_config=None, op_name_configs=configs)
            with without_bars():
                model = getattr(optimize, function)(model, settings)
    save_package(model, path)
    write_contents(path, contents)
    _require_compressed(path, {constants[n]: n for n in asked if n in constants})


def _require_compressed(path: Path, asked: Mapping[str, str]) -> None:
    left = {o.name for o in read_program(path).operations if o.type == "const"}
    for constant, name in asked.items():
        if constant in left:
            raise BuildError(
                f"{path}: coremltools left tensor '{name}' in float16, the plan compresses it; "
                "give it scheme f16 in the recipe"
            )
