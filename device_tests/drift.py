"""How far the states inside tower and decoder drift from the original's, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from mllm_export.bundle import Bundle
from mllm_export.device_tests.diagnosis.mixture import DecoderWeights, Mixture
from mllm_export.device_tests.diagnosis.walk import decoder_drift, tower_drift
from mllm_export.device_tests.diagnosis.walked import Walked
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.reference import Forced
from mllm_export.device_tests.stored import Stored
from mllm_export.device_tests.subject import Subject
from mllm_export.device_tests.tower_file import TOWER_FILES
from mllm_export.errors import MllmExportError
from mllm_export.report import LayerDrift

_PICTURES, _SEQUENCES = 2, 4


def layer_drift(
    bundle: Bundle, oracle: LiveOracle, subject: Subject, decoder: Mapping[str, Stored]
) -> tuple[tuple[LayerDrift, ...], str]:
    """Tower, then decoder; and a note that says why where something was not measured."""
    reference = oracle.reference
    if not reference.resident:
        return (), "drift of the layers is not measured on a model of this size; see 'diagnose'"
    try:
        walked = Walked(reference)
        weights = DecoderWeights(dict(decoder), reference.decoder_originals(), resident=True)
        file = TOWER_FILES[bundle.manifest.vision_engine]
        graph = file.seams(bundle.path("tower"), bundle.manifest.model)
        mixture = Mixture(walked, subject, graph, weights, "f32")
        pictures = list(oracle.samples.pictures.values())[:_PICTURES]
        cases = [case for case in oracle.logit_cases(subject) if case.pictures][:_SEQUENCES]
        sequences = [
            Forced(ids=case.ids, images=case.embeds, rows=len(case.expected)) for case in cases
        ]
        of_tower = tower_drift(mixture, pictures)
        return (*of_tower, *decoder_drift(walked, weights, sequences)), ""
    except MllmExportError as failure:
        return (), f"drift of the layers was not measured: {failure}"
