"""transformers on torch in float32."""

from functools import partial

from mllm_export.device_tests.peers._torch import open_torch

PEER = partial(open_torch, precision="float32")
