"""A process whose connections are cut again and again: ``python -m tests.leaks.reconnecting WARM_UP ROUNDS``.

In each round all its sockets to RabbitMQ are shut down, and it goes on when an event has gone through each of its
connections again: published by a client, handled by a service, and what the service published handled in turn.
Prints what it holds, as lines of JSON: at the beginning, after the warm-up, after the rounds, and after closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from broker import Broker, Service, Settings
from broker.logs import configure, logger
from broker.service import serve
from tests.parcels import ParcelSent, ParcelWeighed, weighed

ONE_ROUND = 30.0
"""Seconds a round may take."""
CHANNELS = 4
"""Of the client, and of the service to publish, to consume, and to tell of its handlings."""


async def say(stage: str, began: float) -> None:
    """Print what this process holds, once its tasks have come to rest."""
    await at_rest()
    gc.collect()
    held = {
        "stage": stage,
        "seconds": round(monotonic() - began, 2),
        "rss": resident(),
        "tasks": tasks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "sockets": sum(1 for _ in sockets()),
        "threads": threading.active_count(),
    }
    print(json.dumps(held), flush=True)  # noqa: T201


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tasks() -> dict[str, int]:
    """The tasks, by what they do."""
    return dict(sorted(Counter(str(task.get_coro()).split()[2] for task in asyncio.all_tasks()).items()))


async def channels_stand() -> None:
    """Wait until each has its channel again, that of the handlings, which nobody waits for, among them."""
    async with asyncio.timeout(ONE_ROUND):
        while tasks().get("Channel._reader", 0) < CHANNELS:  # noqa: ASYNC110  (aiormq tells nobody)
            await asyncio.sleep(0.05)


async def at_rest() -> None:
    """Wait until no task has come or gone for a second; not for longer than 10."""
    deadline, before, since = monotonic() + 10, asyncio.all_tasks(), monotonic()
    while monotonic() < deadline and monotonic() < since + 1:
        await asyncio.sleep(0.05)
        if before != asyncio.all_tasks():
            before, since = asyncio.all_tasks(), monotonic()


def sockets() -> Iterator[int]:
    """The descriptors that are internet sockets."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(entry.stat().st_mode):
                with socket.socket(fileno=os.dup(int(entry.name))) as one:
                    if one.family in (socket.AF_INET, socket.AF_INET6):
                        yield int(entry.name)


def cut(port: int) -> int:
    """Shut down every socket to that port; returns how many."""
    found = 0
    for descriptor in list(sockets()):
        with socket.socket(fileno=os.dup(descriptor)) as one, contextlib.suppress(OSError):
            if one.getpeername()[1] == port:
                one.shutdown(socket.SHUT_RDWR)
                found += 1
    return found


async def reconnect(warm_up: int, rounds: int) -> None:
    """Do the rounds."""
    service, began = Service("packing"), monotonic()
    sent: set[str] = set()
    came = asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    @service.on(ParcelSent)
    async def note(event: ParcelSent) -> None:
        sent.add(str(event.parcel_id))
        came.set()

    settings = Settings()
    log = logger(settings, service="packing")
    port = urlsplit(settings.hosts[0]).port or 5672
    await say("beginning", began)
    async with serve(service, settings, log), Broker(settings=settings, source="scales") as broker:
        for number in range(1 + warm_up + rounds):
            if number:
                assert cut(port) == 3, "a connection is missing"
            parcel = weighed()
            async with asyncio.timeout(ONE_ROUND):
                await broker.publish(parcel)
                while str(parcel.parcel_id) not in sent:
                    came.clear()
                    await came.wait()
            sent.clear()
            if number == warm_up:
                await channels_stand()
                await say("warm", began)
        await channels_stand()
        await say("worn", began)
    await say("closed", began)


def main() -> None:
    """Run the process."""
    configure(Settings())
    asyncio.run(reconnect(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
