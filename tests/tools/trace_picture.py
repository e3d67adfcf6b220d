"""Owns a trace as a picture: `python -m tests.tools.trace_picture SPANS.json OUT.svg "Title"`; the spans are a list as `span_rows` makes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _ROW, _TOP, _LEFT, _BARS = 1040, 26, 84, 20, 430
_INDENT, _PAD = 16, 16
_COLOURS = {
    "hub.call": "#3b6ea8",
    "hub.run": "#7fa6d0",
    "tier.route": "#7a5ea8",
    "tier.engine": "#c4572e",
    "tier.tool": "#3f8f5b",
}
_ELSE = "#777777"
_SAID: Mapping[str, tuple[str, ...]] = {
    "hub.call": ("operation", "caller"),
    "hub.run": (),
    "tier.route": ("tier", "reason"),
    "tier.engine": ("engine", "prompt_tokens", "completion_tokens", "finish"),
    "tier.tool": ("tool", "outcome"),
}
_WORDED = {"caller": "by {}", "prompt_tokens": "{} tokens read", "completion_tokens": "{} written"}
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One span: how deep it is, when it began after the first, and how long it took."""

    name: str
    depth: int
    began_ms: float
    took_ms: float
    said: str


def span_rows(spans: Iterable[Any]) -> list[Any]:  # OpenTelemetry's spans, and their JSON
    """Ended spans as JSON."""
    return [json.loads(each.to_json()) for each in spans]


def draw(spans: Sequence[Mapping[str, Any]], title: str) -> str:
    """The spans of one trace as SVG, each below what caused it."""
    rows = list(_rows(spans))
    whole_ms = max(row.began_ms + row.took_ms for row in rows)
    height = _TOP + len(rows) * _ROW + 40
    scale = (_WIDTH - _BARS - _LEFT - 70) / whole_ms
    body = [
        f'<text x="{_LEFT}" y="30" font-size="17" font-weight="600">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="52" fill="#555">{len(rows)} spans, {whole_ms:,.1f} ms, trace {_trace_of(spans)}</text>',
        *_ticks(whole_ms, scale, height),
        *(line for place, row in enumerate(rows) for line in _drawn(row, _TOP + place * _ROW, scale)),
    ]
    return "\n".join(
        (
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
                ' font-family="system-ui, sans-serif" font-size="12.5" fill="#1c1c1c">'
            ),
            f"<title>{escape(title)}</title>",
            f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#fbfaf7"/>',
            *body,
            "</svg>\n",
        )
    )


def _rows(spans: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    ids = {each["context"]["span_id"] for each in spans}
    first = min(_at(each["start_time"]) for each in spans)
    ordered = sorted(spans, key=lambda each: each["start_time"])

    def below(parent: str | None, depth: int) -> Iterator[Row]:
        for each in ordered:
            above = each["parent_id"] if each["parent_id"] in ids else None
            if above == parent:
                began, ended = _at(each["start_time"]), _at(each["end_time"])
                yield Row(each["name"], depth, (began - first) * 1e3, (ended - began) * 1e3, _said(each))
                yield from below(each["context"]["span_id"], depth + 1)

    return below(None, 0)


def _said(span: Mapping[str, Any]) -> str:
    told = span["attributes"]
    words = [_WORDED.get(key, "{}").format(told[key]) for key in _SAID.get(span["name"], ()) if key in told]
    return ", ".join([*words, *([told["error.type"]] if "error.type" in told else [])])


def _ticks(whole_ms: float, scale: float, height: int) -> Iterator[str]:
    for place in range(_TICKS + 1):
        at_ms = whole_ms * place / _TICKS
        x = _BARS + at_ms * scale
        yield f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - 28}" stroke="#e2ded3"/>'
        yield f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle" fill="#777" font-size="11">{at_ms:,.0f} ms</text>'


def _drawn(row: Row, y: int, scale: float) -> Iterator[str]:
    x, middle = _LEFT + row.depth * _INDENT, y + 15
    wide = max(2.0, row.took_ms * scale)
    left = _BARS + row.began_ms * scale
    yield (
        f'<text x="{x}" y="{middle}"><tspan font-weight="600">{escape(row.name)}</tspan>'
        f'<tspan fill="#555" dx="6">{escape(row.said)}</tspan></text>'
    )
    colour = _COLOURS.get(row.name, _ELSE)
    yield f'<rect x="{left:.1f}" y="{y + 4}" width="{wide:.1f}" height="{_PAD}" rx="3" fill="{colour}"/>'
    yield f'<text x="{left + wide + 5:.1f}" y="{middle}" fill="#555" font-size="11">{row.took_ms:,.1f} ms</text>'


def _trace_of(spans: Sequence[Mapping[str, Any]]) -> str:
    (trace,) = {each["context"]["trace_id"] for each in spans}
    return str(trace).removeprefix("0x")


def _at(told: str) -> float:
    return datetime.fromisoformat(told).timestamp()


if __name__ == "__main__":
    read, written, headline = sys.argv[1:4]
    Path(written).write_text(draw(json.loads(Path(read).read_text("utf-8")), headline), "utf-8")
