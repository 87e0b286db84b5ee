"""One question about one picture, and what its answer began with."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mllm_export.runtimes.session import Session

QUESTION = "how many red circle"


def asked(session: Session, picture: Image.Image) -> tuple[list[int], int, np.ndarray]:
    """Ids of an answer, what was reused for it, and the logits it began with."""
    steps = list(session.generate(QUESTION, picture, max_tokens=12))
    session.forget()
    segments, _ = session._prepare(QUESTION, picture)
    logits = session._decoder.evaluate(segments, all_logits=False)
    return [step.token_id for step in steps], steps[0].reused_positions, logits
