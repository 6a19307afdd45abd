"""What ``broker replay`` tells beside its counts: how far it is, and what was no event."""

from __future__ import annotations

import asyncio
import io
import re
from datetime import UTC, datetime

import pytest
from rich.console import Console
from typer.testing import CliRunner

from broker.cli.common import app
from broker.cli.replay import EVERY, progress
from broker.envelope import Story, encode
from broker.events import id_of
from broker.tools.replay import Outcome
from broker.tools.server import Server
from broker.topology import service_topology, shared_topology
from broker.transport import Message
from tests.conformance.worlds import World
from tests.parcels import message, weighed


def at(read: int, events: int) -> Outcome:
    """So far of 12,000 messages."""
    outcome = Outcome(1000, 13_000)
    outcome.next += read
    outcome.events["Parcel Weighed"] = events
    return outcome


def test_in_a_file_there_is_a_line_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("broker.cli.replay.monotonic", lambda: now)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress(at(0, 0)) as told:
        for seconds, read, events in (
            (EVERY - 0.1, 500, 2), (0.1, 1500, 1250), (EVERY / 2, 4000, 2000), (EVERY / 2, 6000, 5001)
        ):  # fmt: skip
            now += seconds
            told(at(read, events))
    assert capsys.readouterr().err.splitlines() == [
        "1,500 of 12,000 messages of the log read, 1,250 events",
        "6,000 of 12,000 messages of the log read, 5,001 events",
    ]


def test_on_a_terminal_a_bar_says_it_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=80, legacy_windows=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("broker.cli.replay.Console", lambda **_: terminal)
    with progress(at(0, 0)) as told:
        told(at(6000, 5001))
    said, last = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue()), "\x1b[2K"
    assert "replaying 5001 " in said
    assert "6000/12000" in said
    assert said.endswith(last), "its line is erased"


def parcel() -> Message:
    """An event as it is published."""
    event = weighed()
    body, _ = encode(event, event_id=id_of(event), source="scales", time=datetime.now(UTC), story=Story(id_of(event)))
    return message(body, type="Parcel Weighed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], ("2 of 5 messages of the log read, 1 events", "2 would be replayed to packing.")),
        ([], ("5 of 5 messages of the log read, 2 events", "2 replayed to packing. Nothing consumes its queue now")),
    ],
    ids=["dry run", "replay"],
)
async def test_progress_and_what_is_no_event_are_told(
    world: World, server: Server, monkeypatch: pytest.MonkeyPatch, words: list[str], said: tuple[str, str]
) -> None:
    monkeypatch.setattr("broker.cli.replay.EVERY", 0)
    monkeypatch.setattr("broker.tools.replay.TELL_EVERY", 2)
    monkeypatch.setenv("BROKER_URL", world.url or "")
    monkeypatch.setenv("BROKER_MANAGEMENT_URL", server.management_url)
    transport = await world.transport(declare=shared_topology(world.settings()))
    await transport.declare(service_topology("packing", ["parcel.*"], "events"))
    for lying in (parcel(), message(b"no event"), message(b"none", key="van.broke"), message(b"[1]"), parcel()):
        await transport.publish(lying, mandatory=False, timeout=30)
    asked = ["replay", "packing", "--offset", "0", "--from", "tests.parcels", *words]
    ended = await asyncio.to_thread(CliRunner().invoke, app, asked)
    assert ended.exit_code == 0, ended.output
    told = ended.stderr.splitlines()
    assert said[0] in told
    assert "2 messages are no events, and are left out. `broker log` shows them." in told
    assert said[1] in " ".join(ended.stdout.split())
    assert await transport.count("packing") == (4 if words else 6)
