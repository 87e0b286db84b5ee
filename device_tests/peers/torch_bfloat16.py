"""transformers on torch in bfloat16."""

from mllm_export.device_tests.peers._torch import torch_peer

PEER = torch_peer("bfloat16")
