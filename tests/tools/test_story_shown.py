"""A story as people see it: who says who should have handled it, and headings above what they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.cli.story import closing
from broker.tools.story import Subscriptions
from broker.tools.story_page import page
from tests.browser import opened
from tests.stories import Tale, standing, troubled

LEFT = """it => {
  const words = document.createRange();
  words.selectNodeContents(it);
  return words.getBoundingClientRect().left;
}"""
"""Where an element's text begins."""


@pytest.mark.parametrize(("origin", "said"), [("RabbitMQ's bindings", False), ("the code", True)])
def test_where_the_code_says_who_should_have_handled_it_people_are_told(origin: str, said: bool) -> None:
    tale = Tale().event()
    tale.expected = Subscriptions(origin, {"packing": ["order.placed"]}, silence="It is asleep.")
    told = tale.told()
    note = "Who should have handled it is what the code here says: the management API did not. It is asleep."
    assert (note in told.notes) is said
    assert (note in page(told)) is said
    assert (note in [str(line) for line in closing(told)]) is said


async def test_the_headings_of_the_table_stand_above_what_they_name(tmp_path: Path) -> None:
    file = tmp_path / "story.html"
    file.write_text(page(troubled().told(standing(), at=100)))
    async with opened(file) as chrome:
        heading = await chrome.get_by_text("event, and who got it").evaluate(LEFT)
        event = await chrome.locator("tr.event th").first.evaluate(LEFT)
        service = await chrome.locator("tbody tr:not(.event) th").first.evaluate(LEFT)
    assert heading == event < service
