"""The exactly-once run, small: every promise of the long one, in a minute."""

from __future__ import annotations

import sys

from tests.acceptance.running import command

SEED = 101
"""Kills, soon one after the other, Reporting, Order, CRM, and RabbitMQ."""


async def test_nothing_is_lost_and_nothing_happens_twice_whoever_is_killed() -> None:
    told = {"SEED": str(SEED), "ORDERS": "24", "KILLS": "4", "DATABASES": "sqlite,postgresql"}
    ended = await command(sys.executable, "-m", "tests.exactly_once", url="", environ=told, patience=400)
    assert ended.code == 0, f"{ended.out}\n{ended.err}"
    assert "| orders placed | 24 | 24 |" in ended.out
    assert "| processes killed (-9) | 4 | 4 |" in ended.out
    assert "| **lost** | **0** | **0** |" in ended.out
