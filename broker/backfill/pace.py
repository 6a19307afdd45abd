"""How fast a backfill goes: it is in less of a hurry than what happens now."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, process_time

SOME = 20
"""Messages between two looks whether to rest."""
LEAST = 0.002
"""Seconds of one rest, at least: event loops sleep no shorter."""
MOST = 0.02
"""Seconds of one rest, at most: what computes may be another part of the process, without end. A thousand messages
a second hold up nobody."""


class Pace:
    """Tells when to rest, so that this process takes no more than a share of one processor.

    What the service's process computes is what it can see of the work that it makes for RabbitMQ.

    Args:
        share: above 0; with 1 it does not rest.
        used: seconds of processor time that this process has taken.
        now: a clock.
    """

    def __init__(
        self, share: float, *, used: Callable[[], float] = process_time, now: Callable[[], float] = monotonic
    ) -> None:
        self._share = share
        self._used, self._now = used, now
        self._from = used(), now()

    def rest(self) -> float:
        """Seconds to rest, from now on; 0: it may go on. Neither waits nor work beyond `MOST` are made up for later."""
        if self._share >= 1:
            return 0
        used, now = self._used(), self._now()
        used_at, at = self._from
        rest = (used - used_at) / self._share - (now - at)
        if rest > MOST:
            rest = MOST
            self._from = used, now + MOST
        elif rest < 0:
            self._from = used, now
        return rest if rest >= LEAST else 0
