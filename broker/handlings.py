"""What became of each event in a service, told to the event log: what `broker story` reads.

A service collects its handlings, and publishes them up to `MOST` or a second at a time, as JSON, to the topic exchange
``<exchange>.handled``, to which nothing but the event log is bound: no subscriber of ``#`` sees them. ::

    {"service": "packing", "handlings": [{"event_id": …, "correlation_id": …, "name": "New Order Placed",
     "outcome": "handled", "attempt": 1, "handler": "pack", "started_us": 1782907200123456, "took_us": 12300}]}

Times are whole microseconds, since 1970 and as long: fractions take longer to write, which counts at each event. And
each is written as soon as it is known, which takes less time than to keep its parts for later; what it has in common
with the one before it, as most have, is made once.

They are for people who ask what happened, not a promise: a process that is killed takes its last second of them along,
and nothing waits for them. They are published apart from everything else, so that no refusal of them disturbs the
service; without the right to write to that exchange it says so once, and does its work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from pydantic_core import to_json
from structlog.typing import FilteringBoundLogger

from broker.errors import AccessRefused, BrokerError, TooLarge, TopologyConflict
from broker.settings import Settings
from broker.topology import handlings_topology
from broker.transport import Message, Transport

MOST = 500
"""Handlings in one message."""
AFTER = 1.0
"""Seconds after which what was collected is published, however little it is."""
CLOSING = 3.0
"""Seconds in which a service that ends tries to publish the rest."""
KEPT = 10_000
"""Handlings that wait for RabbitMQ to take them; beyond, the oldest are forgotten."""
ERROR_MOST = 500
"""Characters of an error's text; the dead letter has the whole."""
TYPE = "Handlings"

Outcome: TypeAlias = Literal["handled", "duplicate", "retrying", "dead"]


Alike: TypeAlias = tuple[str, Outcome, int, str | None, str | None, str | None]
"""What many handlings have in common: the event's name, outcome, attempt, handler, error, delay."""
Noted: TypeAlias = tuple[str, str, int, float, Alike]
"""One handling: ids of event and story; when it began, in microseconds since 1970; seconds it took; the rest."""


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
        self._collected: deque[str] = deque(maxlen=KEPT)
        self._alike: Alike | None = None
        self._common = ""
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
        """Note one handling that has ended."""
        if not self._on:
            return
        alike = handling[4]
        if alike != self._alike:
            self._alike, self._common = alike, common(alike)
        self._collected.append(written(handling, self._common))
        if len(self._collected) == MOST:
            self._enough.set()

    async def close(self) -> None:
        """Publish what is left, and wait for it no longer than `CLOSING`."""
        self._on = False
        if self._working is None:
            return
        self._enough.set()
        await asyncio.wait([self._working], timeout=CLOSING)
        self._working.cancel()
        await asyncio.wait([self._working])
        if self._collected:
            self._log.warning("handlings not recorded", count=len(self._collected))

    async def _work(self) -> None:
        """Publish whenever there are enough, and once a second what there is; at the end, all."""
        going_on = True
        while going_on:
            least = MOST
            try:
                async with asyncio.timeout(AFTER):
                    await self._enough.wait()
            except TimeoutError:
                least = 1
            self._enough.clear()
            try:
                while len(self._collected) >= (least if self._on else 1):
                    await self._publish()
            except (AccessRefused, TopologyConflict) as error:
                self._stop(error)
            except Exception as error:  # whatever it is, the service does its work
                self._say(str(error))
                if self._on:
                    await asyncio.sleep(AFTER)
            going_on = self._on

    async def _publish(self) -> None:
        """The oldest ones, in one message. What cannot be published now waits on."""
        some = [self._collected.popleft() for _ in range(min(MOST, len(self._collected)))]
        message = Message(
            exchange=self._settings.handlings_exchange,
            key=self._service,
            body=body(self._service, some),
            content_type="application/json",
            type=TYPE,
            app_id=self._service,
            timestamp=datetime.now(UTC),
        )
        topology = handlings_topology(self._settings)
        try:
            await self._transport.aside(message, topology, timeout=self._settings.publish_timeout)
            self._failing = False
        except TooLarge as error:  # it always will be
            self._say(str(error))
        except BaseException:
            room = KEPT - len(self._collected)
            self._collected.extendleft(reversed(some[max(0, len(some) - room) :]))
            raise

    def _say(self, error: str) -> None:
        """Once, until it goes well again."""
        if not self._failing:
            self._log.warning("handlings not recorded", error=error)
        self._failing = True

    def _stop(self, error: BrokerError) -> None:
        """Record no more: this user may not, and will not be allowed to while it runs."""
        self._on = False
        self._collected.clear()
        self._log.warning(
            "handlings not recorded",
            error=f"{error} Without them `broker story` shows no subscribers. Grant the permissions of "
            "docs/topology.md, or set BROKER_RECORD_HANDLINGS=off.",
        )


def written(handling: Noted, alike: str) -> str:
    """A handling as it stands in the event log; ``alike`` is what `common` makes of its last part."""
    event_id, story, began, took, _ = handling
    text = str(event_id)
    begun_by = text if story == event_id else str(story)
    return (
        f'{{"event_id":"{text}","correlation_id":"{begun_by}",{alike},'
        f'"started_us":{began},"took_us":{int(took * 1e6)}}}'
    )


def body(service: str, handlings: Iterable[str]) -> bytes:
    """Handlings of a service, in one message."""
    return f'{{"service":"{service}","handlings":[{",".join(handlings)}]}}'.encode()


@lru_cache(maxsize=1000)
def common(alike: Alike) -> str:
    """What many handlings have in common, as it stands in each."""
    name, outcome, attempt, handler, error, delay = alike
    told: dict[str, Any] = {"name": name, "outcome": outcome, "attempt": attempt, "handler": handler}
    if error is not None:
        told["error"] = error[:ERROR_MOST].encode("utf-8", "replace").decode()  # half a character, say
    if delay is not None:
        told["delay"] = delay
    return to_json(told).decode()[1:-1]
