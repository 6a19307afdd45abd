"""A subscriber process of the soak: ``python -m tests.soak.listening FOLDER NAME``.

Its record is the file ``handled`` in the folder. Each fiftieth number fails when it is tried first.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker import Context, Retry, Service
from tests.faults.numbers import NumberDrawn
from tests.faults.points import break_channels_on_signal, note_links
from tests.faults.told import Record

FAILS_EVERY = 50


def service(folder: Path, name: str) -> Service:
    """The service of that name."""

    @asynccontextmanager
    async def breakable() -> AsyncIterator[None]:
        break_channels_on_signal()
        yield

    listening, handled = Service(name, retry=Retry("200ms", "1s", "5s"), lifespan=breakable), Record(folder / "handled")

    @listening.on(NumberDrawn)
    async def listen(event: NumberDrawn, context: Context) -> None:
        if event.number % FAILS_EVERY == 0 and context.attempt == 1:
            raise ValueError("as always, at first")
        handled(event.number, context.attempt)

    return listening


def main() -> None:
    """Run the process."""
    note_links()
    service(Path(sys.argv[1]), sys.argv[2]).run()


if __name__ == "__main__":
    main()
