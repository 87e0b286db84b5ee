"""mllm-export: a deployment compiler for compact multimodal LLMs."""

__version__ = "0.1.0"
