"""Real processes for acceptance tests: started, signalled, and their words read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker import Event
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
BROKER = str(Path(sys.executable).with_name("broker"))
"""The command as it is installed."""
PATIENCE = 60.0
"""Seconds after which a process that has not ended, or not said something, will not. A loaded machine needs many."""


class CartonWeighed(Event, name="Carton Weighed", key="carton.weighed", subject="number"):
    """As the service ``sorting`` of several tests declares it, in a folder of its own."""

    number: int


@dataclass(frozen=True)
class Ended:
    """A command that has run to its end."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as a program reads it."""
        return json.loads(self.out)


def environment(url: str, **settings: str) -> dict[str, str]:
    """This RabbitMQ and these settings, JSON logs, and none of the caller's own settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    defaults = {"BROKER_URL": url, "BROKER_LOGGING_FORMAT": "json", "BROKER_LOGGING_LEVEL": "debug"}
    return inherited | defaults | settings


async def command(
    *words: str,
    url: str,
    folder: Path = ROOT,
    stdin: str | bytes = b"",
    environ: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
) -> Ended:
    """Run a command to its end, its log lines switched down to warnings as for people."""
    told = environment(url, BROKER_LOGGING_LEVEL="warning") | dict(environ or {})
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env=told,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(patience):
            out, err = await process.communicate(stdin.encode() if isinstance(stdin, str) else stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def broker(
    *arguments: str, url: str, folder: Path = ROOT, stdin: str | bytes = b"", environ: Mapping[str, str] | None = None
) -> Ended:
    """Run the command ``broker``."""
    return await command(BROKER, *arguments, url=url, folder=folder, stdin=stdin, environ=environ)


class Process:
    """A process that goes on running; what it says is kept in files. It may join a process group."""

    def __init__(
        self,
        words: tuple[str, ...],
        folder: Path,
        environ: Mapping[str, str],
        output: Path,
        *,
        group: int | None = None,
    ) -> None:
        self._out, self._err = output.with_suffix(".out"), output.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                words,
                cwd=folder,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=group,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return self._err.read_text()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log lines it has written, all or those of one name."""
        complete = self.err.rpartition("\n")[0].splitlines()
        parsed = [json.loads(line) for line in complete if line.startswith("{")]
        return [line for line in parsed if event in (None, line["event"])]

    async def logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until it has written that log line so many times; returns the last.

        Raises:
            AssertionError: it ended, or the time is up, without; what it wrote is shown.
        """

        def enough() -> bool:
            done = self._process.poll() is not None
            found = len(self.lines(event)) >= count
            assert found or not done, f"ended with {self._process.returncode} before {event!r}:\n{self.err}"
            return found

        try:
            await until(enough, PATIENCE)
        except AssertionError as error:
            error.add_note(self.err)
            raise
        return self.lines(event)[-1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone. Once more does nothing."""
        self._process.kill()
        self._process.wait()

    async def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; returns its exit code, negative when a signal ended it."""
        await until(lambda: self._process.poll() is not None, timeout)
        assert self._process.returncode is not None
        return self._process.returncode
