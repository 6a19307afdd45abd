"""What an act works with: the processes, RabbitMQ, the view, and waiting that watches all of them meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from broker import Settings
from broker.tools.management import Management, Queue
from services.demo.commands import Commands
from services.demo.goods import Goods, invent
from services.demo.lines import LogLine
from services.demo.processes import DemoFailed, Process, Processes
from services.demo.view import Row, View

T = TypeVar("T")
TICK = 0.05
"""Seconds between two looks at the processes."""
COUNT_EVERY = 0.5
"""Seconds between two looks at the queues."""


@dataclass
class Stage:
    """One run of the demo."""

    folder: Path
    """Databases, logs and e-mails."""
    processes: Processes
    commands: Commands
    management: Management
    settings: Settings
    """How RabbitMQ is reached."""
    view: View
    orders: int
    victim: str = "packing"
    """The service that is killed on the way."""
    goods: Goods = field(default_factory=invent)
    placed: list[dict[str, Any]] = field(default_factory=list)
    """The orders as the command that placed them printed them."""
    queues: dict[str, Queue] = field(default_factory=dict)
    """RabbitMQ's queues, as last seen."""
    _counted: float = 0.0

    @property
    def patience(self) -> float:
        """Seconds after which something that has not happened will not."""
        return 60.0 + 0.25 * self.orders

    def lines(self) -> Iterable[LogLine]:
        """Everything that the services have logged."""
        return (line for process in self.processes for line in process.lines)

    def handled(self, service: str, event: str) -> int:
        """How many different events of this name a service says it handled."""
        return len({line.event_id for line in self.processes[service].lines if _is(line, event)})

    def waiting(self, service: str) -> int:
        """Events in a service's queue, those it has in hand included."""
        queue = self.queues.get(service)
        return queue.ready + queue.unacked if queue is not None else 0

    def write(self, name: str, text: str) -> None:
        """Write a file next to the data."""
        (self.folder / name).write_text(text, encoding="utf-8")

    async def tick(self) -> None:
        """Look at everything once; raises :exc:`DemoFailed` when a process has died that nobody killed."""
        for process in self.processes:
            process.read()
        if time.monotonic() - self._counted > COUNT_EVERY:
            await self.count()
        self.view.show([self._row(process) for process in self.processes])
        for process in self.processes:
            process.check()

    async def count(self) -> None:
        """Look at the queues now."""
        self.queues = {queue.name: queue for queue in await self.management.queues()}
        self._counted = time.monotonic()

    async def until(self, condition: Callable[[], bool], what: str, patience: float | None = None) -> None:
        """Watch until the condition holds; raises :exc:`DemoFailed` saying what was waited for."""
        patience = patience or self.patience
        deadline = time.monotonic() + patience
        await self.tick()
        while not condition():
            if time.monotonic() > deadline:
                raise DemoFailed(f"After {patience:.0f} s still waiting until {what}.")
            await asyncio.sleep(TICK)
            await self.tick()

    async def pause(self, seconds: float) -> None:
        """Watch for some seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await self.tick()
            await asyncio.sleep(min(TICK, left))

    async def during(self, work: Awaitable[T]) -> T:
        """Watch while some work is done, and return its result."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await self.tick()
                await asyncio.wait({task}, timeout=TICK)
        finally:
            task.cancel()
            await asyncio.wait({task})
        return task.result()

    def _row(self, process: Process) -> Row:
        listens = process.name in self.queues
        return Row(
            service=process.name,
            pid=process.pid,
            state=process.state,
            waiting=self.waiting(process.name) if listens else None,
            handled=process.handled.total() if listens else None,
            last=process.last,
        )


def _is(line: LogLine, event: str) -> bool:
    return line.event == "handled" and line.event_name == event
