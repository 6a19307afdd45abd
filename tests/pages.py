"""Results of test runs, put where they belong in docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.running import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Put a text between the marks of that name, which are made if they are not there."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = page.read_text() if page.exists() else "# Reliability\n"
    if begin not in whole:
        whole = f"{whole.rstrip()}\n\n{begin}\n{end}\n"
    before, _, rest = whole.partition(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")
