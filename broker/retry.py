"""What becomes of a delivery: a pure function of how its handling ended and how often it was tried.

========================================  ======================
handling ended with                       decision
========================================  ======================
success                                   acknowledge
``Reject``, ``Malformed``                 dead-letter
an exception of ``never=``                dead-letter
any other, a delay left on the ladder     retry after that delay
any other, none left                      dead-letter
========================================  ======================

And how people write how long and when.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from broker.errors import ContractError, Malformed, Reject

UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h|d)")
LONGEST = 28 * UNITS["d"]


def length(text: str) -> timedelta:
    """How long ``"90m"``, ``"12h"``, ``"7d"`` is.

    Raises:
        ValueError: it is none of these.
    """
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a number and a unit")
    try:
        return timedelta(milliseconds=float(match[1]) * UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"{text!r} is longer than can be counted") from None


def moment(text: str, now: datetime) -> datetime:
    """A point in time, UTC: so long ago (``"90m"``, ``"7d"``), or an ISO date and time, local unless it says otherwise.

    Raises:
        ValueError: it is neither, or not within the years 1 and 9999.
    """
    try:
        if DURATION.fullmatch(text):
            return (now - length(text)).astimezone(UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, OverflowError):
        raise ValueError(f"{text!r} is no point in time within the years 1 and 9999") from None


@dataclass(frozen=True, slots=True, order=True)
class Delay:
    """How long a retry waits, in whole milliseconds. As text it is the last part of its queue's name: ``30s``."""

    milliseconds: int

    @classmethod
    def parse(cls, text: str) -> Delay:
        """Read ``"250ms"``, ``"1s"``, ``"1.5m"``, ``"2h"``, ``"1d"``.

        Raises:
            ContractError: it is none of these, or not within 1 ms and 28 days.
        """
        match = DURATION.fullmatch(text) if isinstance(text, str) else None
        milliseconds = round(float(match[1]) * UNITS[match[2]]) if match else 0
        if not 1 <= milliseconds <= LONGEST:
            raise ContractError(
                f"{text!r} is not a delay. Write a number and a unit: '500ms', '30s', '10m', '2h', up to '28d'."
            )
        return cls(milliseconds)

    def __str__(self) -> str:
        unit = next(unit for unit, size in UNITS.items() if self.milliseconds % size == 0)
        return f"{self.milliseconds // UNITS[unit]}{unit}"

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return self.milliseconds / 1000


class Retry:
    """A retry ladder: how long an event waits after its first failure, its second, and so on.

    ``Retry("1s", "30s", "10m", never=[CardDeclined])`` tries four times in all; ``CardDeclined`` dead-letters at once.

    Raises:
        ContractError: no delay, a delay shorter than the one before, or what is not a delay or not an exception.
    """

    def __init__(self, *delays: str, never: Iterable[type[Exception]] = ()) -> None:
        self.delays = tuple(Delay.parse(delay) for delay in delays)
        self.never = tuple(never)
        if not delays:
            raise ContractError(
                "Retry() names no delay. Name at least one, as in Retry('1s', '30s'); "
                "to never retry an error write never=[TheError], or raise Reject in the handler."
            )
        for shorter, longer in zip(self.delays, self.delays[1:], strict=False):
            if longer < shorter:
                raise ContractError(f"Retry{delays}: {longer} comes after {shorter}. Order the delays.")
        for error in self.never:
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise ContractError(f"Retry(never=[{error!r}]) names what is not an exception class.")

    def __repr__(self) -> str:
        never = f", never={[error.__name__ for error in self.never]}" if self.never else ""
        return f"Retry({', '.join(repr(str(delay)) for delay in self.delays)}{never})"

    @property
    def longest(self) -> timedelta:
        """How long an event can be on the ladder altogether, handling itself not counted."""
        return timedelta(milliseconds=sum(delay.milliseconds for delay in self.delays))


DEFAULT = Retry("1s", "30s", "10m")


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Handled: the delivery is done with."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Failed: try again after a delay."""

    delay: Delay


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Failed for good: set it aside for people to look at."""


Decision = Acknowledge | RetryAfter | DeadLetter


def decide(error: Exception | None, attempt: int, ladder: Retry) -> Decision:
    """What becomes of a delivery whose ``attempt``-th handling (from 1 on) ended with ``error``, or without one."""
    if error is None:
        return Acknowledge()
    if isinstance(error, (Reject, Malformed, *ladder.never)) or attempt > len(ladder.delays):
        return DeadLetter()
    return RetryAfter(ladder.delays[attempt - 1])
