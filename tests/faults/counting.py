"""The subscriber process of the fault matrix: ``python -m tests.faults.counting FOLDER``.

Its own record is the file ``handled``: number, attempt, process of each handling, written before the handler returns.
What is told to go wrong goes wrong before the record: a handling that failed is not in it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker import Context, Reject, Retry, Service
from tests.faults.numbers import NumberDrawn, NumberSeen
from tests.faults.points import Point, break_channels_on_signal, install, move_clock, note_links
from tests.faults.told import VARIABLE, Handling, Record, read

NAME = "counting"


def service(folder: Path, told: Handling) -> Service:
    """The service, as it was told to behave."""

    @asynccontextmanager
    async def breakable() -> AsyncIterator[None]:
        break_channels_on_signal()
        yield

    counting = Service(NAME, publishes=[NumberSeen], retry=Retry(*told.ladder), lifespan=breakable)
    handled, blocked = Record(folder / "handled"), Record(folder / "blocked")
    tick = move_clock(told.clock) if told.clock else lambda: None

    async def misbehave(number: int, attempt: int) -> None:
        if number in told.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in told.exits:
            os._exit(7)
        if number in told.rejects:
            raise Reject("told to")
        if (
            number in told.fails
            or attempt < told.fails_until_attempt
            or (told.fails_once_every and number % told.fails_once_every == 0 and attempt == 1)
            or (told.fails_while and (folder / told.fails_while).exists())
        ):
            raise ValueError("told to fail")
        if told.hangs_every and number % told.hangs_every == 0:
            await asyncio.Event().wait()  # for ever
        if number in told.cancels:
            raise asyncio.CancelledError
        if number in told.blocks and str(number) not in {words[0] for words in read(folder / "blocked")}:
            blocked(number)
            time.sleep(told.blocks_for)  # noqa: ASYNC251  (the event loop stands still: that is the fault)
            blocked(number)

    @counting.on(NumberDrawn)
    async def count(event: NumberDrawn, context: Context) -> NumberSeen | None:
        tick()
        await asyncio.sleep(told.takes)
        await misbehave(event.number, context.attempt)
        handled(event.number, context.attempt, os.getpid())
        return NumberSeen(number=event.number) if told.publishes else None

    return counting


def main() -> None:
    """Run the process."""
    folder, told = Path(sys.argv[1]), Handling.model_validate_json(os.environ[VARIABLE])
    note_links()
    if told.point:
        install(told.point, Point(folder, told.kills_at_point, told.skip))
    service(folder, told).run()


if __name__ == "__main__":
    main()
