"""What a bundle costs on an emulated CPU: instructions by kind, never time."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_export.bundle import Bundle
from mllm_export.device_tests.device import Link
from mllm_export.device_tests.on_device import read_golden
from mllm_export.device_tests.visit import Outcome, Visit
from mllm_export.errors import DeviceError
from mllm_export.progress import Progress
from mllm_export.records import from_json, record, to_json
from mllm_export.runtimes.job import REGIONS, Asked, Job

if TYPE_CHECKING:
    from importlib.abc import Traversable

_TOTAL_BOUND = 0.005
_EXACT_BOUND = 0.0001
"""Source: three runs of one model on qemu 7.2: kinds that only kernels use repeat exactly, totals
within 0.1 %, for the allocator and the interpreter around them differ."""

EXACT = ("dot_products", "matrix_products", "fmla")
_PACKAGE = "mllm_export.device_tests.costs"


@record
class Region:
    """Counts of one region."""

    instructions: int
    simd: int
    loads_stores: int
    dot_products: int
    matrix_products: int
    fmla: int
    bytes_read: int
    bytes_written: int


KINDS = tuple(Region.__dataclass_fields__)


@record
class Cost:
    """One bundle on one CPU, one thread, warm."""

    model: str
    target: str
    recipe: str
    cpu: str
    prefill_positions: int
    regions: dict[str, Region]


@record
class CostRecord:
    """A checked file: what bundles cost when it was written."""

    schema: int = 1
    costs: tuple[Cost, ...]

    def find(self, cost: Cost) -> Cost | None:
        """The entry for the same bundle and CPU."""
        key = _key(cost)
        return next((one for one in self.costs if _key(one) == key), None)

    def with_cost(self, cost: Cost) -> CostRecord:
        """This record with that entry in place of an older one."""
        others = [one for one in self.costs if _key(one) != _key(cost)]
        return CostRecord(costs=tuple(sorted((*others, cost), key=_key)))


def measure_cost(bundle: Bundle, link: Link, timeout_s: float, progress: Progress) -> Cost:
    """Count tower, prefill and one decoded token of the bundle's first golden question.

    Raises: DeviceError for a device that cannot count.
    """
    folder, sample = bundle.folder / "golden", read_golden(bundle).samples[0]
    job = Job(
        threads=1, asked=(Asked(picture=sample.picture, question=sample.question),), marks=True
    )
    visit = Visit(link, timeout_s, progress)
    remote, _ = visit.push(bundle)
    outcome = visit.run(remote, job, {sample.picture: folder / sample.picture})
    manifest = bundle.manifest
    return Cost(
        model=manifest.model.name,
        target=manifest.target,
        recipe=manifest.recipe,
        cpu=link.title,
        prefill_positions=outcome.result.prefill_positions,
        regions=_regions(outcome, link.title),
    )


def read_record(path: Path | None, target: str) -> CostRecord:
    """The record in a file, or the one of the target that ships with the package.

    Raises: DeviceError for a file that is missing or not such a record.
    """
    file: Path | Traversable = path or files(_PACKAGE) / f"{target}.json"
    if not file.is_file():
        raise DeviceError(
            f"no cost of target {target} is recorded"
            + (f" in {path}" if path else "")
            + "; write it with --record-cost --cost-record FILE"
        )
    return from_json(CostRecord, file.read_bytes(), str(file), DeviceError)


def recorded(record: CostRecord, now: Cost) -> Cost:
    """The entry for the same bundle and CPU. Raises: DeviceError where there is none."""
    found = record.find(now)
    if found is None:
        known = ", ".join(f"{one.model} {one.recipe} on {one.cpu}" for one in record.costs)
        raise DeviceError(
            f"the record has no cost of {now.model}, {now.recipe}, on {now.cpu} (it has: {known}); "
            "write it with --record-cost --cost-record FILE"
        )
    return found


def write_record(path: Path, cost: Cost) -> None:
    """Add the cost to the file, or replace the older one of the same bundle and CPU."""
    before = read_record(path, cost.target) if path.is_file() else CostRecord(costs=())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(to_json(before.with_cost(cost)), encoding="utf-8")
    partial.replace(path)


def changes(before: Cost, now: Cost) -> list[str]:
    """Every count that left its bound, as a sentence each; cheaper counts too, to be recorded."""
    if before.prefill_positions != now.prefill_positions:
        return [
            f"the prompt took {before.prefill_positions} positions, now {now.prefill_positions}"
        ]
    return [
        _change(region, kind, old, new, bound)
        for region in REGIONS.values()
        for kind, bound in _bounds().items()
        if abs((new := getattr(now.regions[region], kind)) - (old := _old(before, region, kind)))
        > bound * max(old, 1)
    ]


def _old(before: Cost, region: str, kind: str) -> int:
    return int(getattr(before.regions[region], kind))


def _bounds() -> dict[str, float]:
    return {"instructions": _TOTAL_BOUND, **dict.fromkeys(EXACT, _EXACT_BOUND)}


def _change(region: str, kind: str, old: int, new: int, bound: float) -> str:
    moved = (new - old) / max(old, 1)
    words = kind.replace("_", " ")
    return f"{region}: {old:,} {words}, now {new:,} ({moved:+.2%}, bound {bound:.2%})"


def _key(cost: Cost) -> tuple[str, str, str, str]:
    return cost.model, cost.target, cost.recipe, cost.cpu


def _regions(outcome: Outcome, title: str) -> dict[str, Region]:
    found = {line["region"]: dict(line) for line in outcome.counts if line["region"] in REGIONS}
    missing = [name for number, name in REGIONS.items() if number not in found]
    if missing:
        raise DeviceError(f"{title}: no counts came back for {', '.join(missing)}")
    return {
        name: Region(**{kind: n for kind, n in found[number].items() if kind != "region"})
        for number, name in REGIONS.items()
    }
