"""What became of each event in a service, told to the event log: what `broker story` reads.

A service collects its handlings, and publishes them up to `MOST` or a second at a time, as JSON, to the topic exchange
``<exchange>.handled``, to which nothing but the event log is bound: no subscriber of ``#`` sees them. ::

    {"service": "packing", "handlings": [{"name": "New Order Placed", "outcome": "handled", "attempt": 1,
     "handler": "pack", "events": ["<event id>", …], "stories": ["<correlation id>", …],
     "began": [1782907200123456, 14, …], "took": [12300, …]}, …]}

Events whose handlings ended alike, one after the other, stand together, as most do: what they have in common is written
once. The rest stands in columns: each event's id, its story's (null: it began the story), when its handling began, and
how long it took, in whole microseconds; the first began so long after 1970, each other so long after the one before it.
This is for RabbitMQ's sake, which keeps it all: what is told like this takes few bytes.

They are for people who ask what happened, not a promise: a process that is killed takes its last second of them along,
and nothing waits for them. They are published apart from everything else, so that no refusal of them disturbs the
service; without the right to write to that exchange it says so once, and does its work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from operator import sub
from typing import Any, Literal, TypeAlias

from pydantic_core import to_json
from structlog.typing import FilteringBoundLogger

from broker.errors import AccessRefused, BrokerError, TooLarge, TopologyConflict
from broker.settings import Settings
from broker.topology import handlings_topology
from broker.transport import Message, Transport

MOST = 2000
"""Handlings in one message: each message is work for RabbitMQ and for us, which a busy service shares among many."""
AT_ONCE = 100
"""Handlings that are written before others run: deliveries wait meanwhile, and with all in hand RabbitMQ does."""
AFTER = 1.0
"""Seconds after which what was collected is published, however little it is."""
CLOSING = 3.0
"""Seconds in which a service that ends tries to publish the rest."""
KEPT = 20_000
"""Handlings that wait for RabbitMQ to take them; beyond, the oldest are forgotten."""
ERROR_MOST = 500
"""Characters of an error's text; the dead letter has the whole."""
TYPE = "Handlings"

Outcome: TypeAlias = Literal["handled", "duplicate", "retrying", "dead"]


Alike: TypeAlias = tuple[str, Outcome, int, str | None, str | None, str | None]
"""What many handlings have in common: the event's name, outcome, attempt, handler, error, delay."""
Noted: TypeAlias = tuple[str, str, int, int, str, Outcome, int, str | None, str | None, str | None]
"""One handling: ids of event and story; when it began, in microseconds since 1970, and how many it took; and what is
`Alike`."""
EACH = 10
"""So many values."""


def body(service: str, parts: Iterable[bytes]) -> bytes:
    """One message of a service's handlings, of parts that are `written`."""
    return b'{"service":%b,"handlings":[%b]}' % (to_json(service), b",".join(parts))


def written(collected: Sequence[Any]) -> bytes:
    """Handlings, which stand one after the other, as a part of a message.

    Raises:
        ValueError: they cannot be.
    """
    events, stories, began, took, *alike = (collected[column::EACH] for column in range(EACH))
    others = [None if story == event_id else story for event_id, story in zip(events, stories, strict=True)]
    columns = {"events": events, "stories": others, "began": began, "took": took}
    runs, start = list[dict[str, Any]](), 0
    for common, some in groupby(zip(*alike, strict=True)):
        part = slice(start, start + sum(1 for _ in some))
        run = as_told(common) | {name: column[part] for name, column in columns.items()}
        runs.append(run | {"began": differences(run["began"])})
        start = part.stop
    return to_json(runs)[1:-1]


