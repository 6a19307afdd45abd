"""Least privilege of those who read the event log and replay from it, on a real RabbitMQ: it is enough, and needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from broker import Broker
from broker.settings import Settings
from broker.tools.rights import reader_permissions, replay_permissions
from broker.tools.server import Server
from tests.acceptance.running import BROKER, ROOT, Ended, Process, broker, environment
from tests.parcels import ParcelWeighed
from tests.users import CODE, Hire

SETTINGS = Settings(_env_file=None)


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
