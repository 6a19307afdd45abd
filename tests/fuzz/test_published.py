"""Whatever our publisher accepts is confirmed and arrives as it was; nothing it accepts closes its connection.

10,000 random events and 10,000 random copies; `make test` sends some hundred of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import strategies as st
from pydantic import JsonValue, SecretStr, ValidationError

from broker import Broker, Context, Event, Service, Settings
from broker.copies import Failure, copy
from broker.errors import ContractError
from broker.events import id_of
from broker.logs import logger
from broker.rabbitmq import RabbitMQ
from broker.service import serve
from broker.topology import dead_queue, service_topology
from broker.transport import Delivery, Message
from tests.fuzz.hostile import NAMES, examples
from tests.waiting import until

SEED = 20_261_123
BATCH = 500
COUNTS = [300, pytest.param(10_000, marks=[pytest.mark.full])]

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - hypothesis adds the time zone

any_text = st.text(st.characters(), max_size=30)
"""Every character, lone surrogates included."""
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
any_time = st.datetimes(EPOCH) | st.datetimes(EPOCH, timezones=offsets)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)


class EverythingSaid(Event, name="Everything Said", key="everything.said", subject="text"):
    """A field of each kind."""

    text: str
    number: float
    integer: int
    amount: Decimal
    at: datetime
    day: date
    took: timedelta
    id: UUID
    anything: JsonValue


fields = st.fixed_dictionaries(
    {
        "text": any_text,
        "number": st.floats(),
        "integer": st.integers(),
        "amount": st.decimals(),
        "at": any_time,
        "day": st.dates(),
        "took": st.timedeltas(),
        "id": st.uuids(),
        "anything": any_json,
    }
)


@pytest.mark.parametrize("count", COUNTS)
async def test_events(count: int, vhost_url: str, lines: list[dict[str, Any]]) -> None:
    """Refused when it is constructed or published, in our own terms; else it arrives equal, under its id."""
    handled: dict[UUID, EverythingSaid] = {}
    service, settings = Service("listener"), Settings(url=SecretStr(vhost_url))

    @service.on(EverythingSaid)
    async def listen(event: EverythingSaid, context: Context) -> None:
        handled[context.event_id] = event

    everything = [event for it in examples(fields, count, SEED) if (event := made(it)) is not None]
    async with serve(service, settings, logger(settings)), Broker(settings=settings, source="speaker") as broker:
        del lines[:]
        sent: dict[UUID, EverythingSaid] = {}
        for events in batches(everything):
            answers = await asyncio.gather(*map(broker.publish, events), return_exceptions=True)
            assert {type(answer) for answer in answers} <= {UUID, ContractError}
            sent |= {id_of(it): it for it, answer in zip(events, answers, strict=True) if isinstance(answer, UUID)}
            await until(lambda: len(handled) == len(sent), 20)  # noqa: B023
    assert len(sent) > count / 4
    assert handled == sent
    assert {line["event"] for line in lines} <= {"published", "handled", "draining", "stopped"}


def made(values: dict[str, Any]) -> EverythingSaid | None:
    """The event, if it can be constructed."""
    try:
        return EverythingSaid(**values)
    except ValidationError:
        return None


headers = st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=60).filter(lambda name: len(name.encode()) < 256),
    st.text(max_size=40)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary(max_size=40)
    | st.sampled_from(["x" * 50_000, b"\xff" * 50_000])
    | st.datetimes(EPOCH, timezones=st.just(UTC)),
    max_size=8,
)
short_texts = st.none() | st.text(max_size=60)
"""What `Delivery.message` holds, pamqp's work: text that is valid UTF-8, integers of 64 bits."""
messages = st.builds(
    Message,
    exchange=st.just("events"),
    key=st.text(max_size=20),
    body=st.binary(max_size=100),
    content_type=short_texts,
    type=short_texts,
    correlation_id=short_texts,
    app_id=short_texts,
    timestamp=st.none() | st.datetimes(EPOCH, timezones=st.just(UTC)),
    headers=headers,
)
failures = st.builds(
    lambda text, attempt, key, handler: Failure(
        "listener", handler, ValueError(text), attempt, key, datetime(2026, 11, 23, tzinfo=UTC)
    ),
    any_text | st.sampled_from(["x" * 200_000, "\ud800" * 5000]),
    st.integers(1, 10**6),
    st.text(max_size=40),
    st.text(max_size=40),
)


@pytest.mark.parametrize("count", COUNTS)
async def test_copies(count: int, vhost_url: str, lines: list[dict[str, Any]]) -> None:
    """A copy of whatever came in, after whatever error, is confirmed, and says why."""
    settings = Settings(url=SecretStr(vhost_url))
    transport = RabbitMQ(settings, logger(settings), "listener")
    arrived: dict[int, list[Delivery]] = defaultdict(list)
    pairs = [
        (number, Message(**{**fields_of(message), "body": message.body + b"#%d" % number}), failure)
        for number, (message, failure) in enumerate(examples(st.tuples(messages, failures), count, SEED))
    ]
    try:
        await transport.connect()
        await transport.declare(service_topology("listener", [], "events"))
        await transport.consume(
            dead_queue("listener"), lambda it: arrived[int(it.message.body.rpartition(b"#")[2])].append(it), prefetch=0
        )
        del lines[:]
        for batch in batches(pairs):
            copies = {number: copy(message, failure, "listener.dead") for number, message, failure in batch}
            await asyncio.gather(*(transport.publish(it, mandatory=True, timeout=10) for it in copies.values()))
            await until(lambda: all(number in arrived for number in copies), 20)  # noqa: B023
            for number, sent in copies.items():
                (delivery,) = arrived[number]
                assert delivery.message.body == sent.body
                differing = set(map(name_sent, sent.headers)) ^ set(delivery.message.headers)
                assert [name for name in differing if not name.startswith("x-opt-")] == []  # those are RabbitMQ's own
                assert delivery.message.headers["broker-error"] == sent.headers["broker-error"]
                await delivery.ack()
    finally:
        await transport.close()
    assert [line["event"] for line in lines] == []


def name_sent(name: str) -> str:
    """Of a header's name, as pamqp writes it: AMQP's own limit is 128 bytes, RabbitMQ's 255."""
    return name.encode()[:128].decode(errors="ignore")


def fields_of(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__slots__}


def batches(all_of_them: Iterable[Any]) -> Iterable[list[Any]]:
    left = iter(all_of_them)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch
