"""Swap parts between original and export, one at a time, and name the one to blame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mllm_export.bundle import Bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.diagnosis import standing
from mllm_export.device_tests.diagnosis.losses import Judge, Loss
from mllm_export.device_tests.diagnosis.mixture import (
    EVERY,
    NONE,
    SWAPPED,
    Case,
    DecoderWeights,
    Mixture,
    Parts,
)
from mllm_export.device_tests.diagnosis.sentence import sentence
from mllm_export.device_tests.diagnosis.standing import Standing
from mllm_export.device_tests.diagnosis.tensors import TensorLoss, tensor_losses
from mllm_export.device_tests.diagnosis.walk import walk_decoder, walk_tensors, walk_tower
from mllm_export.device_tests.diagnosis.walked import Walked
from mllm_export.device_tests.folded import read_decoder
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.parity import limits_of, oracle_of
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.samples import Samples
from mllm_export.device_tests.sequences import continuation_ids, spread
from mllm_export.device_tests.subject import Answer, Subject, open_subject
from mllm_export.device_tests.tower_file import TOWER_FILES
from mllm_export.diagnosis import Diagnosis, LayerWalk, PartShare
from mllm_export.errors import CheckError
from mllm_export.progress import Progress, Step, silent

QUESTIONS = 48
"""At most; a large model is asked as many as its logits are compared on."""

_WALKED_PICTURES = 4
_WALKED_CASES = 16
_NOTHING = 1e-12
"""Nats; below this there is no loss to share."""


def diagnose(
    bundle: Bundle,
    checkpoint: Checkpoint,
    *,
    evaluation: Path | None = None,
    kv: str = "",
    subject: Subject | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Each part's share of what the export loses, and the first wrong layer of the worst part.

    `kv` asks what another type of KV cache would do; the bundle's own unless given.

    Raises: CheckError when the parts cannot be told apart; a part to blame is a result.
    """
    opened = subject or open_subject(bundle)
    try:
        return _Search(bundle, checkpoint, evaluation, kv, opened, progress).result()
    finally:
        if subject is None:
            opened.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Whole:
    """The export itself."""

    loss: Loss
    twin: Loss
    """Every part exported, run by the original's code: all of it but the engine."""
    engine_kl: float
    """From that twin to the export."""


