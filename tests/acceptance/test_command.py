"""The command ``broker``, as a person or a program runs it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from broker.envelope import CONTENT_TYPE
from broker.settings import Settings
from broker.tools.management import Management
from broker.tools.node import free_ports
from broker.tools.server import Server
from broker.topology import Permissions, publisher_permissions, service_permissions
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Ended, broker, command
from tests.waiting import until

NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
"""For commands that need no RabbitMQ."""

SORTING = '''
from broker import Event, Service


class ParcelWeighed(Event, name="Parcel Weighed", key="parcel.weighed", subject="number"):
    """A parcel was put on the scales."""

    number: int
    grams: int = 1


class ParcelSent(Event, name="Parcel Sent", key="parcel.sent"):
    number: int


service = Service("sorting")


@service.on(ParcelWeighed)
async def sort(parcel: ParcelWeighed) -> ParcelSent:
    return ParcelSent(number=parcel.number)


@service.on("letter.#")
async def letters(letter):
    pass
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the service ``sorting``."""
    (tmp_path / "sorting.py").write_text(SORTING)
    return tmp_path


@pytest.fixture
async def management(vhost_url: str, server: Server) -> AsyncIterator[Management]:
    async with Management(vhost_url, server.management_url) as management:
        yield management


# -- help and the catalogue ------------------------------------------------------------------------------------------


async def test_help_names_every_command_and_the_exit_codes() -> None:
    shown = await broker("--help", url=NOWHERE)
    assert shown.code == 0
    words = " ".join(shown.out.split())
    for name in ("run", "publish", "tail", "events"):
        assert f" {name} " in words
        assert (await broker(name, "--help", url=NOWHERE)).code == 0
    for code in ("3 RabbitMQ not reachable", "4 refused", "5 topology conflict", "6 not confirmed", "130 interrupted"):
        assert code in words


async def test_version() -> None:
    for words in ([BROKER], [sys.executable, "-m", "broker"]):
        shown = await command(*words, "--version", url=NOWHERE)
        assert (shown.code, shown.out.strip()) == (0, version("business-events"))


async def test_events_of_the_shop_as_a_table() -> None:
    shown = await broker("events", url=NOWHERE, environ={"COLUMNS": "120"})
    assert shown.code == 0
    (line,) = [line for line in shown.out.splitlines() if line.startswith("New Order Placed")]
    assert line.split()[3:] == ["order.placed", "1", "order", "crm,", "packing,", "reporting"]


async def test_events_of_the_shop_as_json() -> None:
    shown = await broker("events", "--json", url=NOWHERE)
    found = {event["name"]: event for event in shown.json}
    assert len(found) == 6
    assert sum(len(event["subscribers"]) for event in found.values()) == 14
    packed = found["Order Packed"]
    assert (packed["key"], packed["version"], packed["subject"]) == ("order.packed", 1, "order_id")
    assert packed["publishers"] == ["packing"]
    assert [it["service"] for it in packed["subscribers"]] == ["crm", "dispatch", "order", "reporting"]
    assert packed["schema"]["required"] == ["order_id"]


@pytest.mark.parametrize("name", ["Parcel Weighed", "parcel weighed", "parcel.weighed", "ParcelWeighed"])
async def test_all_about_one_event(folder: Path, name: str) -> None:
    shown = await broker("events", name, "--from", "sorting", url=NOWHERE, folder=folder)
    assert shown.code == 0
    for words in ("parcel.weighed", "A parcel was put on the scales.", "the subject", "sort (exactly this event)"):
        assert words in shown.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["events", "Parcel Wayed"], "Did you mean 'Parcel Weighed'"),
        (["publish", "parcel.weigh"], "Did you mean 'parcel.weighed'"),
        (["publish", "Parcel Weighed", "--version", "3"], "has no version 3"),
        (["events", "--from", "nowhere"], "There is no module 'nowhere'"),
        (["events", "--from", "sorting.deeper"], "There is no module 'sorting.deeper'"),
        (["publish", "Parcel Weighed", "--data", "@absent.json"], "No such file"),
        (["publish", "Parcel Weighed", "--data", "not json"], "Invalid JSON"),
        (["publish", "Parcel Weighed", "--data", "{}"], "number: Field required"),
        (["publish", "Parcel Weighed", "--data", '{"number": "many"}'], "number: Input should be a valid integer"),
        (["publish", "Parcel Weighed", "--data", '{"number": 1, "colour": "red"}'], "colour: Extra inputs"),
        (["publish", "Parcel Weighed", "--data", '{"number": 1}', "--source", ""], "source= is who publishes"),
        (["publish", "Parcel Weighed", "--correlation-id", "7"], "correlation"),
        (["tail", "Not A Pattern"], "is not a pattern"),
        (["no-such-command"], "No such command"),
    ],
)
async def test_wrong_calls_end_with_2_and_say_why(folder: Path, arguments: list[str], said: str) -> None:
    ended = await broker(*arguments, url=NOWHERE, folder=folder, environ={"BROKER_MODULES": "sorting"})
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err


