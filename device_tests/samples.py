"""What is asked in the checks: an evaluation file, or pictures and questions of our own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mllm_export.device_tests.pictures import Picture, file_picture, scenes
from mllm_export.errors import CheckError

_QUESTIONS_FILE = "questions.jsonl"

GENERIC = (
    "What is in the picture?",
    "How many objects are there?",
    "Which colours do you see? Name them all, please.",
    "Is there a circle near the left edge?",
    "Describe this image in detail.",
    "What's that?",
)
"""Asked of models that bring no questions of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about some pictures; `answers` is empty where no answer is known."""

    pictures: tuple[str, ...]
    text: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """Of a multiple choice question, in the order of their letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Pictures by name and the questions about them."""

    source: str
    """Where they come from, for the report."""
    pictures: dict[str, Picture]
    questions: tuple[Question, ...]

    def of(self, question: Question) -> tuple[Picture, ...]:
        """The pictures a question is about."""
        return tuple(self.pictures[name] for name in question.pictures)

    @property
    def answered(self) -> bool:
        """Whether every question has a known answer, so that accuracy can be measured."""
        return all(question.answers for question in self.questions)


def read_evaluation(path: Path) -> Samples:
    """An evaluation file: one JSON object a line, `image` relative to the file.

    Raises: CheckError naming the line and what is wrong with it, or the picture that is none.
    """
    found = _read_samples(path, "evaluation", answered=True)
    for picture in found.pictures.values():
        _require_opens(picture, "evaluation")
    return found


def read_calibration(path: Path | None) -> Samples:
    """Pictures and questions to calibrate with: a folder with questions.jsonl, or such a file.

    Without a path the set that this package brings. Answers may be left out.
    Raises: CheckError naming the line and what is wrong with it, or the picture that is none.
    """
    found = _read_samples(path or reference_calibration(), "calibration", answered=False)
    for picture in found.pictures.values():
        _require_opens(picture, "calibration")
    return found


def calibration_sha256(path: Path | None) -> str:
    """Digest of the questions and the pictures that `read_calibration` reads."""
    asked = path or reference_calibration()
    file = asked / _QUESTIONS_FILE if asked.is_dir() else asked
    files = (file, *(file.parent / name for name in read_calibration(path).pictures))
    digest = hashlib.sha256()
    for one in files:
        digest.update(hashlib.sha256(one.read_bytes()).digest())
    return digest.hexdigest()


def _require_opens(picture: Picture, kind: str) -> None:
    try:
        with picture.open() as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as failure:
        raise CheckError(
            f"{kind} picture '{picture.name}' does not open ({failure}); "
            "replace it, or take its lines out"
        ) from failure


def _read_samples(path: Path, kind: str, *, answered: bool) -> Samples:
    file = path / _QUESTIONS_FILE if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise CheckError(f"{kind} file {file} cannot be read ({failure})") from failure
    questions = tuple(
        _question(line, f"{file}, line {number}", answered)
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not questions:
        raise CheckError(f"{kind} file {file} holds no questions")
    names = dict.fromkeys(name for question in questions for name in question.pictures)
    pictures = {name: _picture(name, file) for name in names}
    return Samples(source=file.name, pictures=pictures, questions=questions)


def _question(line: str, where: str, answered: bool) -> Question:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as failure:
        raise CheckError(f"{where}: not valid JSON ({failure})") from failure
    if not isinstance(data, dict):
        raise CheckError(f"{where}: holds a {type(data).__name__}, needed: a JSON object")
    for key in ("image", "question"):
        if not isinstance(data.get(key), str):
            raise CheckError(f"{where}: key '{key}' is {data.get(key)!r}, needed: a string")
    answers = data.get("answers")
    if answers is None and not answered:
        return Question(pictures=(data["image"],), text=data["question"])
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise CheckError(f"{where}: key 'answers' is {answers!r}, needed: a list of strings")
    if not answers:
        raise CheckError(f"{where}: key 'answers' is empty, needed: at least one string")
    choices = data.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise CheckError(f"{where}: key 'choices' is {choices!r}, needed: a list of strings")
    return Question(
        pictures=(data["image"],),
        text=data["question"],
        answers=tuple(answers),
        choices=tuple(choices),
    )


def _picture(name: str, file: Path) -> Picture:
    path = file.parent / name
    if not path.is_file():
        raise CheckError(f"{file}: picture '{name}' is not there; looked for {path}")
    return file_picture(name, path)


def generic_samples(count: int) -> Samples:
    """Drawn scenes, one generic question each; nothing is known of the right answers."""
    pictures = {picture.name: picture for picture in scenes(count)}
    questions = tuple(
        Question(pictures=(name,), text=GENERIC[at % len(GENERIC)])
        for at, name in enumerate(pictures)
    )
    return Samples(source="drawn scenes", pictures=pictures, questions=questions)


def _reference_package() -> Path:
    return Path(str(files("mllm_export.export.reference")))


def is_reference(checkpoint: Path) -> bool:
    """Whether a checkpoint folder is one that this package brings."""
    return checkpoint.resolve().is_relative_to(_reference_package().resolve())


def reference_calibration() -> Path:
    """The calibration set that this package brings."""
    return _reference_package() / "data" / "calibration" / _QUESTIONS_FILE


def reference_evaluation() -> Path:
    """The evaluation file of the shipped checkpoints."""
    return _reference_package() / "data" / "evaluation" / _QUESTIONS_FILE
