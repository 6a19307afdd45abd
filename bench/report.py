"""From measurements to the table people read: ratios first. Pure but for reading the machine and writing the page."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

from bench.plot import curve
from bench.runner import ROOT, Figures, middle

PAGE = ROOT / "docs" / "performance.md"
STORE = ROOT / "docs" / "performance.json"
PICTURES = ROOT / "docs" / "pictures"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"

NAMES = {
    "ours": "**this package**",
    "publish_many": "**this package**, `publish_many`",
    "faststream": "FastStream",
    "aio_pika": "aio-pika",
    "pika": "pika, pipelined by hand",
    "limit": "*the limit*",
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
}


@dataclass(frozen=True)
class Floor:
    """What is promised: a ratio, and what it must at least or at most be."""

    what: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def kept(self) -> bool | None:
        """Whether it is so; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def told(self) -> tuple[str, str, str]:
        """For a row of a table."""
        sign = "≥" if self.at_least else "≤"
        value = "not measured" if self.value is None else f"{self.value:.2f}"
        return self.what, f"{sign} {self.bound:g}", value + {None: "", True: "", False: " (missed)"}[self.kept]


def floors(results: list[Figures]) -> list[Floor]:
    """The ratios that matter, of one run."""

    def of(row: str, contender: str, figure: str = "rate", x: float | None = None) -> float | None:
        return middle(results, row, contender, figure, x)

    def ratio(row: str, other: str, contender: str = "ours", figure: str = "rate") -> float | None:
        one, against = of(row, contender, figure), of(row, other, figure)
        return None if one is None or not against else one / against

    def spread(row: str) -> float | None:
        """The largest deviation of processor time from the first, as a share."""
        values = [value for _, value in points(results, row, "ours", "cpu")]
        return max(abs(value / values[0] - 1) for value in values) if values else None

    memory = dict(points(results, "backlog", "ours", "memory"))
    share = memory[max(memory)] / memory[min(memory)] if memory else None
    logged, unlogged = of("event log", "on"), of("publish", "faststream")
    recorded = paired(results, "handlings", "recorded", "not recorded")
    beside = {p: ratio("backfill beside", "before", "meanwhile", p) for p in ("p50", "p99")}
    told, drawn, page = of("story", "ours", "ms"), of("map", "ours", "ms"), of("map", "ours", "bytes")
    peer, many, at_share = "faststream", "publish_many", "latency at 60 %"
    return [
        Floor("`publish_many`, × FastStream", ratio("publish", peer, many), 4.5, True),
        Floor("`publish_many`, share of the limit", ratio("publish", "limit", many), 0.85, True),
        Floor("overlapping `publish`, × FastStream", ratio("publish", peer), 3.5, True),
        Floor(
            "one `publish` after the other, p50, × aio-pika", ratio("one by one", "aio_pika", figure="p50"), 0.85, False
        ),
        Floor("a backlog consumed, × FastStream", ratio("consume", peer), 9, True),
        Floor("… processor time, × FastStream", ratio("consume", peer, figure="cpu"), 0.125, False),
        Floor(
            "publish → handler at 500/s, p50, × FastStream", ratio("latency at 500/s", peer, figure="p50"), 0.7, False
        ),
        Floor("… at 60 % of FastStream's most, p50", ratio(at_share, peer, figure="p50"), 0.5, False),
        Floor("… p99", ratio(at_share, peer, figure="p99"), 0.5, False),
        Floor("five subscribers, × FastStream's deliveries", ratio("five subscribers", peer), 5, True),
        Floor("1 → 50 subscribers, publisher's processor time, deviation", spread("subscribers"), 0.1, False),
        Floor("1 → 200 patterns in a service, dispatch cost, deviation", spread("patterns"), 0.1, False),
        Floor("memory before the large backlog, × before 10,000", share, 1.1, False),
        Floor("from a process's start to its first event handled, ms", of("start", "ours", "ms"), 600, False),
        Floor("memory of an idle service, × FastStream's", ratio("idle", peer, figure="memory"), 1, False),
        Floor(
            "`publish_many` with the event log, × FastStream without",
            logged / unlogged if logged and unlogged else None,
            2.5,
            True,
        ),
        Floor("`broker replay`, × `publish_many`", ratio("replay", many), 0.7, True),
        Floor("handlings recorded, × the rate without", recorded, 0.95, True),
        Floor("live events beside a backfill, p50, × before", beside["p50"], 2, False),
        Floor("… p99, × before", beside["p99"], 2, False),
        Floor("one story of a long log, seconds", None if told is None else told / 1e3, 5, False),
        Floor("… memory, MiB", of("story", "ours", "memory"), 200, False),
        Floor("a map of 200 services and 1,000 events, seconds", None if drawn is None else drawn / 1e3, 3, False),
        Floor("… its page, MB", None if page is None else page / 1e6, 5, False),
        *_database_floors(results),
    ]