class _Search:
    """One diagnosis; every choice of parts is run once."""

    def __init__(
        self,
        bundle: Bundle,
        checkpoint: Checkpoint,
        evaluation: Path | None,
        kv: str,
        subject: Subject,
        progress: Progress,
    ) -> None:
        tensors, self._keys = read_decoder(bundle.path("decoder"))
        file = TOWER_FILES[bundle.manifest.vision_engine]
        stored_tower = file.read(bundle.path("tower"))
        oracle = oracle_of(bundle, checkpoint, evaluation, progress, subject.rest)
        self._oracle = _fewer(oracle)
        reference = self._oracle.reference
        self._reference = reference
        self._limits = limits_of(bundle, stored_tower, tensors, self._oracle.trained)
        self._bundle, self._subject, self._progress = bundle, subject, progress
        own = bundle.manifest.kv_type
        self._has_cache = bundle.manifest.model.decoder.state is None
        if kv and not self._has_cache:
            raise CheckError(
                f"--kv {kv}: this decoder has no KV cache; what it carries from token to token is "
                "kept in float32 always"
            )
        self._kv = kv or own
        self._simulated = self._kv != own
        walked = Walked(reference)
        decoder = DecoderWeights(tensors, reference.decoder_originals(), reference.resident)
        graph = file.seams(bundle.path("tower"), bundle.manifest.model)
        self._mixture = Mixture(walked, subject, graph, decoder, self._kv)
        if not self._mixture.is_cut:
            raise CheckError(
                f"{bundle.path('tower')}: no one value stands between tower and projector, so "
                "the two cannot be told apart; was the file written by another program?"
            )
        self._tensors: list[TensorLoss] = [
            *tensor_losses(stored_tower, reference.tower_originals(), self._limits.profile),
            *tensor_losses(
                tensors,
                reference.decoder_originals(),
                self._limits.profile,
                calibrated=bundle.manifest.decoder_importance != "none",
            ),
        ]
        self._found: dict[Parts, Loss] = {NONE: Loss(kl=0.0, points=0.0)}

    @cached_property
    def _cases(self) -> list[Case]:
        oracle = self._oracle
        questions = oracle.samples.questions
        encode = self._subject.session.encode
        cases = []
        for at, one in enumerate(oracle.answer_cases(self._subject)):
            pictures = oracle.samples.of(one.question)
            ids = tuple(self._reference.prompt_ids(one.question.text, len(pictures)))
            own = tuple(encode(one.question.text, len(pictures)))
            case = Case(
                question=one.question,
                pictures=pictures,
                ids=ids,
                own_ids=own,
                answer=one.greedy,
                follow=(),
            )
            tokens = case.tokens(oracle.stop_ids[0])
            more = continuation_ids(self._reference, questions, at)
            cases.append(replace(case, follow=(*tokens, *more)))
        return cases

    @cached_property
    def _pictures(self) -> list[Picture]:
        return list({p.name: p for case in self._cases for p in case.pictures}.values())

    @cached_property
    def _judge(self) -> Judge:
        rows = self._mixture.rows(self._cases, NONE)
        return Judge(self._reference, self._cases, rows, self._oracle.trained)

    def _tell(self, item: str, done: int) -> None:
        total = 2 * len(SWAPPED) + 3
        self._progress(Step(stage="diagnose", item=item, done=done, total=total, unit="runs"))

    def _loss(self, parts: Parts) -> Loss:
        parts = self._distinct(parts)
        if parts not in self._found:
            self._tell(", ".join(sorted(parts)), len(self._found))
            rows = self._mixture.rows(self._cases, parts)
            self._found[parts] = self._judge.loss(self._mixture, parts, rows)
        return self._found[parts]

    def _distinct(self, parts: Parts) -> Parts:
        """Without parts that are equal to the original's to the bit: they cannot matter."""
        return parts - self._equal

    @cached_property
    def _equal(self) -> Parts:
        get = self._mixture.pixels
        equal = set()
        if all(_same(get(one, True), get(one, False)) for one in self._pictures):
            equal.add("preprocessing")
        if all(case.ids == case.own_ids for case in self._cases):
            equal.add("prompt")
        if self._kv == "f32" or not self._has_cache:
            equal.add("kv")
        return frozenset(equal)

    @cached_property
    def _whole(self) -> _Whole:
        twin_rows = self._mixture.rows(self._cases, self._distinct(EVERY))
        twin = self._loss(EVERY)
        if self._simulated:
            return _Whole(loss=twin, twin=twin, engine_kl=0.0)
        rows = [self._run(case) for case in self._cases]
        drafts = self._drafts()
        loss = Loss(kl=self._judge.kl(rows), points=self._judge.points_of(drafts))
        engine = Judge(self._reference, self._cases, twin_rows, self._oracle.trained)
        return _Whole(loss=loss, twin=twin, engine_kl=engine.kl(rows))

    def _run(self, case: Case) -> Floats:
        embeds = [self._subject.embeds(picture) for picture in case.pictures]
        ids = (*case.own_ids, *case.follow[:-1])
        return self._subject.rows(ids, embeds, len(case.follow))

    def _drafts(self) -> list[Answer]:
        return [one.draft for one in self._oracle.answer_cases(self._subject)]

    def result(self) -> Diagnosis:
        """Everything, with the sentence."""
        whole = self._whole
        parts = [self._part(name, whole) for name in SWAPPED]
        if not self._simulated:
            parts.append(self._engine(whole))
        outside = [one for one in parts if one.outside]
        worst = max(outside or parts, key=lambda one: one.share)
        found = Diagnosis(
            model=self._bundle.manifest.model.name,
            target=self._bundle.manifest.target,
            recipe=self._bundle.manifest.recipe,
            reference=self._oracle.title,
            questions=len(self._cases),
            rows=self._judge.rows,
            trained=self._oracle.trained,
            kl=whole.loss.kl,
            points=whole.loss.points,
            parts=tuple(parts),
            interaction=1.0 - sum(one.share for one in parts) if whole.loss.kl > _NOTHING else 0.0,
            blamed=worst.name if outside else "",
            walk=self._walk(worst.name),
            sentence="",
            notes=self._notes(),
        )
        return replace(found, sentence=sentence(found))

    def _part(self, name: str, whole: _Whole) -> PartShare:
        alone, rest = self._loss(frozenset({name})), self._loss(EVERY - {name})
        mended_kl = whole.twin.kl - rest.kl
        stands = self._standing(name, alone.kl)
        return PartShare(
            name=name,
            alone_kl=alone.kl,
            mended_kl=mended_kl,
            share=_share(alone.kl, mended_kl, whole.loss.kl),
            alone_points=alone.points,
            mended_points=whole.twin.points - rest.points,
            outside=stands.outside,
            clue=stands.clue,
        )

    def _standing(self, name: str, alone_kl: float) -> Standing:
        if name == "preprocessing":
            return standing.preprocessing(self._mixture, self._limits, self._pictures)
        if name == "prompt":
            return standing.prompt(self._mixture, self._cases)
        if name in {"tower", "projector"}:
            found = standing.embeddings(name, self._mixture, self._limits, self._pictures)
            return standing.with_tensors(found, name, self._tensors)
        if name == "kv":
            return standing.arithmetic(self._limits, alone_kl)
        return standing.weights(name, self._limits, alone_kl, self._tensors)

    def _engine(self, whole: _Whole) -> PartShare:
        """The runtime: what is left when every part is run by the original's code."""
        wrong_keys = standing.keys(self._keys, self._reference.decoder_keys())
        stands = standing.arithmetic(self._limits, whole.engine_kl)
        mended = whole.loss.kl - whole.twin.kl
        points = whole.loss.points - whole.twin.points
        return PartShare(
            name="engine",
            alone_kl=whole.engine_kl,
            mended_kl=mended,
            share=_share(mended, mended, whole.loss.kl),
            alone_points=points,
            mended_points=points,
            outside=wrong_keys or stands.outside,
            clue="the file's metadata tells the engine another model" if wrong_keys else "",
        )

    def _walk(self, part: str) -> LayerWalk | None:
        if part == "tower":
            pictures = self._pictures[:_WALKED_PICTURES]
            return walk_tower(self._mixture, self._limits, pictures, self._tensors)
        if part == "decoder":
            few = self._cases[:: max(1, len(self._cases) // _WALKED_CASES)]
            rows = self._mixture.rows(few, NONE)
            judge = Judge(self._reference, few, rows, self._oracle.trained)
            return walk_decoder(self._mixture, self._limits, judge, few, self._tensors)
        if part in {"projector", "head"}:
            reference = self._reference
            originals = {**reference.tower_originals(), **reference.decoder_originals()}
            return walk_tensors(part, self._tensors, originals)
        return None

    def _notes(self) -> tuple[str, ...]:
        notes = [f"samples: {self._oracle.samples_title}"]
        if "output.weight" not in self._reference.decoder_originals():
            notes.append("the head is tied: its matrix is swapped with the decoder's embedding")
        if self._simulated:
            notes.append(
                f"a KV cache of {self._kv} was simulated in the original's code; the engine "
                "itself was not run"
            )
        return tuple(notes)


def _same(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _share(alone: float, mended: float, whole: float) -> float:
    return (alone + mended) / 2 / whole if whole > _NOTHING else 0.0


def _fewer(oracle: LiveOracle) -> LiveOracle:
    """The same original, asked fewer questions, spread evenly."""
    samples = oracle.samples
    wanted = min(QUESTIONS, oracle.effort.sequences)
    questions = tuple(samples.questions[at] for at in spread(len(samples.questions), wanted))
    few = Samples(source=samples.source, pictures=samples.pictures, questions=questions)
    return oracle.asking(few)
