"""Tower and projector through ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mllm_export.errors import EngineError
from mllm_export.runtimes.engines import Floats
from mllm_export.spec import ModelSpec

INPUT = "pixel_values"
OUTPUT = "image_embeds"

_ERRORS_ONLY = 3


class OnnxTower:
    """One graph: pixels f32[1, 3, S, S] to embeddings f32[T, D]."""

    def __init__(self, path: Path, spec: ModelSpec, threads: int) -> None:
        """Open the graph and hold its inputs and outputs against the spec."""
        self._path = path
        size_px = spec.encoders[0].image.size_px
        self._tile_shape = (3, size_px, size_px)
        self._session: onnxruntime.InferenceSession | None = _open(path, threads)
        _check_port(path, "input", self._session.get_inputs(), INPUT, (1, *self._tile_shape))
        shape = (spec.image_tokens, spec.decoder.width)
        _check_port(path, "output", self._session.get_outputs(), OUTPUT, shape)

    def embed(self, pixels: Floats) -> Floats:
        """Pixels f32[N, 3, S, S] to embeddings f32[N * T, D], tile after tile.

        Raises: EngineError for another shape or type, and for embeddings with NaN or Inf.
        """
        if self._session is None:
            raise EngineError("the session is closed; load the bundle again")
        shape_fits = pixels.ndim == 4 and pixels.shape[1:] == self._tile_shape and len(pixels)
        if not shape_fits or pixels.dtype != np.float32:
            raise EngineError(
                f"pixels are {pixels.dtype}{list(pixels.shape)}, "
                f"needed: float32[N, {', '.join(str(side) for side in self._tile_shape)}]"
            )
        tiles = [self._run(self._session, tile) for tile in pixels]
        embeddings = np.concatenate(tiles)
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"{self._path}: the tower gave NaN or Inf for this image; "
                "are its pixels normalised, and did the bundle pass its checks?"
            )
        return embeddings

    def _run(self, session: onnxruntime.InferenceSession, tile: Floats) -> Floats:
        (embeddings,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(tile[None])})
        return np.asarray(embeddings, np.float32)

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._session = None


class OnnxEngine:
    """Opens ONNX files."""

    def open(self, path: Path, spec: ModelSpec, threads: int) -> OnnxTower:
        """Raises: EngineError when ONNX Runtime or the spec refuses the file."""
        return OnnxTower(path, spec, threads)


ENGINE = OnnxEngine()


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by spinning would take the cores from the decoder's prefill.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's errors share no public class.
    except Exception as failure:
        reason = " ".join(str(failure).split())[:300]
        raise EngineError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} refuses the tower ({reason})"
        ) from failure


def _check_port(
    path: Path,
    side: str,
    ports: list[onnxruntime.NodeArg],
    name: str,
    shape: tuple[int, ...],
) -> None:
    found = [f"{port.name} {port.type}{port.shape}" for port in ports]
    needed = f"{name} tensor(float){list(shape)}"
    if found != [needed]:
        raise EngineError(
            f"{path}: the tower's {side} is {', '.join(found) or 'nothing'}, "
            f"the spec needs {needed}; is the tower another model's?"
        )
