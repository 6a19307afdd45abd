"""A TCP proxy between a process and RabbitMQ that can reset, stall or slow down what passes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK = 65536


class Proxy:
    """Passes bytes on, both ways, until told otherwise. Use it in ``async with``.

    Args:
        url: RabbitMQ's address; `url` is the same, through the proxy.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "localhost", parts.port or 5672)
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._rate: float | None = None
        self._latency = 0.0
        self.resume()

    @property
    def url(self) -> str:
        """Where clients connect."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        login = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()

    def stall(self, *, up: bool = True, down: bool = True) -> None:
        """Pass no byte on, to RabbitMQ (up) or from it (down), and close nothing: a black hole."""
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def slow(self, *, rate: float, latency: float) -> None:
        """Pass so many bytes a second each way, each so many seconds later."""
        self._rate, self._latency = rate, latency

    def crumble(self) -> None:
        """Pass single bytes on, from RabbitMQ."""
        self._crumbs = True

    def inject(self, data: bytes) -> None:
        """Send every client what RabbitMQ did not."""
        for client in self._clients:
            client.write(data)

    def resume(self) -> None:
        """Pass on as before."""
        self._crumbs = False
        self._up.set()
        self._down.set()
        self._rate, self._latency = None, 0.0

    def reset(self) -> None:
        """Reset every connection (RST)."""
        for writer in list(self._writers):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.resume()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        self._clients.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            there, other = await asyncio.open_connection(*self._target)
            self._writers.add(other)
            await asyncio.gather(self._pump(reader, other, self._up), self._pump(there, writer, self._down))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(writer)
            for one in (writer, other):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        """Raises ConnectionError at the end, so that the other direction ends, too."""
        while True:
            await gate.wait()
            data = await reader.read(CHUNK if self._rate is None else 2048)
            await gate.wait()
            if not data:
                raise ConnectionResetError
            if self._rate is not None:
                await asyncio.sleep(self._latency + len(data) / self._rate)
            crumbs = self._crumbs and writer in self._clients
            for at in range(0, len(data), 1 if crumbs else len(data)):
                writer.write(data[at : at + 1] if crumbs else data)
                await asyncio.sleep(0)
            await writer.drain()
