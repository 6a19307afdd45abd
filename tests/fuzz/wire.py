"""An AMQP client that decodes nothing: it publishes and receives the properties of messages as bytes.

Clients in other languages send what no Python client could, and a Python client could not look at it unharmed.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pamqp import commands as amqp
from pamqp import frame
from pamqp.heartbeat import Heartbeat

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
FRAME_MAX = 131_072
CHANNEL = 1


@dataclass(frozen=True, slots=True)
class Raw:
    """A message in bytes.

    Attributes:
        exchange: where it is published.
        key: its routing key; not necessarily text.
        properties: what follows the sizes in its content header: flags, then the properties.
        body: the bytes.
    """

    exchange: str
    key: bytes
    properties: bytes
    body: bytes


class Wire:
    """One connection with one channel in confirm mode; made by `connected`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._published = 0
        self._unconfirmed: dict[int, asyncio.Future[bool]] = {}
        self._receive: Callable[[bytes, bytes], None] = lambda properties, body: None
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self.closed_because = ""

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Log in and open the channel."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        wire = cls(reader, writer)
        writer.write(b"AMQP\x00\x00\x09\x01")
        wire._reading = asyncio.create_task(wire._read())
        await wire._replies.get()
        login = f"\0{unquote(parts.username or '')}\0{unquote(parts.password or '')}"
        await wire._ask(amqp.Connection.StartOk(mechanism="PLAIN", response=login), channel=0)
        wire._send(amqp.Connection.TuneOk(channel_max=8, frame_max=FRAME_MAX, heartbeat=0), channel=0)
        await wire._ask(amqp.Connection.Open(virtual_host=unquote(parts.path[1:]) or "/"), channel=0)
        await wire._ask(amqp.Channel.Open())
        await wire._ask(amqp.Confirm.Select())
        return wire

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    def publish(self, message: Raw) -> asyncio.Future[bool]:
        """Send a message. True: confirmed; False: RabbitMQ refused it, or closed the connection on one before it."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.closed_because:
            answer.set_result(False)
            return answer
        self._published += 1
        self._unconfirmed[self._published] = answer
        method = amqp.Basic.Publish(exchange=message.exchange, routing_key="").marshal()
        route = method[: 2 + 1 + len(message.exchange)] + bytes([len(message.key)]) + message.key + method[-1:]
        head = struct.pack(">HHQ", 60, 0, len(message.body)) + message.properties
        frames = [(METHOD, struct.pack(">HH", 60, 40) + route), (HEADER, head)]
        step = FRAME_MAX - 8
        frames += [(BODY, message.body[at : at + step]) for at in range(0, len(message.body), step)]
        self._writer.write(b"".join(_frame(kind, payload) for kind, payload in frames))
        return answer

    async def consume(self, queue: str, receive: Callable[[bytes, bytes], None]) -> None:
        """Have each message of a queue, properties and body; it is gone from the queue then."""
        self._receive = receive
        await self._ask(amqp.Basic.Consume(queue=queue, no_ack=True))

    # -- frames ----------------------------------------------------------------------------------------------------

    def _send(self, method: Any, channel: int = CHANNEL) -> None:
        self._writer.write(frame.marshal(method, channel))

    async def _ask(self, method: Any, channel: int = CHANNEL) -> Any:
        self._send(method, channel)
        return await self._replies.get()

    async def _read(self) -> None:
        try:
            while True:
                kind, _, size = struct.unpack(">BHI", await self._reader.readexactly(7))
                payload = (await self._reader.readexactly(size + 1))[:-1]
                if kind == METHOD:
                    await self._on_method(payload)
                elif kind == HEARTBEAT:
                    self._writer.write(frame.marshal(Heartbeat(), 0))
        except (asyncio.IncompleteReadError, OSError) as error:
            self._end(str(error))

    async def _on_method(self, payload: bytes) -> None:
        index = struct.unpack(">I", payload[:4])[0]  # what others wrote is not decoded: it may not be text
        if index == amqp.Basic.Deliver.index:
            return self._receive(*await self._content())
        if index in (amqp.Connection.Close.index, amqp.Channel.Close.index):
            code, length = struct.unpack(">HB", payload[4:7])
            self._end(f"{code} {payload[7 : 7 + length].decode(errors='replace')}")
            return self._writer.close()
        method = frame.unmarshal(_frame(METHOD, payload))[2]
        if isinstance(method, amqp.Basic.Ack | amqp.Basic.Nack):
            self._settle(method.delivery_tag or 0, bool(method.multiple), isinstance(method, amqp.Basic.Ack))
        else:
            self._replies.put_nowait(method)
        return None

    async def _content(self) -> tuple[bytes, bytes]:
        _, _, size = struct.unpack(">BHI", await self._reader.readexactly(7))
        head = (await self._reader.readexactly(size + 1))[:-1]
        body = b""
        while len(body) < struct.unpack(">Q", head[4:12])[0]:
            _, _, size = struct.unpack(">BHI", await self._reader.readexactly(7))
            body += (await self._reader.readexactly(size + 1))[:-1]
        return head[12:], body

    def _settle(self, tag: int, multiple: bool, confirmed: bool) -> None:
        tags = [it for it in self._unconfirmed if it <= tag] if multiple else [tag]
        for it in tags:
            self._unconfirmed.pop(it).set_result(confirmed)

    def _end(self, why: str) -> None:
        self.closed_because = self.closed_because or why or "closed"
        for answer in self._unconfirmed.values():
            answer.set_result(False)
        self._unconfirmed.clear()


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, CHANNEL, len(payload)) + payload + END


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Wire]:
    """A connection for as long as the context lasts."""
    wire = await Wire.connect(url)
    try:
        yield wire
    finally:
        await wire.close()
