"""``broker log`` and ``broker replay`` take what was asked for and nothing else; and what hinders them is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from uuid import UUID, uuid4

import pytest

from broker import Broker, Event
from broker.tools.server import Server
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Ended, Process, broker, environment
from tests.waiting import until

FLOCK = """
from sqlalchemy import text

from broker import Context, Event, Service


class SheepCounted(Event, name="Sheep Counted", key="sheep.counted", subject="number"):
    number: int


class SheepShorn(Event, name="Sheep Shorn", key="sheep.shorn", subject="number"):
    number: int


fold, vet = Service("fold"), Service("vet")
stock = Service("stock", database="sqlite+aiosqlite:///stock.db")


@fold.on(SheepCounted, SheepShorn)
async def fold_in(sheep: SheepCounted | SheepShorn) -> None: ...


@vet.on(SheepCounted)
async def look_at(sheep: SheepCounted) -> None: ...


@stock.on(SheepCounted)
async def enter(sheep: SheepCounted, context: Context) -> None:
    await context.transaction.execute(text("INSERT INTO sheep (number) VALUES (:number)"), {"number": sheep.number})
"""


class SheepCounted(Event, name="Sheep Counted", key="sheep.counted", subject="number"):
    """As the services declare it, too."""

    number: int


class SheepShorn(Event, name="Sheep Shorn", key="sheep.shorn", subject="number"):
    """As the services declare it, too."""

    number: int


class Farm:
    """A folder with the services, and a RabbitMQ."""

    def __init__(self, folder: Path, url: str, management_url: str, start: Start) -> None:
        self.folder, self.url, self._start = folder, url, start
        self.environ = {"BROKER_MODULES": "flock", "BROKER_MANAGEMENT_URL": management_url}

    async def run(self, *words: str, **environ: str) -> Ended:
        return await broker(*words, url=self.url, folder=self.folder, environ=self.environ | environ)

    def start(self, *words: str) -> Process:
        return self._start(BROKER, *words, url=self.url, folder=self.folder, environ=self.environ)

    async def serve(self, service: str) -> Process:
        process = self.start("run", f"flock:{service}")
        await process.logged("started")
        return process

    async def publish(self, *events: Event, story: UUID | None = None) -> list[str]:
        """Returns their ids."""
        async with Broker(self.url, source="shepherd") as shepherd:
            return [str(it) for it in await shepherd.publish_many(events, correlation_id=story)]

    async def count(self, *numbers: int) -> list[str]:
        return await self.publish(*(SheepCounted(number=number) for number in numbers))

    async def shown(self, *words: str) -> list[str]:
        """The ids of what ``broker log`` shows."""
        ended = await self.run("log", "--json", *words)
        assert ended.code == 0, ended.err
        return [json.loads(line)["id"] for line in ended.out.splitlines()]

    async def handled(self, *processes: Process) -> list[Counter[str]]:
        """How often each process has handled each event, once all that is in its queue now is handled: they end."""
        (last,) = await self.count(1000)
        await until(lambda: all(last in handled(process) for process in processes))
        for process in processes:
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        return [handled(process) - Counter([last]) for process in processes]


def handled(process: Process) -> Counter[str]:
    """How often it has handled each event, up to now."""
    return Counter(line["event_id"] for line in process.lines("handled"))


@pytest.fixture
def farm(tmp_path: Path, vhost_url: str, server: Server, start: Start) -> Farm:
    (tmp_path / "flock.py").write_text(FLOCK)
    with closing(sqlite3.connect(tmp_path / "stock.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE sheep (number INTEGER NOT NULL)")
    return Farm(tmp_path, vhost_url, server.management_url, start)


# -- what is asked for, and nothing else -----------------------------------------------------------------------------


async def test_since_a_time_the_log_shows_what_was_stored_from_then_on(farm: Farm) -> None:
    earlier = await farm.count(1, 2)
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    await until(lambda: datetime.now(UTC) >= then)
    later = await farm.count(3, 4)
    in_an_hour = f"{then + timedelta(hours=1):%Y-%m-%dT%H:%M:%S%z}"
    for words, ids in (
        (("--since", then.isoformat()), later),
        (("--since", f"{then.astimezone():%Y-%m-%dT%H:%M:%S}"), later),
        (("--since", then.isoformat(), "--subject", "4"), later[1:]),
        (("--since", "1h", "--until", then.isoformat()), earlier),
        (("--since", in_an_hour), []),
    ):
        assert await farm.shown(*words) == ids, words


async def test_of_a_time_it_is_replayed_what_was_stored_then(farm: Farm) -> None:
    await farm.count(1, 2)
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    await until(lambda: datetime.now(UTC) >= then)
    fold = await farm.serve("fold")
    await farm.publish(SheepShorn(number=3))
    for words, events in (
        (("--since", "1h"), {"Sheep Counted": 2, "Sheep Shorn": 1}),
        (("--since", then.isoformat()), {"Sheep Shorn": 1}),
        (("--since", "1h", "--until", then.isoformat()), {"Sheep Counted": 2}),
    ):
        ended = await farm.run("replay", "fold", *words, "--dry-run", "--json")
        assert ended.json["events"] == events, (words, ended.err)
    fold.signal(signal.SIGTERM)
    assert await fold.ended() == 0


async def test_the_log_shows_one_story_alone(farm: Farm) -> None:
    mine, other = await farm.count(1, 2)
    shorn = await farm.publish(SheepShorn(number=1), SheepShorn(number=5), story=UUID(mine))
    await farm.publish(SheepShorn(number=2), story=UUID(other))
    for words, ids in (
        ((mine,), [mine, *shorn]),
        ((mine.upper(),), [mine, *shorn]),
        ((mine, "--event", "Sheep Shorn", "--subject", "5"), shorn[1:]),
        ((shorn[0],), []),  # it is in a story, and no story's name
        ((str(uuid4()),), []),
    ):
        assert await farm.shown("--correlation-id", *words) == ids, words


async def test_one_event_or_one_story_is_replayed_to_one_service_alone(farm: Farm) -> None:
    fold, vet = await farm.serve("fold"), await farm.serve("vet")
    mine, *others = await farm.count(1, 2, 3)
    shorn = await farm.publish(SheepShorn(number=1), SheepShorn(number=2), story=UUID(mine))
    by_name = await farm.run("replay", "fold", "--since", "1h", "--event", "sheep shorn", "--json")
    by_story = await farm.run("replay", "fold", "--correlation-id", mine, "--json")
    assert by_name.json["events"] == {"Sheep Shorn": 2}
    assert by_story.json["events"] == {"Sheep Counted": 1, "Sheep Shorn": 2}
    assert await farm.handled(fold, vet) == [
        Counter([mine, *others, *shorn, *shorn, mine, *shorn]),
        Counter([mine, *others]),
    ]


# -- replays by processes --------------------------------------------------------------------------------------------


async def test_of_two_replays_at_once_each_brings_its_service_its_own(farm: Farm) -> None:
    fold, vet = await farm.serve("fold"), await farm.serve("vet")
    counted = await farm.count(*range(30))
    shorn = await farm.publish(*(SheepShorn(number=number) for number in range(30)))
    await fold.logged("handled", 60)
    await vet.logged("handled", 30)
    shearing = farm.start("replay", "fold", "--since", "1h", "--event", "Sheep Shorn", "--rate", "10")
    counting = farm.start("replay", "vet", "--since", "1h", "--rate", "10")

    async def stopped_short(replaying: Process, service: Process, before: int) -> None:
        await service.logged("handled", before + 1)
        replaying.signal(signal.SIGSTOP)

    await asyncio.gather(stopped_short(shearing, fold, 60), stopped_short(counting, vet, 30))
    assert (shearing.out, counting.out) == ("", ""), "both are under way"
    third = await farm.run("replay", "fold", "--since", "1h")
    assert (third.code, third.out) == (2, "")
    assert "Another replay of 'fold' is under way" in third.err
    for replaying in (shearing, counting):
        replaying.signal(signal.SIGCONT)
    assert (await shearing.ended(), await counting.ended()) == (0, 0)
    assert await farm.handled(fold, vet) == [Counter([*counted, *shorn, *shorn]), Counter([*counted, *counted])]


async def test_a_replay_is_no_faster_than_its_rate(farm: Farm) -> None:
    fold = await farm.serve("fold")
    counted = await farm.count(*range(300))
    began = monotonic()
    ended = await farm.run("replay", "fold", "--since", "1h", "--rate", "50", "--json")
    took = monotonic() - began
    assert ended.json["replayed"] == 300
    assert took >= 300 / 50 - 1, "a second's worth may come at once"
    assert await farm.handled(fold) == [Counter([*counted, *counted])]


@pytest.mark.parametrize("service", ["fold", "stock"])
async def test_a_replay_that_was_killed_and_is_run_again_has_brought_everything(farm: Farm, service: str) -> None:
    missed = await farm.count(*range(100))
    process = await farm.serve(service)
    words = ("replay", service, "--since", "1h")
    replaying = farm.start(*words, "--rate", "20")
    await process.logged("handled", 20)
    replaying.kill()
    assert replaying.out == "", "it was under way"
    ended = await farm.run(*words, "--json")
    assert (ended.code, ended.json["replayed"]) == (0, 100)
    (found,) = await farm.handled(process)
    assert set(found) == set(missed)
    if service == "fold":
        assert 120 <= found.total() < 200, "once more what the first has brought, and nothing a third time"
        return
    assert set(found.values()) == {1}
    assert len(process.lines("duplicate")) >= 20
    with closing(sqlite3.connect(farm.folder / "stock.db")) as database:
        numbers = [number for (number,) in database.execute("SELECT number FROM sheep ORDER BY number")]
    assert numbers == [*range(100), 1000]


# -- what hinders them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("log",),
        ("tail",),
        ("replay", "fold", "--since", "1h"),
        ("replay", "fold", "--since", "1h", "--dry-run"),
        ("story", "01a21766-9f2d-7289-8cf3-cec00f2b5501"),
        ("story", "--subject", "1"),
    ],
    ids=" ".join,
)
async def test_with_the_log_switched_off_what_reads_it_says_so(farm: Farm, words: tuple[str, ...]) -> None:
    ended = await farm.run(*words, BROKER_LOG="off")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "broker: The event log is switched off (BROKER_LOG). Switch it on everywhere.\n"


async def test_a_search_through_the_log_shows_on_a_terminal_how_far_it_is(farm: Farm) -> None:
    await farm.count(*range(1000), 7)
    words = ("story", "--subject", "7", "--json")
    quiet = await farm.run(*words)
    assert (quiet.code, quiet.err, len(quiet.json)) == (0, "", 2)
    ours, theirs = pty.openpty()
    environ = environment(farm.url, BROKER_LOGGING_LEVEL="warning", TERM="xterm", COLUMNS="120") | farm.environ
    process = subprocess.Popen(  # noqa: ASYNC220  (asyncio's would not take a terminal)
        [BROKER, *words], cwd=farm.folder, env=environ, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = bytearray()

    def over() -> bool:
        done = process.poll() is not None  # asked first: nothing comes after
        with contextlib.suppress(OSError):  # nothing now, or never again
            said.extend(os.read(ours, 65536))
        return done

    try:
        await until(over)
        assert process.stdout is not None
        with process.stdout as found:
            assert json.loads(found.read()) == quiet.json
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"reading the event log .* 999/1001", shown), shown
    assert said.endswith(b"\x1b[2K"), "its line is erased"


@pytest.fixture
def wrong_login(farm: Farm) -> Farm:
    """Its management API is asked with a wrong password."""
    farm.environ["BROKER_MANAGEMENT_URL"] = farm.environ["BROKER_MANAGEMENT_URL"].replace("://", "://nobody:hunter2@")
    return farm


@pytest.mark.parametrize("words", [("map", "--live"), ("map", "--check"), ("status",)], ids=" ".join)
async def test_a_wrong_management_login_ends_what_needs_it_and_names_the_user(
    wrong_login: Farm, words: tuple[str, ...]
) -> None:
    ended = await wrong_login.run(*words)
    assert (ended.code, ended.out) == (4, "")
    assert "refuses" in ended.err
    assert "the user 'nobody'" in ended.err
    assert "Is the password right?" in ended.err
    assert "hunter2" not in ended.err


async def test_a_wrong_management_login_is_a_finding_of_the_doctor(wrong_login: Farm) -> None:
    ended = await wrong_login.run("doctor")
    assert (ended.code, ended.err) == (1, "")
    assert "'nobody'" in ended.out
    assert "BROKER_MANAGEMENT_URL" in ended.out
    assert "hunter2" not in ended.out


async def test_with_a_wrong_management_login_a_story_is_told_by_the_code_and_says_why(wrong_login: Farm) -> None:
    (event_id,) = await wrong_login.count(1)
    ended = await wrong_login.run("story", event_id)
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert "Who should have handled it is what the code here says: the management API did not." in said
    assert "the user 'nobody'" in said
    assert "hunter2" not in said
    assert "Sheep Counted published by shepherd" in said
    assert "hunter2" not in ended.out + ended.err
