"""What engines took for the same answers on the same cores, ours first, or ours alone."""

from __future__ import annotations

from mllm_export.records import record

DECODE = "decode per token"
FIRST = "first token"
SECOND = "second question"
FIRST_TOKEN = ("preprocess", "tower", "prefill")
"""Stages that the time to the first token is made of."""


@record
class Cell:
    """One stage of one engine."""

    median: float
    low: float
    high: float
    """Quartiles over the rounds."""
    ratio: float | None
    """Ours over this engine's: the median of the ratios within each round. None for ours."""


@record
class Stage:
    """One row: a stage of every engine; None where it has none."""

    name: str
    unit: str
    """ms or MiB."""
    cells: tuple[Cell | None, ...]


@record
class Bandwidth:
    """What decoding takes from memory beside what memory gives, both on the same threads."""

    copy_gb_s: float
    """Of a copy kernel: bytes read and bytes written together."""
    read_gb_s: float
    """Of a kernel that only reads, as decoding does."""
    token_bytes: int
    """Weights that one token reads, and the keys and values of the positions before it."""
    decode_gb_s: float
    """`token_bytes` over our time per token."""

    @property
    def of_copy(self) -> float:
        """Share of the copy kernel's rate."""
        return self.decode_gb_s / self.copy_gb_s

    @property
    def of_read(self) -> float:
        """Share of the reading kernel's rate."""
        return self.decode_gb_s / self.read_gb_s


@record
class AtThreads:
    """All engines with one number of threads."""

    threads: int
    stages: tuple[Stage, ...]
    bandwidth: Bandwidth

    @property
    def second_over_first(self) -> float | None:
        """Our time to the first token of a second question over that of the first."""
        ours = {one.name: one.cells[0] for one in self.stages}
        second, first = ours.get(SECOND), ours.get(FIRST)
        return second.median / first.median if second and first else None

    def stage(self, name: str) -> Stage:
        """The row of that name."""
        return next(one for one in self.stages if one.name == name)


@record
class Engine:
    """Who took part."""

    name: str
    title: str


@record
class SideBySide:
    """All rounds, folded."""

    schema: int = 1
    model: str
    target: str
    recipe: str
    machine: str
    rounds: int
    prompt_positions: int
    tokens: int
    """Decoded after the first."""
    engines: tuple[Engine, ...]
    """The columns; ours is the first."""
    runs: tuple[AtThreads, ...]

    @property
    def alone(self) -> bool:
        """Whether no other engine took part."""
        return len(self.engines) == 1

    @property
    def told(self) -> str:
        """What the figures are."""
        return f"{_ALONE if self.alone else _BESIDE} {_ALL}"


_ALONE = "Every round is a process of its own; figures are medians over the rounds."
_BESIDE = (
    "Every engine runs in a process of its own, one after the other in each round; figures are "
    "medians over the rounds, ratios are ours over the engine's, taken within each round."
)
_ALL = (
    "A cold start is the load, which counts from the start of the process, and the first "
    "picture's stages: they add up in each round. A first question finds nothing remembered but "
    "what the bundle's own files hold, and that this machine compared their hashes before; the "
    "second is about the same picture."
)
