"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from mllm_export.report import Example, Measurement, Report, Rung, TensorRow
from mllm_export.reports._charts import limit_bar, size_bars, sqnr_chart
from mllm_export.reports.figures import (
    WORDS,
    limit_text,
    measurement_of,
    number,
    rung_title,
    size_text,
    value_text,
    verdict_text,
)

_WORST_TENSORS = 12
_PICTURES = ("data:image/jpeg;base64,", "data:image/png;base64,")


def to_html(report: Report) -> str:
    """The whole page; the same report gives the same bytes."""
    style = (files("mllm_export.reports") / "report.css").read_text(encoding="utf-8")
    title = escape(f"Parity of {report.model}, {report.recipe}")
    body = "\n".join(
        (
            _head(report),
            _ladder(report.rungs),
            *(_section(rung) for rung in report.rungs),
            _sizes(report),
            _foot(report),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    kind = "passed" if report.passed else "failed"
    facts = f"{report.family} · recipe {report.recipe} · target {report.target}"
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in _key_figures(report)
    )
    return (
        f'<header><h1>{escape(report.model)}</h1><p class="soft">{escape(facts)}</p>'
        f'<p class="verdict {kind}">{escape(verdict_text(report))}</p>'
        f'<div class="cards">{cards}</div></header>'
    )


def _key_figures(report: Report) -> Iterator[tuple[str, str]]:
    """What somebody who reads one line wants to know."""
    before = measurement_of(report, "task", "accuracy of the original")
    after = measurement_of(report, "task", "accuracy of the export")
    if before and after:
        yield f"{before.value:.1f} → {after.value:.1f} %", "accuracy, original to export"
    for rung, name, label in (
        ("tower", "worst-token cosine", "worst image token, cosine"),
        ("logits", "mean KL", "mean KL divergence, nats"),
        ("logits", "top-1 agreement", "same likeliest token"),
    ):
        found = measurement_of(report, rung, name)
        if found:
            share = f"{found.value:.2%}" if name == "top-1 agreement" else number(found.value)
            yield share, label
    if report.sizes:
        yield size_text(sum(size.size_bytes for size in report.sizes)), "bundle"


def _ladder(rungs: Sequence[Rung]) -> str:
    rows = "".join(
        f'<tr><td><a href="#{rung.name}"><code>{rung.name}</code></a></td>'
        f"<td>{escape(rung_title(rung))}</td><td>{_badge(rung)}</td>"
        f'<td class="num">{rung.samples or ""}</td><td class="num">{rung.seconds:.1f} s</td></tr>'
        for rung in rungs
    )
    return (
        "<section><h2>The ladder</h2><table><tr><th>rung</th><th>compares</th><th>verdict</th>"
        f'<th class="num">samples</th><th class="num">time</th></tr>{rows}</table></section>'
    )


def _badge(rung: Rung) -> str:
    return f'<span class="badge {rung.status}">{WORDS[rung.status]}</span>'


def _section(rung: Rung) -> str:
    parts = [
        f'<section id="{rung.name}"><h2>{escape(rung_title(rung))} {_badge(rung)}</h2>',
        f"<p>{escape(rung.reason)}</p>" if rung.reason else "",
        f'<p class="soft">Against {escape(rung.reference)}.</p>' if rung.reference else "",
        _measurements(rung.measurements),
        _tensors(rung.tensors),
        _examples(rung.examples),
        "</section>",
    ]
    return "".join(parts)


def _measurements(measurements: Sequence[Measurement]) -> str:
    if not measurements:
        return ""
    rows = "".join(_measurement(measurement) for measurement in measurements)
    return (
        '<table><tr><th>measurement</th><th class="num">value</th><th class="num">limit</th>'
        f"<th>used</th><th>where the limit comes from</th></tr>{rows}</table>"
    )


def _measurement(measurement: Measurement) -> str:
    kind = {None: "info", False: "broken", True: ""}[measurement.passed]
    return (
        f'<tr class="{kind}"><td>{escape(measurement.name)}</td>'
        f'<td class="num">{escape(value_text(measurement))}</td>'
        f'<td class="num">{escape(limit_text(measurement))}</td>'
        f'<td class="plot">{limit_bar(measurement)}</td>'
        f'<td class="why">{escape(measurement.limit_from)}</td></tr>'
    )


def _tensors(tensors: Sequence[TensorRow]) -> str:
    if not tensors:
        return ""
    lossy = [tensor for tensor in tensors if tensor.sqnr_db is not None]
    lossy.sort(key=lambda tensor: tensor.sqnr_db or 0.0)
    rows = "".join(
        f"<tr><td><code>{escape(tensor.name)}</code></td><td>{escape(tensor.scheme)}</td>"
        f'<td class="num">{tensor.sqnr_db:.1f} dB</td>'
        f'<td class="why">{escape(tensor.note)}</td></tr>'
        for tensor in lossy[:_WORST_TENSORS]
    )
    table = (
        '<table><tr><th>tensors that lost most</th><th>scheme</th><th class="num">SQNR</th>'
        f"<th>note</th></tr>{rows}</table>"
        if rows
        else ""
    )
    equal = len(tensors) - len(lossy)
    told = f'<p class="soft">{equal} of {len(tensors)} tensors hold their source exactly.</p>'
    return f"<br>{sqnr_chart(tensors)}{told}{table}"


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    return f'<br><div class="examples">{"".join(_example(one) for one in examples)}</div>'


def _example(example: Example) -> str:
    # Only pictures held in the page itself: a report must not fetch anything.
    is_inline = example.image.startswith(_PICTURES)
    picture = f'<img alt="" src="{escape(example.image)}">' if is_inline else ""
    sides = (
        f"<dl><dt>original</dt><dd>{escape(example.reference) or '(empty)'}</dd>"
        f"<dt>export</dt><dd>{escape(example.export) or '(empty)'}</dd></dl>"
        if example.reference or example.export
        else ""
    )
    return (
        f'<div class="example">{picture}<div><b>{escape(example.name)}</b>{sides}'
        f"<small>{escape(example.note)}</small></div></div>"
    )


def _sizes(report: Report) -> str:
    if not report.sizes:
        return ""
    return f"<section><h2>Sizes</h2>{size_bars(report.sizes)}</section>"


def _foot(report: Report) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    tools = ", ".join(f"{name} {version}" for name, version in report.tools)
    return (
        f"<footer>{notes}<p>Limits from profile <code>{escape(report.profile)}</code>; a bar is "
        "full at its tick when the limit is used up.</p>"
        f"<p>{escape(tools)}</p></footer>"
    )
