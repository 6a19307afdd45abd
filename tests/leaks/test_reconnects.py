"""Reconnecting leaves nothing behind: no memory, no task, no socket, no file descriptor, no thread."""

from __future__ import annotations

import json
import sys

import pytest

from tests.acceptance.running import command

MOST = 0.05
"""The share by which a process may grow."""


@pytest.mark.parametrize(("warm_up", "rounds"), [(20, 50), pytest.param(100, 1000, marks=[pytest.mark.full])])
async def test_reconnects_leave_nothing_behind(warm_up: int, rounds: int, vhost_url: str) -> None:
    """In each round, three connections are cut: a client's, and both of a service."""
    ended = await command(
        sys.executable, "-m", "tests.leaks.reconnecting", str(warm_up), str(rounds), url=vhost_url, patience=1200
    )
    assert ended.code == 0, ended.err[-4000:]
    beginning, warm, worn, closed = map(json.loads, ended.out.splitlines())
    assert worn["rss"] < warm["rss"] * (1 + MOST), (warm, worn)
    for held in ("tasks", "descriptors", "sockets", "threads"):
        assert worn[held] == warm[held], held
        assert closed[held] == beginning[held], held
