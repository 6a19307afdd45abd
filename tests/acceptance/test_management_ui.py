"""RabbitMQ's own management UI, in a real browser, shows what docs/topology.md says: people look there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from broker.settings import Settings
from broker.tools.node import login
from broker.tools.server import Server
from broker.topology import Topology, handlings_topology, service_topology, shared_topology
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER
from tests.acceptance.test_map_shown import SORTING
from tests.browser import browser


async def test_it_shows_the_queues_exchanges_and_arguments_of_the_documentation(
    tmp_path: Path, vhost_url: str, server: Server, start: Start
) -> None:
    (tmp_path / "sorting.py").write_text(SORTING)
    process = start(BROKER, "run", "sorting", url=vhost_url, folder=tmp_path)
    await process.logged("started")
    own = service_topology("sorting", ["carton.weighed"], "events")
    wanted: Topology = shared_topology(Settings()) | handlings_topology(Settings()) | own
    user, password = login(server.url)
    vhost = quote(urlsplit(vhost_url).path.removeprefix("/"), safe="")
    async with browser() as chrome:
        page = await chrome.new_page(viewport={"width": 1400, "height": 1200})
        await page.goto(f"{server.management_url}/")
        await page.locator("input[name=username]").fill(user)
        await page.locator("input[name=password]").fill(password)
        await page.locator("input[type=submit]").click()
        await page.locator("#menu").wait_for()
        for queue in wanted.queues:
            await page.goto(f"{server.management_url}/#/queues/{vhost}/{quote(queue.name)}")
            await page.locator("h1", has_text=re.compile(rf"Queue.*{queue.name}( |$)")).wait_for()
            row = page.locator("table.facts tr", has=page.locator("th", has_text=re.compile("^Features$"))).first
            await row.wait_for()
            shown = await row.inner_text()
            for name, value in queue.arguments.items():
                assert re.search(rf"{name}:?\s+{re.escape(str(value))}\s", f"{shown} "), (queue.name, name, shown)
        for exchange in own.exchanges + shared_topology(Settings()).exchanges:
            await page.goto(f"{server.management_url}/#/exchanges/{vhost}/{quote(exchange.name)}")
            await page.locator("h1", has_text=re.compile(rf"Exchange.*{exchange.name}")).wait_for()
            facts = await page.locator("table.facts").first.inner_text()
            assert exchange.kind in facts
            assert re.search(r"durable:?\s+true", facts)
