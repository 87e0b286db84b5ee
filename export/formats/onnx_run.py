"""One run of an ONNX file, in a process of its own.

In the process that wrote the file, ONNX Runtime's copy of the weights would come on top of torch
and of what the C library keeps of freed memory: 2.7 GiB for CLIP ViT-L/14-336 instead of 1.3.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mllm_export.errors import BuildError
from mllm_export.weights import Shape

_REFUSED = 3
"""Exit code when the file does not load or gives something else; the reason is on stderr."""


def run_once(path: Path, outputs: Mapping[str, Shape]) -> None:
    """Load the file in ONNX Runtime and run it on a grey ramp at every input.

    Raises: BuildError when it does not load, gives other outputs or shapes than `outputs`, or
    anything but numbers.
    """
    command = [sys.executable, "-m", __name__, str(path), json.dumps(dict(outputs))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == _REFUSED:
        raise BuildError(f"{path}: {done.stderr.strip()}")
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BuildError(
            f"{path}: ONNX Runtime's process ended with code {done.returncode} ({tail[0]}); "
            "is the machine out of memory?"
        )


def _serve(path: str, outputs: str) -> int:
    """Run in this process; see `run_once`."""
    needed = {name: tuple(shape) for name, shape in json.loads(outputs).items()}
    try:
        made = _run(path)
    except Exception as failure:
        # ONNX Runtime's refusals have no common class.
        sys.stderr.write(f"ONNX Runtime refuses the graph ({failure})")
        return _REFUSED
    found = {name: values.shape for name, values in made.items()}
    if found != needed or not all(np.isfinite(values).all() for values in made.values()):
        sys.stderr.write(
            f"gives {_told(found)}, needed: finite {_told(needed)}; "
            "do the checkpoint's weights hold NaN or infinity?"
        )
        return _REFUSED
    return 0


def _told(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _run(path: str) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Packed copies of the weights would double the memory for one run.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {}
    for given in session.get_inputs():
        ramp = np.linspace(-1, 1, int(np.prod(given.shape)), dtype=np.float32).reshape(given.shape)
        # Ids are small whole numbers: 0 and 1 are in every table.
        feed[given.name] = ramp if given.type == "tensor(float)" else (ramp > 0).astype(np.int64)
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, feed)), strict=True))


if __name__ == "__main__":
    raise SystemExit(_serve(*sys.argv[1:]))
