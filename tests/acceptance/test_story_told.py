"""Stories as people see them: the command on a real RabbitMQ, its page in a real browser."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from playwright.async_api import Page

from broker import Reject, Retry, Service
from broker.tools.server import Server
from broker.tools.story_page import page
from broker.topology import service_topology
from services import crm, dispatch, order, packing, reporting
from services.contracts.storage import open_database
from services.order import orders
from tests.acceptance.running import Ended, broker
from tests.browser import faint, opened
from tests.conformance.worlds import World
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, weighed
from tests.services import making
from tests.stories import Tale, standing, troubled
from tests.tools.test_story_drawing import HOSTILE
from tests.waiting import until

ORDER_STORY = {
    ("order", "New Order Placed", "packing", "handled"),
    ("order", "New Order Placed", "crm", "handled"),
    ("order", "New Order Placed", "reporting", "handled"),
    ("packing", "Order Packed", "order", "handled"),
    ("packing", "Order Packed", "crm", "handled"),
    ("packing", "Order Packed", "reporting", "handled"),
    ("packing", "Order Packed", "dispatch", "handled"),
    ("dispatch", "Order Dispatched", "order", "handled"),
    ("dispatch", "Order Dispatched", "crm", "handled"),
    ("dispatch", "Order Dispatched", "reporting", "handled"),
}
"""What placing one order leads to. No arrow more, and none less."""


@pytest.fixture
async def world(vhost_url: str) -> AsyncIterator[World]:
    async with World(vhost_url) as world:
        yield world


class Command:
    """``broker story`` on this RabbitMQ."""

    def __init__(self, url: str, server: Server) -> None:
        self.url = url
        self.environ = {"BROKER_MANAGEMENT_URL": server.api_url, "COLUMNS": "80"}

    async def __call__(self, *words: str) -> Ended:
        return await broker("story", *words, url=self.url, environ=self.environ)

    async def settled(self, story: UUID, *words: str) -> dict[str, Any]:
        """The story for programs, once everything in it that is to come is recorded: services tell once a second."""

        async def told() -> dict[str, Any] | None:
            ended = await self(str(story), "--json", *words)
            found: dict[str, Any] = ended.json if ended.code == 0 else {}
            return found if found.get("settled") else None

        found: dict[str, Any] = await until(told, every=0.5)
        return found


@pytest.fixture
def story(vhost_url: str, server: Server) -> Command:
    return Command(vhost_url, server)


async def arrows(chrome: Page) -> list[tuple[str, ...]]:
    """Who told whom what, and how it ended, as the browser has drawn it: from the places where arrows begin and end."""
    found: list[list[str]] = await chrome.evaluate(
        """() => {
            const heads = [...document.querySelectorAll('.lifeline')].map(it => {
                const box = it.querySelector('rect').getBoundingClientRect();
                return [it.querySelector('title').textContent, (box.left + box.right) / 2];
            });
            const at = x => heads.reduce((a, b) => Math.abs(a[1] - x) < Math.abs(b[1] - x) ? a : b)[0];
            return [...document.querySelectorAll('.step')].flatMap(step =>
                [...step.querySelectorAll('.arrow')].map(arrow => {
                    const [line, tip] = [arrow.querySelector('.line'), arrow.querySelector('path:last-of-type')];
                    const [from, to] = [line.getBoundingClientRect(), tip.getBoundingClientRect()];
                    const right = to.left >= from.left;
                    return [
                        at(right ? from.left : from.right),
                        step.querySelector('.event').textContent,
                        at(right ? to.right : to.left),
                        arrow.classList[1],
                    ];
                }));
        }"""
    )
    return [tuple(it) for it in found]


# -- the shop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the services' files."""
    for service in ("order", "packing", "dispatch", "crm", "reporting"):
        monkeypatch.setenv(f"{service.upper()}_DATABASE", f"sqlite+aiosqlite:///{tmp_path}/{service}.db")
    monkeypatch.setenv("CRM_OUTBOX", str(tmp_path / "outbox"))
    monkeypatch.delenv("CRM_SMTP_URL", raising=False)
    for service in ("PACKING", "DISPATCH"):
        monkeypatch.setenv(f"{service}_WORKING_TIME", "0")
    return tmp_path


