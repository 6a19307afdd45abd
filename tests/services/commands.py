"""What tests of the services' commands use: a way to run one, and to see what waits to be published."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
from contextlib import closing
from typing import Any

import typer
from typer.testing import CliRunner, Result


class Commands:
    """Runs a service's commands as a person would."""

    def __init__(self) -> None:
        self._runner = CliRunner()

    def __call__(self, service: str, *arguments: str, stdin: str | None = None) -> Result:
        app: typer.Typer = importlib.import_module(f"services.{service}.__main__").app
        return self._runner.invoke(app, arguments, input=stdin)

    def json(self, service: str, *arguments: str, stdin: str | None = None) -> Any:
        result = self(service, *arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def outgoing(service: str) -> list[dict[str, Any]]:
    """The events in a service's outbox, as CloudEvents, oldest first."""
    path = os.environ[f"{service.upper()}_DATABASE"].partition("///")[2]
    with closing(sqlite3.connect(path)) as connection:
        return [json.loads(body) for (body,) in connection.execute("SELECT body FROM broker_outbox ORDER BY id")]
