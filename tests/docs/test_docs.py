"""What README and docs say is so: settings, names, links, exit codes, and code that compiles and type-checks."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
from pydantic import SecretStr

import broker.errors
from broker import BrokerError, Settings
from broker.retry import Delay
from broker.tools.discover import find_services
from broker.tools.rights import reader_permissions, replay_permissions
from broker.topology import (
    backfill_topology,
    operator_permissions,
    publisher_permissions,
    retry_topology,
    service_permissions,
    service_topology,
    shared_topology,
)
from services.contracts import NewOrderPlaced, OrderDispatched, OrderPacked

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"^# (\w+\.py)\n")


def shown(default: object) -> str:
    """A default as one would write it into the environment."""
    match default:
        case None:
            return ""
        case bool():
            return "`on`" if default else "`off`"
        case SecretStr():
            return f"`{default.get_secret_value()}`"
        case tuple():
            return f"`{','.join(default)}`"
    return f"`{default}`"


def settings_table() -> str:
    """The settings as docs/configuration.md must list them."""
    rows = [
        f"| `BROKER_{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def test_configuration_lists_every_setting() -> None:
    assert settings_table() in (ROOT / "docs/configuration.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_pages_compiles(page: Path) -> None:
    for number, block in enumerate(BLOCK.findall(page.read_text())):
        compile(block, f"{page.name}, block {number}", "exec")


def names_in(page: Path) -> set[str]:
    return set(re.findall(r"`(broker(?:\.\w+)+)`", page.read_text()))


@pytest.mark.parametrize("name", sorted({name for page in PAGES for name in names_in(page)}))
def test_a_function_that_a_page_names_exists(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return
    pytest.fail(f"no module holds {name}")


def test_the_arguments_of_queues_are_those_declared() -> None:
    page = (ROOT / "docs/topology.md").read_text()
    packing = service_topology("packing", ["order.placed"], "events") | retry_topology("packing", Delay.parse("1s"))
    packing |= backfill_topology("packing")
    for queue in (shared_topology(Settings()) | packing).queues:
        (row,) = [row for row in page.splitlines() if f"| `{queue.name}`" in row and "x-queue-type" in row]
        assert re.findall(r"`(x-[^`]+)`", row) == [f"{name}={value}" for name, value in queue.arguments.items()]


def test_the_permissions_are_those_computed() -> None:
    page = (ROOT / "docs/topology.md").read_text()
    placed, packed = ["order.placed"], ["order.packed"]
    for user, granted in (
        ('publishes "New Order Placed"', publisher_permissions(Settings(), placed)),
        ("looks at packing's dead letters and sends them back", operator_permissions("packing")),
        ("reads the event log", reader_permissions(Settings())),
        ("replays to packing", replay_permissions("packing", Settings())),
        ("the service packing", service_permissions("packing", Settings(), patterns=placed, publishes=packed)),
        (
            "the service packing, if it backfills",
            service_permissions("packing", Settings(), patterns=placed, publishes=packed, backfill=True),
        ),
    ):
        cells = [f"`{cell}`".replace("|", "\\|") for cell in astuple(granted)]
        assert " | ".join([f"| {user}", *cells]) in page


def test_the_picture_of_the_sequence_has_its_ten_arrows() -> None:
    """No more and no less."""
    picture = (ROOT / "docs/pictures/sequence.svg").read_text()
    arrows = re.findall(r"<title>(\w+) ─ ([\w ]+) → (\w+)</title>", picture)
    assert len(arrows) == 10
    services = find_services(["services"])
    assert set(arrows) == {
        (publisher.name, event.__contract__.name, subscriber.name)
        for publisher in services
        for event in (NewOrderPlaced, OrderPacked, OrderDispatched)
        for subscriber in services
        if event in publisher.publishes and event in subscriber.handlers.events
    }


def test_the_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]* \| ([^|]*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    said = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert said
    assert said == {name: getattr(broker.errors, name).exit_code for name in said}
    known = {error.__name__ for error in BrokerError.__subclasses__() if error.__module__ == "broker.errors"}
    assert {name for name in known if getattr(broker.errors, name).exit_code > 1} - set(said) <= {"PublishFailed"}


def write_examples(folder: Path) -> None:
    """Blocks that begin with their file's name are complete; web.py needs FastAPI, which is not ours to install."""
    for page in (ROOT / "README.md", ROOT / "docs/testing.md"):
        for number, block in enumerate(BLOCK.findall(page.read_text())):
            named = NAMED.match(block)
            name = named[1] if named else f"test_{page.stem.lower()}_{number}.py"
            (folder / name).write_text(block)
    (folder / "web.py").unlink()


def run(*words: str, folder: Path) -> str:
    """What a module, run as ``python -m``, prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "MYPYPATH": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout + done.stderr


def test_complete_examples_pass_mypy_strict(tmp_path: Path) -> None:
    write_examples(tmp_path)
    said = run("mypy", "--strict", "--cache-dir", str(tmp_path / ".cache"), ".", folder=tmp_path)
    assert "Success" in said, said


def test_the_tests_that_the_pages_show_pass(tmp_path: Path) -> None:
    write_examples(tmp_path)
    said = run("pytest", "-q", "-o", "asyncio_mode=auto", folder=tmp_path)
    assert "4 passed" in said, said
