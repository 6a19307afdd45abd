"""``make pictures``: runs the demo, and takes the pictures of README and docs from it, in a browser.

The map and the story are the demo's own; the management UI shows the queues of the demo's services, and a dead letter.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
from playwright.async_api import Browser, Page

from broker.tools.management import Management
from broker.tools.node import login
from broker.tools.server import NoServer, Server, rabbitmq
from services.demo.acts import broken_item
from tests.browser import browser
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
SHARP = 1.5
"""Pixels of a picture for one of the page."""


def main() -> int:
    """Take them all; exits 1 when the demo fails or no RabbitMQ is to be had."""
    try:
        with rabbitmq(docker=None, say=tell) as server:
            return asyncio.run(take(server))
    except NoServer as why:
        tell(str(why))
        return 1


async def take(server: Server) -> int:
    """Run the demo, which leaves everything running, and look at it."""
    tell("The demo runs, for about a minute.")
    told = {"BROKER_URL": server.url, "BROKER_MANAGEMENT_URL": server.api_url, "COLUMNS": "300"}
    words = [sys.executable, "-m", "services.demo", "--orders", "20", "--keep"]
    ended = await asyncio.to_thread(
        subprocess.run, words, cwd=ROOT, env=os.environ | told, stdout=subprocess.PIPE, text=True, check=False
    )
    found = {name: re.search(rf"(/\S+/{name})\s", ended.stdout) for name in ("story.html", "map.html", "stop")}
    if ended.returncode or None in found.values():
        tell(ended.stdout)
        return 1
    story, map_, stop = (Path(match[1]) for match in found.values() if match is not None)
    try:
        async with browser() as chrome:
            await from_story(chrome, story)
            await from_map(chrome, map_)
            await from_management(chrome, server)
    finally:
        subprocess.run(["sh", stop], check=False, stdout=subprocess.DEVNULL)  # noqa: ASYNC221
    return 0


async def from_story(chrome: Browser, file: Path) -> None:
    """The page, and its drawing alone."""
    page = await opened(chrome, file.as_uri(), 1200, 900)
    await page.screenshot(path=FOLDER / "story.png", full_page=False)
    drawing = await page.locator("svg.sequence").first.evaluate("it => it.outerHTML")
    (FOLDER / "sequence.svg").write_text(re.sub(r"</?a\b[^>]*>", "", drawing) + "\n")


async def from_map(chrome: Browser, file: Path) -> None:
    """The page, with one event chosen."""
    page = await opened(chrome, file.as_uri(), 1200, 480)
    await page.get_by_role("button", name="New Order Placed").click()
    await page.screenshot(path=FOLDER / "map.png")


async def from_management(chrome: Browser, server: Server) -> None:
    """The queues, and a dead letter, as the management UI shows them."""
    user, password = login(server.url)
    async with httpx.AsyncClient(base_url=f"{server.management_url}/api", auth=server.login) as api:
        names = [str(it["name"]) for it in (await api.get("/vhosts")).json()]
    (vhost,) = [name for name in names if name.startswith("business-events-demo")]
    page = await opened(chrome, f"{server.management_url}/", 1180, 664)
    await page.locator("input[name=username]").fill(user)
    await page.locator("input[name=password]").fill(password)
    await page.locator("input[type=submit]").click()
    await page.goto(f"{server.management_url}/#/queues")
    await page.locator("table.list tbody tr").nth(10).wait_for()
    await page.screenshot(path=FOLDER / "management.png")
    async with Management(urlsplit(server.url)._replace(path=f"/{vhost}").geturl(), server.api_url) as management:
        item = broken_item()
        properties = {"content_type": "application/cloudevents+json", "type": item["type"], "app_id": "somebody"}
        await management.publish("events", "catalog.item.changed", json.dumps(item), properties=properties)

        async def dead() -> bool:
            return (await management.queue("order.dead")).ready > 0

        await until(dead, every=0.5)
    await page.set_viewport_size({"width": 1180, "height": 2000})  # its head stays above what is scrolled
    await page.goto(f"{server.management_url}/#/queues/{quote(vhost, safe='')}/order.dead")
    await page.locator("h2", has_text="Get messages").click()
    await page.locator("input[value='Get Message(s)']").click()
    await page.locator("#msg-wrapper table").first.wait_for()
    await page.locator("#msg-wrapper").screenshot(path=FOLDER / "dead-letter.png")


async def opened(chrome: Browser, address: str, width: int, height: int) -> Page:
    page = await chrome.new_page(viewport={"width": width, "height": height}, device_scale_factor=SHARP)
    await page.goto(address)
    return page


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
