"""What the processes of the fault matrix are told, and what they write down.

Instructions travel as JSON in one variable of the environment; records are files of lines, appended with one `write`
each, so that whatever kills a process leaves whole lines.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

from pydantic import BaseModel, ConfigDict

VARIABLE = "FAULTS"


class Publishing(BaseModel):
    """How the publisher behaves.

    Attributes:
        backlog: how many it publishes at full speed, in each of its lives, before it slows down.
        rate: events a second from then on, until the file ``stop`` appears.
        concurrency: how many publishes are under way at a time, at most.
        padding: extra bytes in each event.
        cancel_every: each so-manieth publish is cancelled while under way.
        point: where it is stopped, see `tests.faults.points`.
        kills: how often it is killed there; without, it waits there until the file ``go on`` appears.
        skip: how often each life passes the point before.
        clock: seconds by which its wall clock is off, one after the other.
    """

    model_config = ConfigDict(frozen=True)

    backlog: int = 1500
    rate: float = 100
    concurrency: int = 1000
    padding: int = 0
    cancel_every: int = 0
    point: str = ""
    kills: int = 0
    skip: int = 0
    clock: tuple[float, ...] = ()


class Handling(BaseModel):
    """How the subscriber behaves.

    Attributes:
        takes: seconds that one handling takes.
        ladder: its delays.
        fails_once_every: each so-manieth number fails when first tried.
        fails: numbers that always fail.
        fails_until_attempt: every number fails until then.
        fails_while: every number fails while a file of this name exists.
        hangs_every: each so-manieth number waits for an hour.
        rejects: numbers that are rejected.
        kills: numbers that kill the process (-9) whenever they are handled.
        exits: numbers that end the process with `os._exit`.
        cancels: numbers whose handler is cancelled from within, always.
        blocks: numbers that block the event loop, once, for ``blocks_for`` seconds.
        publishes: whether each number handled is announced by a `NumberSeen`.
        point, kills_at_point, skip, clock: as for `Publishing`.
    """

    model_config = ConfigDict(frozen=True)

    takes: float = 0.02
    ladder: tuple[str, ...] = ("200ms", "200ms", "200ms")
    fails_once_every: int = 0
    fails: tuple[int, ...] = ()
    fails_until_attempt: int = 1
    fails_while: str = ""
    hangs_every: int = 0
    rejects: tuple[int, ...] = ()
    kills: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()
    cancels: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    blocks_for: float = 15.0
    publishes: bool = False
    point: str = ""
    kills_at_point: int = 0
    skip: int = 0
    clock: tuple[float, ...] = ()


class Record:
    """A file of lines: words, and when each line was written on the clock that all processes share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, *words: object) -> None:
        """Append one line."""
        line = " ".join([*map(str, words), f"{monotonic():.4f}"])
        os.write(self._file, f"{line}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path) -> list[list[str]]:
    """The whole lines of a record, as words; the last word is the time."""
    if not path.exists():
        return []
    return [line.split() for line in path.read_text().rpartition("\n")[0].splitlines()]
