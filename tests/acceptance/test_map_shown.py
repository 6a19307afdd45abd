"""The map of services on a real RabbitMQ, and its page in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import Page

from broker.tools.map_page import page
from broker.tools.server import Server
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, ROOT, broker
from tests.browser import faint, opened
from tests.tools.test_map import HOSTILE, live, map_of, shop
from tests.waiting import until

NOWHERE = "amqp://127.0.0.1:9/"


async def visible(chrome: Page) -> set[str]:
    """The names in the columns that are to be seen."""
    return {str(name) for name in await chrome.locator(".columns li:not([hidden]) button span").all_inner_texts()}


async def drawn(chrome: Page, kind: str = "path") -> int:
    return await chrome.locator(f".columns > svg {kind}").count()


async def test_the_page_filters_and_highlights(tmp_path: Path) -> None:
    file = tmp_path / "map.html"
    file.write_text(page(map_of(shop(), live())))
    async with opened(file) as chrome:
        everything = await visible(chrome)
        assert {"scales", "Parcel Weighed", "Parcel Sent", "packing", "watching"} <= everything
        assert await drawn(chrome) == 6  # two published; one heard exactly, three by the pattern
        await chrome.get_by_label("Filter").fill("weighed")
        assert await visible(chrome) == {"scales", "Parcel Weighed", "packing", "watching"}
        assert await drawn(chrome) == 3
        assert "4 of " in await chrome.get_by_role("status").inner_text(), "read out to whom does not see it"
        await chrome.keyboard.press("Escape")
        assert await visible(chrome) == everything
        await chrome.get_by_role("button", name="scales").focus()
        await chrome.keyboard.press("Enter")
        assert await drawn(chrome, "path.on") == 3
        assert await chrome.get_by_role("button", pressed=True).locator("span").all_inner_texts() == ["scales"]
        assert await chrome.get_by_role("region").count() == 3, "publishers, events, subscribers"
        assert await chrome.locator("button.on span").all_inner_texts() == ["scales", "Parcel Weighed", "packing", "watching"]  # fmt: skip  # noqa: E501
        await chrome.keyboard.press("Enter")
        assert await drawn(chrome, "path.on") == 0


@pytest.mark.parametrize(("dark", "paper"), [(False, "rgb(255, 255, 255)"), (True, "rgb(13, 17, 23)")])
async def test_a_page_is_light_or_dark_and_legible(tmp_path: Path, dark: bool, paper: str) -> None:
    file = tmp_path / "map.html"
    file.write_text(page(map_of(shop(), live(["packing", "packing.dead"], [("packing", "parcel.lost")], consumers=0))))
    async with opened(file, dark=dark) as chrome:
        assert await chrome.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert await faint(chrome) == []
        red = await chrome.locator(".columns button.bad").first.evaluate("it => getComputedStyle(it).color")
        assert await chrome.locator("path.live").first.evaluate("it => getComputedStyle(it).stroke") == red


async def test_hostile_names_stay_text_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "map.html"
    it = map_of(
        shop(), live(["packing", *HOSTILE], [(name, name) for name in HOSTILE]), note="<script>alert(1)</script>"
    )
    file.write_text(page(it))
    async with opened(file) as chrome:  # which fails on a dialog, an error, and any request
        assert "<script>alert(1)</script>" in await visible(chrome)
        assert await chrome.locator("img").count() == 0


async def test_two_hundred_services_and_a_thousand_events_are_one_page_to_read(tmp_path: Path) -> None:
    file = tmp_path / "map.html"
    shutil.copy(ROOT / "bench" / "company.py", tmp_path)
    made = await broker("map", "--html", file.name, "--code", "--from", "company", url=NOWHERE, folder=tmp_path)
    assert made.code == 0, made.err
    assert file.stat().st_size < 5_000_000
    async with opened(file, width=1600) as chrome:
        everything = await visible(chrome)
        assert {f"Event Number {n}" for n in range(1000)} | {f"service-{n}" for n in range(200)} == everything
        for width in (1600, 800):
            await chrome.set_viewport_size({"width": width, "height": 900})
            assert await drawn(chrome) == 2000
            assert await chrome.evaluate("document.documentElement.scrollWidth <= innerWidth")
        event = chrome.locator("button", has_text="Event Number 777")
        await event.click()  # what it joins was screens away
        assert await visible(chrome) == {"Event Number 777", "service-155", *heard_by(777)}
        await chrome.get_by_text(f"{2 + len(heard_by(777))} of 1400 shown").wait_for()
        await chrome.keyboard.press("Escape")
        assert await visible(chrome) == everything
        assert await event.evaluate(IN_VIEW)


IN_VIEW = "it => { const box = it.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"


def heard_by(event: int) -> set[str]:
    """Who hears it, of the company."""
    return {f"service-{n}" for n in range(200) if event in {(37 * n + 211 * step) % 1000 for step in range(5)}}


SORTING = """
from broker import Event, Service


