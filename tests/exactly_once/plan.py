"""Who is killed, when, between which orders: decided by the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SERVICES = {
    "customer": "customer",
    "catalog": "catalog",
    "address": "address",
    "order": "order",
    "packing": "packing",
    "packing 2": "packing",
    "dispatch": "dispatch",
    "crm": "crm",
    "crm 2": "crm",
    "reporting": "reporting",
}
"""The services' processes, and which service each runs: two of them run twice."""
PLACER = "order place"
"""The command that places the orders."""
RABBITMQ, POSTGRESQL = "RabbitMQ", "PostgreSQL"
PROCESSES = (*SERVICES, PLACER)
OWNERS = ("customer", "catalog", "address")
SERVER_EVERY = 20
"""Of so many kills, one hits each server."""
MEAN = 2.2
"""Seconds between two kills, in the middle. They come as they come: some together, some late."""
LONGEST = 3 * MEAN
CHANGE_EVERY = 4
"""Each so many steps, somebody's details change."""


@dataclass(frozen=True)
class Step:
    """Some orders are placed at once; a moment later, somebody is killed.

    Attributes:
        orders: how many.
        change: whose owner changes one of them, if any: ``customer``, ``catalog`` or ``address``.
        pause: seconds between the first order and the kill.
        victim: a process of `PROCESSES`, or a server.
    """

    orders: int
    change: str | None
    pause: float
    victim: str


def plan(seed: int, orders: int, kills: int, servers: tuple[str, ...] = (RABBITMQ,)) -> list[Step]:
    """The steps of a run. Every process is killed before any is killed again, and each server once at least.

    Args:
        seed: the same seed, the same plan.
        orders: how many, altogether.
        kills: how many, altogether; one for each server at least.
        servers: who else is killed.
    """
    random = Random(seed)
    each = max(1, kills // SERVER_EVERY)
    hit = [server for server in servers for _ in range(each)]
    deck: list[str] = []
    while len(deck) < kills - len(hit):
        deck += random.sample(PROCESSES, len(PROCESSES))
    victims = deck[: max(0, kills - len(hit))]
    for server in hit:
        victims.insert(random.randint(0, len(victims)), server)
    ends = sorted(random.randint(0, orders) for _ in range(kills - 1))
    counts = [end - begin for begin, end in zip([0, *ends], [*ends, orders], strict=True)]
    return [
        Step(
            orders=count,
            change=random.choice(OWNERS) if number % CHANGE_EVERY == 0 else None,
            pause=min(random.expovariate(1 / MEAN), LONGEST),
            victim=victim,
        )
        for number, (count, victim) in enumerate(zip(counts, victims, strict=True))
    ]


def delays(seed: int) -> Random:
    """Decides how long after its first delivery an event is delivered again: see `delay`."""
    return Random(f"{seed} delays")


def delay(random: Random) -> float:
    """Seconds: for a half of them none, so that both are in hand together; else up to five."""
    return 0.0 if random.random() < 0.5 else random.uniform(0, 5)
