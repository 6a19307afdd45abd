"""Whatever any AMQP client sends to a service is handled or dead-lettered, raw and alone; the next event is in time.

10,000 random messages each way; `make test` sends some hundred of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from hypothesis import strategies as st
from pydantic import SecretStr

from broker import Broker, Envelope, Event, Reject, Retry, Service, Settings
from broker.copies import TRACES
from broker.logs import logger
from broker.service import serve
from tests.fuzz.hostile import DECIMAL, SIZES, bodies, examples, parts, properties, random_properties
from tests.fuzz.wire import Raw, Wire, connected
from tests.waiting import until

SEED = 20_261_123
BATCH = 100
LATEST = 2.0
"""Seconds after which an event that comes behind a batch of hostile messages must have been handled."""
ATTEMPTS = 3
"""How often a batch is sent before it is blamed for a late event, and not a busy machine."""
COUNTS = [200, pytest.param(10_000, marks=[pytest.mark.full])]


class LetterNoted(Event, name="Letter Noted", key="letter.noted"):
    mark: str


class LetterTorn(Event, name="Letter Torn", key="letter.torn"):
    mark: str


class LetterRefused(Event, name="Letter Refused", key="letter.refused"):
    mark: str


class Sentinel(Event, name="Sentinel", key="sentinel"):
    number: int


TYPES = ["Letter Noted", "Letter Torn", "Letter Refused", "Sentinel", "Nobody's"]
ROUTES = [b"letter.noted", b"letter.torn", b"letter.refused", b"odd.thing", b"odd.\xff\xfe", b"odd." + b"x" * 251]
"""The service takes ``odd.#`` by a pattern, so whoever publishes chooses the key."""


@dataclass
class Mail:
    """A service under fire, and where each message has gone, by its mark."""

    handled: Counter[str] = field(default_factory=Counter)
    dead: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    sentinels: list[int] = field(default_factory=list)

    def service(self) -> Service:
        service = Service("mail", retry=Retry("20ms"))

        @service.on(LetterNoted)
        async def note(event: LetterNoted) -> None:
            self.handled[event.mark] += 1

        @service.on(LetterTorn)
        async def tear(event: LetterTorn) -> None:
            raise ValueError(event.mark)

        @service.on(LetterRefused)
        async def refuse(event: LetterRefused) -> None:
            raise Reject(event.mark)

        @service.on("odd.#")
        async def wonder(envelope: Envelope) -> None:
            self.handled[marked(str(envelope.data).encode()) or marked(envelope._body)] += 1

        @service.on(Sentinel)
        async def wait_for(event: Sentinel) -> None:
            self.sentinels.append(event.number)

        return service

    def bury(self, header: bytes, body: bytes) -> None:
        self.dead.setdefault(marked(body), []).append((header, body))

    def whereabouts(self, mark: str) -> int:
        """How often a message has come out at a door."""
        return self.handled[mark] + len(self.dead.get(mark, []))


def marked(body: bytes) -> str:
    """The mark in a body."""
    found = re.search(rb"<<\w+>>", body)
    return found[0].decode() if found else ""


@dataclass
class Fire:
    """Sends hostile messages, and knows which of them RabbitMQ took."""

    url: str
    wire: Wire | None = None
    taken: dict[str, Raw] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)

    async def send(self, messages: Iterable[Raw]) -> None:
        """Send all at once; after a refusal, which closes the connection, again one by one."""
        wire = await self.open()
        for message, answer in [(it, wire.publish(it)) for it in messages]:
            self.tries[marked(message.body)] += 1
            if await answer:
                self.taken[marked(message.body)] = message
            else:
                await self.send_alone(message)

    async def send_alone(self, message: Raw) -> None:
        wire = await self.open()
        self.tries[marked(message.body)] += 1
        if await wire.publish(message):
            self.taken[marked(message.body)] = message
        else:
            self.refused[wire.closed_because] += 1

    async def open(self) -> Wire:
        """The connection, or another after RabbitMQ closed it."""
        if self.wire is None or self.wire.closed_because:
            await self.close()
            self.wire = await Wire.connect(self.url)
        return self.wire

    async def close(self) -> None:
        if self.wire is not None:
            await self.wire.close()


