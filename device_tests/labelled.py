"""Evaluation files of an encoder alone: pictures with the labels they may have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mllm_export.device_tests.pictures import Picture, file_picture
from mllm_export.errors import CheckError


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A picture, the labels it may have, and the right one."""

    picture: Picture
    labels: tuple[str, ...]
    answer: str


def read_labelled(path: Path) -> tuple[Labelled, ...]:
    """An evaluation file: one JSON object a line with image, labels and answer.

    Raises: CheckError naming the line and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise CheckError(f"evaluation file {path} cannot be read ({failure})") from failure
    found = tuple(_labelled(line, path, at) for at, line in enumerate(lines, 1) if line.strip())
    if not found:
        raise CheckError(f"evaluation file {path} holds no pictures")
    return found


def _labelled(line: str, path: Path, at: int) -> Labelled:
    where = f"{path}, line {at}"
    try:
        data = json.loads(line)
    except json.JSONDecodeError as failure:
        raise CheckError(f"{where}: not valid JSON ({failure})") from failure
    if not isinstance(data, dict) or not isinstance(data.get("image"), str):
        raise CheckError(f"{where}: needed: an object with image, labels and answer")
    labels, answer = data.get("labels"), data.get("answer")
    if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
        raise CheckError(f"{where}: key 'labels' is {labels!r}, needed: a list of strings")
    if not isinstance(answer, str) or answer not in labels:
        raise CheckError(f"{where}: answer {answer!r} is none of the labels {labels}")
    file = path.parent / data["image"]
    if not file.is_file():
        raise CheckError(f"{where}: picture '{data['image']}' is not there; looked for {file}")
    picture = file_picture(data["image"], file)
    return Labelled(picture=picture, labels=tuple(labels), answer=answer)