async def place(world: World) -> tuple[UUID, UUID]:
    """Place an order in the running shop, as its command does; returns the ids of order and event."""
    ada, lamp = making.customer(), making.item()
    home = making.address(ada.customer_id)
    broker = await world.broker("test")
    await broker.publish_many([ada, lamp, home])
    line = orders.WantedLine(item_id=lamp.item_id, quantity=2)
    wanted = orders.WantedOrder(customer_id=ada.customer_id, address_id=home.address_id, lines=(line,))
    async with open_database(order.Settings().database, order.store.Base.metadata) as database:

        async def placed() -> orders.PlacedOrder | None:
            with contextlib.suppress(orders.Refused):  # the copies are on their way
                return await orders.place(database, wanted)
            return None

        found = await until(placed, every=0.1)
    return found.order_id, found.event_id


async def test_an_order_is_exactly_the_designs_sequence(
    world: World, story: Command, data: Path, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as running:
        for module in (order, packing, dispatch, crm, reporting):
            await running.enter_async_context(world.serve(module.service))
        order_id, event_id = await place(world)
        told = await story.settled(event_id)
    assert {
        (it["source"], it["name"], by["service"], by["outcome"]) for it in told["events"] for by in it["subscribers"]
    } == ORDER_STORY
    assert told["expected_from"] == "RabbitMQ's bindings"
    file = tmp_path / "story.html"
    ended = await story("--subject", str(order_id), "--html", str(file))
    assert (ended.code, ended.out) == (0, f"Written: {file}\n")
    async with opened(file) as chrome:
        drawn = await arrows(chrome)
        assert len(drawn) == 10
        assert set(drawn) == ORDER_STORY
        assert await chrome.locator(".step .event").all_text_contents() == [
            "New Order Placed",
            "Order Packed",
            "Order Dispatched",
        ]
        assert str(order_id) in await chrome.locator("main").inner_text()


# -- what goes wrong -------------------------------------------------------------------------------------------------


def trade() -> tuple[Service, Service]:
    """Sorting fails once, and then sends the parcel; billing rejects what it gets."""
    sorting, billing = Service("sorting", retry=Retry("250ms")), Service("billing")
    tried: list[UUID] = []

    @sorting.on(ParcelWeighed)
    async def sort(event: ParcelWeighed) -> ParcelSent:
        tried.append(event.parcel_id)
        if len(tried) == 1:
            raise ConnectionError("the scales <are> down")
        return ParcelSent(parcel_id=event.parcel_id)

    @billing.on(ParcelSent)
    async def bill(event: ParcelSent) -> None:
        raise Reject("nobody pays")

    return sorting, billing


async def test_a_retry_a_dead_letter_and_a_service_that_does_not_run(
    world: World, story: Command, tmp_path: Path
) -> None:
    sorting, billing = trade()
    await world.transport(declare=service_topology("archive", ["parcel.#"], "events"))
    broker = await world.broker("scales")
    async with world.serve(sorting), world.serve(billing):
        event_id = await broker.publish(weighed())

        async def told() -> list[dict[str, Any]] | None:
            found = (await story(str(event_id), "--json")).json["events"]
            done = len(found) == 2 and all(len(it["subscribers"]) == 2 for it in found)
            return found if done and found[1]["subscribers"][0]["outcome"] == "dead" else None

        weighing, sending = await until(told, every=0.5)
    assert [(by["service"], by["outcome"]) for it in (weighing, sending) for by in it["subscribers"]] == [
        ("sorting", "handled"),
        ("archive", "waiting"),
        ("billing", "dead"),
        ("archive", "waiting"),
    ]
    failed, went_well = weighing["subscribers"][0]["attempts"]
    assert (failed["outcome"], failed["delay"], failed["error"]) == (
        "retrying",
        "250ms",
        "ConnectionError: the scales <are> down",
    )
    assert (went_well["outcome"], went_well["attempt"], went_well["handler"]) == ("handled", 2, "sort")
    file = tmp_path / "story.html"

    async def shown() -> str | None:
        out = (await story(str(event_id), "--html", str(file))).out
        return out if "2 in its queue" in file.read_text() else None  # RabbitMQ's counts are some seconds old

    await until(shown, every=0.5)
    async with opened(file) as chrome:
        assert await arrows(chrome) == [
            ("scales", "Parcel Weighed", "sorting", "retrying"),
            ("sorting", "Parcel Weighed", "sorting", "handled"),
            ("scales", "Parcel Weighed", "archive", "waiting"),
            ("sorting", "Parcel Sent", "billing", "dead"),
            ("sorting", "Parcel Sent", "archive", "waiting"),
        ]
        assert await chrome.locator(".words").all_text_contents() == [
            "failed, again in 250ms: ConnectionErr…",
            "attempt 2: handled",
            "waiting: 2 in its queue, no consumer",
            "dead letter: Reject",
            "waiting: 2 in its queue, no consumer",
        ]
        assert "the scales <are> down" in await chrome.locator("table").inner_text()
    ended = await story(str(event_id))
    assert all(len(line.rstrip()) <= 80 for line in ended.out.splitlines())
    assert "again in 250ms" in ended.out
    assert ended.out.splitlines()[-1] == f"broker dead show billing --id {sending['id']}"


async def test_a_service_that_was_stopped_and_runs_again_leaves_nothing_open(world: World, story: Command) -> None:
    service = Service("archive")
    service.on(ParcelWeighed)(lambda event: None)
    await world.transport(declare=service_topology("archive", ["parcel.weighed"], "events"))
    broker = await world.broker("scales")
    event_id = await broker.publish(weighed())
    (archive,) = (await story(str(event_id), "--json")).json["events"][0]["subscribers"]
    assert archive["outcome"] == "waiting"
    async with world.serve(service):
        told = await story.settled(event_id)
    assert told["events"][0]["subscribers"][0]["outcome"] == "handled"


# -- the command -----------------------------------------------------------------------------------------------------


async def test_ways_to_name_a_story(world: World, story: Command) -> None:
    broker = await world.broker("scales")
    parcel = uuid4()
    first = await broker.publish(ParcelWeighed(parcel_id=parcel))
    second = await broker.publish(ParcelSent(parcel_id=parcel))
    await broker.publish(ParcelLost(parcel_id=uuid4()))
    for named in (str(first), str(first).upper(), str(first)[-12:]):
        assert (await story(named, "--json")).json["correlation_id"] == str(first)
    several = await story("--subject", str(parcel), "--json")
    assert [it["correlation_id"] for it in several.json] == [str(first), str(second)]
    listed = await story("--subject", str(parcel), "--since", "1h")
    assert listed.out.splitlines()[-1] == f"2 stories. Next: broker story {second}"
    diagram = await story(str(first), "--mermaid")
    assert diagram.out.splitlines()[0] == "sequenceDiagram"
    printed = await story(str(first), "--html", "-")
    assert printed.out.startswith("<!doctype html>")


async def test_what_it_says_when_it_cannot(world: World, story: Command, tmp_path: Path) -> None:
    broker = await world.broker("scales")
    event_id = await broker.publish(weighed())
    wrong = UUID(int=event_id.int ^ 0xF00)
    for words, said in (
        ((str(wrong),), f"Did you mean '{event_id}'?"),
        (("order-1042",), "'order-1042' is no id, nor an id's end. To search by what events are about: --subject."),
        (("--subject", "1042"), "No event with the subject '1042' is in the event log; it holds 1 messages"),
        ((), "Which story? Give a correlation id, or --subject ID; not both."),
        ((str(event_id), "--subject", "1042"), "Which story?"),
        ((str(event_id), "--within", "soon"), "'soon' is not how long"),
        ((str(event_id), "--html", str(tmp_path / "no" / "such.html")), "No such file or directory"),
    ):
        ended = await story(*words)
        assert ended.code == 2, ended
        assert said in " ".join(ended.err.replace("│", " ").split())
        assert "Traceback" not in ended.err


# -- the page --------------------------------------------------------------------------------------------------------


async def test_a_page_is_usable_with_the_keyboard_and_opens_what_a_link_leads_to(tmp_path: Path) -> None:
    file = tmp_path / "story.html"
    file.write_text(page(troubled().told(standing(), at=100)))
    async with opened(file) as chrome:
        details = chrome.locator("details").nth(1)
        assert await details.get_attribute("open") is None
        await chrome.locator(".sequence a").nth(1).focus()
        await chrome.keyboard.press("Enter")
        assert await details.get_attribute("open") is not None
        assert "019f" in await details.inner_text()
        assert '"order_id": "1042"' in await details.locator("pre").inner_text()
        await chrome.locator("summary").first.focus()
        await chrome.keyboard.press("Enter")
        assert await chrome.locator("details").first.get_attribute("open") is not None
        assert await chrome.evaluate("document.querySelector('figure').ariaLabel")


@pytest.mark.parametrize(("dark", "paper"), [(False, "rgb(255, 255, 255)"), (True, "rgb(13, 17, 23)")])
@pytest.mark.parametrize("width", [800, 1600])
async def test_a_page_is_light_or_dark_and_no_wider_than_its_window(
    tmp_path: Path, dark: bool, paper: str, width: int
) -> None:
    file = tmp_path / "story.html"
    file.write_text(page(troubled().told(standing(), at=100)))
    async with opened(file, dark=dark, width=width) as chrome:
        assert await chrome.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert await chrome.evaluate("getComputedStyle(document.querySelector('.sequence .paper')).fill") == paper
        assert await chrome.evaluate("document.documentElement.scrollWidth") <= width
        assert await faint(chrome) == []


async def test_a_story_of_two_hundred_services_is_a_page_to_read(tmp_path: Path) -> None:
    tale = Tale().event()
    for n in range(200):
        tale.handling(f"service-{n}", at=n / 100)
    file = tmp_path / "story.html"
    file.write_text(page(tale.told()))
    async with opened(file, width=1600) as chrome:
        assert await chrome.evaluate("document.documentElement.scrollWidth") <= 1600
        rows = await chrome.locator("main table").first.inner_text()
        assert all(f"service-{n}" in rows for n in (0, 77, 199))
        assert await chrome.locator("figure").evaluate("it => it.scrollWidth > it.clientWidth"), "it scrolls by itself"
        assert await chrome.locator("figure text").first.evaluate("it => it.getBoundingClientRect().height") > 10
        assert await faint(chrome) == []


async def test_hostile_names_payloads_and_errors_stay_text_in_a_browser(tmp_path: Path) -> None:
    tale = Tale(**{text: ["#"] for text in HOSTILE if text})
    for position, text in enumerate(HOSTILE):
        name, data = text or "?", json.dumps({"data": {text: [text]}}).encode()
        tale.event(str(position), at=position, name=name, source=name, subject=text, key=name, data=data)
        tale.handling(name, str(position), at=position, name=name, outcome="dead", error=text, handler=text, delay=text)
    file = tmp_path / "story.html"
    file.write_text(page(tale.told()), encoding="utf-8")
    async with opened(file) as chrome:  # which fails on a dialog, an error, and any request
        shown = await chrome.locator("main").inner_text()
        assert "<script>alert(1)</script>" in shown
        assert "</title></svg><script>alert(1)</script>" in shown
        tags: list[str] = await chrome.evaluate("[...document.querySelectorAll('main *')].map(it => it.localName)")
        assert not {"script", "img", "iframe", "b", "form", "input"} & set(tags)
        assert "\x1b" not in shown
        for summary in await chrome.locator("summary").all():
            await summary.click()
        assert await chrome.locator("pre").count() == len(HOSTILE)
        assert await chrome.evaluate("document.documentElement.scrollWidth") <= 1200


async def test_a_story_of_thousands_of_events_still_opens(tmp_path: Path) -> None:
    tale = Tale().event()
    for position in range(5000):
        tale.event(str(position), at=position, cause="first").handling("crm", str(position), at=position)
    file = tmp_path / "story.html"
    file.write_text(page(tale.told()))
    assert file.stat().st_size < 5_000_000
    async with opened(file) as chrome:
        assert "3001 more events are not shown" in await chrome.locator("main").inner_text()
