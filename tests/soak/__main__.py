"""A long run under load with random faults, ``make soak``.

One publisher and three subscribers, each a process behind a TCP proxy of its own, on a RabbitMQ that is the run's own.
``SEED``, ``EVENTS`` and ``FAULTS`` in the environment say which faults, how many events at least, and how many faults;
``RABBITMQ``, on which (`tests.faults.kinds.KINDS`).
Prints what happens, and a report, which a run of full length also writes to docs/reliability.md. Exits 0 when nothing
was lost, nothing falsely confirmed, and everybody worked again within 10 s of each fault's end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from time import monotonic

from broker.tools.management import Management
from broker.topology import dead_queue, service_topology
from tests.acceptance.running import ROOT, Process, environment
from tests.faults.kept import Kept
from tests.faults.kinds import KINDS, loop_name, start
from tests.faults.ledger import Books
from tests.faults.proxy import Proxy
from tests.faults.told import Publishing, read
from tests.faults.world import AnyNode, World
from tests.pages import write
from tests.soak.plan import EVERY, NAMES, PUBLISHER, Fault, plan
from tests.soak.report import ALLOWED, Happened, Outcome, recovery
from tests.waiting import until

EVENTS, FAULTS = 100_000, 30
"""What a run of full length has, at least."""
SETTLING = 120.0
"""Seconds after the last publish within which everything is handled."""


class Soak:
    """One run.

    Args:
        node: a RabbitMQ that may be broken.
        management: of it.
        folder: for the records.
        rate: events a second.
    """

    def __init__(self, node: AnyNode, management: Management, folder: Path, rate: float) -> None:
        self._node = node
        self._folder = folder
        self._rate = rate
        self._world = World(node, node.url, management, folder)
        self._proxies: dict[str, Proxy] = {}
        self._kept: dict[str, Kept] = {}
        self._began = self._ended = monotonic()
        self.happened: list[Happened] = []

    # -- processes -----------------------------------------------------------------------------------------------

    async def start(self, stack: AsyncExitStack) -> None:
        """Declare the queues, and start all processes."""
        async with self._world.transport() as transport:
            for name in NAMES:
                await transport.declare(service_topology(name, ["number.drawn"], "events"))
        for name in (PUBLISHER, *NAMES):
            self._proxies[name] = await stack.enter_async_context(Proxy(self._node.url))
        stack.push_async_callback(self._world.close)
        for name in NAMES:
            (self._folder / name).mkdir()
            self._kept[name] = self._subscriber(name)
            stack.push_async_callback(self._kept[name].close)
        told = Publishing(backlog=0, rate=self._rate)
        self._kept[PUBLISHER] = self._world.publish(told, url=self._proxies[PUBLISHER].url)
        await until(lambda: all(self._count(name) for name in NAMES), 60)

    def _subscriber(self, name: str) -> Kept:
        folder = self._folder / name
        words = (sys.executable, "-m", "tests.soak.listening", str(folder), name)
        told = environment(self._proxies[name].url, BROKER_LOGGING_LEVEL="warning")
        return Kept(lambda: Process(words, ROOT, told, folder / f"output-{monotonic()}"))

    def _count(self, who: str) -> int:
        file = self._folder / "confirmed" if who == PUBLISHER else self._folder / who / "handled"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def say(self, what: str) -> None:
        """A line of progress."""
        counts = ", ".join(f"{name} {self._count(name):,}" for name in NAMES)
        seconds = monotonic() - self._began
        print(f"{seconds:6.0f} s  {what:62}  confirmed {self._count(PUBLISHER):,}; {counts}", flush=True)  # noqa: T201

    # -- faults --------------------------------------------------------------------------------------------------

    async def suffer(self, faults: list[Fault]) -> None:
        """One fault after the other."""
        for number, fault in enumerate(faults, 1):
            ended = self.happened[-1].ended if self.happened else self._began
            await self._pass(max(self._began + number * EVERY, ended + ALLOWED + 2) - monotonic())
            self.say(f"{number:2}/{len(faults)} {fault}")
            began = monotonic()
            await self._inflict(fault)
            self.happened.append(Happened(fault, began, monotonic()))
        await self._pass(EVERY)

    async def _pass(self, seconds: float) -> None:
        """Let time pass, with a word now and then."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            await asyncio.sleep(min(left, 10))
            self.say("")

    async def _inflict(self, fault: Fault) -> None:
        ways: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "channels": self._close_channels,
            "connections": self._close_connections,
            "reset": self._reset,
            "stall": self._stall,
            "slow": self._slow,
            "restart": self._restart,
            "crash": self._crash,
            "pause": self._pause,
            "memory": self._alarm,
        }
        await ways[fault.kind](fault)

    async def _kill(self, fault: Fault) -> None:
        self._kept[fault.who].process.kill()

    async def _close_channels(self, fault: Fault) -> None:
        self._kept[fault.who].process.signal(signal.SIGUSR1)

    async def _close_connections(self, fault: Fault) -> None:
        await self._world.close_connections("drawing" if fault.who == PUBLISHER else fault.who)

    async def _reset(self, fault: Fault) -> None:
        self._proxies[fault.who].reset()

    async def _stall(self, fault: Fault) -> None:
        self._proxies[fault.who].stall()
        await asyncio.sleep(fault.seconds)
        self._proxies[fault.who].resume()

    async def _slow(self, fault: Fault) -> None:
        self._proxies[fault.who].slow(rate=20_000, latency=0.05)
        await asyncio.sleep(fault.seconds)
        self._proxies[fault.who].resume()

    async def _restart(self, fault: Fault) -> None:
        await self._world.do("restart")

    async def _crash(self, fault: Fault) -> None:
        await self._world.do("kill")
        await self._world.do("start")

    async def _pause(self, fault: Fault) -> None:
        await self._world.do("pause")
        await asyncio.sleep(fault.seconds)
        await self._world.do("resume")

    async def _alarm(self, fault: Fault) -> None:
        await self._world.control("set_vm_memory_high_watermark", "0.00001")
        await asyncio.sleep(fault.seconds)
        await self._world.control("set_vm_memory_high_watermark", "0.6")

    # -- the end -------------------------------------------------------------------------------------------------

    async def end(self, events: int) -> None:
        """Publish what is missing, let everything settle, and end all processes."""
        deadline = monotonic() + 60 + 2 * max(0, events - self._count(PUBLISHER)) / self._rate
        while self._count(PUBLISHER) < events and monotonic() < deadline:
            await self._pass(5)
        self._ended = monotonic()
        (self._folder / "stop").touch()
        await self._kept[PUBLISHER].ended()
        with suppress(AssertionError):  # what has not settled by now shows in the books
            await until(self._settled, SETTLING, every=1)
        for name in NAMES:
            await self._kept[name].stop()

    async def _settled(self) -> bool:
        counts = await self._world.counts()
        return not any(ready + unacked for ready, unacked in counts.values())

    async def outcome(self, seed: int) -> Outcome:
        """Balance the books."""
        logged, failed = await self._world._log(), read(self._folder / "failed")
        confirmed = frozenset(self._world.numbers("confirmed"))
        books = {}
        for name in NAMES:
            own = {queue for queue in await self._world.counts() if queue == name or queue.startswith(f"{name}.")}
            left = {queue: await self._world._take(queue) for queue in own}
            books[name] = Books(
                attempted=frozenset(self._world.numbers("attempted")),
                confirmed=confirmed,
                refused=frozenset(int(words[0]) for words in failed if words[2] == "no"),
                handled=Counter(int(words[0]) for words in read(self._folder / name / "handled")),
                waiting=frozenset().union(*(left[queue] for queue in own - {dead_queue(name)})),
                dead=frozenset(left.get(dead_queue(name), ())),
                logged=frozenset(logged),
            )
        version = await self._world.management.version()
        return Outcome(
            seed, version, loop_name(), (monotonic() - self._began) / 60, books, len(failed), self._recoveries()
        )

    def _recoveries(self) -> list[tuple[Happened, float]]:
        files = [self._folder / "confirmed", *(self._folder / name / "handled" for name in NAMES)]
        records = [sorted(float(words[-1]) for words in read(file)) for file in files]
        ends = [*(it.began for it in self.happened[1:]), self._ended]
        return [
            (it, max(recovery(times, it, until=end) for times in records))
            for it, end in zip(self.happened, ends, strict=True)
        ]


