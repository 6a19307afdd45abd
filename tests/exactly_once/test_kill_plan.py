"""The plan of the exactly-once run is repeatable, and complete."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from tests.exactly_once.plan import LONGEST, OWNERS, POSTGRESQL, PROCESSES, RABBITMQ, delay, delays, plan

BOTH = (RABBITMQ, POSTGRESQL)


def test_a_seed_makes_one_plan() -> None:
    assert plan(7, 2000, 200) == plan(7, 2000, 200)
    assert plan(7, 2000, 200) != plan(8, 2000, 200)
    first, second = delays(7), delays(7)
    assert [delay(first) for _ in range(50)] == [delay(second) for _ in range(50)]


@pytest.mark.parametrize(("orders", "kills"), [(2000, 200), (40, 6), (10, 50), (5, 2)])
def test_all_orders_are_placed_and_everybody_is_killed_in_turn(orders: int, kills: int) -> None:
    steps = plan(3, orders, kills, BOTH)
    assert len(steps) == kills
    assert sum(step.orders for step in steps) == orders
    assert all(step.orders >= 0 and 0 <= step.pause <= LONGEST for step in steps)
    victims = [step.victim for step in steps]
    assert all(victims.count(server) == max(1, kills // 20) for server in BOTH)
    killed = Counter(victim for victim in victims if victim not in BOTH)
    assert killed.keys() <= set(PROCESSES)
    assert not killed or max(killed.values()) - min(killed[name] for name in PROCESSES) <= 1
    assert {step.change for step in steps} <= {None, *OWNERS}


def test_half_of_the_duplicates_come_at_once() -> None:
    random = delays(1)
    some = [delay(random) for _ in islice(range(1000), 1000)]
    assert 400 < some.count(0.0) < 600
    assert all(0 <= each <= 5 for each in some)
