"""What `build` says before and after of its time and memory."""

import pytest

from mllm_export.commands.build import _compared, _in_words
from mllm_export.export.pace import Forecast

MIB = 1 << 20


@pytest.mark.parametrize(
    ("forecast", "before", "after"),
    [
        (
            Forecast(seconds=42.4, peak_bytes=1500 * MIB, checked=False),
            "42 s on a quiet machine; peak of one process 1,500 MiB",
            "time 1.06, peak 0.75",
        ),
        (
            Forecast(seconds=42.4, peak_bytes=3000 * MIB, checked=True),
            "42 s on a quiet machine, then the checks; peak of one process 3,000 MiB",
            "time before the checks 1.06, peak 1.50",
        ),
        (
            Forecast(seconds=None, peak_bytes=1500 * MIB, checked=False),
            "peak of one process 1,500 MiB; no time, for a stage of this build is not known",
            "peak 0.75",
        ),
        (
            Forecast(
                seconds=42.4,
                peak_bytes=1500 * MIB,
                checked=True,
                unread_bytes=3000 * MIB,
                reading_seconds=19.6,
            ),
            "42 s on a quiet machine (if a disk gives 3,000 MiB of the sources, which are not in "
            "memory, within 20 s), then the checks; peak of one process 1,500 MiB",
            "time before the checks 1.06, peak 0.75",
        ),
        (
            Forecast(
                seconds=42.4,
                peak_bytes=1500 * MIB,
                checked=False,
                unread_bytes=200 * MIB,
                reading_seconds=19.6,
            ),
            "42 s on a quiet machine; peak of one process 1,500 MiB",
            "time 1.06, peak 0.75",
        ),
    ],
    ids=["unchecked", "checked", "unknown stage", "sources on a disk", "a little on a disk"],
)
def test_a_forecast_in_words_and_beside_what_came(
    forecast: Forecast, before: str, after: str
) -> None:
    assert _in_words(forecast) == before
    assert _compared(forecast, before_checks_s=40.0, peak_bytes=2000 * MIB) == after
