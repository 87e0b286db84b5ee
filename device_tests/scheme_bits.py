"""How many bits a scheme stores a weight in, by its word alone."""

from __future__ import annotations

import re

_TOWER = re.compile(r"w(\d+)")
"""w8a8, w8a8-static, w4g128: what stands behind the w."""

_FLOAT = re.compile(r"b?f(\d+)")


def weight_bits(scheme: str) -> int | None:
    """Whole bits of a weight, scales left out; None for a word that does not say.

    Source: for ggml's types gguf-py's table of block sizes, whose scales take under a bit.
    """
    import gguf

    types = gguf.GGMLQuantizationType.__members__
    if scheme in types:
        values, size = gguf.GGML_QUANT_SIZES[types[scheme]]
        return int(8 * size // values)
    found = _TOWER.match(scheme) or _FLOAT.fullmatch(scheme)
    return None if found is None else int(found.group(1))
