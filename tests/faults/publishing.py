"""The publisher process of the fault matrix: ``python -m tests.faults.publishing FOLDER``.

Publishes numbers until the file ``stop`` appears in the folder, and none while there is a file ``hold``. It records
there what it ``attempted``, what was ``confirmed``, what ``failed`` (its error's class, and whether the event may be
stored), what was ``cancelled``.
Started again it goes on after the last number it attempted.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from time import monotonic

from broker import Broker, BrokerError, PublishFailed, Settings
from broker.logs import configure
from broker.service import event_loop
from tests.faults.numbers import NumberDrawn, id_of_number
from tests.faults.points import Point, break_channels_on_signal, install, move_clock, note_links
from tests.faults.told import VARIABLE, Publishing, Record, read


class Publisher:
    """Publishes one number after the other, many at a time."""

    def __init__(self, folder: Path, told: Publishing) -> None:
        self._folder = folder
        self._told = told
        before = read(folder / "attempted")
        self._number = 1 + max((int(words[0]) for words in before), default=-1)
        self._attempted = Record(folder / "attempted")
        self._confirmed = Record(folder / "confirmed")
        self._failed = Record(folder / "failed")
        self._cancelled = Record(folder / "cancelled")
        self._room = asyncio.Semaphore(told.concurrency)
        self._under_way: set[asyncio.Task[None]] = set()
        self._tick = move_clock(told.clock) if told.clock else lambda: None

    async def run(self) -> None:
        """Publish until told to stop, and finish what is under way."""
        break_channels_on_signal()
        async with Broker(source="drawing") as broker:
            for _ in range(self._told.backlog):
                await self._begin(broker)
            began, published = monotonic(), 0
            while not (self._folder / "stop").exists():
                due = 0.0 if (self._folder / "hold").exists() else (monotonic() - began) * self._told.rate
                while published < due and not self._room.locked():
                    await self._begin(broker)
                    published += 1
                await asyncio.sleep(0.01)
            await asyncio.gather(*self._under_way)

    async def _begin(self, broker: Broker) -> None:
        await self._room.acquire()
        number, self._number = self._number, self._number + 1
        self._tick()
        task = asyncio.create_task(self._publish(broker, number))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        every = self._told.cancel_every
        if every and number % every == 0:
            asyncio.get_running_loop().call_later(0.001 * (number % 7), task.cancel)

    async def _publish(self, broker: Broker, number: int) -> None:
        event = NumberDrawn(number=number, padding="x" * self._told.padding)
        self._attempted(number)
        try:
            await broker.publish(event, id=id_of_number(number))
        except asyncio.CancelledError:
            self._cancelled(number)
        except BrokerError as error:
            self._failed(number, type(error).__name__, error.stored if isinstance(error, PublishFailed) else "no")
        else:
            self._confirmed(number)
        finally:
            self._room.release()


def main() -> None:
    """Run the process."""
    folder, told = Path(sys.argv[1]), Publishing.model_validate_json(os.environ[VARIABLE])
    configure(Settings())
    note_links()
    if told.point:
        install(told.point, Point(folder, told.kills, told.skip))
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        runner.run(Publisher(folder, told).run())


if __name__ == "__main__":
    main()
