"""Users of RabbitMQ with the permissions that a test gives them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr

from broker.settings import Settings
from broker.tools import mending
from broker.tools.doctor import examine
from broker.tools.management import Management
from broker.tools.server import Server
from broker.topology import Permissions

CODE = "tests.weighing"
"""What stands on the virtual host."""


class Hire(Protocol):
    """Makes a user; returns its address."""

    async def __call__(self, may: Permissions, tags: str = "") -> str: ...


@pytest.fixture
async def hire(vhost_url: str, server: Server) -> AsyncIterator[Hire]:
    """Users of a virtual host in which all stands that `CODE` declares. They go with the test."""
    everybody = Settings(url=SecretStr(vhost_url), management_url=SecretStr(server.api_url))
    await mending.fix(await examine(everybody, [CODE], log=0), lambda said: None)
    async with AsyncExitStack() as stack:
        management = await stack.enter_async_context(Management(vhost_url, server.api_url))

        async def hired(may: Permissions, tags: str = "") -> str:
            name = f"user-{uuid4().hex[:8]}"
            await management.create_user(name, "word", tags=tags)
            stack.push_async_callback(management.delete_user, name)
            await management.permit(name, configure=may.configure, write=may.write, read=may.read)
            await management.permit_topics(name, "events", write=may.topic_write, read=may.topic_read)
            parts = urlsplit(vhost_url)
            return parts._replace(netloc=f"{name}:word@{parts.netloc.rpartition('@')[2]}").geturl()

        yield hired
