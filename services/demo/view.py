"""What people see: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

WIDTH = 100
"""Characters of a line where the terminal does not say."""

STYLES = {"running": "green", "starting": "yellow", "killed": "bold white on red", "failed": "bold white on red"}


@dataclass(frozen=True)
class Row:
    """One service, now."""

    service: str
    pid: int | None
    state: str
    waiting: int | None
    """Events in its queue, delivered and unacknowledged ones included; None: it has no queue."""
    handled: int | None
    last: str


class View:
    """The demo's only way to the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(file=self.console.file, width=WIDTH, highlight=False)
        self._live: Live | None = None
        self._rows: Sequence[Row] = ()

    def act(self, number: int, title: str) -> None:
        """A new act begins."""
        self.console.print(f"\n[bold]{number}. {escape(title)}[/]")

    def say(self, text: str, style: str = "") -> None:
        """A line of the story."""
        self.console.print(f"   {escape(text)}", style=style, soft_wrap=True)

    def picture(self, lines: Sequence[str]) -> None:
        """Lines whose columns matter."""
        for line in lines:
            self.console.print(f"   {escape(line)}", no_wrap=True, overflow="ignore", crop=False)

    def show_beside(self, thing: RenderableType) -> None:
        """Something of several lines."""
        self.console.print(Padding(thing, (0, 0, 0, 3), expand=False))

    def show(self, rows: Sequence[Row]) -> None:
        """The services as they are now: the table on a terminal, nothing elsewhere (see :meth:`snapshot`)."""
        self._rows = rows
        if self._live is not None:
            self._live.update(table(rows))
        elif self.console.is_terminal and rows:
            self._live = Live(table(rows), console=self.console, refresh_per_second=10)
            self._live.start()

    def snapshot(self) -> None:
        """Without a terminal, print the table as it is now: one line for each service."""
        if not self.console.is_terminal:
            self.picture(plain(self._rows))

    def end_table(self) -> None:
        """Leave the table on the screen as it is now; what follows is printed below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_table()


def table(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    grid = Table(title="the shop", title_justify="left", expand=False, min_width=76)
    for name, justify in (("service", "left"), ("pid", "right"), ("state", "left"), ("waiting", "right")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]  # a tuple's text is not inferred as a literal
    grid.add_column("handled", justify="right")
    grid.add_column("last event", min_width=26)
    for row in rows:
        style = STYLES.get(row.state, "")
        grid.add_row(
            row.service,
            _text(row.pid),
            f"[{style}]{row.state}[/]" if style else row.state,
            f"[bold yellow]{row.waiting}[/]" if row.waiting else _text(row.waiting),
            _text(row.handled),
            escape(row.last),
            style="red" if row.state in ("killed", "failed") else "",
        )
    return grid


def plain(rows: Sequence[Row]) -> list[str]:
    """The table as lines of text."""
    lines = [f"{'service':<10} {'pid':>7} {'state':<9} {'waiting':>7} {'handled':>7}  last event"]
    for row in rows:
        counts = f"{_text(row.waiting):>7} {_text(row.handled):>7}"
        lines.append(f"{row.service:<10} {_text(row.pid):>7} {row.state:<9} {counts}  {row.last}")
    return lines


def _text(number: int | None) -> str:
    return "–" if number is None else str(number)