def paired(results: list[Figures], row: str, one: str, against: str) -> float | None:
    """The middle ratio of each turn to the two beside it: what the machine did meanwhile concerned all three, and a
    queue that is handed out faster as it empties favours nobody."""
    ratios: list[float] = []
    of = {who: [it["turns"] for it in results if (it["row"], it["contender"]) == (row, who)] for who in (one, against)}
    for turns, others in zip(of[one], of[against], strict=True):
        line = [rate for pair in zip_longest(turns, others) for rate in pair if rate is not None]
        for which, (before, rate, after) in enumerate(zip(line, line[1:], line[2:], strict=False)):
            beside = (before + after) / 2
            ratios.append(rate / beside if which % 2 else beside / rate)
    return median(ratios) if ratios else None


def _database_floors(results: list[Figures]) -> Iterable[Floor]:
    """What is promised of services with a database."""
    many = middle(results, "publish", "publish_many", "rate")
    for kind, name, longest in (("sqlite", "SQLite", 30), ("postgresql", "PostgreSQL", 10)):
        relayed = middle(results, "relay", kind, "rate")
        yield Floor(f"{name}: relay, × `publish_many`", relayed / many if relayed and many else None, 0.6, True)
        yield Floor(
            f"{name}: commit → handler at 200/s, p50, ms",
            middle(results, "commit to handler", kind, "p50"),
            longest,
            False,
        )
        one, own = (middle(results, row, kind, "cpu") for row in ("transactional", "own commit"))
        yield Floor(f"{name}: a transactional handler, × its own commit", one / own if one and own else None, 2, False)
        held = dict(points(results, "outbox", kind, "memory"))
        share = held[max(held)] / held[min(held)] if held else None
        yield Floor(f"{name}: relay's memory with ten times the rows", share, 1.1, False)
        looked = dict(points(results, "look-up", kind, "p50"))
        share = looked[max(looked)] / looked[min(looked)] if looked else None
        yield Floor(f"{name}: inbox look-up in the largest, × in 1,000", share, 1.5, False)
        yield Floor(f"{name}: longest wait beside pruning, ms", middle(results, "pruning", kind, "ms"), 50, False)


def points(results: list[Figures], row: str, contender: str, figure: str) -> list[tuple[float, float]]:
    """The medians of a figure by what grows."""
    found = sorted({it["x"] for it in results if it["row"] == row and it["contender"] == contender})
    values = [(x, middle(results, row, contender, figure, x)) for x in found]
    return [(x, value) for x, value in values if value is not None]


def exponent(curve: Iterable[tuple[float, float]]) -> float:
    """The slope of a growth curve on two logarithmic axes, by least squares: 0 is flat, 1 is proportional."""
    logs = [(math.log(x), math.log(y)) for x, y in curve if x > 0 and y > 0]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else 0.0


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [head, tuple("---" if n == 0 else "---:" for n in range(len(head))), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "rate": ("events/s", lambda value: f"{value:,.0f}"),
    "cpu": ("client's CPU, µs an event", lambda value: f"{value:,.1f}"),
    "p50": ("p50, ms", lambda value: f"{value:.2f}"),
    "p99": ("p99, ms", lambda value: f"{value:.2f}"),
    "ms": ("ms", lambda value: f"{value:,.0f}"),
    "memory": ("MiB", lambda value: f"{value:,.1f}"),
}
SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "publish": ("Publishing, 500 at a time", ("rate", "cpu", "memory")),
    "one by one": ("Publishing one after the other", ("p50", "p99", "cpu")),
    "consume": ("Consuming a backlog", ("rate", "cpu", "memory")),
    "latency at 500/s": ("From publish to handler, 500 events a second", ("p50", "p99", "cpu")),
    "latency at 60 %": ("From publish to handler, at 60 % of FastStream's most", ("rate", "p50", "p99")),
    "five subscribers": ("Five subscribers of each event: deliveries", ("rate", "cpu", "memory")),
    "start": ("From the start of a process to its first event handled", ("ms",)),
    "idle": ("An idle service", ("memory",)),
    "relay": ("A relay", ("rate", "cpu", "memory")),
    "commit to handler": ("From commit to a subscriber's handler, 200 a second", ("p50", "p99")),
    "own commit": ("A handler that stores a row, with a commit of its own and no inbox", ("rate", "cpu")),
    "transactional": ("The same handler in one transaction with its inbox entry", ("rate", "cpu")),
    "not pruning": ("What handlers wait for their commit", ("p50", "p99", "ms")),
    "pruning": ("… while an inbox is pruned", ("p50", "p99", "ms")),
    "event log": ("`publish_many`, the event log on and off", ("rate", "cpu")),
    "replay": ("`broker replay`, and `publish_many` with the event log on", ("rate", "cpu")),
    "handlings": ("Consuming a backlog, handlings recorded or not", ("rate", "cpu")),
    "backfill": ("A backfill while 500 events a second arrive", ("rate", "cpu", "memory")),
    "story": ("The story of one event in a long log", ("ms", "memory")),
    "backfill beside": ("From publish to another service's handler, before the backfill and meanwhile", ("p50", "p99")),
}
CURVES: dict[str, tuple[str, str, str]] = {
    "subscribers": ("subscribers", "cpu", "publisher's CPU, µs an event"),
    "deliveries": ("subscribers", "rate", "deliveries/s, with their start"),
    "bindings": ("bindings of the queue", "cpu", "publisher's CPU, µs an event"),
    "patterns": ("patterns in one service", "cpu", "subscriber's CPU, µs an event"),
    "bodies": ("bytes of the event", "rate", "published, events/s"),
    "bodies consumed": ("bytes of the event", "rate", "consumed, events/s"),
    "backlog": ("events waiting", "memory", "subscriber's memory, MiB"),
    "outbox": ("events waiting in the outbox", "memory", "relay's memory, MiB"),
    "look-up": ("entries of the inbox", "p50", "look-up, ms"),
    "processes": ("processes of one service", "rate", "consumed, events/s"),
}


