"""Bytes that any AMQP client may send: that one message is dead-lettered, raw and complete; nothing else happens."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import aiormq
import pytest
from aiormq.abc import AbstractChannel, ChannelFrame, DeliveredMessage
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pydantic import SecretStr

from broker import Broker, Context, Service, Settings
from broker.logs import logger
from broker.rabbitmq.guard import undecodable
from broker.service import serve
from tests.parcels import ParcelSent
from tests.waiting import until


def short(text: bytes) -> bytes:
    return struct.pack(">B", len(text)) + text


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


NESTED = b"\x01aS" + struct.pack(">I", 1) + b"x"
for _ in range(5000):
    NESTED = b"\x01aF" + table(NESTED)

HOSTILE = {
    "timestamp of 2^64-1": (0x0040, struct.pack(">Q", 2**64 - 1)),
    "header timestamp of 2^63": (0x2000, table(b"\x01tT" + struct.pack(">Q", 2**63))),
    "message id that is not UTF-8": (0x0080, short(b"\xff\xfe")),
    "content type that is not UTF-8": (0x8000, short(b"\xff\xfe")),
    "header key that is not UTF-8": (0x2000, table(short(b"\xff\xfe") + b"S" + struct.pack(">I", 1) + b"x")),
    "headers nested 5,000 deep": (0x2000, table(NESTED)),
}


@pytest.fixture
async def client(vhost_url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aiormq.connect(vhost_url)
    yield await connection.channel(publisher_confirms=False)
    await connection.close()


async def send_raw(client: AbstractChannel, flags: int, properties: bytes, body: bytes) -> None:
    """Publish with properties as bytes, as a client in any language could."""
    payload = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
    frames = [
        ChannelFrame.marshall(
            channel_number=client.number, frames=[Basic.Publish(exchange="events", routing_key="parcel.sent")]
        ).payload,
        struct.pack(">BHI", 2, client.number, len(payload)) + payload + b"\xce",
        ChannelFrame.marshall(channel_number=client.number, frames=[ContentBody(body)]).payload,
    ]
    await client.connection.write_queue.put(ChannelFrame(payload=b"".join(frames), should_close=False))


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_properties_are_dead_lettered_raw_and_alone(
    case: str, vhost_url: str, client: AbstractChannel
) -> None:
    handled: list[tuple[UUID, int]] = []
    service = Service("mail")

    @service.on(ParcelSent)
    async def write(event: ParcelSent, context: Context) -> None:
        handled.append((event.parcel_id, context.attempt))

    settings = Settings(url=SecretStr(vhost_url))
    before, after = ParcelSent(parcel_id=uuid4()), ParcelSent(parcel_id=uuid4())
    async with serve(service, settings, logger(settings)), Broker(vhost_url, source="depot") as broker:
        await broker.publish(before)
        flags, properties = HOSTILE[case]
        await send_raw(client, flags, properties, b'{"hostile": true}')
        dead: DeliveredMessage | None = await until(lambda: taken(client, "mail.dead"))
        await broker.publish(after)
        await until(lambda: len(handled) == 2)
    assert dead is not None
    assert dead.body == b'{"hostile": true}'
    assert undecodable(dead.header)
    assert handled == [(before.parcel_id, 1), (after.parcel_id, 1)]


async def taken(client: AbstractChannel, queue: str) -> DeliveredMessage | None:
    """The next message of a queue, taken from it; None if it is empty."""
    message = await client.basic_get(queue, no_ack=True)
    return message if isinstance(message.delivery, Basic.GetOk) else None
