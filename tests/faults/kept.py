"""A process that is started again whenever it ends, as a supervisor in production would."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from tests.acceptance.running import PATIENCE, Process


class Kept:
    """Starts a process and keeps it running until `stop`.

    Args:
        start: starts it once.
        code: the exit code with which it ends well.
    """

    def __init__(self, start: Callable[[], Process], code: int = 0) -> None:
        self._start = start
        self._code = code
        self.lives = [start()]
        self.codes: list[int] = []
        """How its lives ended, but for the last; negative: by that signal."""
        self._keeping = asyncio.create_task(self._keep())

    @property
    def process(self) -> Process:
        """Its present life."""
        return self.lives[-1]

    @property
    def err(self) -> str:
        """All that it ever logged."""
        return "".join(process.err for process in self.lives)

    def lines(self, event: str) -> int:
        """How many log lines of that name it wrote, in all its lives."""
        return sum(len(process.lines(event)) for process in self.lives)

    async def _keep(self) -> None:
        while True:
            self.codes.append(await self.process.ended(timeout=10_000))
            self.lives.append(self._start())

    async def leave(self) -> None:
        """Do not start it again."""
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping

    async def ended(self) -> None:
        """Wait for its end, which must be a good one."""
        await self.leave()
        code = await self.process.ended(PATIENCE)
        assert code == self._code, f"ended with {code}:\n{self.process.err[-4000:]}"

    async def stop(self) -> None:
        """SIGTERM, which must end it well."""
        await self.leave()
        self.process.signal(signal.SIGTERM)
        await self.ended()

    async def close(self) -> None:
        """End it, however it is."""
        await self.leave()
        self.process.kill()
