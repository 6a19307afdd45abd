"""Ordering levels, drawn for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.reporting.levels import BARS, Levels, Took

EIGHTHS = " ▁▂▃▄▅▆▇█"
HEIGHT = 3  # lines of a chart; the whole view fits a terminal of 80 × 24


def draw(levels: Levels, over: timedelta) -> RenderableType:
    """All of it: the figures, and a bar chart of each of the three events."""
    figures = Table.grid(padding=(0, 3))
    figures.add_row("placed", "packed", "dispatched", "revenue", style="dim")
    figures.add_row(str(levels.placed), str(levels.packed), str(levels.dispatched), revenue(levels), style="bold")
    times = Table.grid(padding=(0, 3))
    times.add_row("placed → packed", took(levels.times.placed_to_packed))
    times.add_row("packed → dispatched", took(levels.times.packed_to_dispatched))
    bar = over.total_seconds() / BARS
    return Panel(
        Group(
            figures,
            times,
            chart("placed", [bar.placed for bar in levels.levels], bar, "cyan"),
            chart("packed", [bar.packed for bar in levels.levels], bar, "yellow"),
            chart("dispatched", [bar.dispatched for bar in levels.levels], bar, "green"),
        ),
        title="Ordering levels",
        subtitle=f"the last {over.total_seconds():g} s, as of {levels.as_of:%H:%M:%S} UTC",
        expand=False,
    )


def line(levels: Levels) -> str:
    """The figures in one line, for what is no terminal."""
    return (
        f"{levels.as_of:%H:%M:%S} placed {levels.placed} · packed {levels.packed} · "
        f"dispatched {levels.dispatched} · revenue {revenue(levels)}"
    )


def revenue(levels: Levels) -> str:
    return " + ".join(f"{amount:,} {currency}" for currency, amount in levels.revenue.items()) or "–"


def took(time: Took | None) -> str:
    return "–" if time is None else f"{time.median:.2f} s in the middle, 95 of 100 within {time.p95:.2f} s"


def chart(name: str, counts: Sequence[int], seconds: float, style: str) -> Text:
    """A bar for each count, the highest as high as the chart. Each is of so many seconds."""
    text = Text(f"\n{name}, up to {max(counts, default=0)} in {seconds:g} s\n", style="dim")
    text.append("\n".join(bars(counts, HEIGHT)), style=style)
    return text


def bars(counts: Sequence[int], height: int) -> list[str]:
    """Lines of block characters, top first. Whatever is not zero can be seen."""
    highest = max(counts, default=0) or 1
    eighths = [-(-count * height * 8 // highest) for count in counts]  # rounded up
    return [
        "".join(EIGHTHS[min(max(eighth - 8 * row, 0), 8)] * 2 for eighth in eighths) for row in reversed(range(height))
    ]
