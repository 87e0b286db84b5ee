"""KV caches of llama.cpp against keys and values rounded by gguf-py in the original's own code."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mllm_export.commands.opening import plan_job
from mllm_export.device_tests.decoder_calibration import calibration_sequences
from mllm_export.device_tests.diagnosis.kv_cache import rounding
from mllm_export.device_tests.distributions import kl_divergence, log_softmax
from mllm_export.device_tests.reference import REFERENCES, Forced
from mllm_export.device_tests.samples import read_calibration, reference_calibration
from mllm_export.errors import EngineError
from mllm_export.export.artifact import Work
from mllm_export.export.artifacts.gguf import write_decoder_stage
from mllm_export.progress import silent
from mllm_export.runtimes import load
from mllm_export.runtimes.decoder.llama_cpp import ENGINE
from mllm_export.runtimes.prompt import splice

ROWS = 24


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A float16 decoder, the original, and a sequence with a picture."""
    folder = tmp_path_factory.mktemp("kv")
    job = plan_job("reference", "linux-x86_64", "f16", None, False)
    source = (job.checkpoint.path, job.checkpoint.asked)
    work = Work(plan=job.plan, reading=job.reading, source=source, folder=folder)
    write_decoder_stage(work, job.plan.artifact("decoder"), silent)
    lines = reference_calibration().read_text().splitlines()[:1]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    name = json.loads(lines[0])["image"]
    (folder / name).write_bytes((reference_calibration().parent / name).read_bytes())
    reference = REFERENCES["mobilevlm"](job.checkpoint)
    (one,) = calibration_sequences(reference, read_calibration(folder))
    # Behind the stop token the model was not trained, and says anything.
    sequence = Forced(ids=one.ids[:-1], images=one.images, rows=ROWS)
    return folder / "decoder.gguf", job.plan.spec, reference, sequence


def original(reference, sequence, kind):
    with rounding(reference, kind):
        return log_softmax(reference.logits([sequence])[0])


def engine(path, spec, sequence, kind):
    decoder = ENGINE.open(path, spec, 512, 1, kind)
    segments = splice(sequence.ids, list(sequence.images), spec.decoder.vocab)
    rows = decoder.evaluate(segments, all_logits=True)[-ROWS:]
    decoder.close()
    return log_softmax(rows)


def lost(reference, sequence, made):
    return float(kl_divergence(original(reference, sequence, "f32"), made).mean())


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_the_engine_loses_what_rounded_keys_and_values_lose(measured, kind):
    """Not the same values: llama.cpp's heads have another order, so other values share a block."""
    path, spec, reference, sequence = measured
    simulated = lost(reference, sequence, original(reference, sequence, kind))
    assert 0.3 * simulated < lost(reference, sequence, engine(path, spec, sequence, kind))
    assert lost(reference, sequence, engine(path, spec, sequence, kind)) < 3 * simulated


def test_a_coarser_cache_loses_more_so_that_another_type_than_asked_for_is_seen(measured):
    path, spec, reference, sequence = measured
    kinds = ("f16", "q8_0", "q4_0")
    losses = [lost(reference, sequence, engine(path, spec, sequence, kind)) for kind in kinds]
    assert losses[0] < 1e-5
    assert 3 * losses[0] < losses[1] < losses[2] / 10


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_beginning_that_one_thread_computed_gives_two_the_bits_of_computing_it(measured, kind):
    path, spec, _, sequence = measured
    segments = splice(sequence.ids, list(sequence.images), spec.decoder.vocab)
    alone = ENGINE.open(path, spec, 512, 1, kind)
    state = alone.state_behind(segments[0])
    alone.close()
    decoder = ENGINE.open(path, spec, 512, 2, kind)
    computed = decoder.evaluate(segments, all_logits=False)
    decoder.forget()
    decoder.begin_with(segments[0], state)
    begun = decoder.evaluate(segments, all_logits=False)
    assert decoder.reused_positions == len(segments[0]) > 10
    decoder.close()
    np.testing.assert_array_equal(begun, computed)


def test_a_session_takes_the_bundles_type_unless_told_otherwise(measured, tmp_path, monkeypatch):
    from tests.runtimes import conftest as tiny

    asked = []
    opened = type(ENGINE).open

    def watched(self, path, spec, context, threads, kv_type):
        asked.append(kv_type)
        return opened(self, path, spec, context, threads, "f16")

    monkeypatch.setattr(type(ENGINE), "open", watched)
    model = tiny.tokenizer_model.__wrapped__()
    tiny.write_bundle(tmp_path / "bundle", model, kv_type="q4_0")
    load(tmp_path / "bundle").close()
    load(tmp_path / "bundle", kv_type="q8_0").close()
    assert asked == ["q4_0", "q8_0"]


def test_heads_that_blocks_do_not_divide_are_llama_cpps_to_refuse(tmp_path):
    from tests.runtimes import conftest as tiny

    model = tiny.tokenizer_model.__wrapped__()
    tiny.write_bundle(tmp_path / "bundle", model, kv_type="q8_0")
    with pytest.raises(EngineError, match="gives no context"):
        load(tmp_path / "bundle")
