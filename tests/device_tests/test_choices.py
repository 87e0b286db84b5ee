"""The table of what each choice pays has every row, and its ratios are a round's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_export.device_tests.benchmarks.choices import Times, choices, main, table
from tests.conftest import Build


def test_every_choice_runs_on_a_shipped_bundle(reference_bundle: Build, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    main(reference_bundle("int4").folder, out, threads=1, positions=124, tokens=2, rounds=1)
    rows = [line.split("|")[1:-1] for line in out.read_text().splitlines()[2:]]
    own = [one.text for one in choices(1)]
    assert [row[0].strip() for row in rows[: len(own)]] == own
    assert rows[0][2].strip() == rows[0][4].strip() == "1.00"
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
    assert [row[0].strip() for row in rows[len(own) :]] == [
        "the runtime, from nothing",
        "the runtime, the beginning kept",
        "the runtime, a second question about the picture",
    ]


def test_ratios_are_taken_within_a_round() -> None:
    # The machine slows down tenfold after the first round; the second row always takes double.
    found = [
        [
            ("first", Times(prefill=10.0 * slow, token=1.0 * slow)),
            ("second", Times(prefill=20.0 * slow)),
        ]
        for slow in (1, 10, 10)
    ]
    assert table(found)[2:] == [
        "| first | 100.0 | 1.00 | 10.0 | 1.00 |",
        "| second | 200.0 | 2.00 |  |  |",
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_each_choice_is_named_once(threads: int) -> None:
    names = [one.text for one in choices(threads)]
    assert len(set(names)) == len(names)
