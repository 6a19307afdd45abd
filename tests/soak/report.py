"""What came of it: the balance of each subscriber, and how soon after each fault all worked again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tests.faults.ledger import Books
from tests.soak.plan import Fault

ALLOWED = 10.0
"""Seconds from a fault's end until everybody works again, at most."""
AT_ONCE = 2.0
"""Seconds after a fault's end within which a silence that is its consequence begins."""


@dataclass(frozen=True)
class Happened:
    """A fault, and when it began and ended, on the clock that all processes share."""

    fault: Fault
    began: float
    ended: float


def recovery(times: list[float], happened: Happened, until: float) -> float:
    """Seconds from the fault's end until one record goes on: the longest silence that its end interrupts, or that
    begins at once after it.

    Args:
        times: of the record's lines, in order.
        happened: the fault.
        until: when the next fault begins.
    """
    since = [time for time in times if happened.began <= time < until]
    silences = [
        after - max(before, happened.ended)
        for before, after in itertools.pairwise([happened.began, *since, until])
        if before <= happened.ended + AT_ONCE and after > happened.ended
    ]
    return max(silences, default=0.0)


@dataclass(frozen=True)
class Outcome:
    """A run that has ended."""

    seed: int
    version: str
    loop: str
    minutes: float
    books: dict[str, Books]
    failed: int
    faults: list[tuple[Happened, float]]

    @property
    def series(self) -> str:
        """Of RabbitMQ's version: ``3.10``."""
        return ".".join(self.version.split(".")[:2])

    @property
    def wrong(self) -> list[str]:
        """What is not as promised, in words."""
        found = []
        for name, books in self.books.items():
            try:
                books.check()
            except AssertionError as error:
                found.append(f"{name}: {error}")
            if books.waiting or books.dead:
                found.append(f"{name}: {len(books.waiting)} still waiting, {len(books.dead)} dead")
        late = [(happened, took) for happened, took in self.faults if took >= ALLOWED]
        return found + [f"{happened.fault}: all worked again only after {took:.1f} s" for happened, took in late]

    def text(self) -> str:
        """The report, as Markdown."""
        confirmed = len(next(iter(self.books.values())).confirmed)
        recoveries = sorted(took for _, took in self.faults)
        lines = [
            f"RabbitMQ {self.version}, {self.loop}, seed {self.seed}: {confirmed:,} events × {len(self.books)} "
            f"subscribers, {len(self.faults)} faults, {self.minutes:.0f} minutes. {self.failed:,} publishes raised.",
            "",
            "| subscriber | confirmed | handled | lost | falsely confirmed | handled twice |",
            "|---|---|---|---|---|---|",
            *(
                f"| {name} | {len(books.confirmed):,} | {len(books.handled):,} | {books.lost} "
                f"| {len(books.falsely_confirmed)} | {books.twice} |"
                for name, books in self.books.items()
            ),
            "",
            "| fault | lasted | all worked again after |",
            "|---|---|---|",
            *(f"| {it.fault} | {it.ended - it.began:.1f} s | {took:.1f} s |" for it, took in self.faults),
        ]
        if recoveries:
            middle = recoveries[len(recoveries) // 2]
            lines += ["", f"Recovery: median {middle:.1f} s, longest {recoveries[-1]:.1f} s, allowed {ALLOWED:.0f} s."]
        return "\n".join(lines)
