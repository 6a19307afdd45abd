"""A curve as SVG: two logarithmic axes where values span decades, few lines, legible in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 72, 150, 20, 56
COLOURS = ("#2563eb", "#c2410c", "#6b7280", "#15803d")

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2937 }
.axis { stroke: #9ca3af } .grid { stroke: #e5e7eb } .bare { fill: #6b7280 }
@media (prefers-color-scheme: dark) {
  text { fill: #e5e7eb } .axis { stroke: #6b7280 } .grid { stroke: #374151 } .bare { fill: #9ca3af }
}
"""


def curve(curves: Mapping[str, Sequence[tuple[float, float]]], along: str, what: str) -> str:
    """Draw lines, each named at its end. The vertical axis begins at 0 unless values span more than a decade."""
    xs = sorted({x for its in curves.values() for x, _ in its})
    ys = [y for its in curves.values() for _, y in its]
    steps = {x: n for n, x in enumerate(xs)}  # measured at a few places: evenly apart
    wide = max(ys) > 20 * min(ys) > 0
    low, high = (math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))) if wide else (0.0, _round(max(ys)))
    ticks = [10.0**n for n in range(int(low), int(high) + 1)] if wide else [high * n / 4 for n in range(5)]

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * steps[x] / max(1, len(xs) - 1)

    def up(y: float) -> float:
        share = ((math.log10(y) if wide else y) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(what)} by {escape(along)}"><style>{STYLE}</style>'
    ]
    for tick in ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        out.append(f'<text class="bare" x="{LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    foot = HEIGHT - BOTTOM
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
    for x in xs:
        out.append(f'<text class="bare" x="{across(x):.1f}" y="{foot + 18}" text-anchor="middle">{_short(x)}</text>')
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(along)}</text>'
    )
    middle = (TOP + foot) / 2
    out.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{escape(what)}</text>'
    )
    last = -math.inf
    ends = sorted(((up(its[-1][1]), name) for name, its in curves.items() if its), key=lambda end: end[0])
    places = {}
    for y, name in ends:
        last = max(y, last + 17)
        places[name] = last
    for (name, its), colour in zip(curves.items(), COLOURS, strict=False):
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in its)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in its]
        if len(curves) > 1:
            at = WIDTH - RIGHT + 10
            out.append(f'<text x="{at}" y="{places[name] + 4:.1f}" style="fill:{colour}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _round(value: float) -> float:
    """The next round number above."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(unit * n for n in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10, 12) if unit * n >= value)


def _short(value: float) -> str:
    for limit, sign in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"
