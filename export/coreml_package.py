"""A .mlpackage on disk: the same bytes for the same model, and weights under published names."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_export.errors import BuildError
from mllm_export.export.coreml_tools import without_bars
from mllm_export.export.mil_program import MODEL_FILE, Array, MilProgram, read_program, read_spec
from mllm_export.records import from_json, record, to_json

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "mllm-export"
"""Of the metadata entry that says which constant holds which published tensor."""

_IDENTIFIERS = ("6d6c6c6d-0000-4000-8000-000000000001", "6d6c6c6d-0000-4000-8000-000000000002")
"""coremltools draws them anew each time; Core ML only asks that they differ."""


@record
class Held:
    """Where a published tensor went."""

    name: str
    """tower. or projector., then the published name."""
    shape: tuple[int, ...]
    """As the ONNX file stores it, which has linear maps as [in, out]."""
    constant: str
    """The constant's name in the program; empty when the converter left it out."""
    fill: float = 0.0
    """What it was, when it was left out: all zeros or all ones, which change nothing."""


@record
class Contents:
    """What a package says of itself."""

    tensors: tuple[Held, ...]
    float32: tuple[str, ...]
    """Operations that run in float32, because a probe left float16's range there."""


def save_package(model: Any, path: Path) -> None:
    """Save coremltools' model, with nothing in it that differs from one run to the next."""
    shutil.rmtree(path, ignore_errors=True)
    with without_bars():
        model.save(str(path))
    # Left beside the model for another tool's debugger.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    spec = read_spec(path)
    metadata = spec.description.metadata.userDefined
    for key in [key for key in metadata if key.startswith("com.github.apple.coremltools.")]:
        # The day of the conversion, and versions that bundle.json names.
        del metadata[key]
    write_spec(path, spec)


def write_spec(path: Path, spec: Any) -> None:
    """Put a changed message back, in an order that does not depend on the process."""
    (path / MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    root, weights = _IDENTIFIERS
    items = {
        root: ("com.apple.CoreML/model.mlmodel", "CoreML Model Specification", "model.mlmodel"),
        weights: ("com.apple.CoreML/weights", "CoreML Model Weights", "weights"),
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            key: {"author": "com.apple.CoreML", "description": text, "name": name, "path": inside}
            for key, (inside, text, name) in items.items()
        },
        "rootModelIdentifier": root,
    }
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


def name_weights(path: Path, weights: Mapping[str, Tensor], float32: tuple[str, ...]) -> None:
    """Find every published tensor among the constants, by its values, and name it there.

    `weights` as the ONNX file stores them. Raises: BuildError for one that is nowhere.
    """
    program = read_program(path)
    constants = dict(_fingerprints(program))
    held = tuple(_held(path, name, v.numpy(), constants) for name, v in weights.items())
    names: dict[str, str] = {}
    for one in held:
        if one.constant:
            names.setdefault(one.constant, _identifier(one.name))
    spec = read_spec(path)
    _rename(spec, names)
    renamed = tuple(
        Held(name=h.name, shape=h.shape, constant=names.get(h.constant, ""), fill=h.fill)
        for h in held
    )
    contents = Contents(tensors=renamed, float32=float32)
    spec.description.metadata.userDefined[_KEY] = to_json(contents)
    write_spec(path, spec)


def read_contents(path: Path) -> Contents:
    """What the package says of itself. Raises: BuildError for a package of another tool's."""
    stored = read_spec(path).description.metadata.userDefined
    if _KEY not in stored:
        raise BuildError(f"{path}: the package does not name its weights; was it written here?")
    return from_json(Contents, stored[_KEY], path, BuildError)


def write_contents(path: Path, contents: Contents) -> None:
    """Say it anew, after coremltools saved the package once more."""
    spec = read_spec(path)
    spec.description.metadata.userDefined[_KEY] = to_json(contents)
    write_spec(path, spec)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "__", name)


def _fingerprints(program: MilProgram) -> Iterator[tuple[str, str]]:
    """Hash of each constant's values, whatever its shape, and its name."""
    for operation in program.operations:
        value = operation.attributes.get("val")
        if operation.type == "const" and value and value.type in ("FLOAT16", "FLOAT32"):
            yield _fingerprint(value.read()), operation.name


def _fingerprint(values: Array) -> str:
    flat = np.ascontiguousarray(values)
    return f"{flat.dtype}:{hashlib.sha256(flat.tobytes()).hexdigest()}"


def _held(path: Path, name: str, values: Array, constants: Mapping[str, str]) -> Held:
    # Tables are looked up as they are; what is multiplied may stand either way round.
    turned = values.T if values.ndim == 2 and "embedding" not in name else values
    with np.errstate(over="ignore"):
        forms = [
            form.astype(width)
            for width in (np.float16, np.float32)
            for form in ((turned,) if turned is values else (turned, values))
        ]
    for form in forms:
        constant = constants.get(_fingerprint(form))
        if constant is not None:
            return Held(name=name, shape=values.shape, constant=constant)
    for fill in (0.0, 1.0):
        if (values == fill).all():
            return Held(name=name, shape=values.shape, constant="", fill=fill)
    raise BuildError(
        f"{path}: tensor '{name}' is in none of the program's constants: the converter changed "
        "it, and its values could not be checked; report the model's config"
    )


def _rename(spec: Any, names: Mapping[str, str]) -> None:
    main = spec.mlProgram.functions["main"]
    for operation in main.block_specializations[main.opset].operations:
        for result in operation.outputs:
            if result.name in names:
                result.name = names[result.name]
                stored = operation.attributes["name"].immediateValue.tensor.strings
                stored.values[0] = result.name
        for given in operation.inputs.values():
            for binding in given.arguments:
                if binding.name in names:
                    binding.name = names[binding.name]
