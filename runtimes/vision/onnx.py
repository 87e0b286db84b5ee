"""Tower and projector through ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from mllm_export.errors import EngineError
from mllm_export.pixels import tiles_of
from mllm_export.runtimes.engines import Floats, GraphRun, require_shape
from mllm_export.runtimes.vision._mapped import mapped_model
from mllm_export.spec import IMAGE_EMBEDS, ImageSpec, ModelSpec

_ERRORS_ONLY = 3
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxTower:
    """One graph: pixels f32[1, 3, S, S] at every input to embeddings f32[T, D]."""

    def __init__(self, path: Path, spec: ModelSpec, threads: int) -> None:
        """Open the graph and hold its inputs and outputs against the spec."""
        self._path = path
        self._inputs = spec.vision.input_shapes
        self._session: onnxruntime.InferenceSession | None = _open(path, threads)
        _check_ports(path, "input", self._session.get_inputs(), self._inputs)
        shape = (spec.image_tokens, spec.decoder.width)
        _check_ports(path, "output", self._session.get_outputs(), {IMAGE_EMBEDS: shape})

    def embed(self, pixels: Floats) -> Floats:
        """Pixels f32[N, 3, S, S] to embeddings f32[N * T, D], tile after tile.

        Raises: EngineError for another shape or type, and for embeddings with NaN or Inf.
        """
        if self._session is None:
            raise EngineError("the session is closed; load the bundle again")
        tiles = tiles_of(pixels, self._inputs)
        embeddings = np.concatenate([self._run(self._session, tile) for tile in tiles])
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"{self._path}: the tower gave NaN or Inf for this image; "
                "are its pixels normalised, and did the bundle pass its checks?"
            )
        return embeddings

    def _run(self, session: onnxruntime.InferenceSession, tile: Mapping[str, Floats]) -> Floats:
        (embeddings,) = session.run([IMAGE_EMBEDS], dict(tile))
        return np.asarray(embeddings, np.float32)

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._session = None


class OnnxEngine:
    """Opens ONNX files."""

    def open(self, path: Path, spec: ModelSpec, threads: int) -> OnnxTower:
        """Raises: EngineError when ONNX Runtime or the spec refuses the file."""
        return OnnxTower(path, spec, threads)

    def open_graph(self, path: Path, image: ImageSpec | None, threads: int) -> GraphRun:
        """Raises: EngineError when ONNX Runtime refuses the file."""
        del image
        session = _open(path, threads)
        (port,) = session.get_inputs()
        names = [one.name for one in session.get_outputs()]

        def run(values: npt.NDArray[Any]) -> dict[str, Floats]:
            require_shape(path, port.name, values.shape, tuple(port.shape))
            made = session.run(names, {port.name: np.ascontiguousarray(values)})
            return {n: np.asarray(one, np.float32) for n, one in zip(names, made, strict=True)}

        return run


ENGINE = OnnxEngine()


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by spinning would take the cores from the decoder's prefill.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model: str | bytes = str(path)
    if mapped := mapped_model(path):
        model = mapped
        options.add_session_config_entry(_DATA_FOLDER, str(path.absolute().parent))
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's errors share no public class.
    except Exception as failure:
        reason = " ".join(str(failure).split())[:300]
        raise EngineError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} refuses the tower ({reason})"
        ) from failure


def _check_ports(
    path: Path,
    side: str,
    ports: list[onnxruntime.NodeArg],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    found = [f"{port.name} {port.type}{port.shape}" for port in ports]
    needed = [f"{name} tensor(float){list(shape)}" for name, shape in wanted.items()]
    if found != needed:
        raise EngineError(
            f"{path}: the tower's {side} is {', '.join(found) or 'nothing'}, "
            f"the spec needs {', '.join(needed)}; is the tower another model's?"
        )
