"""Least privilege of those who read the event log and replay from it, on a real RabbitMQ: it is enough, and needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest

from broker import Broker
from broker.settings import Settings
from broker.tools import mending
from broker.tools.doctor import examine
from broker.tools.management import Management
from broker.tools.rights import reader_permissions, replay_permissions
from broker.tools.server import Server
from broker.topology import Permissions
from tests.acceptance.running import BROKER, ROOT, Ended, Process, broker, environment
from tests.parcels import ParcelWeighed

CODE = "tests.weighing"
SETTINGS = Settings(_env_file=None)

Hire = Callable[..., Awaitable[str]]
"""Makes a user with these permissions, and tags; returns its address."""


@pytest.fixture
async def hire(vhost_url: str, server: Server) -> AsyncIterator[Hire]:
    """Users of a virtual host in which all stands that the code declares. They go with the test."""
    everybody = Settings(url=vhost_url, management_url=server.api_url)
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


@pytest.fixture
async def story(hire: Hire, vhost_url: str) -> UUID:
    """An event in the log."""
    async with Broker(vhost_url, source="scales") as scales:
        return await scales.publish(ParcelWeighed(parcel_id=uuid4()))


@pytest.fixture
def environ(server: Server) -> dict[str, str]:
    return {"BROKER_MODULES": CODE, "BROKER_MANAGEMENT_URL": server.management_url}


async def test_whoever_reads_the_log_needs_to_read_it_and_no_more(
    hire: Hire, story: UUID, environ: dict[str, str], tmp_path: Path
) -> None:
    may = reader_permissions(SETTINGS)
    reader = await hire(may)
    logged = await broker("log", "--since", "1h", "--json", url=reader, environ=environ)
    assert str(story) in logged.out
    tail = Process((BROKER, "tail"), ROOT, environment(reader) | environ, tmp_path / "tail")
    await tail.logged("consuming")
    tail.kill()
    told = await broker("story", str(story), "--json", url=reader, environ=environ)
    assert told.json["expected_from"] == "the code"
    tagged = await hire(may, "management")
    told = await broker("story", str(story), "--json", url=tagged, environ=environ)
    assert told.json["expected_from"] == "RabbitMQ's bindings"
    blind = await hire(replace(may, read="^$"))
    assert (await broker("log", "--since", "1h", url=blind, environ=environ)).code == 4


async def replayed(story: UUID, url: str, environ: dict[str, str]) -> Ended:
    return await broker("replay", "weighing", "--id", str(story), "--json", url=url, environ=environ)


async def test_whoever_replays_to_a_service_needs_all_of_this(hire: Hire, story: UUID, environ: dict[str, str]) -> None:
    may = replay_permissions("weighing", SETTINGS)
    assert (await replayed(story, await hire(may), environ)).json["replayed"] == 1
    for part in ("configure", "write", "read"):
        refused = await replayed(story, await hire(replace(may, **{part: "^$"})), environ)
        assert refused.code == 4, part
