"""Sequences packed into rows that share what begins them alike."""

import numpy as np
import pytest

from mllm_export.device_tests.reference import Forced
from mllm_export.device_tests.references._packing import pack
from mllm_export.spec import IMAGE_ID


@pytest.mark.parametrize("descending", [False, True], ids=["addresses up", "addresses down"])
def test_rows_come_as_their_images_first_appear_wherever_those_lie(descending: bool) -> None:
    """Calibration sums over rows: in another order the last bit is another one."""
    images = sorted([np.zeros((2, 4), np.float32) for _ in range(5)], key=id, reverse=descending)
    asked = [*images, *reversed(images)]
    rows = pack([Forced(ids=(1, IMAGE_ID, 7), images=(one,), rows=1) for one in asked])
    assert [id(row.prefix.images[0]) for row in rows] == [id(one) for one in images]
    assert [[suffix.index for suffix in row.suffixes] for row in rows] == [
        [at, 9 - at] for at in range(5)
    ]
