"""What Mermaid itself makes of maps and stories, in a real browser: diagrams in which every name is a name.

It is the package ``@mermaid-js/tiny``, Mermaid as one file, at the version of ``mermaid/package-lock.json``; npm brings
it, as `tests.node` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Page

from broker.tools.map import mermaid as map_diagram
from broker.tools.page import printable
from broker.tools.story_drawing import LABEL_MOST, cut
from broker.tools.story_drawing import mermaid as story_diagram
from tests.browser import opened
from tests.node import find_node, install
from tests.stories import order, standing, troubled
from tests.tools.test_map import HOSTILE as IN_MAPS
from tests.tools.test_map import live, map_of, shop
from tests.tools.test_story_drawing import HOSTILE as IN_STORIES
from tests.tools.test_story_drawing import hostile

PROJECT = Path(__file__).with_name("mermaid")
FILE = Path("node_modules", "@mermaid-js", "tiny", "dist", "mermaid.tiny.js")
WORDS = [
    "1. order",
    "- x",
    "_x_ __y__",
    "# head",
    "End of day",
    "subgraph",
    "click",
    "a--b",
    "$$x$$",
    "fa:fa-x",
    "http://x.y",
    "wrap:x",
]
"""What means something to Mermaid, or to the Markdown in it."""
DRAW = """async text => {
  await mermaid.parse(text);
  document.body.innerHTML = (await mermaid.render('drawn', text)).svg;
}"""
RED = "rgb(207, 34, 46)"
OF = "it => getComputedStyle(it)"

Draw = Callable[[str], Awaitable[Page]]


@pytest.fixture
async def draw(tmp_path: Path, pytestconfig: pytest.Config) -> AsyncIterator[Draw]:
    """Has Mermaid draw something; returns the page on which it stands. No error, no dialog and no request goes by."""
    assert pytestconfig.cache is not None
    cache = Path(pytestconfig.cache.mkdir("asyncapi"))  # where Node.js may be already
    node = await asyncio.to_thread(find_node, cache)
    script = await asyncio.to_thread(install, node, PROJECT, cache) / FILE
    file = tmp_path / "mermaid.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><script src="{script.as_uri()}"></script><body></body>')
    async with opened(file) as chrome:
        await chrome.evaluate("mermaid.initialize({startOnLoad: false})")

        async def draw(text: str) -> Page:
            await chrome.evaluate(DRAW, text)
            return chrome

        yield draw


async def lines(chrome: Page) -> list[str]:
    """What is to be read."""
    return [line.strip() for line in (await chrome.inner_text("body")).splitlines() if line.strip()]


def seen(name: str) -> str:
    """How a name is to be read."""
    return printable(" ".join(cut(name, LABEL_MOST).split()))


async def test_a_map_is_drawn_with_its_depths_and_what_does_not_fit_is_red(draw: Draw) -> None:
    chrome = await draw(map_diagram(map_of(shop(), live())))
    assert {"scales", "packing", "2 waiting, 2 dead, 0/s", "Parcel Weighed", "parcel.*"} <= set(await lines(chrome))

    names = ["packing", "packing.dead", "crm-orders", "watching", "events.log"]
    chrome = await draw(map_diagram(map_of(shop(), live(names, [("packing", "parcel.lost")], consumers=0))))
    assert "2 waiting, 2 dead, no consumer" in await lines(chrome)
    red = [
        (await label.inner_text()).partition("\n")[0]
        for label in await chrome.locator(".node .nodeLabel").all()
        if await label.evaluate(f"{OF}.color") == RED
    ]
    assert sorted(red) == ["crm-orders", "packing", "watching"]
    paths = [
        (await it.evaluate(f"{OF}.stroke") == RED, "edge-pattern-dotted" in (await it.get_attribute("class") or ""))
        for it in await chrome.locator("path.flowchart-link").all()
    ]
    assert sorted(paths) == [(False, False)] * 2 + [(True, False)] + [(True, True)] * 4


async def test_stories_are_drawn(draw: Draw) -> None:
    shown = await lines(await draw(story_diagram(order().told())))
    assert shown.count("New Order Placed") == 3
    assert shown.count("Order Packed") == 4
    shown = await lines(await draw(story_diagram(troubled().told(standing(), at=100))))
    assert "New Order Placed: failed, again in 1s: CartonMissing" in shown


async def test_hostile_names_are_read_as_they_are(draw: Draw) -> None:
    names = [*IN_MAPS, *WORDS]
    chrome = await draw(map_diagram(map_of(shop(), live(["packing", *names], [(name, name) for name in names]))))
    assert {seen(name) for name in names} <= set(await lines(chrome))
    for name in [*IN_STORIES, *WORDS]:
        chrome = await draw(story_diagram(hostile(name)))
        assert seen(name or "?") in await lines(chrome)
        assert await chrome.locator("body script, body img, body a").count() == 0
