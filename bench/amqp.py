"""Just enough AMQP for the limit, and for looking at queues: a socket, frames, nothing decoded."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import unquote, urlsplit


def short(text: str) -> bytes:
    return bytes((len(text.encode()),)) + text.encode()


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return frame(1, channel, struct.pack(">HH", class_id, method_id) + arguments)


class Client:
    """Just enough AMQP: connect, and iterate over frames."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 5672))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kept = b""
        self.socket.sendall(b"AMQP\x00\x00\x09\x01")
        login = f"\0{parts.username}\0{unquote(parts.password or '')}"
        response = struct.pack(">I", len(login)) + login.encode()
        self.call(method(0, 10, 11, b"\0\0\0\0" + short("PLAIN") + response + short("en_US")), 10, 10)
        self.call(b"", 10, 30)
        tune = method(0, 10, 31, struct.pack(">HIH", 2047, 131072, 0))
        vhost = unquote(parts.path[1:]) or "/"
        self.call(tune + method(0, 10, 40, short(vhost) + b"\0\0"), 10, 41, before=True)
        self.call(method(1, 20, 10, b"\0"), 20, 11, before=True)

    def call(self, out: bytes, class_id: int, method_id: int, *, before: bool = False) -> None:
        """Send before (or after) the method has come."""
        if before:
            self.socket.sendall(out)
        wanted = struct.pack(">HH", class_id, method_id)
        while next(self.payloads())[1][:4] != wanted:
            pass
        if not before and out:
            self.socket.sendall(out)

    def count(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        self.socket.sendall(method(1, 50, 10, b"\0\0" + short(queue) + b"\x01\0\0\0\0"))
        payload = next(payload for _, payload in self.payloads() if payload[:4] == struct.pack(">HH", 50, 11))
        return int.from_bytes(payload[5 + payload[4] :][:4])

    def delete(self, queue: str) -> None:
        """Drop a queue."""
        self.call(method(1, 50, 40, b"\0\0" + short(queue) + b"\0"), 50, 41, before=True)

    def purge(self, queue: str) -> None:
        """Empty a queue."""
        self.call(method(1, 50, 30, b"\0\0" + short(queue) + b"\0"), 50, 31, before=True)

    def read_until_quiet(self, seconds: float) -> None:
        """Throw away what still comes, until nothing has come for so long."""
        self.socket.settimeout(seconds)
        with suppress(TimeoutError):
            while self.socket.recv(1 << 20):
                pass

    def payloads(self) -> Iterator[tuple[int, bytes]]:
        """Frames, one by one; reads more when there is none."""
        while True:
            data, at = self.kept, 0
            while len(data) - at >= 8:
                kind, _, size = struct.unpack_from(">BHI", data, at)
                if len(data) - at < size + 8:
                    break
                self.kept = data[at + size + 8 :]
                yield kind, data[at + 7 : at + 7 + size]
                data, at = self.kept, 0
            more = self.socket.recv(1 << 20)
            assert more, "RabbitMQ closed the connection"
            self.kept = data[at:] + more