# -- publish ---------------------------------------------------------------------------------------------------------


async def test_publish_says_who_gets_it(folder: Path, vhost_url: str) -> None:
    told = await broker(
        "publish", "Parcel Weighed", "--from", "sorting", "--data", '{"number": 1}', url=vhost_url, folder=folder
    )
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("confirmed Parcel Weighed ")
    assert "Subscribed: sorting." in told.out
    nobody = await broker(
        "publish", "Parcel Sent", "--from", "sorting", "--data", '{"number": 1}', url=vhost_url, folder=folder
    )
    assert nobody.code == 0
    assert "Nobody has subscribed to it. The event log keeps it." in nobody.out


async def test_publish_reads_a_file_or_stdin_and_prints_json(folder: Path, vhost_url: str) -> None:
    (folder / "parcel.json").write_text('{"number": 1, "grams": 2}')
    publish = ("publish", "parcel.weighed", "--from", "sorting", "--json", "--data")
    from_file = await broker(*publish, "@parcel.json", url=vhost_url, folder=folder)
    from_stdin = await broker(*publish, "-", url=vhost_url, folder=folder, stdin='{"number": 2}')
    for ended in (from_file, from_stdin):
        assert ended.code == 0
        assert UUID(ended.json.pop("id"))
        assert {**ended.json, "id": ""} == {
            "id": "",
            "name": "Parcel Weighed",
            "key": "parcel.weighed",
            "subscribers": ["sorting"],
        }


# -- tail ------------------------------------------------------------------------------------------------------------


async def test_tail_shows_what_matches_as_json(folder: Path, vhost_url: str, start: Start) -> None:
    tail = start(BROKER, "tail", "parcel.weighed", "*.lost", "--json", url=vhost_url, folder=folder)
    await tail.logged("consuming")
    story = str(uuid4())
    for name, number in (("Parcel Sent", 1), ("Parcel Weighed", 2)):
        data = json.dumps({"number": number})
        arguments = ("--from", "sorting", "--data", data, "--correlation-id", story, "--source", "scales", "--json")
        published = await broker("publish", name, *arguments, url=vhost_url, folder=folder)
    await until(lambda: tail.out.endswith("\n"))
    (line,) = map(json.loads, tail.out.splitlines())
    assert line["id"] == published.json["id"]
    assert (line["name"], line["key"], line["source"], line["subject"], line["version"]) == (
        "Parcel Weighed",
        "parcel.weighed",
        "scales",
        "2",
        1,
    )
    assert (line["correlation_id"], line["causation_id"]) == (story, None)
    assert line["data"] == {"number": 2, "grams": 1}
    tail.signal(signal.SIGINT)
    assert await tail.ended() == 130


HOSTILE = "\x1b]0;owned\x07\x1b[2J"
"""What would rename the window and clear the screen."""


async def test_tail_bears_garbage_and_shows_no_escapes(
    folder: Path, vhost_url: str, management: Management, start: Start
) -> None:
    tail = start(BROKER, "tail", url=vhost_url, folder=folder)
    await tail.logged("consuming")
    envelope = {"specversion": "1.0", "id": "1", "source": HOSTILE, "type": HOSTILE, "data": {"text": HOSTILE}}
    await management.publish("events", "anything", "no event at all")
    await management.publish("events", "anything", "/+8=", encoding="base64")
    await management.publish("events", "anything", json.dumps(envelope), properties={"content_type": CONTENT_TYPE})
    await management.publish("events", HOSTILE, "{}")
    await broker("publish", "Parcel Sent", "--from", "sorting", "--data", '{"number": 7}', url=vhost_url, folder=folder)
    await until(lambda: "Parcel Sent" in tail.out)
    assert len(tail.out.splitlines()) == 5
    assert tail.out.count("unreadable anything: ") == 2
    assert "\x1b" not in tail.out
    assert "\x07" not in tail.out
    assert tail.out.splitlines()[-1].endswith('{"number": 7}')