def absolute(results: list[Figures]) -> Iterable[tuple[str, str]]:
    """A table for each row, with its title."""
    for row, (title, figures) in SHOWN.items():
        contenders = list(dict.fromkeys(it["contender"] for it in results if it["row"] == row))
        found = [(name, [middle(results, row, name, figure) for figure in figures]) for name in contenders]
        if found:
            head = ("", *(COLUMNS[figure][0] for figure in figures))
            yield (
                title,
                table(
                    head,
                    [
                        (
                            NAMES.get(name, name),
                            *(_cell(figure, it) for figure, it in zip(figures, values, strict=True)),
                        )
                        for name, values in found
                    ],
                ),
            )


def _cell(figure: str, value: float | None) -> str:
    return "–" if value is None else COLUMNS[figure][1](value)


def growth(results: list[Figures]) -> Iterable[tuple[str, dict[str, list[tuple[float, float]]]]]:
    """The curves of each row that grows, by contender."""
    for row, (_, figure, _) in CURVES.items():
        contenders = dict.fromkeys(it["contender"] for it in results if it["row"] == row)
        curves = {name: points(results, row, name, figure) for name in contenders}
        if curves:
            yield row, curves


def text(run: dict[str, Any]) -> str:
    """For a terminal: what is promised, and whether it is so."""
    rows = [("", "promised", "measured"), *(floor.told for floor in floors(run["results"]))]
    return "\n".join(f"{what:58} {bound:>9} {value:>16}" for what, bound, value in rows)


def page(run: dict[str, Any]) -> str:
    """The generated part of docs/performance.md."""
    results, machine = run["results"], run["machine"]
    parts = [
        f"Measured {machine['date']} on {machine['cpu']} ({machine['cores']} cores, {machine['system']}), Python "
        f"{machine['python']}, RabbitMQ {machine['rabbitmq']} on the same machine. Medians of one {machine['run']}.",
        "## Ratios",
        table(("", "promised", "measured"), [floor.told for floor in floors(results)]),
        "## Figures",
    ]
    for title, its in absolute(results):
        parts += [f"**{title}**", its]
    parts.append("## What grows")
    for row, curves in growth(results):
        along, _, what = CURVES[row]
        slopes = ", ".join(f"{NAMES.get(name, name).strip('*')} {exponent(its):+.2f}" for name, its in curves.items())
        file = f"performance-{row.replace(' ', '-')}.svg"
        parts.append(f"![{what} by {along}](pictures/{file})")
        parts.append(f"{what[0].upper()}{what[1:]} by {along}. Exponent (0 is flat, ±1 is proportional): {slopes}.")
    return "\n\n".join(parts)


def write(run: dict[str, Any]) -> None:
    """Put the figures into the page, and draw the plots."""
    for row, curves in growth(run["results"]):
        along, _, what = CURVES[row]
        named = {NAMES.get(name, name).strip("*"): its for name, its in curves.items()}
        (PICTURES / f"performance-{row.replace(' ', '-')}.svg").write_text(curve(named, along, what))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{page(run)}\n\n{END}{after}")


def machine(rabbitmq: str) -> dict[str, str]:
    """What was measured on."""
    info = Path("/proc/cpuinfo")
    model = info.read_text().partition("model name\t: ")[2].partition("\n")[0] if info.exists() else ""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": model or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "rabbitmq": rabbitmq,
    }


if __name__ == "__main__":  # draw the kept run again
    write(json.loads(STORE.read_text()))
    sys.exit(0)
