"""The report as JUnit XML: a test case for each limit, for CI systems."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from mllm_export.report import Measurement, Report, Rung, describe

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Source: XML 1.0, section 2.2, Char."""


def to_junit(report: Report) -> str:
    """One suite for each rung."""
    root = Element("testsuites", name=_legal(f"{report.model} {report.recipe} {report.target}"))
    for rung in report.rungs:
        root.append(_suite(rung))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(rung: Rung) -> Element:
    suite = Element("testsuite", name=rung.name, time=f"{rung.seconds:.3f}")
    judged = [m for m in rung.measurements if m.passed is not None]
    for measurement in judged:
        _case(suite, rung, measurement)
    if not judged or (rung.status == "failed" and all(m.passed for m in judged)):
        _whole(suite, rung)
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("errors", "0")
    return suite


def _case(suite: Element, rung: Rung, measurement: Measurement) -> None:
    case = SubElement(
        suite, "testcase", classname=f"parity.{rung.name}", name=_legal(measurement.name)
    )
    text = _legal(describe(measurement))
    if measurement.passed is False:
        failure = SubElement(case, "failure", message=text, type="limit")
        failure.text = _legal(measurement.limit_from)
    else:
        SubElement(case, "system-out").text = text


def _whole(suite: Element, rung: Rung) -> None:
    """A rung that did not run, or failed before anything was measured."""
    case = SubElement(suite, "testcase", classname=f"parity.{rung.name}", name=rung.name)
    if rung.status == "not_run":
        SubElement(case, "skipped", message=_legal(rung.reason))
    elif rung.status == "failed":
        SubElement(case, "failure", message=_legal(rung.reason), type="rung")


def _legal(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