# -- run -------------------------------------------------------------------------------------------------------------

BROKEN = {
    "absent": (None, "There is no module 'absent'"),
    "raises": ("raise RuntimeError('no luck')", "does not import: RuntimeError: no luck"),
    "imports": ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
    "typo": ("def (", "does not import: SyntaxError"),
    "leaves": ("import sys; sys.exit(0)", "does not import: SystemExit"),
    "empty": ("", "holds no service"),
    "several": ("from broker import Service\na, b = Service('a'), Service('b')", "holds 2 services. Say several:a"),
    "several:c": (None, "holds no service 'c'"),
    "named": ("from broker import Service\nservice = Service('No Name')", "'No Name' is not a service name"),
    "taken": ("from broker import Service\nservice = Service('events')", "cannot be named 'events'"),
    "undeclared": (
        "from broker import Service\nservice = Service('one')\n@service.on('parcel.weihgt')\ndef handle(event): ...",
        "subscribes to 'parcel.weihgt', which no event declares",
    ),
    "signature": (
        "from broker import Service\nservice = Service('one')\n@service.on('parcel.#')\ndef handle(): ...",
        "cannot be a handler",
    ),
    "twice": (
        "from broker import Service\nservice = Service('one')\n"
        "@service.on('parcel.#')\ndef one(event): ...\n@service.on('*.sent')\ndef two(event): ...",
        "which overlap",
    ),
    "collision": (
        "from broker import Event, Service\n"
        "class A(Event, name='A', key='a'): ...\nclass B(Event, name='B', key='a'): ...\n"
        "service = Service('one', publishes=[A, B])",
        "Two events have the key 'a'",
    ),
}


@pytest.mark.parametrize("target", BROKEN)
async def test_run_refuses_what_cannot_run(tmp_path: Path, target: str) -> None:
    for name, (code, _) in BROKEN.items():
        if code is not None:
            (tmp_path / f"{name}.py").write_text(code)
    ended = await broker("run", target, url=NOWHERE, folder=tmp_path)
    assert ended.code == 2, ended.err
    assert BROKEN[target][1] in ended.err
    assert "Traceback" not in ended.err


async def test_run_takes_one_service_of_several(tmp_path: Path, vhost_url: str, start: Start) -> None:
    (tmp_path / "several.py").write_text("from broker import Service\nfirst, second = Service('one'), Service('two')")
    for name, service in (("second", "two"), ("one", "one")):
        process = start(BROKER, "run", f"several:{name}", url=vhost_url, folder=tmp_path)
        assert (await process.logged("started"))["service"] == service
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


# -- RabbitMQ says no ------------------------------------------------------------------------------------------------

Arguments = tuple[str, ...]
PUBLISH: Arguments = ("publish", "Parcel Weighed", "--from", "sorting", "--data", '{"number": 1}')


async def each(url: str, folder: Path, **environ: str) -> list[Ended]:
    """Every command that talks to RabbitMQ, at once."""
    commands: list[Arguments] = [PUBLISH, ("tail",), ("run", "sorting")]
    return await asyncio.gather(*(broker(*it, url=url, folder=folder, environ=environ) for it in commands))


@dataclass(frozen=True)
class Login:
    """A user of a virtual host, who may do nothing yet but log in there."""

    name: str
    url: str
    management: Management

    async def permit(self, permissions: Permissions) -> None:
        await self.management.permit(
            self.name, configure=permissions.configure, write=permissions.write, read=permissions.read
        )
        await self.management.permit_topics(
            self.name, "events", write=permissions.topic_write, read=permissions.topic_read
        )


@pytest.fixture
async def user(vhost_url: str, management: Management) -> AsyncIterator[Login]:
    name, password = f"user-{uuid4().hex[:8]}", "s3cr3t-of-this-test"
    await management.create_user(name, password)
    parts = urlsplit(vhost_url)
    url = parts._replace(netloc=f"{name}:{password}@{parts.hostname}:{parts.port}").geturl()
    yield Login(name, url, management)
    await management.delete_user(name)


