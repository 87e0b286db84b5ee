"""transformers on torch in float32."""

from mllm_export.device_tests.peers._torch import torch_peer

PEER = torch_peer("float32")
