"""What a runner is asked on a device, and what it answers: JSON and arrays, no code."""

from __future__ import annotations

from mllm_export.records import record
from mllm_export.runtimes.machine import MachineState

JOB, RESULT, VALUES = "job.json", "result.json", "values.npz"

DONE = "done: "
"""How a runner's lines of progress on standard error begin."""

REGIONS = {1: "tower", 2: "prefill", 3: "decode"}
"""Numbers of the marked regions, in the order they run."""


@record
class Forced:
    """A golden sample through the decoder: the original's embeddings, the prompt, the answer."""

    sample: int
    """`embeds-N` in the bundle's golden values."""
    ids: tuple[int, ...]
    rows: int
    """Logits of the last positions that come back."""


@record
class Asked:
    """A question about one picture."""

    picture: str
    """Path below the job's folder."""
    question: str


@record
class Job:
    """One visit to a device."""

    schema: int = 1
    threads: int | None
    """None: as many as the runtime chooses."""
    pictures: tuple[str, ...] = ()
    """Whose pixels and embeddings come back."""
    forced: tuple[Forced, ...] = ()
    asked: tuple[Asked, ...] = ()
    """Whose answers come back; of a job that times or counts, the first is what is timed."""
    max_tokens: int = 24
    repeats: int = 0
    """How often the first question is timed, after one warm-up; 0: not at all."""
    marks: bool = False
    """Whether regions are marked for an instruction counter."""


@record
class Said:
    """A greedy answer."""

    ids: tuple[int, ...]
    text: str


@record
class Times:
    """One timed answer, milliseconds."""

    preprocess_ms: float
    tower_ms: float
    prefill_ms: float
    first_token_ms: float
    """From the picture to the first token: the sum of the three before, and sampling."""
    decode_ms: float
    """Mean per token after the first; 0 where there was none."""
    prompt_positions: int


@record
class Result:
    """result.json; arrays stand in values.npz as pixels-N, embeds-N, logits-N."""

    schema: int = 1
    load_ms: tuple[float, ...]
    """Opening the bundle: the first time, or with repeats each time after it."""
    answers: tuple[Said, ...]
    times: tuple[Times, ...]
    prefill_positions: int = 0
    """Positions of the prompt that was counted."""
    peak_memory_bytes: int
    before: MachineState
    after: MachineState


@record
class Description:
    """What a device is."""

    architecture: str
    system: str
    cpu_features: tuple[str, ...] | None
    cores: int
    memory_bytes: int | None
    python: str
    runtime: str
    """Version of mllm-export that runs there."""
    engines: tuple[tuple[str, str], ...]
