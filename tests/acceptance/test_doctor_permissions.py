"""What ``broker doctor`` says of users: of one that may do everything, and of one that may just what it needs."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from broker.settings import Settings
from broker.tools.doctor import diagnose, examine
from broker.tools.management import Management
from broker.tools.rights import permissions_of
from broker.tools.server import Server
from broker.tools.snapshot import Finding, Snapshot
from broker.topology import Permissions
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER
from tests.users import CODE, Hire
from tests.waiting import until
from tests.weighing import weighing

EVERYTHING = Permissions(".*", ".*", ".*", ".*", ".*")


async def looked(url: str, management_url: str) -> Snapshot:
    return await examine(Settings(url=SecretStr(url), management_url=SecretStr(management_url)), [CODE], log=0)


async def told(url: str, management_url: str) -> list[Finding]:
    """What is said of permissions."""
    found = diagnose(await looked(url, management_url)).findings
    return [finding for finding in found if finding.check == "permissions"]


@pytest.fixture(params=["as management tells", "as tried"])
def management_url(request: pytest.FixtureRequest, server: Server) -> str:
    """An administrator's; or none that answers."""
    return server.api_url if request.param == "as management tells" else "http://127.0.0.1:9"


async def test_least_privilege_is_not_mentioned(hire: Hire, management_url: str) -> None:
    assert await told(await hire(permissions_of(weighing, Settings())), management_url) == []


async def test_a_user_that_may_do_everything_is_noted_with_what_is_enough(hire: Hire, management_url: str) -> None:
    (it,) = await told(await hire(EVERYTHING), management_url)
    assert it.severity == "note"
    assert "everything" in it.what
    enough = permissions_of(weighing, Settings())
    words = [shlex.split(command) for command in it.commands]
    assert [enough.configure, enough.write, enough.read] == words[1][-3:]
    assert [enough.topic_write, enough.topic_read] == words[2][-2:]


MISSING = [
    ("configure", "^weighing$", "declare 'weighing.dead'"),
    ("write", "^nothing$", "write to 'weighing'"),
    ("read", "^events$", "read 'weighing'"),
    ("topic_read", "^parcel.sent$", "subscribe to 'parcel.weighed'"),
]


async def test_what_is_missing_is_a_problem_whoever_tells_it(hire: Hire, management_url: str) -> None:
    enough = permissions_of(weighing, Settings())
    for part, instead, lacks in MISSING:
        may = Permissions(**{name: getattr(enough, name) for name in Permissions.__slots__} | {part: instead})
        (it,) = await told(await hire(may), management_url)
        assert (it.severity, lacks in it.what) == ("problem", True), it
        assert shlex.split(it.commands[0])[1] == "set_permissions"


async def test_looking_as_whoever_may_little_changes_nothing(hire: Hire, vhost_url: str, server: Server) -> None:
    async with Management(vhost_url, server.api_url) as management:
        before = await management.queues(), await management.exchanges(), await management.bindings()
        (it,) = await told(await hire(Permissions("^$", "^$", "^$", "^$", "^$")), "http://127.0.0.1:9")
        assert "can run none of the services" in it.what
        await looked(await hire(EVERYTHING), "http://127.0.0.1:9")
        assert (await management.queues(), await management.exchanges(), await management.bindings()) == before


async def test_the_user_of_a_running_service_is_looked_at_too(
    hire: Hire, vhost_url: str, server: Server, start: Start
) -> None:
    enough = permissions_of(weighing, Settings())
    may = Permissions(enough.configure, ".*", enough.read, enough.topic_write, enough.topic_read)
    url = await hire(may)
    process = start(BROKER, "run", f"{CODE}:weighing", url=url)
    await process.logged("started")

    async def noted() -> list[Finding]:  # management lists connections every five seconds
        found = await told(vhost_url, server.api_url)
        return [it for it in found if (urlsplit(url).username or "") in it.what]

    (it,) = await until(noted, every=0.2)
    assert "may write anywhere" in it.what
    assert "weighing" in it.what