async def test_3_when_nobody_answers(folder: Path) -> None:
    (port,) = free_ports(1)
    url = f"amqp://guest:s3cr3t@127.0.0.1:{port}/"
    for ended in await each(url, folder, BROKER_CONNECT_TIMEOUT="0.5"):
        assert ended.code == 3, ended.err
        assert f"127.0.0.1:{port}" in ended.err
        assert "s3cr3t" not in ended.err + ended.out
        assert "Traceback" not in ended.err


@pytest.mark.parametrize("wrong", ["password", "vhost", "permission"])
async def test_4_when_rabbitmq_refuses(folder: Path, wrong: str, user: Login, management: Management) -> None:
    url, said = user.url, ""
    if wrong == "password":
        url, said = url.replace("s3cr3t-of", "s3cr3t-not-of"), "refused the login"
    if wrong == "vhost":
        url, said = urlsplit(url)._replace(path="/no-such-vhost").geturl(), "no such virtual host"
    if wrong == "permission":
        await management.permit(user.name, configure="^$", write="^$", read="^$")
        said = "may not"
    for ended in await each(url, folder):
        assert ended.code == 4, ended.err
        assert said in ended.err
        assert "s3cr3t" not in ended.err + ended.out
        assert "Traceback" not in ended.err


async def test_least_privilege_is_enough_and_no_more_is_granted(
    folder: Path, vhost_url: str, user: Login, start: Start, management: Management
) -> None:
    first = start(BROKER, "run", "sorting", url=vhost_url, folder=folder)
    await first.logged("started")  # somebody who may has declared what is shared
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0

    await user.permit(publisher_permissions(Settings(), ["parcel.weighed"]))
    assert (await broker(*PUBLISH, url=user.url, folder=folder)).code == 0
    other = await broker(*PUBLISH[:1], "Parcel Sent", *PUBLISH[2:], url=user.url, folder=folder)
    assert other.code == 4, other.err
    assert "refused the publish" in other.err

    await management.permit(user.name, configure="^$", write="^$", read=r"^events\.log$")
    tail = start(BROKER, "tail", url=user.url, folder=folder)
    await tail.logged("consuming")

    patterns, keys = ["parcel.weighed", "letter.#"], ["parcel.sent"]
    await user.permit(service_permissions("sorting", Settings(), patterns=patterns, publishes=keys))
    second = start(BROKER, "run", "sorting", url=user.url, folder=folder)
    await second.logged("handled")
    second.signal(signal.SIGTERM)
    assert await second.ended() == 0


@pytest.fixture
def declare_queue(vhost_url: str, server: Server) -> Callable[[str], None]:
    """Declares a classic queue, which is none of ours."""

    def declare(name: str) -> None:
        vhost = urlsplit(vhost_url).path[1:]
        url = f"{server.management_url}/api/queues/{vhost}/{name}"
        httpx.put(url, json={"durable": True}, auth=server.login, timeout=30).raise_for_status()

    return declare


async def test_5_when_a_queue_of_that_name_is_another(
    folder: Path, vhost_url: str, declare_queue: Callable[[str], None]
) -> None:
    declare_queue("sorting")
    ended = await broker("run", "sorting", url=vhost_url, folder=folder)
    assert ended.code == 5, ended.err
    assert "'sorting'" in ended.err
    assert "with other arguments" in ended.err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BROKER_CONCURRENCY", "many", "BROKER_CONCURRENCY"),
        ("BROKER_URL", "http://guest:s3cr3t@127.0.0.1/", "amqp://user:password@host"),
        ("BROKER_PREFETCH", "1", "BROKER_PREFETCH=1 is less than BROKER_CONCURRENCY=10"),
        ("BROKER_LOG_MAX_AGE", "soon", "BROKER_LOG_MAX_AGE"),
    ],
)
async def test_2_when_a_setting_is_wrong(folder: Path, name: str, value: str, said: str) -> None:
    for ended in await each(NOWHERE, folder, **{name: value}):
        assert ended.code == 2, ended.err
        assert said in ended.err
        assert "s3cr3t" not in ended.err
        assert "Traceback" not in ended.err
