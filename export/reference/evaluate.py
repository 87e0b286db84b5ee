"""Score the written checkpoint with transformers' own modules, in float32, greedily.

Nothing here comes from training: weights, sizes, tokenizer and image settings are read from the
files, so a mistake in writing them shows as lost accuracy.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from mllm_export.export.reference.drawing import FILL
from mllm_export.export.reference.model import ReferenceModel
from mllm_export.export.reference.tokenizer import Prompts
from mllm_export.export.reference.twin import twin_of

NEW_TOKENS = 8
BATCH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A line of a questions file."""

    image: str
    question: str
    answers: tuple[str, ...]
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Shares of exact answers, 0..1. An answer without its end token counts as wrong."""

    count: int
    exact: float
    by_kind: dict[str, float]
    wrong: tuple[tuple[str, str, str, str], ...]  # image, question, wanted, answered


def read_questions(path: Path) -> list[Asked]:
    """Read a JSONL file of questions."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Asked(
            image=line["image"], question=line["question"], answers=tuple(line["answers"]),
            kind=line["kind"],
        )
        for line in lines
    ]  # fmt: skip


def most_common_share(questions: list[Asked]) -> tuple[str, float]:
    """The answer that is right most often, and how often."""
    answer, count = Counter(asked.answers[0] for asked in questions).most_common(1)[0]
    return answer, count / len(questions)


def load_model(folder: Path) -> ReferenceModel:
    """Fill transformers' modules with the checkpoint's tensors, all of them, in float32."""
    twin = twin_of(folder)
    model, parts = ReferenceModel(twin.read_spec(folder)), twin.read_parts(folder)
    for module, state in (
        (model.tower, parts.tower), (model.projector, parts.projector),
        (model.decoder, parts.decoder),
    ):  # fmt: skip
        module.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


def padded(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a square of CLIP's mean color."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), FILL)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


class Evaluator:
    """Answers questions with a written checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(folder)
        twin = twin_of(folder)
        self._eos = twin.eos
        self._processor = CLIPImageProcessor.from_pretrained(twin.processor_folder(folder))
        self._tokenizer = twin.open_tokenizer(folder)
        self._prompts = Prompts(self._tokenizer, twin.eos)

    def image_rows(self, pictures: list[Image.Image]) -> Tensor:
        """Shapes: pictures of any size -> f32[B, 144, width]."""
        squares = [padded(picture.convert("RGB")) for picture in pictures]
        pixels = self._processor(squares, return_tensors="pt")["pixel_values"]
        rows: Tensor = self.model.projector(self.model.features(pixels))
        return rows

    def answers(self, images: Tensor, questions: list[str]) -> list[str]:
        """Greedy answers, still with the end token; one image for each question."""
        embed = self.model.decoder.model.embed_tokens
        before = embed(torch.tensor(self._prompts.before))
        rows = [
            torch.cat([before, image, embed(torch.tensor(self._prompts.prompt(question)))])
            for image, question in zip(images, questions, strict=True)
        ]
        longest = max(len(row) for row in rows)
        filled = torch.zeros(len(rows), longest, rows[0].shape[1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for at, row in enumerate(rows):
            filled[at, longest - len(row) :], mask[at, longest - len(row) :] = row, 1
        made = self.model.decoder.generate(
            inputs_embeds=filled, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=self._tokenizer.eos_token_id, pad_token_id=self._tokenizer.eos_token_id,
        )  # fmt: skip
        texts: list[str] = self._tokenizer.batch_decode(made)
        return texts

    @torch.no_grad()
    def score(self, questions: list[Asked], folder: Path, blank: bool = False) -> Score:
        """Ask every question; with `blank` about an evenly filled picture instead."""
        right: dict[str, list[bool]] = defaultdict(list)
        wrong = []
        names = sorted({asked.image for asked in questions})
        pictures = [Image.open(folder / name).convert("RGB") for name in names]
        if blank:
            pictures = [Image.new("RGB", picture.size, FILL) for picture in pictures]
        chunks = range(0, len(names), BATCH)
        rows = torch.cat([self.image_rows(pictures[at : at + BATCH]) for at in chunks])
        place = {name: at for at, name in enumerate(names)}
        for at in range(0, len(questions), BATCH):
            batch = questions[at : at + BATCH]
            images = rows[[place[asked.image] for asked in batch]]
            for asked, text in zip(
                batch, self.answers(images, [asked.question for asked in batch]), strict=True
            ):
                answer, ended, _ = text.partition(self._eos)
                is_right = bool(ended) and answer.strip() in asked.answers
                right[asked.kind].append(is_right)
                if not is_right:
                    wrong.append((asked.image, asked.question, asked.answers[0], answer.strip()))
        total = [one for kind in right.values() for one in kind]
        return Score(
            count=len(total),
            exact=sum(total) / len(total),
            by_kind={kind: sum(ones) / len(ones) for kind, ones in sorted(right.items())},
            wrong=tuple(wrong),
        )


def main() -> None:
    """Print the scores of a checkpoint on a questions file as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    here = Path(__file__).parent / "data"
    parser.add_argument("--checkpoint", type=Path, default=here / "checkpoint")
    parser.add_argument("--questions", type=Path, default=here / "evaluation" / "questions.jsonl")
    parser.add_argument("--blank", action="store_true", help="show an empty picture instead")
    given = parser.parse_args()
    questions = read_questions(given.questions)
    score = Evaluator(given.checkpoint).score(questions, given.questions.parent, given.blank)
    told = {"count": score.count, "exact": score.exact, "by_kind": score.by_kind}
    sys.stdout.write(json.dumps({**told, "wrong": score.wrong}, indent=1) + "\n")


if __name__ == "__main__":
    main()
