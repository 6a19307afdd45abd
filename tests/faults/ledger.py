"""The books: from what was confirmed, handled, waits and is dead to what is lost. Pure sets, no RabbitMQ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Books:
    """What the processes recorded and what RabbitMQ holds, by number.

    Attributes:
        attempted: published or about to be.
        confirmed: `publish` returned.
        refused: `publish` raised, and said that the event is not stored.
        handled: how often each was handled, by the subscriber's own record.
        waiting: in the service's queue and its retry queues.
        dead: in its dead letters.
        logged: in the event log.
        removed: how many an operator deleted, as RabbitMQ counted them.
    """

    attempted: frozenset[int] = frozenset()
    confirmed: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    handled: Counter[int] = field(default_factory=Counter)
    waiting: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()
    logged: frozenset[int] = frozenset()
    removed: int = 0

    @property
    def missing(self) -> frozenset[int]:
        """Confirmed, and neither handled nor waiting nor dead."""
        return self.confirmed - self.handled.keys() - self.waiting - self.dead

    @property
    def lost(self) -> int:
        """Of the missing, those that no operator removed."""
        return max(0, len(self.missing) - self.removed)

    @property
    def falsely_confirmed(self) -> frozenset[int]:
        """Confirmed, and not in the event log."""
        return self.confirmed - self.logged

    @property
    def falsely_refused(self) -> frozenset[int]:
        """Said to be not stored, and stored."""
        return self.refused & (frozenset(self.handled) | self.waiting | self.dead | self.logged)

    @property
    def from_nowhere(self) -> frozenset[int]:
        """Held by RabbitMQ or handled, and never published."""
        return (frozenset(self.handled) | self.waiting | self.dead | self.logged) - self.attempted

    @property
    def by_two_doors(self) -> frozenset[int]:
        """Handled, and in the dead letters all the same. A duplicate may do so; without one it must not be."""
        return frozenset(self.handled) & self.dead

    @property
    def twice(self) -> int:
        """How many were handled more than once."""
        return sum(1 for times in self.handled.values() if times > 1)

    def check(self) -> None:
        """Raises AssertionError naming everything that does not balance."""
        wrong = {
            "lost": sorted(self.missing) if self.lost else [],
            "falsely confirmed": sorted(self.falsely_confirmed),
            "falsely refused": sorted(self.falsely_refused),
            "from nowhere": sorted(self.from_nowhere),
        }
        found = [f"{len(numbers)} {what}: {numbers[:20]}" for what, numbers in wrong.items() if numbers]
        assert not found, "; ".join(found)