class Recorder:
    """Collects what became of each event, and publishes it from time to time.

    Args:
        service: whose handlings they are.
        transport: publishes them.
    """

    def __init__(self, service: str, settings: Settings, transport: Transport, log: FilteringBoundLogger) -> None:
        self._service = service
        self._settings = settings
        self._transport = transport
        self._log = log
        self._collected: list[Any] = []
        self._full: deque[list[Any]] = deque(maxlen=KEPT // MOST)
        self._enough = asyncio.Event()
        self._on = False
        self._working: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin to collect, if handlings are recorded."""
        if self._settings.log and self._settings.record_handlings:
            self._on = True
            self._working = asyncio.create_task(self._work(), name="handlings")

    def note(self, handling: Noted) -> None:
        """Note one handling that has ended.

        On the hot path, so nothing but that; value by value, since tuples that stay are work for Python's collector.
        """
        if not self._on:
            return
        collected = self._collected
        collected += handling
        if len(collected) == MOST * EACH:
            self._turn()
            self._enough.set()

    def _turn(self) -> None:
        """What was collected is to be published; collect anew."""
        self._full.append(self._collected)
        self._collected = []

    async def close(self) -> None:
        """Publish what is left, and wait for it no longer than `CLOSING`."""
        self._on = False
        if self._working is None:
            return
        self._enough.set()
        await asyncio.wait([self._working], timeout=CLOSING)
        self._working.cancel()
        await asyncio.wait([self._working])
        if left := (len(self._collected) + sum(map(len, self._full))) // EACH:
            self._log.warning("handlings not recorded", count=left)

    async def _work(self) -> None:
        """Publish whenever there are enough, and once a second what there is; at the end, all."""
        ending = False
        while not ending:
            with suppress(TimeoutError):
                async with asyncio.timeout(AFTER):
                    await self._enough.wait()
            ending = not self._on
            due = ending or not self._enough.is_set()
            self._enough.clear()
            try:
                await self._publish_full()
                if due and self._collected:  # not before: while RabbitMQ takes nothing, it fills up
                    self._turn()
                    await self._publish_full()
            except (AccessRefused, TopologyConflict) as error:
                self._stop(error)
            except Exception as error:  # whatever it is, the service does its work
                self._say(str(error))
                if self._on:
                    await asyncio.sleep(AFTER)

    async def _publish_full(self) -> None:
        """The oldest first. What cannot be published now waits on."""
        topology = handlings_topology(self._settings)
        while self._full:
            collected, parts = self._full.popleft(), []
            try:
                for start in range(0, len(collected), AT_ONCE * EACH):
                    parts.append(written(collected[start : start + AT_ONCE * EACH]))
                    await asyncio.sleep(0)
                message = Message(
                    exchange=self._settings.handlings_exchange,
                    key=self._service,
                    body=body(self._service, parts),
                    content_type="application/json",
                    type=TYPE,
                    app_id=self._service,
                    timestamp=datetime.now(UTC),
                )
                await self._transport.aside(message, topology, timeout=self._settings.publish_timeout)
                self._failing = False
            except (TooLarge, ValueError) as error:  # it always will be
                self._say(str(error))
            except BaseException:
                if len(self._full) < KEPT // MOST:  # else it is the oldest, and makes room
                    self._full.appendleft(collected)
                raise

    def _say(self, error: str) -> None:
        """Once, until it goes well again."""
        if not self._failing:
            self._log.warning("handlings not recorded", error=error)
        self._failing = True

    def _stop(self, error: BrokerError) -> None:
        """Record no more: this user may not, and will not be allowed to while it runs."""
        self._on = False
        self._collected = []
        self._full.clear()
        self._log.warning(
            "handlings not recorded",
            error=f"{error} Without them `broker story` shows no subscribers. Grant the permissions of "
            "docs/topology.md, or set BROKER_RECORD_HANDLINGS=off.",
        )


def differences(times: Sequence[int]) -> list[int]:
    """The first, and for each other how much later than the one before it, in fewer digits."""
    return [*times[:1], *map(sub, times[1:], times)]


def as_told(alike: Alike) -> dict[str, Any]:
    """What handlings have in common, as it stands beside their columns."""
    name, outcome, attempt, handler, error, delay = alike
    told: dict[str, Any] = {"name": name, "outcome": outcome, "attempt": attempt, "handler": handler}
    if error is not None:
        told["error"] = error[:ERROR_MOST].encode("utf-8", "replace").decode()  # half a character, say
    if delay is not None:
        told["delay"] = delay
    return told
