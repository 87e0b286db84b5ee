"""rtn: the weights as they are; the layout rounds each to its nearest step."""

from mllm_export.quantize.method import Layer


class Rtn:
    """Nothing is changed."""

    needs_inputs = False
    chooses_codes = False

    def choose(self, layer: Layer) -> Layer:
        """The layer itself."""
        return layer


METHOD = Rtn()
