"""Golden inputs and outputs inside a bundle: what a check needs where the original is not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.device_tests.cases import AnswerCase
from mllm_export.device_tests.distributions import log_softmax
from mllm_export.device_tests.greedy import draft_tokens
from mllm_export.device_tests.questions import NASTY, WITH_MARKERS, WITH_SPECIAL
from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.device_tests.subject import Answer, Subject
from mllm_export.errors import BundleError
from mllm_export.records import record, to_json

if TYPE_CHECKING:
    from mllm_export.device_tests.live import LiveOracle

JSON, VALUES = "golden.json", "values.npz"
_SAMPLES = 3
_SCHEMA = 1
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: the same values give the same bytes."""


@record
class GoldenPrompt:
    """A question and the ids of its whole prompt."""

    question: str
    images: int
    ids: tuple[int, ...]


@record
class GoldenSample:
    """A picture, a question and the original's greedy answer."""

    picture: str
    """File beside golden.json; its pixels, embeddings and logits stand in values.npz."""
    question: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    finished: bool
    margins: tuple[float, ...]
    """Nats by which the original prefers each token of the answer to any other."""


@record
class Golden:
    """golden.json."""

    schema: int = _SCHEMA
    reference: str
    trained: bool
    """Whether the questions came with known answers."""
    bos_id: int
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    prompts: tuple[GoldenPrompt, ...]
    samples: tuple[GoldenSample, ...]


def write_golden(folder: Path, oracle: LiveOracle, subject: Subject) -> None:
    """Record a few samples of the original in a new folder."""
    folder.mkdir()
    chosen = _chosen(oracle, subject)
    subject.rest()
    values: dict[str, Floats] = {}
    samples: list[GoldenSample] = []
    forced = [_forced(oracle, case) for case in chosen]
    for at, (case, rows) in enumerate(
        zip(chosen, oracle.reference.logits([f for _, f in forced]), strict=True)
    ):
        (picture,) = oracle.samples.of(case.question)
        file = f"picture-{at}.png"
        with picture.open() as image:
            image.convert("RGB").save(folder / file, "PNG")
        values[f"pixels-{at}"] = oracle.pixels(picture)
        values[f"embeds-{at}"] = oracle.embeds([picture])[0]
        values[f"logits-{at}"] = rows[:1]
        samples.append(_sample(oracle, case, file, forced[at][0], rows))
    prompts = (*((q, 1) for q in (*NASTY, *WITH_SPECIAL)), *WITH_MARKERS)
    golden = Golden(
        reference=oracle.title,
        trained=oracle.trained,
        bos_id=oracle.bos_id,
        stop_ids=oracle.stop_ids,
        stop_strings=oracle.stop_strings,
        prompts=tuple(
            GoldenPrompt(question=text, images=n, ids=tuple(oracle.reference.prompt_ids(text, n)))
            for text, n in prompts
        ),
        samples=tuple(samples),
    )
    (folder / JSON).write_text(to_json(golden), encoding="utf-8")
    save_values(folder / VALUES, values)


def _chosen(oracle: LiveOracle, subject: Subject) -> list[AnswerCase]:
    """The first questions about one picture each, no picture twice."""
    found: dict[str, AnswerCase] = {}
    for case in oracle.answer_cases(subject):
        if len(case.question.pictures) == 1:
            found.setdefault(case.question.pictures[0], case)
    return list(found.values())[:_SAMPLES]


def _forced(oracle: LiveOracle, case: AnswerCase) -> tuple[tuple[int, ...], Forced]:
    (picture,) = oracle.samples.of(case.question)
    prompt = tuple(oracle.reference.prompt_ids(case.question.text, 1))
    tokens = answer_tokens(case.greedy.ids, case.greedy.finished, oracle.stop_ids[0])
    images = tuple(oracle.embeds([picture]))
    return prompt, Forced(ids=(*prompt, *tokens[:-1]), images=images, rows=max(1, len(tokens)))


def answer_tokens(ids: tuple[int, ...], finished: bool, stop_id: int) -> tuple[int, ...]:
    """All tokens of a recorded answer, with the stop token that ended it."""
    return draft_tokens(Answer(ids=ids, finished=finished), stop_id)


def _sample(
    oracle: LiveOracle, case: AnswerCase, file: str, prompt: tuple[int, ...], rows: Floats
) -> GoldenSample:
    ordered = np.sort(log_softmax(rows), axis=-1)
    return GoldenSample(
        picture=file,
        question=case.question.text,
        ids=prompt,
        answer_ids=case.greedy.ids,
        answer=oracle.text(case.greedy.ids),
        finished=case.greedy.finished,
        margins=tuple(float(x) for x in (ordered[:, -1] - ordered[:, -2]).round(6)),
    )


def load_values(path: Path) -> dict[str, Floats]:
    """Every array of a golden file. Raises: BundleError for one that cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as failure:
        raise BundleError(f"{path}: cannot be read ({failure})") from failure


def save_values(path: Path, arrays: dict[str, Floats]) -> None:
    """The same values give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in sorted(arrays.items()):
            data = io.BytesIO()
            np.save(data, np.ascontiguousarray(values, np.float32), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data.getvalue())
