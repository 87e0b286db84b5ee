"""The history is appended a line at a time and read back without loss."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from mllm_export.errors import CheckError
from mllm_export.history import HistoryLine, append, last_good, read
from mllm_export.records import to_json
from mllm_export.report import Report, Rung, read_report

PASSED = Report(
    model="m",
    family="f",
    target="t",
    recipe="int4",
    profile="default",
    rungs=(Rung(name="tower", status="passed"),),
)
FAILED = replace(PASSED, rungs=(Rung(name="tower", status="failed", reason="x"),))


def line(report: Report, when: str, bundle_sha256: str = "0" * 64) -> HistoryLine:
    return HistoryLine(
        when=when, passed=report.passed, bundle_sha256=bundle_sha256, sources=(), report=report
    )


def test_lines_are_appended_and_read_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.jsonl"
    lines = [line(PASSED, "1"), line(FAILED, "2")]
    for one in lines:
        append(file, one)
    assert list(read(file)) == lines
    assert len(file.read_text().splitlines()) == 2


def test_the_last_check_that_passed_is_found_behind_failed_and_foreign_ones(
    tmp_path: Path,
) -> None:
    file = tmp_path / "history.jsonl"
    for one, when in (
        (PASSED, "1"),
        (PASSED, "2"),
        (FAILED, "3"),
        (replace(PASSED, recipe="f16"), "4"),
    ):
        append(file, line(one, when))
    found = last_good(file, FAILED)
    assert found is not None
    assert found.when == "2"


def test_a_check_is_not_compared_with_itself(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append(file, line(PASSED, "1"))
    assert last_good(file, PASSED) is None
    other = replace(PASSED, rungs=(Rung(name="tower", status="passed", samples=9),))
    append(file, line(other, "2"))
    found = last_good(file, other)
    assert found is not None
    assert found.when == "1"


def test_a_bundle_is_not_compared_with_its_own_check_whose_seconds_are_others(
    tmp_path: Path,
) -> None:
    file = tmp_path / "history.jsonl"
    checked = replace(PASSED, rungs=(Rung(name="tower", status="passed", seconds=9.0),))
    append(file, line(checked, "1", "a" * 64))
    assert last_good(file, PASSED, "a" * 64) is None
    append(file, line(checked, "2", "b" * 64))
    append(file, line(checked, "3", "a" * 64))
    found = last_good(file, PASSED, "a" * 64)
    assert found is not None
    assert found.when == "2"
    assert last_good(file, PASSED) == line(checked, "3", "a" * 64)


def test_a_line_that_the_disk_has_no_room_for_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append(file, line(PASSED, "1"))
    kept = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system itself cuts the write short there, as it does where a disk is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 20, hard))
    try:
        with pytest.raises(OSError, match=r"20 of the line's \d+ bytes could be written") as caught:
            append(file, line(PASSED, "2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(file)
    assert file.read_bytes() == kept


def test_no_good_line_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append(file, line(FAILED, "1"))
    with pytest.raises(CheckError, match=r"holds no passed check of m, int4, for t.*--history"):
        last_good(file, PASSED)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 2: not valid JSON"), ('{"schema": 1}', "line 2: key 'when'")],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "history.jsonl"
    append(file, line(PASSED, "1"))
    with file.open("a") as opened:
        opened.write(text + "\n")
    with pytest.raises(CheckError, match=message):
        list(read(file))


def test_a_report_of_the_first_schema_is_read_and_a_later_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    data = json.loads(to_json(PASSED))
    for key in ("drift", "latency", "device"):
        del data[key]
    file.write_text(json.dumps({**data, "schema": 1}))
    assert replace(read_report(file), schema=PASSED.schema) == PASSED
    file.write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(CheckError, match="report schema 99, this version reads 1 to 3"):
        read_report(file)
