"""Upstream's own chat on the GGUF file alone says what our runtime says."""

import pytest

from mllm_export.runtimes import load
from tests.conftest import Build

PROMPTS = (
    "What colour is the circle?",
    "How many squares are there?",
    "Where is the red star?",
    "Which digit is shown?",
    "What shape is blue?",
    "Hello",
    "Hello there, who are you?",
    "What's that?",
    "1 + 1 =",
    "Describe the picture.",
    "red",
    "A  B   C",
    "Is there a triangle?",
    "Name a colour.",
    "caf\u00e9",
    "\u4f60\u597d",
    "\U0001f600",
    "line one\nline two",
    "USER: twice",
    "x",
)
LONGEST = 16


@pytest.fixture(scope="module")
def upstream(reference_bundle: Build) -> object:
    from llama_cpp import Llama

    path = reference_bundle("f16").path("decoder")
    return Llama(str(path), n_ctx=512, verbose=False, n_threads=2)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_of_a_text_prompt_are_upstreams(
    reference_bundle: Build, upstream: object, prompt: str
) -> None:
    done = upstream.create_chat_completion(  # type: ignore[attr-defined]
        [{"role": "user", "content": prompt}],
        temperature=0.0,
        max_tokens=LONGEST,
        repeat_penalty=1.0,
    )
    theirs = done["choices"][0]["message"]["content"]
    with load(reference_bundle("f16").folder, verify=False) as session:
        steps = list(session.generate(prompt, max_tokens=LONGEST))
        ids = session.encode(prompt, images=0)
    assert done["usage"]["prompt_tokens"] == len(ids)
    assert "".join(step.text for step in steps).strip() == theirs.strip()
    ended = done["choices"][0]["finish_reason"] == "stop"
    assert done["usage"]["completion_tokens"] == len(steps) - ended
