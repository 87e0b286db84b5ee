"""Other engines on the same weights, picture, prompt and threads: what they take for an answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from mllm_export.catalog import Catalog
from mllm_export.errors import CheckError
from mllm_export.records import record

Need = Literal["checkpoint", "language_model", "mmproj"]

_GIVEN_BY: dict[Need, str] = {
    "checkpoint": "the original checkpoint (--checkpoint)",
    "language_model": "the decoder as a folder of its own (--language-model, or --checkpoint)",
    "mmproj": "an mmproj file (--mmproj, or build the bundle with --mmproj; a checked build leaves "
    "out one that llama.cpp computes wrongly, which its report says, and --no-check keeps it)",
}


@record
class Files:
    """Where the same model lies in the layouts that peers read."""

    bundle: Path
    checkpoint: Path | None = None
    language_model: Path | None = None
    """The decoder alone, as transformers reads it."""
    mmproj: Path | None = None


@record
class Ask:
    """One picture and two questions about it."""

    picture: Path
    ids: tuple[int, ...]
    """The whole prompt, IMAGE_ID for the picture."""
    second_ids: tuple[int, ...]


@record
class Errand:
    """What one process of one peer is sent for."""

    peer: str
    files: Files
    threads: int
    tokens: int
    """Decoded after the first; an end of the answer does not stop it."""
    context_tokens: int
    asks: tuple[Ask, ...]


@record
class Spent:
    """Milliseconds of one picture and its two questions; None: the peer has no such stage."""

    preprocess_ms: float | None = None
    tower_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    """Mean per token."""
    second_ms: float | None = None
    """To the first token of the second question."""

    @property
    def first_token_ms(self) -> float | None:
        """From the picture to the first token, the model loaded."""
        if self.preprocess_ms is None or self.tower_ms is None or self.prefill_ms is None:
            return None
        return self.preprocess_ms + self.tower_ms + self.prefill_ms


@record
class Outcome:
    """What a process came back with."""

    load_ms: float
    """From the start of the process until the first picture can be given."""
    spent: tuple[Spent, ...]
    """One for each ask, in order."""
    peak_bytes: int


class Opened(Protocol):
    """A loaded peer."""

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """Greedy, from a cold cache: nothing of an earlier ask is used."""


@record
class Peer:
    """An engine that can be sent for an errand; naming it imports nothing of it."""

    title: str
    """What runs, in a line."""
    open: Callable[[Errand], AbstractContextManager[Opened]]
    needs: tuple[Need, ...] = ()
    package: str = ""
    """What has to be installed beside the runtime's own packages; empty for nothing."""


PEERS: Catalog[Peer] = Catalog("mllm_export.device_tests.peers", "PEER", "peer", CheckError)
"""By name, as `--peers` takes it."""

OURS = "ours"


def named_peers(words: str) -> list[str]:
    """`llama.cpp,torch` as names of the catalog, each once, without ours.

    A dot or a hyphen stands for an underscore; the beginning of several names for all of them.

    Raises: CheckError for a word that is none, with the names there are.
    """
    found: list[str] = []
    for word in filter(None, (one.strip() for one in words.split(","))):
        name = word.replace(".", "_").replace("-", "_")
        known = PEERS.names()
        several = [one for one in known if one.startswith(f"{name}_")]
        chosen = several if several and name not in known else [name]
        for one in chosen:
            PEERS[one]
        found += [one for one in chosen if one != OURS]
    if not found:
        raise CheckError(f"no peer was named; known: {', '.join(PEERS.names())}")
    return list(dict.fromkeys(found))


def require_able(name: str, files: Files) -> None:
    """Raises: CheckError for a file that the peer needs and was not given, or a package."""
    peer = PEERS[name]
    for need in peer.needs:
        required(files, need, f"peer '{name}'")
    if peer.package and find_spec(peer.package) is None:
        raise CheckError(
            f"peer '{name}' needs the package {peer.package}; pip install {peer.package}"
        )


def required(files: Files, need: Need, who: str = "this peer") -> Path:
    """Raises: CheckError where it was not given, or is not there."""
    path: Path | None = getattr(files, need)
    if path is None:
        raise CheckError(f"{who} needs {_GIVEN_BY[need]}")
    if not path.exists():
        raise CheckError(f"{who} needs {_GIVEN_BY[need]}: {path} does not exist")
    return path
