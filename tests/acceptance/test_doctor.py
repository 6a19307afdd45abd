"""``broker doctor`` on a real RabbitMQ: what is wrong is found with the command that helps, mended, and pruned."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterable
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer.main

from broker.cli import common
from broker.cli.doctor import pruning, show
from broker.logs import logger
from broker.rabbitmq import RabbitMQ
from broker.retry import Delay
from broker.settings import Settings
from broker.tools import mending
from broker.tools.doctor import diagnose, examine
from broker.tools.management import Management
from broker.tools.server import Server
from broker.tools.snapshot import Finding, Snapshot
from broker.topology import Topology, retry_topology, service_topology
from broker.transport import Delivery
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Ended, broker, environment
from tests.waiting import until

CODE = "tests.weighing"
NOWHERE = "amqp://127.0.0.1:9/"


class Mill:
    """A virtual host, with or without what `tests.weighing` declares; none of its processes runs."""

    def __init__(self, url: str, management: Management, server: Server) -> None:
        self.url, self.management, self.server = url, management, server

    async def command(self, *arguments: str, url: str = "", **environ: str) -> Ended:
        """``broker doctor``, as people run it."""
        told = {"BROKER_MODULES": CODE, "BROKER_MANAGEMENT_URL": self.server.api_url} | environ
        return await broker("doctor", *arguments, url=url or self.url, environ=told)

    async def seen(self, *, log: int = 0, **changed: Any) -> Snapshot:
        settings = Settings(**{"url": self.url, "management_url": self.server.api_url} | changed)
        return await examine(settings, [CODE], log=log)

    async def findings(self, *, log: int = 0, **changed: Any) -> list[Finding]:
        """What it finds; the commands that it names exist."""
        found = diagnose(await self.seen(log=log, **changed)).findings
        check_commands(found)
        return list(found)

    async def screen(self, **changed: Any) -> str:
        """What people are shown."""
        report = diagnose(await self.seen(**changed))
        with contextlib.redirect_stdout(StringIO()) as text:
            show(report)
        return text.getvalue()

    async def send(self, method: str, path: str, content: dict[str, object] | None = None) -> None:
        """A request that the management client has no name for; ``{}`` stands for the virtual host."""
        await self.management._send(method, path.format(urlsplit(self.url).path[1:]), content)

    async def declare(self, topology: Topology) -> None:
        for exchange in topology.exchanges:
            await self.send("PUT", f"/exchanges/{{}}/{exchange.name}", {"type": exchange.kind, "durable": True})
        for queue in topology.queues:
            await self.send("PUT", f"/queues/{{}}/{queue.name}", {"durable": True, "arguments": dict(queue.arguments)})
        for binding in topology.bindings:
            await self.bind(binding.queue, binding.key, exchange=binding.exchange)

    async def bind(self, queue: str, key: str, exchange: str = "events") -> None:
        await self.send("POST", f"/bindings/{{}}/e/{exchange}/q/{queue}", {"routing_key": key})

    async def queues(self) -> set[str]:
        return {queue.name for queue in await self.management.queues()}

    async def keys(self, queue: str) -> set[str]:
        """By which keys the exchange of all events hands something to a queue."""
        found = await self.management.bindings()
        return {binding.key for binding in found if (binding.source, binding.destination) == ("events", queue)}


@pytest.fixture
async def bare(vhost_url: str, server: Server) -> AsyncIterator[Mill]:
    """Nothing stands there."""
    async with Management(vhost_url, server.api_url) as management:
        yield Mill(vhost_url, management, server)


@pytest.fixture
async def mill(bare: Mill) -> Mill:
    """All that the code declares stands there."""
    await mending.fix(await bare.seen(), print)
    return bare


def about(findings: Iterable[Finding], *words: str) -> list[Finding]:
    """The findings that mention all of it."""
    return [it for it in findings if all(word in f"{it.what} {it.why} {it.commands}" for word in words)]


def problems(findings: Iterable[Finding]) -> list[str]:
    return [it.what for it in findings if it.severity == "problem"]


def check_commands(findings: Iterable[Finding]) -> None:
    """Of the commands that are said to help, ours exist, with the options that are named."""
    for command in (command for it in findings for command in it.commands):
        words = shlex.split(command)
        found: Any = typer.main.get_command(common.app)
        if words[0] != "broker":
            assert words[0] in ("rabbitmqctl", "rabbitmq-plugins", "rabbitmq-diagnostics", "timedatectl", "export"), (
                command
            )
            continue
        rest = words[1:]
        while rest and rest[0] in getattr(found, "commands", {}):
            found = found.commands[rest.pop(0)]
        assert not hasattr(found, "commands"), command
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options, command


async def test_where_all_is_well_there_is_no_problem(bare: Mill, start: Start) -> None:
    environ = {"BROKER_MODULES": CODE}
    process = start(BROKER, "run", f"{CODE}:weighing", url=bare.url, environ=environ)
    await process.logged("started")
    found = await bare.findings(log=100)
    assert [it.severity for it in found] == ["note"]  # the tests' user may do everything
    ended = await bare.command("--strict")
    assert ended.code == 0, ended.out
    assert "No problem" in ended.out


async def test_fix_declares_all_of_it_and_says_each_thing(bare: Mill) -> None:
    assert about(await bare.findings(), "Nothing stands here yet")
    fixed = await bare.command("--fix", "--json")
    assert fixed.code == 0, fixed.err
    for name in ("events", "events.log", "weighing", "weighing.dead", "parcel.sent", "parcel.weighed"):
        assert any(f"'{name}'" in said for said in fixed.json["fixed"]), name
        assert f"'{name}'" in fixed.err
    assert {"weighing", "weighing.dead", "events.log"} == await bare.queues()
    assert await bare.keys("weighing") == {"parcel.sent", "parcel.weighed"}
    assert await bare.keys("events.log") == {"#"}
    assert await mending.fix(await bare.seen(), print) == []


async def test_what_drifted_is_found_and_mended(mill: Mill) -> None:
    await mill.bind("weighing", "parcel.lost")
    await mill.send("DELETE", "/bindings/{}/e/events/q/weighing/parcel.sent")
    await mill.send("DELETE", "/queues/{}/weighing.dead")
    found = await mill.findings()
    for words in (("parcel.lost", "--prune"), ("parcel.sent", "--fix"), ("weighing.dead", "--fix")):
        (it,) = about(found, "weighing", *words)
        assert it.severity != "note"
    said: list[str] = []
    await mending.fix(await mill.seen(), said.append)
    assert any("parcel.sent" in line for line in said)
    assert await mill.keys("weighing") == {"parcel.weighed", "parcel.sent", "parcel.lost"}  # it takes nothing away
    assert "weighing.dead" in await mill.queues()
    assert not about(await mill.findings(), "--fix")


async def test_a_queue_of_another_kind_is_a_problem_that_fix_leaves_alone(mill: Mill) -> None:
    await mill.send("DELETE", "/queues/{}/weighing")
    await mill.send("PUT", "/queues/{}/weighing", {"durable": True})
    assert any("weighing" in what and "classic" in what for what in problems(await mill.findings()))
    await mending.fix(await mill.seen(), print)
    assert {queue.name: queue.type for queue in await mill.management.queues()}["weighing"] == "classic"
    alone = await mill.findings(management_url="http://127.0.0.1:9")  # RabbitMQ itself says so over AMQP
    assert any("weighing" in what and "inequivalent" in what for what in problems(alone))


async def test_a_policy_that_changes_a_service_is_a_problem(mill: Mill) -> None:
    content: dict[str, object] = {"pattern": "^weigh", "definition": {"message-ttl": 60_000}, "apply-to": "queues"}
    await mill.send("PUT", "/policies/{}/short-lived", content)
    assert about(await mill.findings(), "short-lived", "message-ttl", "clear_policy")[0].severity == "problem"


async def test_prune_deletes_what_is_empty_and_nothing_else(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old-empty", "old-full"):
        await mill.declare(service_topology(name, ["parcel.weighed"], "events"))
    await mill.declare(retry_topology("weighing", Delay.parse("7s")))
    await mill.bind("weighing", "parcel.lost")
    await mill.send("PUT", "/queues/{}/foreign", {"durable": True})
    assert await mill.management.publish("old-full", "old-full", "{}")
    before = await mill.queues()

    async def counted() -> list[Finding]:
        return about(await mill.findings(), "old-full", "1 event")

    await until(counted, every=0.3)
    found = await mill.findings()
    for name in ("old-empty", "weighing.retry.7s", "parcel.lost"):
        assert about(found, name, "broker doctor --prune"), name

    refused = await mill.command("--prune")  # nobody is there to be asked
    assert refused.code == 2
    assert "--yes" in refused.err
    assert await mill.queues() == before

    monkeypatch.setattr(mending, "REPORTED", 0.5)
    seen = await mill.seen()
    with contextlib.redirect_stdout(StringIO()) as said:
        await asyncio.to_thread(pruning, seen, yes=True, as_json=False)
    assert "kept old-full: it holds 1 message" in said.getvalue()
    assert await mill.queues() == before - {"old-empty", "old-empty.dead", "weighing.retry.7s"}
    assert await mill.keys("old-full") == {"parcel.weighed"}
    assert await mill.keys("weighing") == {"parcel.weighed", "parcel.sent"}
    assert (await mill.management.queue("old-full")).ready == 1
    assert "old-empty" not in {exchange.name for exchange in await mill.management.exchanges()}


@pytest.mark.parametrize(("answer", "removed"), [(b"n\n", False), (b"\n", False), (b"y\n", True)])
async def test_prune_lists_and_asks_a_person_and_takes_no_for_an_answer(
    mill: Mill, answer: bytes, removed: bool
) -> None:
    await mill.declare(service_topology("old", ["parcel.weighed"], "events"))
    before = await mill.queues()
    told = {"BROKER_MODULES": CODE, "BROKER_MANAGEMENT_URL": mill.server.api_url, "TERM": "xterm", "COLUMNS": "120"}
    environ = environment(mill.url, BROKER_LOGGING_LEVEL="warning", **told)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: ASYNC220  (asyncio's would not take a terminal)
        [BROKER, "doctor", "--prune"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = bytearray()

    def heard(words: bytes) -> bool:
        with contextlib.suppress(OSError):  # nothing there, or the process has ended
            said.extend(os.read(ours, 65536))
        return words in said

    try:
        await until(lambda: heard(b"Remove them? [y/N]"))
        assert b"'old.dead'" in said
        assert await mill.queues() == before  # nothing is done before the answer
        os.write(ours, answer)
        await until(lambda: (heard(b""), process.poll() is not None)[1])
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0
    assert (b"Nothing was removed." in said) is not removed
    assert await mill.queues() == (before - {"old", "old.dead"} if removed else before)


@pytest.mark.parametrize("goes", [False, True], ids=["consumed", "in hand, its consumer gone"])
async def test_a_queue_whose_messages_somebody_has_in_hand_is_kept(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    await mill.declare(service_topology("old", ["parcel.weighed"], "events"))
    seen = await mill.seen()
    todo = mending.plan(seen)
    assert "old" in todo.queues
    transport = RabbitMQ(seen.settings, logger(seen.settings), "somebody")
    try:
        await transport.connect()
        taken: list[Delivery] = []
        consumer = await transport.consume("old", taken.append, prefetch=10)
        assert await mill.management.publish("events", "parcel.weighed", "{}")
        await until(lambda: taken)
        if goes:
            await consumer.cancel()
        monkeypatch.setattr(mending, "REPORTED", 0.0)  # then the last look has to see it
        done = await mending.prune(seen, todo, print)
        assert any(kept.startswith("old: it ") for kept in done.kept), done
        await taken[0].ack()
    finally:
        await transport.close()
    assert "old" in await mill.queues()
    assert await mill.keys("old") == {"parcel.weighed"}  # bound again


async def test_strictly_a_warning_is_not_all_well(mill: Mill) -> None:
    await mill.bind("weighing", "parcel.lost")
    found = await mill.findings()
    assert {it.severity for it in found} >= {"warning"}
    assert not problems(found), problems(found)
    assert (await mill.command()).code == 0
    assert (await mill.command("--strict")).code == 1


async def test_what_comes_to_a_queue_while_it_is_pruned_is_kept(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    await mill.declare(service_topology("old", ["parcel.weighed"], "events"))
    seen = await mill.seen()
    todo = mending.plan(seen)
    assert "old" in todo.queues
    assert await mill.management.publish("events", "parcel.weighed", "{}")
    monkeypatch.setattr(mending, "REPORTED", 0.0)  # then the last look has to see it
    said: list[str] = []
    done = await mending.prune(seen, todo, said.append)
    assert any("'old'" in line and "kept" in line for line in said), said
    assert any("old" in kept for kept in done.kept)
    assert "old" in await mill.queues()
    assert await mill.keys("old") == {"parcel.weighed"}  # bound again


async def test_management_that_cannot_be_had_is_named_and_the_rest_is_checked(mill: Mill) -> None:
    await mill.send("DELETE", "/queues/{}/weighing.dead")
    stranger = mill.server.management_url.replace("://", "://nobody:secret@")
    for url, helps in (("http://127.0.0.1:9", "rabbitmq-plugins enable"), (stranger, "nobody")):
        found = await mill.findings(management_url=url)
        (it,) = [it for it in found if it.what.startswith("Management")]
        assert it.severity == "problem"
        assert about([it], helps, "BROKER_MANAGEMENT_URL")
        assert about(found, "weighing.dead", "--fix")  # AMQP tells, too
        assert "secret" not in str(found)
    shown = await mill.screen(management_url=stranger)
    assert "Not checked: " in shown
    assert "policies" in shown


async def test_a_wrong_amqp_login_is_told_from_a_wrong_virtual_host(mill: Mill) -> None:
    parts = urlsplit(mill.url)
    wrong = parts._replace(netloc=f"nobody:secret@{parts.hostname}:{parts.port}").geturl()
    found, elsewhere = await asyncio.gather(mill.findings(url=wrong), mill.findings(url=f"{mill.url}-no"))
    assert [it for it in found if it.what.startswith("AMQP") and "login" in it.what]
    assert [it for it in elsewhere if it.what.startswith("AMQP") and "virtual host" in it.what]
    assert "secret" not in str(found)


async def test_without_rabbitmq_it_says_so() -> None:
    environ = {"BROKER_MODULES": CODE, "BROKER_MANAGEMENT_URL": "http://127.0.0.1:9"}
    ended = await broker("doctor", "--json", url=NOWHERE, environ=environ)
    assert ended.code == 1
    told = [it for it in ended.json["findings"] if it["severity"] == "problem" and "127.0.0.1:9" in it["what"]]
    assert {it["what"].partition(":")[0] for it in told} == {"AMQP", "Management"}
    assert ended.json["not_checked"]


async def test_names_from_elsewhere_do_not_command_the_terminal(mill: Mill) -> None:
    await mill.bind("weighing", "parcel.\x1b[31mred")
    shown = await mill.screen()
    assert "[31mred" in shown
    assert "\x1b" not in shown


async def test_a_version_in_the_log_that_no_code_knows_is_named(mill: Mill) -> None:
    for version in (1, 7):
        event = {
            "specversion": "1.0",
            "id": "0190b6f0-0000-7000-8000-000000000001",
            "source": "old-scales",
            "type": "Parcel Weighed",
            "time": "2026-07-01T12:30:00Z",
            "dataschema": f"urn:event:parcel.weighed:{version}",
            "data": {},
        }
        properties = {"content_type": "application/cloudevents+json"}
        assert await mill.management.publish("events", "parcel.weighed", json.dumps(event), properties=properties)

    async def found() -> list[Finding]:
        return about(await mill.findings(log=100), "Parcel Weighed")

    (it,) = await until(found, every=0.3)
    assert it.severity == "warning"
    assert "version 7" in it.what
    assert "old-scales" in it.what
