"""The socket beneath a connection, with a note of when it last brought something whole.

A peer that falls silent (a black hole: no reset, no goodbye) is noticed by this note, sooner than by aiormq's own; so
is one that announced more than it sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from broker.rabbitmq.frames import HEARTBEAT, FrameError, Sink, Splitter

TELL = 5.0
"""Seconds after which aiormq is told that bytes come, though none are for it: it takes silence for a dead peer."""


class NotingReader(asyncio.StreamReader):
    """A stream reader that notes when frames last came, and hands those of registered channels to their sinks.

    Args:
        rubbish: called with what is wrong when what comes is not AMQP; None: all bytes are aiormq's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rubbish: Callable[[str], None] | None) -> None:
        super().__init__(loop=loop)
        self._now = loop.time
        self._rubbish = rubbish
        self.splitter = Splitter()
        self.heard_at = self._told_at = loop.time()

    def feed_data(self, data: Any) -> None:
        now = self._now()
        if self._rubbish is None:
            self.heard_at = now
            super().feed_data(data)
            return
        try:
            others = self.splitter.feed(bytes(data))
        except FrameError as error:
            self._rubbish(f"RabbitMQ sent what is not AMQP: {error}")
            return
        if self.splitter.moved:
            self.heard_at = now
        if not others and now - self._told_at > TELL:
            others = HEARTBEAT
        if others:
            self._told_at = now
            super().feed_data(others)


class Sockets(TransportFactory):
    """Opens the socket of one connection; aiormq calls it.

    Args:
        rubbish: as `NotingReader`'s.
    """

    def __init__(self, rubbish: Callable[[str], None] | None) -> None:
        self._rubbish = rubbish
        self._reader: NotingReader | None = None
        self._transport: asyncio.Transport | None = None
        self._resting = False

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, with TLS and verification if the address says ``amqps``."""
        provider = options.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = NotingReader(loop, self._on_rubbish if self._rubbish else None)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, url.host or "", url.port or 0, ssl=context, **options
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        reader.heard_at = loop.time()
        self._reader, self._transport = reader, transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    @property
    def silence(self) -> float:
        """Seconds since a whole frame last came; while a content is incomplete, one that is ours."""
        if self._reader is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._reader.heard_at

    @property
    def half(self) -> bool:
        """Whether what came last is only a part of a frame, or of a content."""
        return self._reader is not None and not self._reader.splitter.moved

    def attach(self, channel: int, sink: Sink, frame_max: int) -> None:
        """Hand a channel's deliveries, returns and confirms to a sink."""
        assert self._reader is not None, "connected"
        self._reader.splitter.frame_max = frame_max
        self._reader.splitter.channels[channel] = sink

    def detach(self, channel: int) -> None:
        """The end of `attach`."""
        if self._reader is not None:
            self._reader.splitter.channels.pop(channel, None)

    def write(self, data: bytes) -> None:
        """Send whole frames."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def rest(self, seconds: float) -> bool:
        """Read on in a moment: what comes meanwhile is then read at once. False if it rests already."""
        if self._transport is None or self._resting or self._transport.is_closing():
            return False
        self._resting = True
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(seconds, self._read_on)
        return True

    def _read_on(self) -> None:
        self._resting = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _on_rubbish(self, why: str) -> None:
        self.abort()
        if self._rubbish is not None:
            self._rubbish(why)

    def abort(self) -> None:
        """Drop the connection without a goodbye, for a peer that would not answer it."""
        if self._transport is not None:
            self._transport.abort()
