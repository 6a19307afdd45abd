"""RabbitMQ's own management UI, in a real browser, shows what docs/topology.md says: people look there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from playwright.async_api import Page

from broker import Broker
from broker.settings import Settings
from broker.tools.discover import find_services
from broker.tools.management import Management
from broker.tools.node import login
from broker.tools.server import Server
from broker.topology import Topology, handlings_topology, service_topology, shared_topology
from services.demo import goods
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, ROOT, CartonWeighed
from tests.acceptance.test_map_shown import SORTING
from tests.acceptance.test_shop_processes import shop_at_work
from tests.browser import browser
from tests.waiting import until

ROWS = "rows => rows.map(row => [...row.cells].slice(0, 2).map(cell => cell.textContent.trim()))"
"""The first two cells of each row of a table, folded away or not."""


class Shown:
    """The management UI, of one virtual host."""

    def __init__(self, page: Page, address: str, vhost: str) -> None:
        self.page, self._address, self._vhost = page, address, quote(vhost, safe="")

    async def go(self, kind: str, name: str) -> None:
        """To the page of a queue or an exchange."""
        await self.page.goto(f"{self._address}/#/{kind}s/{self._vhost}/{quote(name)}")
        await self.page.locator("h1", has_text=re.compile(rf"{kind}.*{re.escape(name)}( |$)", re.IGNORECASE)).wait_for()

    async def listed(self, kind: str) -> set[str]:
        """The names in the list of queues or exchanges, less those that RabbitMQ makes itself."""
        await self.page.goto(f"{self._address}/#/{kind}s")
        begin = f"#/{kind}s/{self._vhost}/"
        links = self.page.locator(f'table.list a[href^="{begin}"]')
        await links.first.wait_for()
        found = [str(await link.get_attribute("href")).removeprefix(begin) for link in await links.all()]
        return {unquote(name) for name in found if not name.startswith("amq.")}

    async def bindings(self, kind: str, name: str) -> set[tuple[str, str]]:
        """The bindings on the page of a queue or an exchange: from where, or to where, and by which key."""
        await self.go(kind, name)
        rows = self.page.locator(".bindings-wrapper table.list tbody tr")
        await rows.first.wait_for(state="attached")
        cells: list[list[str]] = await rows.evaluate_all(ROWS)
        return {(row[0], row[1]) for row in cells if len(row) > 1}  # the default exchange's is one cell


@asynccontextmanager
async def management_ui(server: Server, url: str) -> AsyncIterator[Shown]:
    """The management UI, with somebody logged in."""
    user, password = login(server.url)
    async with browser() as chrome:
        page = await chrome.new_page(viewport={"width": 1400, "height": 1200})
        await page.goto(f"{server.management_url}/")
        await page.locator("input[name=username]").fill(user)
        await page.locator("input[name=password]").fill(password)
        await page.locator("input[type=submit]").click()
        await page.locator("#menu").wait_for()
        yield Shown(page, server.management_url, unquote(urlsplit(url).path.removeprefix("/")))


async def recorded(server: Server, url: str) -> None:
    """Return when something has been handled, and that is recorded: what is declared for it stands then."""
    async with Management(url, server.management_url) as management:

        async def bound() -> bool:
            return any(it.source == Settings().handlings_exchange for it in await management.bindings())

        await until(bound)


async def test_it_shows_the_arguments_and_bindings_of_the_documentation(
    tmp_path: Path, vhost_url: str, server: Server, start: Start
) -> None:
    (tmp_path / "sorting.py").write_text(SORTING)
    process = start(BROKER, "run", "sorting", url=vhost_url, folder=tmp_path)
    await process.logged("started")
    async with Broker(vhost_url, source="scales") as scales:
        await scales.publish(CartonWeighed(number=1))
    await recorded(server, vhost_url)
    own = service_topology("sorting", ["carton.weighed"], "events")
    wanted: Topology = shared_topology(Settings()) | handlings_topology(Settings()) | own
    async with management_ui(server, vhost_url) as shown:
        features = shown.page.locator("table.facts tr", has=shown.page.locator("th", has_text=re.compile("^Features$")))
        for queue in wanted.queues:
            await shown.go("queue", queue.name)
            await features.first.wait_for()
            text = await features.first.inner_text()
            for name, value in queue.arguments.items():
                assert re.search(rf"{name}:?\s+{re.escape(str(value))}\s", f"{text} "), (queue.name, name, text)
            bound = {(it.exchange, it.key) for it in wanted.bindings if it.queue == queue.name}
            assert await shown.bindings("queue", queue.name) == bound
        for exchange in wanted.exchanges:
            await shown.go("exchange", exchange.name)
            facts = await shown.page.locator("table.facts").first.inner_text()
            assert exchange.kind in facts
            assert re.search(r"durable:?\s+true", facts)


def documented(services: Iterable[str]) -> tuple[set[str], set[str]]:
    """The queues and exchanges that by docs/topology.md always stand there, with these services instead of packing."""
    page = (ROOT / "docs/topology.md").read_text()
    always = page.partition("## For everybody")[2].partition("While its first start")[0]
    queues, exchanges = set[str](), set[str]()
    for what, name in re.findall(r"^\| ([^|]*) \| `([^`]+)`", always, re.MULTILINE):
        if "when first needed" in what or name.startswith("x-"):
            continue
        named = {name.replace("packing", service) for service in services} if "packing" in name else {name}
        (exchanges if "exchange" in what.partition(",")[0] else queues).update(named)
    return queues, exchanges


async def test_of_the_shop_it_lists_what_the_documentation_says_and_nothing_more(
    tmp_path: Path, vhost_url: str, server: Server
) -> None:
    shop = find_services(["services"])
    listening = {service.name: service.handlers.bindings for service in shop if service.handlers}
    queues, exchanges = documented(listening)
    assert len(queues) == 2 * len(listening) + 1
    async with shop_at_work(tmp_path, vhost_url, goods.invent()), management_ui(server, vhost_url) as shown:
        await recorded(server, vhost_url)
        retries = re.compile(rf"({'|'.join(listening)})\.retry\.\w+")  # which join when something first fails
        assert {name for name in await shown.listed("queue") if not retries.fullmatch(name)} == queues
        assert await shown.listed("exchange") == exchanges
        keys = {(service, key) for service, bindings in listening.items() for key in bindings}
        assert await shown.bindings("exchange", "events") == keys | {("events.log", "#")}
