"""A small SMTP server that counts what it is given."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from uuid import UUID


class Post:
    """What was sent.

    Attributes:
        url: where to send it.
        taken: how often each e-mail was accepted, by its Message-ID.
    """

    def __init__(self) -> None:
        self.url = ""
        self.taken: Counter[str] = Counter()

    def by_order(self) -> Counter[UUID]:
        """How often each order's e-mail was accepted. Its Message-ID begins with the order's id."""
        found: Counter[UUID] = Counter()
        for message_id, count in self.taken.items():
            found[UUID(message_id.strip("<>").partition("@")[0])] += count
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""

        async def say(words: str) -> None:
            writer.write(words.encode() + b"\r\n")
            await writer.drain()

        try:
            await say("220 exactly-once")
            while line := await reader.readline():
                match line.split()[0].upper() if line.split() else b"":
                    case b"DATA":
                        await say("354 go on")
                        await self._take(reader)
                        await say("250 taken")
                    case b"QUIT":
                        await say("221 bye")
                        break
                    case _:
                        await say("250 ok")
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side was killed
        finally:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        content = b""
        while (line := await reader.readuntil(b"\n")) != b".\r\n":
            content += line
        self.taken[str(message_from_bytes(content)["Message-ID"])] += 1


@asynccontextmanager
async def post_office() -> AsyncIterator[Post]:
    """A server on a free port of this machine, for as long as the context lasts."""
    post = Post()
    async with await asyncio.start_server(post.serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        post.url = f"smtp://{host}:{port}"
        yield post
