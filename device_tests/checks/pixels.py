"""Our preprocessing against the original's."""

from __future__ import annotations

import numpy as np

from mllm_export.device_tests.check import Context
from mllm_export.device_tests.thumbnails import thumbnail
from mllm_export.report import Example, Rung, rung_of

_SHOWN = 3


class Pixels:
    """Pixel by pixel, over sizes, aspect ratios, modes and EXIF turns."""

    measures = ("largest difference", "mean difference", "pictures of another shape")

    def run(self, context: Context) -> Rung:
        """Compare every case."""
        found: list[tuple[float, Example]] = []
        means: list[float] = []
        other_shape = 0
        cases = context.oracle.pixel_cases()
        for case in cases:
            made = context.subject.pixels(case.picture)
            if made.shape != case.expected.shape:
                other_shape += 1
                continue
            off = np.abs(made.astype(np.float64) - case.expected)
            means.append(float(off.mean()))
            shown = Example(
                name=case.picture.name,
                reference=f"mean pixel {case.expected.mean():.6f}",
                export=f"mean pixel {made.mean():.6f}",
                note=f"largest difference {off.max():.3g}",
                image=thumbnail(case.picture) if off.max() > 0 else "",
            )
            found.append((float(off.max()), shown))
        found.sort(key=lambda one: -one[0])
        largest = found[0][0] if found else 0.0
        measure = context.limits.measure
        return rung_of(
            "pixels",
            reference=context.oracle.title,
            samples=len(cases),
            measurements=(
                measure("pixels", "largest difference", largest, "normalised"),
                measure("pixels", "mean difference", float(np.mean(means or 0)), "normalised"),
                measure("pixels", "pictures of another shape", other_shape),
            ),
            examples=tuple(one for off, one in found[:_SHOWN] if off > 0),
        )


CHECK = Pixels()