async def soak(seed: int, events: int, faults: int, kind: str) -> int:
    """Run it; returns the exit code."""
    print(f"SEED={seed} EVENTS={events} FAULTS={faults} RABBITMQ={kind}", flush=True)  # noqa: T201
    async with AsyncExitStack() as stack:
        node = await asyncio.to_thread(start, kind)
        stack.callback(node.close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        management = await stack.enter_async_context(Management(node.url, node.management_url, timeout=60))
        run = Soak(node, management, folder, rate=1.05 * events / ((faults + 1) * EVERY))
        await run.start(stack)
        await run.suffer(plan(seed, faults))
        await run.end(events)
        outcome = await run.outcome(seed)
    print(f"\n{outcome.text()}\n", flush=True)  # noqa: T201
    if events >= EVENTS and faults >= FAULTS:
        write(f"soak {outcome.series}", outcome.text())
    for wrong in outcome.wrong:
        print(f"WRONG: {wrong}")  # noqa: T201
    short = len(next(iter(outcome.books.values())).confirmed) < events
    if short:
        print(f"WRONG: fewer than {events:,} events were confirmed")  # noqa: T201
    return 1 if outcome.wrong or short else 0


def main() -> int:
    """Run it as the environment says."""
    seed = int(os.environ.get("SEED") or random.randrange(10_000))
    kind = os.environ.get("RABBITMQ") or "any"
    if kind not in KINDS:
        sys.exit(f"RABBITMQ is one of {', '.join(KINDS)}, not {kind!r}.")
    events, faults = int(os.environ.get("EVENTS") or EVENTS), int(os.environ.get("FAULTS") or FAULTS)
    return asyncio.run(soak(seed, events, faults, kind))


if __name__ == "__main__":
    sys.exit(main())
