"""``broker database`` and ``broker relay``."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from typer.testing import CliRunner, Result

from broker.cli.common import app
from broker.errors import BrokerError
from broker.sql import Outgoing
from broker.sql.tables import outbox
from tests.acceptance.running import ROOT, broker
from tests.parcels import weighed

RABBITMQ_NOWHERE = "amqp://localhost:1"


def run(*words: str, url: str | None = None) -> Result:
    return CliRunner().invoke(app, words, env={"BROKER_DATABASE": url or "", "COLUMNS": "200"})


def refused(*words: str) -> BrokerError:
    """What a command ends with; `broker.cli.main` prints it, and exits with its code."""
    error = run(*words).exception
    assert isinstance(error, BrokerError)
    return error


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: Callable[[], str]) -> dict[str, str]:
    """Databases without tables."""
    return {"sqlite": f"sqlite+aiosqlite:///{tmp_path}/new.db", "postgresql": postgres_url()}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_init_creates_the_tables_once(empty_url: dict[str, str], kind: str) -> None:
    url = empty_url[kind]
    first, second = run("database", "init", url), run("database", "init", url=url)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "are created (version 1)" in first.stdout
    assert "are as they should be (version 1)" in second.stdout


def test_which_database_is_asked(tmp_path: Path) -> None:
    assert str(refused("database", "status")) == "Which database? Name it, or set BROKER_DATABASE."


def test_what_cannot_be_used_ends_with_its_own_exit_code(tmp_path: Path, postgres_url: Callable[[], str]) -> None:
    for url in (f"sqlite+aiosqlite:///{tmp_path}/typo.db", postgres_url(), "mysql://user:s3cr3t@host/name"):
        error = refused("database", "status", url)
        assert error.exit_code == 7
        assert "s3cr3t" not in str(error)


def test_sql_prints_the_script(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.executescript(run("database", "sql", "--dialect", "sqlite").stdout)
    connection.close()
    assert run("database", "status", f"sqlite+aiosqlite:///{tmp_path}/x.db").exit_code == 0
    assert "CREATE OR REPLACE FUNCTION broker_wake_relays()" in run("database", "sql").stdout
    assert run("database", "sql", "--from", "1").stdout == "UPDATE broker_version SET version = 1;\n"
    assert refused("database", "sql", "--dialect", "mysql").exit_code == 7


async def test_status_shows_what_waits_and_what_is_set_aside_and_retry_puts_it_back(
    database_url: str, database: AsyncEngine
) -> None:
    import asyncio
    from datetime import UTC, datetime

    async with AsyncSession(database) as session, session.begin():
        session.add_all(Outgoing(weighed(number), source="web") for number in range(3))
    async with database.begin() as connection:
        aside = update(outbox).where(outbox.c.id == 1)
        await connection.execute(aside.values(set_aside_at=datetime.now(UTC), reason="TooLarge: \x1b[2J it is"))

    async def told(*words: str) -> Result:
        return await asyncio.to_thread(run, *words)

    found = await told("database", "status", database_url)
    assert found.exit_code == 0, found.output
    assert "2 wait, the oldest for" in found.stdout
    assert "1 set aside" in found.stdout
    assert "TooLarge:" in found.stdout
    assert "\x1b[2J" not in found.stdout
    as_json = json.loads((await told("database", "status", "--json", database_url)).stdout)
    assert (as_json["waiting"], as_json["set_aside"], as_json["version"], as_json["inbox"]) == (2, 1, 1, [])
    assert as_json["shown"][0]["name"] == "Parcel Weighed"
    assert "1 put back in line." in (await told("database", "retry", database_url)).stdout
    assert "3 wait" in (await told("database", "status", database_url)).stdout


async def test_the_command_as_it_is_installed(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    environ = {"BROKER_DATABASE": url}
    made = await broker("database", "init", url=RABBITMQ_NOWHERE, folder=ROOT, environ=environ)
    assert (made.code, made.err) == (0, "")
    seen = await broker("database", "status", "--json", url=RABBITMQ_NOWHERE, folder=ROOT, environ=environ)
    assert seen.json["database"] == str(tmp_path / "x.db")
    relay = await broker(
        "relay", url=RABBITMQ_NOWHERE, folder=ROOT, environ=environ | {"BROKER_CONNECT_TIMEOUT": "0.2"}
    )
    assert relay.code == 3, relay.err
    assert "Traceback" not in relay.err


def test_the_command_line_needs_no_sqlalchemy_to_start() -> None:
    import subprocess

    code = "import broker.cli, sys; assert 'sqlalchemy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_shown_holds_no_password() -> None:
    from broker.sql.database import name_of

    assert "s3cr3t" not in name_of(make_url("postgresql+asyncpg://user:s3cr3t@host/name"))
