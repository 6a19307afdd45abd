"""A replay reaches no further back than the inbox of the service remembers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker import Retry, Service, Settings
from broker.tools.log import Part
from broker.tools.replay import remembered, within_memory

HOUR = timedelta(hours=1)


class Log:
    """One message a minute, from number ``first`` on; the next would be stored now."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    async def place(self, begin: datetime) -> int:
        minutes = (datetime.now(UTC) - begin) / timedelta(minutes=1)
        return max(self.first, self.end - round(minutes))


@given(first=st.integers(0, 50), size=st.integers(0, 500), begin=st.integers(0, 600), hours=st.integers(0, 10))
async def test_it_begins_where_it_was_asked_to_or_where_the_memory_does(
    first: int, size: int, begin: int, hours: int
) -> None:
    log: Any = Log(first, first + size)
    asked = Part(max(first, min(begin, log.end)), log.end)
    got = await within_memory(asked, log, hours * HOUR)
    assert got.end == asked.end
    assert got.begin == max(asked.begin, first, log.end - 60 * hours)


def test_what_an_inbox_remembers_covers_ladder_log_and_dead_letters() -> None:
    service = Service("packing", database="sqlite+aiosqlite:///packing.db", retry=Retry("1h", "1d"))
    assert remembered(Settings(), service) == timedelta(days=1 + 7 + 30 + 1) + HOUR
    assert remembered(Settings(inbox_max_age="60D"), service) == timedelta(days=60)