class CartonWeighed(Event, name="Carton Weighed", key="carton.weighed"):
    number: int


service = Service("sorting", publishes=[CartonWeighed])


@service.on(CartonWeighed)
async def sort(carton: CartonWeighed) -> None: ...
"""


async def test_what_stands_on_rabbitmq_is_laid_over_the_code(
    tmp_path: Path, vhost_url: str, server: Server, start: Start
) -> None:
    (tmp_path / "sorting.py").write_text(SORTING)
    environ = {"BROKER_MODULES": "sorting", "BROKER_MANAGEMENT_URL": server.management_url}
    process = start(BROKER, "run", "sorting", url=vhost_url, folder=tmp_path)
    await process.logged("started")
    vhost = urlsplit(vhost_url).path.removeprefix("/")
    async with httpx.AsyncClient(base_url=f"{server.management_url}/api", auth=server.login) as api:
        (
            await api.post(f"/bindings/{vhost}/e/events/q/sorting", json={"routing_key": "carton.lost"})
        ).raise_for_status()
        (await api.put(f"/queues/{vhost}/crm-orders", json={"durable": True})).raise_for_status()

    async def agreed() -> dict[str, Any] | None:
        shown = await broker("map", "--json", url=vhost_url, folder=tmp_path, environ=environ)
        found: dict[str, Any] = shown.json
        return None if "no consumer" in {each["kind"] for each in found["drift"]} else found

    found = await until(agreed, every=0.5)  # RabbitMQ tells of consumers every five seconds
    assert {(each["kind"], each["about"]) for each in found["drift"]} == {
        ("stale binding", "sorting"),
        ("foreign queue", "crm-orders"),
    }
    shown = await broker("map", url=vhost_url, folder=tmp_path, environ=environ)
    assert "carton.lost" in shown.out
    checked = await broker("map", "--check", "--mermaid", url=vhost_url, folder=tmp_path, environ=environ)
    assert checked.code == 1
    assert checked.out.startswith("flowchart LR\n")
    alone = await broker("map", "--live", url=vhost_url, folder=tmp_path, environ=environ | {"BROKER_MODULES": "none"})
    assert "sorting" in alone.out


async def test_without_management_the_code_alone_is_shown_and_live_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "sorting.py").write_text(SORTING)
    environ = {"BROKER_MODULES": "sorting", "BROKER_MANAGEMENT_URL": "http://127.0.0.1:9"}
    shown = await broker("map", url=NOWHERE, folder=tmp_path, environ=environ)
    assert shown.code == 0
    assert "Only of the code" in shown.out
    assert "Carton Weighed" in shown.out
    checked = await broker("map", "--check", url=NOWHERE, folder=tmp_path, environ=environ)
    assert checked.code == 3  # what was not seen does not fit
    live_ = await broker("map", "--live", url=NOWHERE, folder=tmp_path, environ=environ)
    assert live_.code == 3
    page_ = await broker("map", "--html", "no/such/folder/map.html", url=NOWHERE, folder=tmp_path, environ=environ)
    assert page_.code == 2
    assert "no/such/folder" in page_.err
