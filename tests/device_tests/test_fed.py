"""What the decoder is fed is counted position by position."""

import numpy as np
import pytest

from mllm_export.device_tests.fed import positions_off
from mllm_export.spec import IMAGE_ID

IMAGE = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = (1, 5, IMAGE_ID, 7)


@pytest.mark.parametrize(
    ("fed", "off"),
    [
        ([[1, 5], IMAGE, [7]], 0),
        ([[1], [5], IMAGE[:2], IMAGE[2:], [7]], 0),  # how it is cut says nothing
        ([[1, 5], IMAGE * 2, [7]], 4),
        ([[1, 5], IMAGE[::-1], [7]], 4),
        ([[1, 5], np.concatenate([IMAGE[:-1], IMAGE[-2:-1]]), [7]], 1),
        ([[1, 6], IMAGE, [7]], 1),
        ([[1, 5], IMAGE], 1),
        ([[1, 5], IMAGE, [7, 7]], 1),
        ([[1, 5], IMAGE[:, :2], [7]], 4),
        ([], 7),
    ],
)
def test_positions_that_hold_something_else_are_counted(fed, off: int) -> None:
    assert positions_off(fed, IDS, [IMAGE]) == off
