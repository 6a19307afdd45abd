"""The socket beneath a connection, with a note of when bytes last came.

A peer that falls silent (a black hole: no reset, no goodbye) is noticed by this note, sooner than by aiormq's own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL


class NotingReader(asyncio.StreamReader):
    """A stream reader that notes when bytes last came."""

    heard_at = 0.0

    def feed_data(self, data: Any) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        super().feed_data(data)


class Sockets(TransportFactory):
    """Opens the socket of one connection; aiormq calls it."""

    def __init__(self) -> None:
        self._reader: NotingReader | None = None
        self._transport: asyncio.Transport | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, with TLS and verification if the address says ``amqps``."""
        provider = options.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = NotingReader(loop=loop)
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
        """Seconds since bytes last came."""
        if self._reader is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._reader.heard_at

    def abort(self) -> None:
        """Drop the connection without a goodbye, for a peer that would not answer it."""
        if self._transport is not None:
            self._transport.abort()
