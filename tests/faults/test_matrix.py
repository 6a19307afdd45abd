"""The table of the fault matrix: made from results, a column for each version, failures seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults.matrix import load, merge, table, told, write


def result(row: str, version: str, **changes: Any) -> str:
    told: dict[str, Any] = {"row": row, "injected": "kill -9", "passed": True, "version": version, "confirmed": 1200}
    told |= {"handled": 1199, "waiting": 0, "dead": 1, "failed": {"NotConfirmed": 3}, "cancelled": 0, "twice": 2}
    told |= {"lost": 0, "removed": 0, "falsely_confirmed": 0, "recovery": 0.52, "restarts": 0}
    return json.dumps(told | changes)


def test_a_row_has_a_cell_for_each_version() -> None:
    results = merge({}, [result("a", "3.10.8"), result("a", "4.0.5"), result("b", "4.0.5")], whole=True)
    head, _, first, second = table(results).splitlines()
    assert head == "| fault | injected | RabbitMQ 3.10.8 | RabbitMQ 4.0.5 |"
    cell = (
        "**1,200 confirmed, 0 lost, 0 false**; 1,199 handled, 1 dead, 3 NotConfirmed, 2 handled twice, back after 0.5 s"
    )
    assert first == f"| a | kill -9 | {cell} | {cell} |"
    assert second == f"| b | kill -9 | not run | {cell} |"


def test_what_ran_on_plain_aio_pika_stands_in_a_column_of_its_own_after_the_others() -> None:
    rows = [result("a", "3.10.8", loop="asyncio", direct=False), result("a", "3.10.8", loop="asyncio", direct=True)]
    head, _, row = table(merge({}, [*rows, result("a", "4.0.5", loop="uvloop")], whole=True)).splitlines()
    assert head == (
        "| fault | injected | RabbitMQ 3.10.8, asyncio | RabbitMQ 4.0.5, uvloop "
        "| RabbitMQ 3.10.8, asyncio, BROKER_DIRECT=off |"
    )
    assert row.count("1,200 confirmed") == 3


def test_a_failure_shows() -> None:
    assert told({"passed": False}) == "**FAILED**"
    lost = told(json.loads(result("a", "4.0.5", passed=False, lost=7)))
    assert lost.startswith("**FAILED** **1,200 confirmed, 7 lost, 0 false**")


def test_without_the_log_nobody_can_say_what_was_confirmed_falsely() -> None:
    gone = told(json.loads(result("a", "4.0.5", falsely_confirmed=None)))
    assert gone.startswith("**1,200 confirmed, 0 lost, the log gone, too**")


def test_a_run_on_one_version_keeps_the_other_and_a_part_keeps_the_rest(tmp_path: Path) -> None:
    page, store = tmp_path / "page.md", tmp_path / "store.json"
    page.write_text("# Title\n\nBefore.\n\n<!-- matrix -->\nold\n<!-- /matrix -->\n\nAfter.\n")
    both = [result(row, version) for row in "ab" for version in ("3.10.8", "4.0.5")]
    write(merge(load(store), both, whole=True), page, store)
    write(merge(load(store), [result("a", "4.0.5", twice=99)], whole=False), page, store)
    text = page.read_text()
    assert text.startswith("# Title\n\nBefore.\n\n<!-- matrix -->")
    assert text.endswith("<!-- /matrix -->\n\nAfter.\n")
    assert text.count("99 handled twice") == 1
    assert text.count("| 2 handled twice") + text.count(", 2 handled twice") == 3
    assert "old" not in text

    write(merge(load(store), [result("a", "4.0.5")], whole=True), page, store)
    assert "| b | kill -9 |" in page.read_text()
    assert page.read_text().count("not run") == 1
