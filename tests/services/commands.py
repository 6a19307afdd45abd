"""What tests of the services' commands use: a broker that only remembers, and a way to run a command."""

from __future__ import annotations

import importlib
import json
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import typer
from typer.testing import CliRunner, Result

from broker import BrokerError, Event


class Remembering:
    """Stands where `broker.Broker` does."""

    def __init__(self) -> None:
        self.published: list[tuple[Event, UUID | None]] = []
        self.connecting: BrokerError | None = None
        self.publishing: BrokerError | None = None
        self.sources: set[str] = set()

    def __call__(self, *, source: str, settings: Any) -> Self:
        self.sources.add(source)
        return self

    async def __aenter__(self) -> Self:
        if self.connecting:
            raise self.connecting
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def publish(self, event: Event, *, id: UUID | None = None) -> UUID:  # noqa: A002
        if self.publishing:
            raise self.publishing
        self.published.append((event, id))
        return id or uuid4()

    async def publish_many(self, events: list[Event]) -> list[UUID]:
        if self.publishing:
            raise ExceptionGroup("not confirmed", [self.publishing])
        return [await self.publish(event) for event in events]

    @property
    def events(self) -> list[Event]:
        return [event for event, _ in self.published]


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
