from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mllm_export.errors import EngineError
from mllm_export.runtimes.engines import VISION_ENGINES
from mllm_export.spec import ModelSpec


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 3, 28, 28)).astype(np.float32)


def test_tiles_are_embedded_one_after_another(
    bundle: Path, spec: ModelSpec, pixels: np.ndarray
) -> None:
    tower = VISION_ENGINES["onnx"].open(bundle / "tower.onnx", spec, 1)
    both = tower.embed(pixels)
    assert (both.shape, both.dtype) == ((32, 64), np.float32)
    np.testing.assert_array_equal(both[16:], tower.embed(pixels[1:]))


def test_the_graph_is_what_runs(bundle: Path, spec: ModelSpec, pixels: np.ndarray) -> None:
    """The tower of the tests is one convolution: patches times a matrix."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(bundle / "tower.onnx").graph
    kernel = numpy_helper.to_array(graph.initializer[0]).reshape(64, -1)
    patches = pixels[0].reshape(3, 4, 7, 4, 7).transpose(1, 3, 0, 2, 4).reshape(16, -1)
    tower = VISION_ENGINES["onnx"].open(bundle / "tower.onnx", spec, 1)
    np.testing.assert_allclose(tower.embed(pixels[:1]), patches @ kernel.T, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 28, 28), np.float32),
        ((1, 3, 28, 27), np.float32),
        ((0, 3, 28, 28), np.float32),
        ((1, 28, 28, 3), np.float32),
        ((1, 3, 28, 28), np.float64),
    ],
    ids=["no batch", "wrong side", "no tile", "channels last", "float64"],
)
def test_pixels_of_another_form_are_refused(
    bundle: Path, spec: ModelSpec, shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    tower = VISION_ENGINES["onnx"].open(bundle / "tower.onnx", spec, 1)
    with pytest.raises(EngineError, match=r"needed: float32\[N, 3, 28, 28\]"):
        tower.embed(np.zeros(shape, dtype))


def test_a_tower_with_another_output_is_refused(
    tmp_path: Path, spec: ModelSpec, make_tower: Callable[..., None]
) -> None:
    make_tower(tmp_path / "named.onnx", output="features")
    with pytest.raises(EngineError, match=r"output is features .*needs image_embeds"):
        VISION_ENGINES["onnx"].open(tmp_path / "named.onnx", spec, 1)
    make_tower(tmp_path / "wide.onnx", width=72)
    with pytest.raises(EngineError, match=r"\[16, 72\], the spec needs .*\[16, 64\]"):
        VISION_ENGINES["onnx"].open(tmp_path / "wide.onnx", spec, 1)


def test_nan_embeddings_are_an_error(bundle: Path, spec: ModelSpec, pixels: np.ndarray) -> None:
    tower = VISION_ENGINES["onnx"].open(bundle / "tower.onnx", spec, 1)
    pixels[1, 0, 0, 0] = np.nan
    with pytest.raises(EngineError, match="NaN or Inf"):
        tower.embed(pixels)


def test_a_closed_tower_says_so(bundle: Path, spec: ModelSpec, pixels: np.ndarray) -> None:
    tower = VISION_ENGINES["onnx"].open(bundle / "tower.onnx", spec, 1)
    tower.close()
    tower.close()
    with pytest.raises(EngineError, match="session is closed"):
        tower.embed(pixels)
