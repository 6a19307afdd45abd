"""Settling a delivery ends, whatever becomes of its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError

from broker.rabbitmq.plain import PlainDelivery
from tests.waiting import counted, until


class Channel:
    """As aiormq's while a connection closes: it takes frames, and nobody empties its line any more."""

    def __init__(self) -> None:
        self.is_closed = False
        self.room = asyncio.Event()
        self.sent: list[str] = []

    async def basic_ack(self, tag: int, *, wait: bool) -> None:
        await self._put(f"ack {tag}")

    async def basic_nack(self, tag: int, *, requeue: bool, wait: bool) -> None:
        await self._put(f"nack {tag}")

    async def basic_reject(self, tag: int, *, requeue: bool, wait: bool) -> None:
        await self._put(f"reject {tag}")

    async def _put(self, frame: str) -> None:
        if self.is_closed:
            raise ChannelInvalidStateError("closed")
        await self.room.wait()
        self.sent.append(frame)


WAYS: list[Callable[[PlainDelivery], Any]] = [
    PlainDelivery.ack,
    PlainDelivery.reject,
    PlainDelivery.release,
]


def delivery(channel: Channel) -> PlainDelivery:
    delivered: Any = SimpleNamespace(delivery_tag=7)
    open_channel: Any = channel
    return PlainDelivery(open_channel, delivered)


@pytest.mark.parametrize("settle", WAYS)
async def test_settling_ends_when_the_connection_does(settle: Callable[[PlainDelivery], Any]) -> None:
    channel = Channel()
    settling = asyncio.create_task(settle(delivery(channel)))
    await asyncio.sleep(0)
    channel.is_closed = True
    async with asyncio.timeout(30):
        await settling
    assert channel.sent == []


@pytest.mark.parametrize("settle", WAYS)
async def test_settling_waits_for_room(settle: Callable[[PlainDelivery], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel()
    tries = counted(monkeypatch, channel, "_put")
    settling = asyncio.create_task(settle(delivery(channel)))
    await until(lambda: len(tries) == 2)
    channel.room.set()
    async with asyncio.timeout(30):
        await settling
    assert len(channel.sent) == 1
