"""``broker log`` and ``broker replay``, as a person types them."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from broker import Broker, Event, Settings
from broker.rabbitmq import locked
from broker.tools.server import Server
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Ended, broker
from tests.waiting import until

SHELVES = '''
from broker import Event, Service


class DrumWeighed(Event, name="Drum Weighed", key="drum.weighed", subject="number"):
    """A drum was put on the scales."""

    number: int


class DrumLost(Event, name="Drum Lost", key="drum.lost", subject="number"):
    """A drum is gone."""

    number: int


service = Service("shelves", publishes=[DrumLost])
other = Service("audit")
quiet = Service("quiet", publishes=[DrumLost])


@service.on(DrumWeighed)
async def shelve(drum: DrumWeighed) -> None: ...


@other.on(DrumWeighed)
async def audit(drum: DrumWeighed) -> None: ...
'''


class DrumWeighed(Event, name="Drum Weighed", key="drum.weighed", subject="number"):
    """As the service declares it, too."""

    number: int


class DrumLost(Event, name="Drum Lost", key="drum.lost", subject="number"):
    """As the service declares it, too."""

    number: int


class Shop:
    """A folder with the service, and a RabbitMQ."""

    def __init__(self, folder: Path, url: str, management_url: str) -> None:
        self.folder, self.url = folder, url
        self.environ = {"BROKER_MODULES": "shelves", "BROKER_MANAGEMENT_URL": management_url}

    async def run(self, *words: str) -> Ended:
        return await broker(*words, url=self.url, folder=self.folder, environ=self.environ)

    async def publish(self, *numbers: int) -> None:
        async with Broker(self.url, source="scales") as scales:
            await scales.publish_many([DrumWeighed(number=number) for number in numbers])


@pytest.fixture
def shop(tmp_path: Path, vhost_url: str, server: Server) -> Shop:
    (tmp_path / "shelves.py").write_text(SHELVES)
    return Shop(tmp_path, vhost_url, server.management_url)


async def test_the_log_shows_what_is_meant(shop: Shop) -> None:
    await shop.publish(1, 2, 3)
    async with Broker(shop.url, source="van") as van:
        lost = await van.publish(DrumLost(number=2))
    everything = [json.loads(it) for it in (await shop.run("log", "--json")).out.splitlines()]
    assert [(it["name"], it["data"]["number"]) for it in everything] == [
        ("Drum Weighed", 1), ("Drum Weighed", 2), ("Drum Weighed", 3), ("Drum Lost", 2)
    ]  # fmt: skip
    assert everything[0]["properties"]["app_id"] == "scales"
    assert all(it["properties"]["message_id"] and it["properties"]["delivery_mode"] == 2 for it in everything)
    assert len({it["properties"]["message_id"] for it in everything}) == 4
    for words, numbers in (
        (("--subject", "2", "--event", "drum lost", "--source", "van", "--id", str(lost)), [2]),
        (("--offset", str(everything[1]["offset"]), "--limit", "1", "*.weighed"), [2]),
        (("--offset", str(everything[1]["offset"])), [2, 3, 2]),
        (("--limit", "2"), [1, 2]),
        (("*.weighed",), [1, 2, 3]),
        (("*.lost",), [2]),
        (("--source", "scales"), [1, 2, 3]),
        (("--source", "van"), [2]),
        (("--subject", "2"), [2, 2]),
        (("--id", everything[2]["id"]), [3]),
        (("--until", "1h"), []),
    ):
        shown = [json.loads(it) for it in (await shop.run("log", "--json", *words)).out.splitlines()]
        assert [it["data"]["number"] for it in shown] == numbers, words
    assert "Drum Lost" in (await shop.run("log")).out
    assert "Nothing in the log matches" in (await shop.run("log", "--subject", "77")).out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("log", "--follow", "--until", "1h"), "Say one of them"),
        (("replay", "shelves"), "Say from when"),
        (("replay", "shelf", "--since", "1h"), "Did you mean 'shelves'?"),
        (("replay", "quiet", "--since", "1h"), "subscribes to nothing"),
        (("replay", "shelves", "--since", "1h"), "has no queue on RabbitMQ"),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, tuple) else "",
)
async def test_what_is_wrong_is_said(shop: Shop, words: tuple[str, ...], told: str) -> None:
    await shop.publish(1)
    ended = await shop.run(*words)
    assert ended.code == 2
    assert told in " ".join(ended.err.replace("│", " ").split())


async def test_events_come_once_more_to_one_service_alone(shop: Shop, start: Start) -> None:
    shelves = start(BROKER, "run", "shelves:service", url=shop.url, folder=shop.folder)
    audit = start(BROKER, "run", "shelves:other", url=shop.url, folder=shop.folder)
    await shelves.logged("started")
    await audit.logged("started")
    await shop.publish(*range(5))
    async with Broker(shop.url, source="van") as van:
        await van.publish(DrumLost(number=9))
    await shelves.logged("handled", 5)
    await audit.logged("handled", 5)
    counted = await shop.run("replay", "shelves", "--since", "1h", "--dry-run", "--json")
    assert (counted.json["matched"], counted.json["replayed"]) == (5, 0)
    mistyped = await shop.run("replay", "shelves", "--since", "1h", "--dry-run", "--event", "drum weihed")
    assert "0 would be replayed" in mistyped.out
    assert "Did you mean" in mistyped.err
    assert "Drum Weighed" in mistyped.err
    some = await shop.run("replay", "shelves", "--since", "1h", "--subject", "3", "--json")
    assert some.json["replayed"] == 1
    await shelves.logged("handled", 6)
    shelves.signal(signal.SIGTERM)
    assert await shelves.ended() == 0
    waiting = await shop.run("replay", "shelves", "--since", "1h")
    assert "5 replayed to shelves. Nothing consumes its queue now" in waiting.out
    assert "shelves has no database" in waiting.err
    again = start(BROKER, "run", "shelves:service", url=shop.url, folder=shop.folder)
    await again.logged("handled", 5)
    ids = {line["event_id"] for line in shelves.lines("handled")}
    assert {line["event_id"] for line in again.lines("handled")} == ids
    assert {line["attempt"] for line in again.lines("handled")} == {1}
    assert len(audit.lines("handled")) == 5


async def test_two_replays_of_a_service_do_not_run_at_once(shop: Shop, start: Start) -> None:
    shelves = start(BROKER, "run", "shelves:service", url=shop.url, folder=shop.folder)
    await shelves.logged("started")
    settings = Settings.model_validate({"url": shop.url})
    async with locked("shelves.replay", settings, refusal="held"):
        refused = await shop.run("replay", "shelves", "--since", "1h")
    assert refused.code == 2
    assert "Another replay of 'shelves' is under way" in refused.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_replay_says_how_to_go_on_and_nothing_is_missed(
    shop: Shop, start: Start, number: signal.Signals, code: int
) -> None:
    shelves = start(BROKER, "run", "shelves:service", url=shop.url, folder=shop.folder)
    await shelves.logged("started")
    await shop.publish(*range(60))
    await shelves.logged("handled", 60)
    words = (BROKER, "replay", "shelves", "--since", "1h", "--rate", "20")
    replaying = start(*words, url=shop.url, folder=shop.folder, environ=shop.environ)
    await until(lambda: len(shelves.lines("handled")) >= 70, 20)
    replaying.signal(number)
    assert await replaying.ended() == code
    command = replaying.err.strip().splitlines()[-1].split()
    assert command[:3] == ["broker", "replay", "shelves"]
    await shop.publish(1000)
    ended = await shop.run(*command[1 : command.index("--rate")], *command[command.index("--rate") + 2 :])
    assert ended.code == 0, ended.err

    await until(lambda: len(shelves.lines("handled")) >= 121, 20)
    counts = Counter(line["event_id"] for line in shelves.lines("handled"))
    assert sorted(counts.values()) == [1] + 60 * [2], (
        "what came after the first replay had begun is none of its business"
    )


async def test_a_replay_of_nothing_and_an_inbox_that_is_not_known_are_told(shop: Shop, start: Start) -> None:
    shelves = start(BROKER, "run", "shelves:service", url=shop.url, folder=shop.folder)
    await shelves.logged("started")
    await shop.publish(1)
    nothing = await shop.run("replay", "shelves", "--id", str(uuid4()))
    assert nothing.code == 0
    assert "is what you asked for, and shelves subscribes to" in nothing.err
    there = shop.environ | {"BROKER_MODULES": "services"}
    elsewhere = await broker("replay", "shelves", "--since", "1h", url=shop.url, environ=there)
    assert elsewhere.code == 0, elsewhere.err
    assert "Whether shelves has an inbox is not known" in elsewhere.err
    assert (await shop.run("replay", "shelves", "--offset", "50", "--end", "20")).code == 2


async def test_what_became_of_events_is_told_and_followed(shop: Shop, start: Start) -> None:
    shelves = start(BROKER, "run", "shelves:service", url=shop.url, folder=shop.folder)
    await shelves.logged("started")
    following = start(
        BROKER, "log", "--follow", "--handlings", "--subject", "2", url=shop.url, folder=shop.folder,
    )  # fmt: skip
    await shop.publish(1, 2, 3)
    await until(lambda: "handled after" in following.out, 30)
    following.signal(signal.SIGINT)
    assert await following.ended() == 130
    assert [line.split()[1:4] for line in following.out.splitlines()] == [
        ["Drum", "Weighed", "scales"], ["Drum", "Weighed", "shelves"]
    ]  # fmt: skip
