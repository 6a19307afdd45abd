"""``broker dead`` and ``broker status``, as a person types them at three in the morning."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from broker import Broker
from broker.tools.management import Management
from broker.tools.server import Server
from broker.topology import operator_permissions
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, CartonWeighed, Ended, broker, environment
from tests.waiting import until

SORTING = '''
import os
from broker import Event, Reject, Retry, Service


class CartonWeighed(Event, name="Carton Weighed", key="carton.weighed", subject="number"):
    """A carton was put on the scales."""

    number: int


service = Service("sorting", retry=Retry("1h"))


@service.on(CartonWeighed)
async def sort(carton: CartonWeighed) -> None:
    if os.environ.get("BROKEN"):
        if carton.number == 1:
            raise ValueError("no shelf")
        raise Reject(f"carton {carton.number} is stolen")
'''
BROKEN = {"BROKEN": "yes", "BROKER_MODULES": "sorting"}


class Shop:
    """A folder with the service ``sorting``, and a RabbitMQ that the commands are told of."""

    def __init__(self, folder: Path, url: str, management_url: str, start: Start) -> None:
        self.folder = folder
        self.url = url
        self.environ = {"BROKER_MODULES": "sorting", "BROKER_MANAGEMENT_URL": management_url}
        self._start = start

    async def run(self, *words: str, **environ: str) -> Ended:
        return await broker(*words, url=self.url, folder=self.folder, environ=self.environ | environ)

    async def fill(self, *numbers: int) -> None:
        """Publish cartons to a broken process, which sets them aside."""
        environ = self.environ | {"BROKEN": "yes"}
        process = self._start(BROKER, "run", "sorting", url=self.url, folder=self.folder, environ=environ)
        await process.logged("started")
        async with Broker(self.url, source="scales") as scales:
            await scales.publish_many([CartonWeighed(number=number) for number in numbers])
        await until(lambda: len(process.lines("dead")) + len(process.lines("retrying")) == len(numbers))
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


@pytest.fixture
def shop(tmp_path: Path, vhost_url: str, server: Server, start: Start) -> Shop:
    (tmp_path / "sorting.py").write_text(SORTING)
    return Shop(tmp_path, vhost_url, server.management_url, start)


async def test_from_a_dead_letter_to_its_handling(shop: Shop, start: Start) -> None:
    await shop.fill(2, 3, 1)
    listed = await shop.run("dead", "list")
    assert "sorting  Carton Weighed      2" in listed.out
    assert "Next: broker dead show sorting" in listed.out
    groups = (await shop.run("dead", "list", "--json")).json
    assert [(it["service"], it["event"], it["error"], it["count"]) for it in groups] == [
        ("sorting", "Carton Weighed", "Reject", 2)
    ]
    shown = await shop.run("dead", "show", "sorting", "--error", "carton 3")
    assert "Reject: carton 3 is stolen" in shown.out
    assert '"number": 3' in shown.out
    waiting = await shop.run("dead", "show", "sorting", "--waiting")
    assert "ValueError: no shelf" in waiting.out
    assert "Traceback (most recent call last)" in waiting.out
    assert "sorting.py" in waiting.out

    counted = await shop.run("dead", "redrive", "sorting", "--dry-run")
    assert counted.out == "2 would be redriven.\n"
    redriven = await shop.run("dead", "redrive", "sorting", "--json")
    assert redriven.json == {"service": "sorting", "matched": 2, "redriven": 2, "unmovable": 0}
    forward = await shop.run("dead", "redrive", "sorting", "--waiting")
    assert forward.out == "1 redriven to sorting. Next: broker status sorting\n"

    well = start(BROKER, "run", "sorting", url=shop.url, folder=shop.folder)
    await well.logged("handled", 3)
    assert sorted(line["attempt"] for line in well.lines("handled")) == [1, 1, 2]
    assert (await shop.run("dead", "list")).out == "No dead letters.\n"


async def test_discarding_asks_and_exporting_keeps_a_copy(shop: Shop) -> None:
    await shop.fill(2, 3)
    exported = await shop.run("dead", "export", "sorting")
    lines = [json.loads(line) for line in exported.out.splitlines()]
    assert [json.loads(line["body"])["data"] for line in lines] == [{"number": 2}, {"number": 3}]
    asked = await shop.run("dead", "discard", "sorting")
    assert (asked.code, asked.out) == (2, "")
    assert "2 dead letters of 'sorting' would be deleted for good. Say --yes if so." in asked.err
    done = await shop.run("dead", "discard", "sorting", "--error", "carton 2", "--yes")
    assert (done.code, done.out) == (0, "1 deleted from the dead letters of sorting.\n")
    assert "1 in all" in (await shop.run("dead", "list")).out


WRONGLY = [
    (["redrive", "sorting", "--rate", "0"], "--rate 0: so many events a second, so more than 0"),
    (["redrive", "sorting", "--rate", "nan"], "so more than 0"),
    (["redrive", "sortin"], "Did you mean 'sorting'?"),
    (["redrive", "sorting", "--limit", "0"], "--limit"),
    (["show", "sorting", "--since", "yesterday-ish"], "is no time. Write '30m', '2h', '3d' ago"),
    (["show", "sorting", "--id", "17"], "--id"),
    (["export"], "SERVICE"),
]


async def test_called_wrongly(shop: Shop) -> None:
    await shop.fill()
    for words, told in WRONGLY:
        ended = await shop.run("dead", *words)
        assert (ended.code, ended.out) == (2, ""), words
        assert told in " ".join(ended.err.split()), words


async def test_without_management_dead_letters_are_found_by_the_code_and_status_says_what_it_needs(shop: Shop) -> None:
    await shop.fill(2)
    nowhere = "http://127.0.0.1:1"
    listed = await shop.run("dead", "list", BROKER_MANAGEMENT_URL=nowhere)
    assert listed.code == 0
    assert "sorting  Carton Weighed" in listed.out
    assert "Only of services in the code" in listed.err
    status = await shop.run("status", BROKER_MANAGEMENT_URL=nowhere)
    assert (status.code, status.out) == (3, "")
    assert "rabbitmq-plugins enable rabbitmq_management" in status.err


async def test_least_privilege_of_an_operator_is_enough(shop: Shop, vhost_url: str, server: Server) -> None:
    await shop.fill(2, 3)
    name, password = f"operator-{uuid4().hex[:8]}", uuid4().hex
    async with Management(vhost_url, server.management_url) as management:
        await management.create_user(name, password, tags="management")
        try:
            may = operator_permissions("sorting")
            await management.permit(name, configure=may.configure, write=may.write, read=may.read)
            await management.permit_topics(name, "events", write=may.topic_write, read=may.topic_read)
            parts = urlsplit(vhost_url)
            shop.url = parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
            assert "2 in all" in (await shop.run("dead", "list")).out
            assert (await shop.run("dead", "redrive", "sorting", "--limit", "1")).code == 0
            assert (await shop.run("dead", "discard", "sorting", "--yes")).code == 0
            assert (await shop.run("status")).code == 0
            published = await shop.run("publish", "Carton Weighed", "--data", '{"number": 2}')
            assert published.code == 4
        finally:
            await management.delete_user(name)


async def test_status_on_one_screen_ends_with_the_next_command(shop: Shop, start: Start) -> None:
    await shop.fill(2, 1)

    async def shown() -> Ended | None:
        status = await shop.run("status")
        return status if "1 × 1h" in status.out and "nobody consumes its queue" in status.out else None

    status = await until(shown, every=0.2)
    assert "Reject: carton 2 is stolen" in status.out
    assert status.out.splitlines()[-1] == "broker run sorting"
    start(BROKER, "run", "sorting", url=shop.url, folder=shop.folder)

    async def consumed() -> bool:
        found = (await shop.run("status", "sorting", "--json")).json
        return bool(found["services"][0]["consumers"] == 1 and found["next"] == "broker dead show sorting")

    await until(consumed, every=0.2)
    assert (await shop.run("status", "sortin")).code == 2


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
async def test_discarding_asks_a_person_and_takes_no_for_an_answer(shop: Shop, answer: bytes, left: int) -> None:
    await shop.fill(2)
    ours, theirs = pty.openpty()
    environ = environment(shop.url, BROKER_LOGGING_LEVEL="warning", TERM="xterm") | shop.environ
    words = [BROKER, "dead", "discard", "sorting"]
    process = subprocess.Popen(  # noqa: ASYNC220  (asyncio's would not take a terminal)
        words, cwd=shop.folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = bytearray()

    def asked() -> bool:
        with contextlib.suppress(BlockingIOError):
            said.extend(os.read(ours, 65536))
        return b"Delete 1 dead letters of sorting for good? [y/N]" in said

    try:
        await until(asked)
        os.write(ours, answer)
        await until(lambda: process.poll() is not None)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0
    groups = (await shop.run("dead", "list", "--json")).json
    assert sum(group["count"] for group in groups) == left


async def test_watching_redraws_and_ends_with_ctrl_c(shop: Shop) -> None:
    await shop.fill(2)
    ours, theirs = pty.openpty()
    environ = environment(shop.url, BROKER_LOGGING_LEVEL="warning", TERM="xterm", COLUMNS="120") | shop.environ
    words = [BROKER, "status", "--watch"]
    process = subprocess.Popen(  # noqa: ASYNC220  (asyncio's would not take a terminal)
        words, cwd=shop.folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = bytearray()

    def redrawn() -> bool:
        with contextlib.suppress(BlockingIOError):
            said.extend(os.read(ours, 65536))
        return said.count(b"broker run sorting") >= 2

    try:
        await until(redrawn)
        process.send_signal(signal.SIGINT)
        await until(lambda: process.poll() is not None)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 130
    assert b"Traceback" not in said
