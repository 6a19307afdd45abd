"""A kill switch: when most handlings fail, a database is down, say, stop for a while.

Otherwise the whole queue would march down the retry ladder and into the dead letters. While paused, a service keeps
what it holds (giving it back would count against it), and after the pause tries one delivery: if that fails, it pauses
again; if it is handled, it goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic

from structlog.typing import FilteringBoundLogger

from broker.settings import Settings


class KillSwitch:
    """Watches how handlings end.

    Args:
        settings: ``BROKER_PAUSE_…``.
        log: says ``paused`` and ``resumed``.
        on_change: called after it paused or resumed.
    """

    def __init__(self, settings: Settings, log: FilteringBoundLogger, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._log = log
        self._on_change = on_change
        self._ends: deque[bool] = deque(maxlen=settings.pause_window)
        self._changed = asyncio.Event()
        self._resume_at: float | None = None
        self._trying = False
        self._why = ""

    @property
    def problem(self) -> str | None:
        """Why it is paused, and until when; None when it is not."""
        if self._resume_at is None:
            return None
        until = datetime.now(UTC) + timedelta(seconds=max(0.0, self._resume_at - monotonic()))
        return f"paused until {until:%H:%M:%S} UTC: {self._why}"

    @property
    def paused(self) -> bool:
        """Whether `admit` may wait."""
        return self._resume_at is not None

    async def admit(self) -> None:
        """Return when a delivery may be handled: at once, or, while paused, the one that tries after the pause."""
        while self._resume_at is not None:
            wait = self._resume_at - monotonic()
            if wait <= 0 and not self._trying:
                self._trying = True
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._trying else max(wait, 0)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def note(self, error: Exception | None) -> None:
        """Learn whether handling works: an event was handled (None), or its handler failed."""
        if self._resume_at is not None:
            if self._trying:
                self._conclude_try(error)
            return
        self._ends.append(error is not None)
        if error is None or len(self._ends) < self._settings.pause_window:
            return
        failed = sum(self._ends)
        if failed >= self._share * len(self._ends):
            self._pause(f"{failed} of the last {len(self._ends)} handlings failed, the last with {_named(error)}")

    def ended(self) -> None:
        """A handling ended. If it was the one tried and told nothing, another may be tried."""
        if self._trying:
            self._trying = False
            self._changed.set()

    @property
    def _share(self) -> float:
        return self._settings.pause_failures

    def _conclude_try(self, error: Exception | None) -> None:
        self._trying = False
        if error is not None:
            self._pause(f"the one tried failed, too, with {_named(error)}")
            return
        self._resume_at = None
        self._ends.clear()
        self._changed.set()
        self._log.info("resumed")
        self._on_change()

    def _pause(self, why: str) -> None:
        self._why = why
        self._resume_at = monotonic() + self._settings.pause_seconds
        self._changed.set()
        self._log.error("paused", seconds=self._settings.pause_seconds, why=why)
        self._on_change()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
