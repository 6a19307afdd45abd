"""Draws ``sequence.svg``, the story of one order, from what the services logged in a run of the demo.

    python docs/pictures/sequence.py data/demo/RUN > docs/pictures/sequence.svg

An arrow leads from the publisher of an event to a subscriber that handled it, in the order in which the handling began.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from services.demo import sequence  # noqa: E402 - the path comes first
from services.demo.lines import LogFile, LogLine  # noqa: E402

LEFT, STEP = 150, 155
"""Where the first lifeline stands, and how far it is to the next."""
TOP, ROW, GAP = 64, 26, 30
"""Where the first arrow may stand, how far it is to the next, and the room above those of one event."""
COLOURS = {"New Order Placed": "#1f5fbf", "Order Packed": "#b3541e", "Order Dispatched": "#2b7a3d"}
WIDTH = LEFT + STEP * (len(sequence.LIFELINES) - 1) + 80
STYLE = "text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#24292f}"


def read(folder: Path) -> list[LogLine]:
    """What was handled of the story of the last order that went all the way."""
    lines = [line for path in sorted(folder.glob("*.log")) for line in LogFile(path).new_lines()]
    ends = [line for line in lines if line.event == "handled" and line.event_name == "Order Dispatched"]
    story = max(ends, key=lambda line: line.began).correlation_id
    assert story is not None, "every handled event belongs to a story"
    return sequence.observed(lines, story)


def draw(handled: list[LogLine]) -> Iterator[str]:
    """The picture, line by line."""
    groups = [(name, list(lines)) for name, lines in groupby(handled, key=lambda line: line.event_name)]
    bottom = TOP + sum(GAP + ROW * len(lines) for _, lines in groups)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 16}" '
        f'viewBox="0 0 {WIDTH} {bottom + 16}" role="img">'
    )
    yield f"<style>{STYLE}</style>"
    yield f'<rect width="{WIDTH}" height="{bottom + 16}" rx="8" fill="#ffffff"/>'
    for name in sequence.LIFELINES:
        x = column(name)
        yield f'<line x1="{x}" y1="44" x2="{x}" y2="{bottom}" stroke="#c4cad1" stroke-dasharray="3 4"/>'
        yield f'<rect x="{x - 52}" y="14" width="104" height="30" rx="6" fill="#f6f8fa" stroke="#c4cad1"/>'
        yield f'<text x="{x}" y="34" text-anchor="middle" font-weight="600">{escape(name)}</text>'
    begin, y = handled[0].began, TOP
    for name, lines in groups:
        y += GAP
        yield label(name, lines[0].source, y - 14)
        for line in lines:
            yield arrow(line, y, (line.began - begin).total_seconds())
            y += ROW
    yield "</svg>"


def label(name: str, publisher: str, y: int) -> str:
    """The event's name above its arrows, beside its publisher."""
    x = column(publisher) + 9
    return (
        f'<text x="{x}" y="{y}" style="font-weight:600;fill:{COLOURS[name]};paint-order:stroke" '
        f'stroke="#ffffff" stroke-width="4">{escape(name)}</text>'
    )


def arrow(line: LogLine, y: int, seconds: float) -> str:
    """From publisher to subscriber, with the time since the first handling began."""
    start, end = column(line.source), column(line.service)
    way = 1 if end > start else -1
    colour, tip = COLOURS[line.event_name], end - 2 * way
    return (
        f"<g><title>{escape(str(sequence.arrow(line)))}</title>"
        f'<text x="84" y="{y + 4}" text-anchor="end" style="fill:#6e7781;font-size:11px">'
        f"+{seconds * 1000:.0f} ms</text>"
        f'<circle cx="{start}" cy="{y}" r="3.5" fill="{colour}"/>'
        f'<line x1="{start}" y1="{y}" x2="{tip - 6 * way}" y2="{y}" stroke="{colour}" stroke-width="1.6"/>'
        f'<path d="M{tip} {y}l{-9 * way} -4.5v9z" fill="{colour}"/></g>'
    )


def column(service: str) -> int:
    return LEFT + STEP * sequence.LIFELINES.index(service)


if __name__ == "__main__":
    sys.stdout.write("\n".join(draw(read(Path(sys.argv[1])))) + "\n")
