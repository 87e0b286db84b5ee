"""pytest plugin: one test for every rung of a bundle's ladder.

`pytest --mllm-bundle DIR` holds bundles against their golden files, with `--mllm-against CKPT`
against the original. Without `--mllm-bundle` the plugin adds its options and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mllm_export.report import Report, Rung

_NODE = "mllm_export"
"""Before a bundle's name: `-k mllm_export` runs the rungs and no other test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the ladder."""
    group = parser.getgroup("mllm-export", "parity of exported multimodal models")
    group.addoption(
        "--mllm-bundle",
        action="append",
        default=[],
        metavar="DIR",
        help="Check this bundle, a test for each rung; may be given several times.",
    )
    group.addoption(
        "--mllm-against",
        metavar="CKPT",
        help="The original checkpoint, or 'reference'; without it the golden files count.",
    )
    group.addoption(
        "--mllm-evaluation", metavar="FILE", help="JSON lines of image, question, answers."
    )


class LadderError(Exception):
    """A rung that failed; its text is the rung's own."""


class RungItem(pytest.Item):
    """One rung as a test."""

    rung_name: str

    def runtest(self) -> None:
        """Run the whole ladder once, then look at this rung."""
        assert isinstance(self.parent, BundleCollector)
        rung = next((r for r in self.parent.report().rungs if r.name == self.rung_name), None)
        if rung is None:
            pytest.skip("not part of this check")
        self.user_properties.extend(_figures(rung))
        if rung.status == "not_run":
            pytest.skip(rung.reason)
        if rung.status == "failed":
            raise LadderError(_failure(rung))

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: object = None,  # noqa: ARG002 - pytest passes it
    ) -> str:
        """What is wrong, without a traceback: no line of the plugin is to blame."""
        from mllm_export.errors import MllmExportError

        if isinstance(excinfo.value, LadderError | MllmExportError):
            return str(excinfo.value)
        return str(excinfo.getrepr(style="short"))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The heading of a failure."""
        return self.path, None, f"{self.parent.name if self.parent else ''}: {self.rung_name}"


class BundleCollector(pytest.Collector):
    """The rungs of one bundle; the ladder runs when the first of them is asked for."""

    folder: Path
    _report: Report | None = None

    def collect(self) -> Iterator[pytest.Item]:
        """A test for each rung that there is a check for, in the ladder's order."""
        from mllm_export.device_tests.check import CHECKS
        from mllm_export.report import RUNGS

        for name in RUNGS:
            if name in CHECKS.names():
                item = RungItem.from_parent(self, name=name)
                item.rung_name = name
                yield item

    def report(self) -> Report:
        """The ladder's report; a bundle that cannot be checked fails every rung alike."""
        if self._report is None:
            self._report = _check(self.folder, self.config)
        return self._report


def _check(folder: Path, config: pytest.Config) -> Report:
    from mllm_export.bundle import open_bundle
    from mllm_export.commands.checking import check_again
    from mllm_export.commands.opening import REFERENCE, open_checkpoint, reference_evaluation
    from mllm_export.progress import silent

    against, evaluation = config.option.mllm_against, config.option.mllm_evaluation
    bundle = open_bundle(folder)
    original = None if against is None else open_checkpoint(against, None)
    file = None if evaluation is None else Path(evaluation)
    if against == REFERENCE and file is None:
        file = reference_evaluation()
    return check_again(bundle, original, file, silent)


def _failure(rung: Rung) -> str:
    from mllm_export.reports.figures import failure_text

    lines = [f"{rung.name}: {failure_text(rung)}"]
    if rung.reference:
        lines.append(f"against {rung.reference}, {rung.samples} samples")
    lines += [
        f"  {one.name}: original {one.reference!r}, export {one.export!r} {one.note}".rstrip()
        for one in rung.examples
    ]
    return "\n".join(lines)


def _figures(rung: Rung) -> Iterator[tuple[str, object]]:
    """Every measurement, for --junit-xml."""
    for m in rung.measurements:
        yield f"{rung.name}: {m.name}", f"{m.value:.6g} {m.unit}".strip()


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Put the rungs behind the session's own tests."""
    for given in config.option.mllm_bundle:
        folder = Path(given)
        collector = BundleCollector.from_parent(session, name=f"{_NODE} {folder.name}", path=folder)
        collector.folder = folder
        items.extend(collector.collect())
