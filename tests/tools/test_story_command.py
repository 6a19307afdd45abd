"""``broker story`` in the terminal: what it shows, on 80 columns, and when somebody will not wait."""

from __future__ import annotations

import io
import json
import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console
from typer.testing import CliRunner

from broker.cli.common import app, one_line
from broker.cli.story import screen, show_list
from broker.tools.story import Story, Subscriptions
from broker.tools.story_reader import Gathering, Heading, Reader, Wanted
from tests.stories import FIRST, NOON, Tale, order, standing, troubled
from tests.tools.test_story_drawing import HOSTILE, hostile


def shown(told: Story, width: int = 80) -> str:
    """What stands on a terminal so wide."""
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    terminal.print(screen(told))
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def lines(told: Story, width: int = 80) -> list[str]:
    """The same without colours, line by line."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", shown(told, width)).splitlines()]


def test_an_order_fits_eighty_columns() -> None:
    said = lines(order().told())
    assert said[0] == "New Order Placed"
    assert said[1] == f"story {FIRST}"
    assert "2026-07-01" in said[2]
    assert said[4:9] == [
        "   at  after  event, and who got it",
        " 0 ms         New Order Placed       published by order",
        "10 ms  10 ms    packing              handled in 10 ms",
        "11 ms  11 ms    crm                  handled in 10 ms",
        "12 ms  12 ms    reporting            handled in 10 ms",
    ]
    assert said[-1] == "3 events within 62 ms: 10 handled."
    assert all(len(line) <= 80 for line in said)


def test_troubles_fit_eighty_columns_and_end_with_what_to_do() -> None:
    said = lines(troubled().told(standing(), at=100))
    assert all(len(line) <= 80 for line in said)
    text = " ".join(" ".join(said).split())
    assert "attempt 2: failed after 10 ms, again in 30s" in text
    assert "CartonMissing: no carton is large enough for a grand piano" in text
    assert "waiting: 3 in its queue, no consumer" in text
    assert said[-2] == "2 events within 31.31 s: 3 handled, 1 dead, 2 waiting, 2 without a record."
    assert said[-1] == f"broker dead show crm --id {FIRST}"


def test_what_waits_ends_with_the_status_of_who_should_handle_it() -> None:
    assert lines(Tale(crm=["#"]).event().told())[-1] == "broker status crm"


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:20])
def test_hostile_names_command_no_terminal(text: str) -> None:
    said = re.sub(r"\x1b\[[0-9;]*m", "", shown(hostile(text)))
    assert all(c.isprintable() or c == "\n" for c in said)


@pytest.mark.parametrize("found_something", [True, False])
def test_ctrl_c_shows_what_was_found_so_far(monkeypatch: pytest.MonkeyPatch, found_something: bool) -> None:
    async def interrupted(reader: Reader, story: UUID, since: datetime | None, within: timedelta | None) -> Any:
        if found_something:
            reader._gathering = Gathering(Tale().event().found, Subscriptions(), None)
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "story", interrupted)
    ended = CliRunner().invoke(app, ["story", str(FIRST)])
    assert ended.exit_code == 130
    assert ("Interrupted: what was found so far." in ended.output) is found_something
    assert ("New Order Placed" in ended.output) is found_something


@pytest.mark.parametrize("found", [0, 1, 2])
@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_shows_what_a_search_has_found_so_far(
    monkeypatch: pytest.MonkeyPatch, found: int, as_json: bool
) -> None:
    stories = [UUID(int=FIRST.int + number) for number in range(found)]

    async def interrupted(reader: Reader, wanted: Wanted, since: datetime | None) -> Any:
        reader._headings = {it: Heading(it, "New Order Placed", NOON, 1) for it in stories}
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "about", interrupted)
    ended = CliRunner().invoke(app, ["story", "--subject", "1042", *(["--json"] if as_json else [])])
    assert ended.exit_code == 130
    assert ("Interrupted: what was found so far." in ended.stderr) is bool(found)
    assert all(str(it) in ended.stdout for it in stories)
    if found and as_json:
        assert [it["correlation_id"] for it in json.loads(ended.stdout)] == list(map(str, stories))
    if not found:
        assert ended.stdout == ""


@pytest.mark.parametrize(("words", "told_since"), [([str(FIRST)], NOON), (["--subject", "1042"], None)])
def test_since_bounds_a_search_and_not_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, words: list[str], told_since: datetime | None
) -> None:
    asked: dict[str, datetime | None] = {}

    async def about(reader: Reader, wanted: Wanted, since: datetime | None) -> list[Heading]:
        asked["search"] = since
        return [Heading(FIRST, "New Order Placed", NOON, 1)]

    async def told(reader: Reader, story: UUID, since: datetime | None, within: timedelta | None) -> Story:
        asked["story"] = since
        return order().told()

    monkeypatch.setattr(Reader, "about", about)
    monkeypatch.setattr(Reader, "story", told)
    ended = CliRunner().invoke(app, ["story", *words, "--since", NOON.isoformat()])
    assert ended.exit_code == 0
    assert asked["story"] == told_since
    assert asked.get("search", NOON) == NOON


def test_so_long_and_since_when_are_no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[timedelta | None] = []

    async def told(reader: Reader, story: UUID, since: datetime | None, within: timedelta | None) -> Story:
        asked.append(within)
        return order().told()

    monkeypatch.setattr(Reader, "story", told)
    assert CliRunner().invoke(app, ["story", str(FIRST), "--within", "90d", "--since", "90d"]).exit_code == 0
    assert asked == [timedelta(days=90)]
    for words, said in (
        (["--within", "long"], "'long' is not how long. Write a number and a unit"),
        (["--within", "999999999999d"], "is not how long"),
        (["--since", "0001-01-01T00:00+14:00"], "is no time. Write '30m'"),
    ):
        ended = CliRunner().invoke(app, ["story", str(FIRST), *words])
        assert ended.exit_code == 2
        assert said in " ".join(ended.output.replace("│", " ").split())


@pytest.mark.parametrize("text", [*HOSTILE, "[red]x[/red]", "[/]"], ids=lambda text: repr(text)[:20])
def test_hostile_names_in_a_list_command_no_terminal(
    monkeypatch: pytest.MonkeyPatch, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("broker.cli.story.out", lambda: Console(force_terminal=True, width=200, highlight=False))
    show_list([Heading(FIRST, text, NOON, 1)] * 2, as_json=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(c.isprintable() or c == "\n" for c in said)
    assert one_line(text, 40).strip() in said, "markup is text"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html"], "requires an argument"),
        (["--html", "--json", str(FIRST)], "'--json' is an option. Which file?"),
        (["--html", str(FIRST)], "is the FILE of --html: name that, too."),
        (["--html", "story.html", "--json", str(FIRST)], "--html and --json: one form of output at a time."),
        (["--mermaid", "--json", str(FIRST)], "--mermaid and --json: one form of output at a time."),
    ],
)
def test_forms_of_output_that_do_not_fit(words: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, ["story", *words])
    assert ended.exit_code == 2
    assert said in " ".join(ended.output.split())
