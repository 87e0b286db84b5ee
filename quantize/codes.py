"""Where ggml's blocks keep the code of each value, so that codes can be chosen one by one.

Each function writes codes u8[blocks, values] into packed blocks u8[blocks, bytes], whose scales
stay as they are. Source: ggml-common.h for the blocks, ggml-quants.c for the order of values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mllm_export.quantize.ggml import Packed

Write = Callable[[Packed, Packed], None]


def nibbles_of_32(header: int) -> Write:
    """Q4_0 and Q4_1: value j in the low half of byte j, value j + 16 in its high half."""

    def write(blocks: Packed, codes: Packed) -> None:
        blocks[:, header:] = codes[:, :16] | codes[:, 16:] << 4

    return write


def bytes_of_32(blocks: Packed, codes: Packed) -> None:
    """Q8_0: signed bytes behind the scale; code 0 stands for -127."""
    blocks[:, 2:] = codes - np.uint8(127)


def nibbles_of_256(blocks: Packed, codes: Packed) -> None:
    """Q4_K: of every 64 values the first 32 in low halves, the next 32 in high halves."""
    pairs = codes.reshape(-1, 4, 2, 32)
    blocks[:, 16:] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def five_bits_of_256(blocks: Packed, codes: Packed) -> None:
    """Q5_K: as Q4_K, and the fifth bit of the i-th 32 values is bit i of 32 bytes."""
    low, high = codes & 15, codes >> 4
    groups = high.reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[None, :, None]
    blocks[:, 16:48] = np.bitwise_or.reduce(groups, axis=1)
    pairs = low.reshape(-1, 4, 2, 32)
    blocks[:, 48:] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def six_bits_of_256(blocks: Packed, codes: Packed) -> None:
    """Q6_K: of every 128 values, four runs of 32; low halves in 64 bytes, two bits in 32."""
    runs = codes.reshape(-1, 2, 4, 32)
    low, high = runs & 15, runs >> 4
    first = low[:, :, :2] | low[:, :, 2:] << 4
    blocks[:, :128] = first.reshape(-1, 128)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[None, None, :, None]
    blocks[:, 128:192] = np.bitwise_or.reduce(high << shifts, axis=2).reshape(-1, 64)
