"""What ``import broker`` gives, and what it does not load."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import broker

PUBLIC = {
    "AccessRefused",
    "Broker",
    "BrokerError",
    "ConnectionFailed",
    "Context",
    "ContractError",
    "DatabaseUnusable",
    "Envelope",
    "Event",
    "Malformed",
    "NotConfirmed",
    "PublishFailed",
    "PublishRefused",
    "Reject",
    "Retry",
    "Service",
    "Settings",
    "TooLarge",
    "TopologyConflict",
    "Unhandled",
    "UnknownEvent",
    "Unroutable",
}
PACKAGE = Path(broker.__file__).parent


def test_the_public_names_are_exactly_these() -> None:
    assert set(broker.__all__) == PUBLIC
    assert list(broker.__all__) == sorted(broker.__all__)
    visible = {name for name, it in vars(broker).items() if not name.startswith("_") and not isinstance(it, ModuleType)}
    assert visible == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_documented_down_to_its_methods(name: str) -> None:
    it = getattr(broker, name)
    undocumented = [
        member
        for member, value in vars(it).items()
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
        if not inspect.getdoc(getattr(it, member)) and not member.startswith("model_")
    ]
    assert "__doc__" in vars(it)
    assert vars(it)["__doc__"]
    assert undocumented == []


def test_types_ship() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_importing_loads_neither_the_client_nor_the_tools() -> None:
    program = "import broker, sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(ast.literal_eval(done.stdout))
    assert "pydantic" in loaded
    assert not loaded & {"aio_pika", "aiormq", "sqlalchemy", "httpx", "typer", "rich.live", "hypothesis"}


def test_only_the_transport_imports_aio_pika() -> None:
    guilty = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.partition(".")[0] in ("aio_pika", "aiormq", "pamqp")
    }
    assert guilty
    assert all(path.startswith("rabbitmq") for path in guilty)
