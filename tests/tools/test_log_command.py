"""``broker log``, ``tail`` and ``replay`` in the terminal: what they look for, how far the log reaches, and safely."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from broker.cli.common import app
from broker.cli.replay import Asked
from broker.eventlog import Span, open_log
from broker.settings import Settings
from broker.tools.log import Bounds, Wanted
from broker.tools.replay import Outcome
from broker.tools.server import Server
from broker.topology import service_topology
from broker.transport import Offset
from tests.conformance.worlds import World
from tests.parcels import weighed
from tests.tools.test_eventlog import SMALL_LOG
from tests.tools.test_story_drawing import HOSTILE
from tests.waiting import until

STORY = UUID("01a21766-9f2d-7289-8cf3-cec00f2b5501")


def test_tail_looks_for_what_log_looks_for_from_now_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Wanted, Offset, int | None, bool]] = []

    @asynccontextmanager
    async def nothing(settings: Settings, name: str, **_: object) -> AsyncIterator[None]:
        yield None

    async def lines(log: Any, wanted: Wanted, begin: Offset, end: int | None, *, handlings: bool) -> AsyncIterator[Any]:
        asked.append((wanted, begin, end, handlings))
        for never in list[Any]():
            yield never

    monkeypatch.setattr("broker.cli.log.open_log", nothing)
    monkeypatch.setattr("broker.cli.log.lines", lines)
    words = ["parcel.*", "--event", "Parcel Weighed", "--subject", "1042", "--source", "scales"]
    assert CliRunner().invoke(app, ["tail", *words, "--correlation-id", str(STORY), "--handlings"]).exit_code == 0
    assert CliRunner().invoke(app, ["tail"]).exit_code == 0
    assert asked == [
        (Wanted(("parcel.*",), ("Parcel Weighed",), "1042", "scales", STORY), "next", None, True),
        (Wanted(), "next", None, False),
    ]


@pytest.mark.parametrize("text", [*HOSTILE, "[red]x[/red]", "[/]"], ids=lambda text: repr(text)[:20])
def test_hostile_names_of_what_is_replayed_command_no_terminal(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    async def perform(asked: Asked, bounds: Bounds, *, dry_run: bool) -> tuple[Outcome, bool]:
        outcome = Outcome(0, 9)
        outcome.events[text] = 7
        outcome.seen = {text: f"{text}eihed"}
        outcome.unreadable = 1
        return outcome, False

    def terminal(**options: Any) -> Console:
        return Console(force_terminal=True, width=10_000, **options)

    monkeypatch.setattr("broker.cli.replay.perform", perform)
    monkeypatch.setattr("broker.cli.replay.out", lambda: terminal(highlight=False))
    monkeypatch.setattr("broker.cli.log.Console", terminal)
    ended = CliRunner().invoke(app, ["replay", "packing", "--offset", "0", "--event", f"{text}weihed"])
    assert ended.exit_code == 0, ended.exception
    said = re.sub(r"\x1b\[[0-9;]*m", "", ended.output)
    assert all(c.isprintable() or c == "\n" for c in said)
    assert "7 replayed to packing" in said
    if text.isprintable():
        assert f"       7  {text}\n" in said, "markup is text"


# -- on RabbitMQ -----------------------------------------------------------------------------------------------------


async def test_a_truncated_log_says_since_when_it_reaches(
    world: World, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.transport(declare=SMALL_LOG, log=False)
    await world.transport(declare=service_topology("packing", ["parcel.weighed"], "events"), log=False)
    broker = await world.broker()
    assert world.url is not None
    monkeypatch.setenv("BROKER_URL", world.url)
    monkeypatch.setenv("BROKER_MANAGEMENT_URL", server.management_url)

    async def run(*words: str) -> Result:
        ended = await asyncio.to_thread(CliRunner().invoke, app, list(words))
        assert ended.exit_code == 0, ended.output
        return ended

    async with open_log(world.settings()) as log:

        async def truncated() -> Span | None:
            await broker.publish_many(weighed(number) for number in range(300))
            span = await log.span()
            return span if span.first > 500 else None

        span = await until(truncated)
        oldest = await log.time_at(span.first)
    assert oldest is not None
    reaches = f"The log reaches back to {oldest.astimezone():%Y-%m-%d %H:%M:%S}: what was before is truncated."
    for words in (["--id", str(uuid4())], ["--correlation-id", str(uuid4())], ["--offset", "0", "--limit", "1"]):
        assert reaches in (await run("log", *words)).stderr, words
    for words in (["--id", str(uuid4())], ["--offset", "0"]):
        replayed = await run("replay", "packing", "--from", "tests.parcels", "--dry-run", *words)
        assert reaches in replayed.stderr, words
    assert "truncated" not in (await run("log", "--offset", str(span.end - 1), "--limit", "1")).stderr
