"""Stopping a process of the fault matrix at an exact place: killed (-9) there, or held there until told to go on.

===============  ==================================================================================
``publishing``   a publish is on the wire, its confirm has not come
``handled``      the handler is done, what it returned is confirmed, nothing is acknowledged
``copied``       a retry's or dead letter's copy is confirmed, the original is not acknowledged
``declared``     a queue is declared, other queues or bindings are not; the event log counts, too
``given back``   draining: a delivery in line is about to be given back
===============  ==================================================================================
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import broker.publisher
import broker.rabbitmq.declare
import broker.subscriber
from broker.rabbitmq.direct import DirectDelivery
from broker.rabbitmq.link import Link
from broker.rabbitmq.plain import PlainDelivery
from broker.rabbitmq.transport import RabbitMQ
from broker.subscriber import Subscriber
from tests.faults.told import Record, read


class Point:
    """One place in a process.

    Args:
        folder: where ``point`` notes each stop, and ``go on`` ends a wait.
        kills: how often, over all lives of the process, it is killed here; 0: it waits instead.
        skip: how often this process passes before.
    """

    def __init__(self, folder: Path, kills: int, skip: int) -> None:
        self._folder = folder
        self._kills = kills
        self._skip = skip
        self._note = Record(folder / "point")

    async def __call__(self) -> None:
        """Somebody is here."""
        if self._skip > 0:
            self._skip -= 1
        elif self._kills and len(read(self._folder / "point")) < self._kills:
            self._note(os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
        elif not self._kills and not (self._folder / "go on").exists():
            self._note(os.getpid())
            while not (self._folder / "go on").exists():  # noqa: ASYNC110  (another process makes it)
                await asyncio.sleep(0.01)


def install(name: str, point: Point) -> None:
    """Put a point at a place."""
    match name:
        case "publishing":
            _publishing(point)
        case "handled":
            _before(DirectDelivery, "ack", point)
            _before(PlainDelivery, "ack", point)
        case "copied":
            _after(Subscriber, "_copy", point)
        case "declared":
            _after(broker.rabbitmq.declare, "_queue", point)
            _after(broker.rabbitmq.declare, "_shared_queue", point)
        case "given back":
            _before(DirectDelivery, "release", point)
            _before(PlainDelivery, "release", point)
        case _:
            raise ValueError(name)


def _before(owner: Any, name: str, point: Point) -> None:
    function: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def wrapped(*args: Any, **named: Any) -> Any:
        await point()
        return await function(*args, **named)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, point: Point) -> None:
    function: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def wrapped(*args: Any, **named: Any) -> Any:
        result = await function(*args, **named)
        await point()
        return result

    setattr(owner, name, wrapped)


def _publishing(point: Point) -> None:
    publish = RabbitMQ.publish

    async def wrapped(self: RabbitMQ, *args: Any, **named: Any) -> None:
        sending = asyncio.ensure_future(publish(self, *args, **named))
        await asyncio.sleep(0)  # what one turn of the loop publishes is written at its end
        try:
            await point()
            await sending
        finally:
            sending.cancel()

    RabbitMQ.publish = wrapped  # type: ignore[method-assign]


_links: list[Link] = []
_breaking: set[asyncio.Task[None]] = set()


def note_links() -> None:
    """Keep hold of every connection this process is going to make."""
    init = Link.__init__

    def noting(self: Link, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        _links.append(self)

    Link.__init__ = noting  # type: ignore[method-assign]


def break_channels_on_signal() -> None:
    """On SIGUSR1 do something on every channel of this process that RabbitMQ answers by closing it (406)."""

    async def break_channel(link: Link) -> None:
        await (await link.channel()).basic_ack(1_000_000, wait=False)

    def on_signal() -> None:
        for link in _links:
            task = asyncio.create_task(break_channel(link))
            _breaking.add(task)
            task.add_done_callback(_breaking.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, on_signal)


def move_clock(jumps: tuple[float, ...], every: int = 200) -> Callable[[], None]:
    """Let this process's wall clock jump; returns what to call for each event: the clock jumps each ``every`` calls."""
    real, real_ns = time.time, time.time_ns
    offset = 0.0
    calls = 0

    class Moved(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(real() + offset, tz or UTC)

    time.time = lambda: real() + offset
    time.time_ns = lambda: real_ns() + int(offset * 1e9)
    for module in (broker.publisher, broker.subscriber):
        module.datetime = Moved  # type: ignore[attr-defined]

    def tick() -> None:
        nonlocal calls, offset
        if jumps:
            offset = jumps[min(calls // every, len(jumps) - 1)]
        calls += 1

    return tick
