"""Which faults, when, against whom: decided by the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

EVERY = 20.0
"""Seconds from the beginning of one fault to the next."""
NAMES = ("packing", "crm", "reporting")
"""The subscribers."""
PUBLISHER = "publisher"

ONE_OF_THEM = {
    "kill": "{who} killed (-9)",
    "channels": "{who}: its channels closed by RabbitMQ (406)",
    "connections": "{who}: its connections closed by an operator",
    "reset": "{who}: TCP connections reset",
    "stall": "{who}: no byte passes for {seconds:.0f} s",
    "slow": "{who}: 20 kB/s and 50 ms for {seconds:.0f} s",
}
RABBITMQ = {
    "restart": "RabbitMQ stopped and started",
    "crash": "RabbitMQ killed (-9) and started",
    "pause": "RabbitMQ frozen for {seconds:.0f} s",
    "memory": "memory alarm for {seconds:.0f} s",
}
KINDS = (*ONE_OF_THEM, *RABBITMQ)


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, whom it hits (a process's name, or RabbitMQ), and how long it lasts, in seconds."""

    kind: str
    who: str
    seconds: float

    def __str__(self) -> str:
        return (ONE_OF_THEM | RABBITMQ)[self.kind].format(who=self.who, seconds=self.seconds)


def plan(seed: int, count: int) -> list[Fault]:
    """So many faults. Each kind comes before any comes again."""
    random = Random(seed)
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += random.sample(KINDS, len(KINDS))
    who = (PUBLISHER, *NAMES)
    return [
        Fault(kind, random.choice(who) if kind in ONE_OF_THEM else "RabbitMQ", random.uniform(4, 10))
        for kind in kinds[:count]
    ]
