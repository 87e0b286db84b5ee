"""Small pictures inside a report."""

from __future__ import annotations

import base64
import io

from mllm_export.device_tests.pictures import Picture

_SIDE_PX = 160
_QUALITY = 80


def thumbnail(picture: Picture) -> str:
    """The picture, scaled down, as a data URL."""
    with picture.open() as opened:
        small = opened.convert("RGB")
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