@asynccontextmanager
async def under_fire(url: str) -> AsyncIterator[tuple[Mail, Fire, Broker]]:
    """The service at work, somebody who reads its dead letters, and a publisher of sound events."""
    mail, settings = Mail(), Settings(url=SecretStr(url), pause_failures=2)
    async with (
        serve(mail.service(), settings, logger(settings)) as standing,
        Broker(settings=settings, source="depot") as broker,
        connected(url) as reader,
    ):
        await reader.consume("mail.dead", mail.bury)
        fire = Fire(url)
        await broker.publish(LetterTorn(mark="<<first>>"))  # its retry queue is young, and not trusted for a while
        await until(lambda: mail.dead and standing.subscriber and not standing.subscriber.busy)
        try:
            yield mail, fire, broker
        finally:
            await fire.close()


async def in_time(mail: Mail, broker: Broker, number: int) -> bool:
    """Publish a sound event, and say whether it was handled soon enough."""
    began = monotonic()
    await broker.publish(Sentinel(number=number))
    await until(lambda: number in mail.sentinels, timeout=30)
    return monotonic() - began < LATEST


async def fire_batches(url: str, messages: list[Raw], lines: list[dict[str, Any]]) -> Fire:
    """Batch after batch, each with a sentinel behind it; every message must come out at one door, once."""
    async with under_fire(url) as (mail, fire, broker):
        del lines[:]
        for number, at in enumerate(range(0, len(messages), BATCH)):
            batch = messages[at : at + BATCH]
            for attempt in range(ATTEMPTS):
                await fire.send(batch)
                if await in_time(mail, broker, ATTEMPTS * number + attempt):
                    break
            else:
                raise AssertionError(f"after batch {number}, an event was late {ATTEMPTS} times of {ATTEMPTS}")
            marks = [mark for it in batch if (mark := marked(it.body)) in fire.taken]
            with suppress(AssertionError):
                await until(lambda: all(map(mail.whereabouts, marks)), timeout=10)  # noqa: B023
            lost = [fire.taken[mark] for mark in marks if not mail.whereabouts(mark)]
            assert not lost
            twice = [fire.taken[mark] for mark in marks if mail.whereabouts(mark) > fire.tries[mark]]
            assert not twice
            wrong = [line for line in lines if line["event"] not in ("dead", "retrying", "handled", "published")]
            assert not wrong
        for mark, letters in mail.dead.items():
            if mark in fire.taken:
                check_complete(fire.taken[mark], *letters[0])
    return fire


def check_complete(sent: Raw, header: bytes, body: bytes) -> None:
    """A dead letter is what was sent. RabbitMQ adds traces; a copy by the service has its own headers."""
    assert body == sent.body
    found, headers = parts(header)
    if any(it[1:].startswith(b"broker-failed-at") for it in headers):
        return  # a copy
    there, fields = parts(sent.properties)
    there.pop("expiration", None)
    assert found == there, (sent, header)
    own = [it for it in fields if not it[1:].startswith(tuple(trace.encode() for trace in TRACES))]
    assert [it for it in own if it not in headers] == [], (sent, header)


def messages(count: int, exchange: str, routes: list[bytes], kinds: dict[str, int]) -> list[Raw]:
    drawn = enumerate(examples(st.tuples(st.sampled_from(routes), properties(kinds), bodies(TYPES)), count, SEED))
    return [Raw(exchange, key, header, body(f"<<{number}>>")) for number, (key, header, body) in drawn]


@pytest.mark.parametrize("count", COUNTS)
async def test_hostile_messages_through_the_exchange_of_all_events(
    count: int, vhost_url: str, lines: list[dict[str, Any]]
) -> None:
    fire = await fire_batches(vhost_url, messages(count, "events", ROUTES, SIZES), lines)
    assert len(fire.taken) == count, fire.refused


@pytest.mark.parametrize("count", COUNTS)
async def test_hostile_messages_through_the_service_s_own_exchange(
    count: int, vhost_url: str, lines: list[dict[str, Any]]
) -> None:
    """Headers that the service itself would write are believed here. No stream is bound, so decimals pass, too."""
    fire = await fire_batches(vhost_url, messages(count, "mail", [b"mail"], SIZES | DECIMAL), lines)
    assert len(fire.taken) == count, fire.refused


@pytest.mark.parametrize("count", COUNTS)
async def test_random_bytes_as_content_header(count: int, vhost_url: str, lines: list[dict[str, Any]]) -> None:
    """RabbitMQ refuses most of them by closing the sender's connection; the others are ours to bear."""
    drawn = enumerate(examples(st.tuples(random_properties, bodies(TYPES)), count, SEED))
    sent = [Raw("mail", b"mail", header, body(f"<<{number}>>")) for number, (header, body) in drawn]
    fire = await fire_batches(vhost_url, sent, lines)
    assert len(fire.taken) + fire.refused.total() == count
    assert len(fire.taken) > count / 10, fire.refused
