"""Train a reference checkpoint and write everything that ships with it.

Every stage keeps its result in the work folder and is not repeated; an interrupted stage goes on.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mllm_export.export.reference.card import Measured, card
from mllm_export.export.reference.evaluate import Evaluator, most_common_share, read_questions
from mllm_export.export.reference.model import ReferenceModel
from mllm_export.export.reference.pictures import PicturePool, draw_pool, open_pool
from mllm_export.export.reference.question_sets import (
    QUESTIONS,
    question_sets,
    write_demo,
    write_set,
)
from mllm_export.export.reference.spec import ReferenceSpec
from mllm_export.export.reference.tokenizer import Prompts
from mllm_export.export.reference.train_llm import store_features, train_llm
from mllm_export.export.reference.train_tower import train_tower
from mllm_export.export.reference.twin import DEFAULT_TWIN, TWINS

logger = logging.getLogger(__name__)


@contextmanager
def _timed(work: Path, stage: str) -> Iterator[None]:
    """Add the stage's wall time to the work folder's record, over interruptions."""
    path = work / "stages.json"
    began = time.monotonic()
    yield
    taken: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    taken[stage] = taken.get(stage, 0.0) + time.monotonic() - began
    path.write_text(json.dumps(taken))
    logger.info("%s done after %.0f s", stage, taken[stage])


def _draw(spec: ReferenceSpec, work: Path) -> PicturePool:
    folder = work / "pool"
    workers = os.cpu_count() or 1
    for done in draw_pool(folder, spec, workers):
        logger.debug("%d pictures drawn", done)
    return open_pool(folder)


def train(spec: ReferenceSpec, work: Path) -> ReferenceModel:
    """Run, or finish, all stages of training."""
    work.mkdir(parents=True, exist_ok=True)
    with _timed(work, "pictures"):
        pool = _draw(spec, work)
    with _timed(work, "tower"):
        tower = train_tower(spec, pool, work)
    with _timed(work, "features"):
        store_features(work / "features.npy", tower, pool, spec)
    with _timed(work, "decoder"):
        twin = TWINS[spec.twin]
        twin.write_tokenizer(work / "tokenizer", spec.decoder.vocab)
        prompts = Prompts(twin.open_tokenizer(work / "tokenizer"), twin.eos)
        return train_llm(spec, tower, prompts, pool, work)


def _parameters(model: ReferenceModel) -> dict[str, int]:
    parts = {"tower": model.tower, "projector": model.projector, "decoder": model.decoder}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def _sizes(out: Path) -> dict[str, int]:
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    return {
        f"{folder.name}/": sum(path.stat().st_size for path in folder.iterdir())
        for folder in folders
    }


def write_all(model: ReferenceModel, spec: ReferenceSpec, out: Path, work: Path) -> None:
    """Write the checkpoint, the question sets where they ship with it, and the card."""
    twin = TWINS[spec.twin]
    out.mkdir(parents=True, exist_ok=True)
    twin.write(model.parts(), spec, out)
    shown = out if twin.writes_questions else work / "questions"
    for chosen in question_sets(spec.schedule.pictures):
        write_set(shown, chosen, spec.seed)
    write_demo(shown, spec.seed)
    questions = read_questions(shown / "evaluation" / QUESTIONS)
    evaluator = Evaluator(out / "checkpoint")
    measured = Measured(
        parameters=_parameters(model),
        size_bytes=_sizes(out),
        stage_s=json.loads((work / "stages.json").read_text()),
        score=evaluator.score(questions, shown / "evaluation"),
        blank=evaluator.score(questions, shown / "evaluation", blank=True),
        most_common=most_common_share(questions),
    )
    (out / "CARD.md").write_text(card(spec, measured), encoding="utf-8")
    logger.info("exact %.4f, blank %.4f", measured.score.exact, measured.blank.exact)


def main() -> None:
    """Train a twin and write its checkpoint and card, and its pictures where they are its own."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--twin", choices=TWINS.names(), default=DEFAULT_TWIN)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the files to")
    parser.add_argument("--work", type=Path, required=True, help="folder for training state, 13 GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    spec = replace(TWINS[given.twin].spec, seed=given.seed)
    write_all(train(spec, given.work), spec, given.out, given.work)


if __name__ == "__main__":
    main()
