"""One measurement: what a child process is told to do, and what it reports."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.order import fields

AT_ONCE = 500
"""Publishes under way at a time, for all."""
PREFETCH = 100
"""Deliveries in hand, for all: our own default."""


@dataclass
class Job:
    """What to measure, and in the end what was measured.

    Attributes:
        url: RabbitMQ's address.
        queues: consumed; the first one, ``bench``, is bound for what is published.
        count: how many events.
        rate: events a second, for `paced`.
        padding: bytes added to each event, or `bench.order.LEAN`.
        message: for the limit: what to publish, as our package would.
        settings: ours, where they are not the defaults.
        options: what one measurement alone needs.
        result: figures by name.
    """

    do: str
    url: str
    queues: list[str] = field(default_factory=lambda: ["bench"])
    count: int = 1000
    rate: float = 0.0
    padding: int = 0
    message: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Time and processor time of what is done inside, for `count` events.

        What was prepared before is frozen: Python's collector would look through all of it two or three times a run.
        """
        gc.collect()
        gc.freeze()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.took(time.perf_counter() - wall, time.process_time() - cpu, self.count)

    def took(self, wall: float, cpu: float, events: int) -> None:
        """Report it."""
        self.result |= {"rate": events / wall, "cpu": cpu / events * 1e6, "events": events}

    @property
    def orders(self) -> list[dict[str, Any]]:
        """The fields of as many orders as are to be published."""
        return [fields(n, self.padding) for n in range(self.count)]

    async def at_once(self, publish: Callable[[Any], Awaitable[Any]], orders: list[Any]) -> None:
        """Publish all, some at a time."""
        with self.measured():
            for at in range(0, len(orders), AT_ONCE):
                await asyncio.gather(*map(publish, orders[at : at + AT_ONCE]))

    async def one_by_one(self, publish: Callable[[Any], Awaitable[Any]], orders: list[Any]) -> None:
        """Publish one after the other, and report how long each took."""
        took = []
        with self.measured():
            for order in orders:
                began = time.perf_counter()
                await publish(order)
                took.append(time.perf_counter() - began)
        self.latencies(took)

    async def paced(self, publish: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
        """Publish so many a second, whether or not the earlier ones are confirmed, for as long as `count` lasts."""
        loop, tasks = asyncio.get_running_loop(), set[asyncio.Future[Any]]()
        began = loop.time()
        for n in range(self.count):
            wait = began + n / self.rate - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            order = fields(n) | {"sent": time.monotonic_ns()}
            task = asyncio.ensure_future(publish(order))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        self.result |= {"events": self.count, "rate": self.count / (loop.time() - began)}

    def latencies(self, seconds: list[float]) -> None:
        """Report percentiles, in milliseconds."""
        ordered = sorted(seconds)
        self.result |= {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] * 1e3 for p in (50, 99)}


class Seen:
    """What a handler does with each order: count it. Begins to measure at the first, ends at the last."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._left = job.count * len(job.queues)
        self._lags: list[float] = []
        self._began = (0.0, 0.0)
        self.all = asyncio.Event()

    def take(self, order: Any) -> None:
        """Handle an order."""
        if order.sent:
            self._lags.append((time.monotonic_ns() - order.sent) / 1e9)
        if self._began[0] == 0:
            self._began = (time.perf_counter(), time.process_time())
            self._job.result["first"] = time.monotonic()
        self._left -= 1
        if self._left == 0:
            wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
            self._job.took(wall, cpu, self._job.count * len(self._job.queues))
            self._job.result["last"] = time.monotonic()
            if self._lags:
                self._job.latencies(self._lags[len(self._lags) // 5 :])  # the first fifth warms up
            self.all.set()


class Turns:
    """A handler in a process that does now one thing, now another; reports the turns of each, but for the first."""

    OF = 20_000

    def __init__(self, job: Job, things: Sequence[str]) -> None:
        self._job = job
        self._things = things
        self._taken = 0
        self._began = (0.0, 0.0)
        self._turns: dict[str, list[tuple[float, float]]] = {it: [] for it in things}
        self.now = things[0]
        self.all = asyncio.Event()

    def take(self, order: Any) -> None:
        """Handle an order."""
        self._taken += 1
        if self._taken % self.OF == 0:
            at = time.perf_counter(), time.process_time()
            if self._taken > self.OF:  # the first warms up
                self._turns[self.now].append((at[0] - self._began[0], at[1] - self._began[1]))
            self._began = at
            self.now = self._things[self._taken // self.OF % len(self._things)]
        if self._taken == self._job.count:
            for it, turns in self._turns.items():
                rates, costs = [self.OF / wall for wall, _ in turns], [cpu / self.OF * 1e6 for _, cpu in turns]
                self._job.result[it] = {"rate": median(rates), "cpu": median(costs), "turns": rates}
            self.all.set()


class Share:
    """A handler of one of several processes of a service: counts, and is done when nothing has come for a while."""

    QUIET = 2.0

    def __init__(self, job: Job) -> None:
        self._job = job
        self._taken, self._began, self._ended = 0, (0.0, 0.0), (0.0, 0.0)

    def take(self, order: Any) -> None:
        """Handle an order."""
        self._ended = time.monotonic(), time.process_time()
        if not self._taken:
            self._began = self._ended
        self._taken += 1

    async def complete(self) -> None:
        """Wait until nothing more comes, and report."""
        taken = -1
        while taken != self._taken:
            taken = self._taken
            await asyncio.sleep(self.QUIET)
        (first, cpu), (last, in_the_end) = self._began, self._ended
        self._job.result |= {"first": first, "last": last, "events": taken, "cpu": (in_the_end - cpu) / max(1, taken) * 1e6}  # fmt: skip  # noqa: E501


def memory() -> float:
    """The most that this process has held, in MiB. (``getrusage`` would tell its parent's, too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
