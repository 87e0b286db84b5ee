"""Reports to render: one with every field filled, with whatever text is asked for."""

import base64
import io
from collections.abc import Callable

import pytest
from PIL import Image

from mllm_export.frontier import FrontierPoint
from mllm_export.report import (
    ArtifactSize,
    Example,
    Measurement,
    Report,
    Rung,
    TensorRow,
    not_run,
)

PNG = "data:image/png;base64,iVBORw0KGgo="


def filled(text: str, image: str = PNG) -> Report:
    """`text` in every field that holds text; one rung of each verdict."""

    def measured(value: float) -> Measurement:
        return Measurement(
            name=text, value=value, unit=text, sense="at_least", limit=0.5, limit_from=text
        )

    tensors = tuple(TensorRow(name=text, scheme=text, sqnr_db=db, note=text) for db in (20.0, None))
    examples = (
        Example(name=text, reference=text, export=f"{text} ", note=text, image=image),
        Example(name=text, reference="", export=text),
    )
    ran = Rung(
        name=text,
        status="passed",
        reference=text,
        samples=3,
        measurements=(measured(0.75), Measurement(name=text, value=2.0, unit=text)),
        tensors=tensors,
        seconds=1.5,
    )
    failed = Rung(
        name=text,
        status="failed",
        reference=text,
        samples=3,
        measurements=(measured(0.25),),
        reason=text,
        examples=examples,
    )
    return Report(
        model=text,
        family=text,
        target=text,
        recipe=text,
        profile=text,
        rungs=(ran, failed, not_run(text, text)),
        sizes=(ArtifactSize(path=text, size_bytes=2048),),
        tools=((text, text),),
        notes=(text,),
        frontier=tuple(
            FrontierPoint(
                size_bytes=size,
                predicted_kl=kl,
                measured_kl=kl / 2,
                schemes=((text, text),),
                chosen=size == 2048,
            )
            for size, kl in ((1024, 0.1), (2048, 0.01), (4096, 0.0))
        ),
    )


@pytest.fixture(scope="session")
def filled_report() -> Callable[..., Report]:
    return filled


def _rung(name: str, value: float, reason: str = "") -> Rung:
    measurement = Measurement(
        name="worst-token cosine",
        value=value,
        unit="",
        sense="at_least",
        limit=0.99999,
        limit_from="profile default, f16: only the order of sums differs",
    )
    return Rung(
        name=name,
        status="failed" if reason else "passed",
        reference="PyTorch float32",
        samples=18,
        measurements=(measurement,),
        reason=reason,
        seconds=3.25,
    )


@pytest.fixture(scope="session")
def passing() -> Report:
    return Report(
        model="tiny",
        family="mobilevlm",
        target="linux-x86_64",
        recipe="f16",
        profile="default",
        rungs=(_rung("tower", 0.999998), not_run("task", "no evaluation file")),
    )


@pytest.fixture(scope="session")
def failing() -> Report:
    return Report(
        model="tiny",
        family="mobilevlm",
        target="linux-x86_64",
        recipe="f16",
        profile="default",
        rungs=(
            _rung("tower", 0.999989999, "worst-token cosine 0.99999 (at least 0.99999)"),
            Rung(name="logits", status="failed", reason="the engine refused the batch"),
        ),
    )


@pytest.fixture(scope="session")
def thumbnail() -> str:
    """A small red picture as a data URL."""
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
