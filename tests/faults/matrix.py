"""From the results of a run to the table in docs/reliability.md.

Results of all versions are kept in docs/reliability.json, so that a run on one version keeps the other's column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.acceptance.running import ROOT

PAGE = ROOT / "docs" / "reliability.md"
STORE = ROOT / "docs" / "reliability.json"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"

Results = dict[str, dict[str, dict[str, Any]]]
"""By column (``3.10``), then by row."""
PLAIN = "BROKER_DIRECT=off"


def column(result: dict[str, Any]) -> str:
    """The release series of its version: ``4.0.5`` stands in the column ``4.0``; with plain aio-pika in another."""
    series = ".".join(result["version"].split(".")[:2])
    return series if result.get("direct", True) else f"{series} {PLAIN}"


def heading(column: str, results: Iterable[dict[str, Any]]) -> str:
    """What stands above a column: the version, and on what it ran."""
    newest = max(results, key=lambda result: [int(part) for part in result["version"].split(".")])
    on = [newest["loop"]] if "loop" in newest else []
    return ", ".join([f"RabbitMQ {newest['version']}", *on, *([PLAIN] if PLAIN in column else [])])


def load(store: Path = STORE) -> Results:
    """The results kept so far."""
    return json.loads(store.read_text()) if store.exists() else {}


def merge(kept: Results, lines: list[str], *, whole: bool) -> Results:
    """Put a run's results in; of a whole run, they replace the column, so that rows that are no more go."""
    merged = {name: dict(rows) for name, rows in kept.items()}
    run: Results = {}
    for line in lines:
        result = json.loads(line)
        if "version" in result:
            run.setdefault(column(result), {})[f"{result['row']}: {result['injected']}"] = result
    for name, rows in run.items():
        merged[name] = rows if whole else {**merged.get(name, {}), **rows}
    return merged


def table(results: Results) -> str:
    """The results as a Markdown table."""
    columns = sorted(results, key=lambda name: (PLAIN in name, [int(part) for part in name.split()[0].split(".")]))
    headings = [heading(name, results[name].values()) for name in columns]
    rows = list(dict.fromkeys(key for name in columns for key in results[name]))
    lines = [
        f"| fault | injected | {' | '.join(headings)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for key in rows:
        found = [results[name].get(key) for name in columns]
        one = next(result for result in found if result is not None)
        cells = [told(result) if result is not None else "not run" for result in found]
        lines.append(f"| {_cell(one['row'])} | {_cell(one['injected'])} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def told(result: dict[str, Any]) -> str:
    """One result in words: the balance first."""
    if not result["passed"] and "confirmed" not in result:
        return "**FAILED**"
    doors = [
        f"{result['handled']:,} handled",
        *(f"{result[door]:,} {door}" for door in ("waiting", "dead") if result[door]),
        *([f"{result['removed']:,} removed by the operator"] if result["removed"] else []),
        *(f"{number:,} {error}" for error, number in sorted(result["failed"].items())),
        *([f"{result['cancelled']:,} cancelled"] if result["cancelled"] else []),
        *([f"{result['refused']:,} refused by RabbitMQ"] if result.get("refused") else []),
        *([f"{result['twice']:,} handled twice"] if result["twice"] else []),
        *([f"noticed after {result['noticed']:.1f} s"] if "noticed" in result else []),
        *([result["note"]] if "note" in result else []),
        *([f"back after {result['recovery']:.1f} s"] if result.get("recovery") is not None else []),
    ]
    false = result["falsely_confirmed"]
    witness = f"{false:,} false" if false is not None else "the log gone, too"
    balance = f"{result['confirmed']:,} confirmed, {result['lost']:,} lost, {witness}"
    return f"{'' if result['passed'] else '**FAILED** '}**{balance}**; {', '.join(doors)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(results: Results, page: Path = PAGE, store: Path = STORE) -> None:
    """Keep the results, and put their table between the two marks of the page."""
    store.write_text(f"{json.dumps(results, indent=1)}\n")
    text = page.read_text() if page.exists() else f"# Reliability\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")
